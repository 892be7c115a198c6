"""Kernels by method: the join of work and samples, what each profiler's own words become, and how it is shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from hsbench.profiling.ncu import parse_raw
from hsbench.profiling.nsys import parse_stats
from hsbench.profiling.summary import Line, Span, joined, short_name, summary_lines
from hsbench.profiling.torch_trace import parse_trace

DATA = Path(__file__).parent / "data"


def told(lines: list[Line]) -> list[tuple[str, str, int, float]]:
    return [(line.method, line.kernel, line.calls, line.busy) for line in lines]


# ---- The join ----------------------------------------------------------------------------------------------
def test_work_belongs_to_the_sample_in_which_its_middle_lies() -> None:
    samples = [Span("b", 100, 200), Span("a", 0, 50), Span("b", 300, 400)]
    work = [
        Span("k", 0, 10), Span("k", 45, 54), Span("k", 47, 60),  # in a, just in, just out
        Span("k", 60, 90), Span("m", 100, 200), Span("k", 310, 320), Span("k", 399, 500), Span("k", 500, 501),
    ]  # fmt: skip
    assert told(joined(work, samples)) == [("a", "k", 2, 19), ("b", "m", 1, 100), ("b", "k", 1, 10)]


def test_work_that_was_only_launched_in_a_sample_has_its_own_length() -> None:
    assert told(joined([Span("k", 0, 2, busy=50.0)], [Span("a", 0, 10)])) == [("a", "k", 1, 50.0)]


@pytest.mark.parametrize("samples", [[], [Span("a", 5, 6)]])
def test_without_a_match_there_are_no_lines(samples: list[Span]) -> None:
    assert joined([Span("k", 0, 1)], samples) == []


@pytest.mark.parametrize(
    ("kernel", "short"),
    [
        ("void hsb::cuda::decode_kernel<__half, (int)128>(hsb::cuda::DecodeArguments)", "decode_kernel"),
        ("void (anonymous namespace)::softmax_warp<float>(float*)", "softmax_warp"),
        ("void at::native::<unnamed>::cat<int>(int)", "cat"),
        ("cudnn_generated_fort_native_sdpa_sm90_knob_3", "cudnn_generated_fort_native_sdpa_sm90_knob_3"),
        ("[CUDA memset]", "[CUDA memset]"),
        ("Memset (Device)", "Memset"),
    ],
)
def test_short_names(kernel: str, short: str) -> None:
    assert short_name(kernel) == short


# ---- nsys --------------------------------------------------------------------------------------------------
EXPECTED = [
    ("dense", "decode_kernel", 2, 3600.0),
    ("dense", "merge_kernel", 2, 200.0),
    ("sdpa:flash", "flash_fwd_splitkv_kernel", 1, 1000.0),
]


def test_kernels_of_nsys_by_method() -> None:
    """The memset and the fill, which lie in no sample, are left out."""
    assert told(parse_stats((DATA / "nsys_stats.csv").read_text())) == EXPECTED


@pytest.mark.parametrize("domain", ["", ":"])
def test_nsys_of_other_versions(domain: str) -> None:
    """Names without the domain; reports in the other order; no empty line between them."""
    text = (DATA / "nsys_stats.csv").read_text().replace("hsbench:", domain)
    first, second = (part for part in text.split("Processing ")[1:])
    assert told(parse_stats(f"Processing {second.strip()}\nProcessing {first}")) == EXPECTED


@pytest.mark.parametrize("said", ["", "SKIPPED: x.sqlite does not contain NV Tools Extension (NVTX) data.\n"])
def test_nsys_without_anything(said: str) -> None:
    assert parse_stats(said) == []


# ---- ncu ---------------------------------------------------------------------------------------------------
def test_kernels_of_ncu() -> None:
    lines = parse_raw((DATA / "ncu_raw.csv").read_text(), "hierarchical")
    assert told(lines) == [("hierarchical", "decode_kernel", 2, 3900.0), ("hierarchical", "merge_kernel", 1, 100.0)]
    assert lines[0].metrics == {"SM": "32%", "memory": "90%", "DRAM": "89%", "warps": "12%", "registers": "96"}


def test_ncu_without_kernels() -> None:
    assert parse_raw("==WARNING== No kernels were profiled.\n", "dense") == []


# ---- torch -------------------------------------------------------------------------------------------------
def event(cat: str, name: str, ts: float, dur: float, *, tid: int = 1, **args: object) -> dict[str, object]:
    return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "pid": 1, "tid": tid, "args": args}


RANGES = [
    event("user_annotation", "dense", 0, 100),
    event("user_annotation", "prepare", 1, 39),
    event("user_annotation", "sample", 40, 60),
    event("user_annotation", "sdpa:math", 100, 100),
    event("user_annotation", "sample", 110, 80),
]


def test_operators_count_without_what_they_call() -> None:
    events = [
        event("cpu_op", "aten::fill_", 5, 10),  # the poison, in no sample
        event("cpu_op", "aten::matmul", 110, 50),
        event("cpu_op", "aten::bmm", 120, 30),
        event("cpu_op", "aten::bmm", 165, 20),
        event("cpu_op", "aten::copy_", 110, 80, tid=2),  # another thread's
        {"ph": "i", "name": "no duration", "ts": 3},
    ]
    assert told(parse_trace([*events, *RANGES], "cpu")) == [
        ("dense", "outside torch (compiled code, Python)", 1, 60),
        ("sdpa:math", "aten::bmm", 2, 50),
        ("sdpa:math", "aten::matmul", 1, 20),
        ("sdpa:math", "outside torch (compiled code, Python)", 1, 10),
    ]


def test_kernels_count_where_they_were_launched() -> None:
    """The device may run them later, and its clock may differ."""
    events = [
        event("cuda_runtime", "cudaLaunchKernel", 20, 1, correlation=1),
        event("cuda_runtime", "cudaLaunchKernel", 45, 1, correlation=2),
        event("cuda_driver", "cuLaunchKernelEx", 120, 1, correlation=3),
        event("kernel", "void at::fill<float>(float)", 500, 30, tid=7, correlation=1),
        event("kernel", "void hsb::cuda::decode_kernel<__half>(A)", 530, 90, tid=7, correlation=2),
        event("kernel", "flash_fwd", 620, 40, tid=7, correlation=3),
        event("kernel", "unknown", 700, 40, tid=7, correlation=4),
    ]
    assert told(parse_trace([*events, *RANGES], "cuda")) == [
        ("dense", "decode_kernel", 1, 90),
        ("sdpa:math", "flash_fwd", 1, 40),
    ]


def test_a_sample_outside_a_method_is_none() -> None:
    assert parse_trace([event("user_annotation", "sample", 0, 10)], "cpu") == []


# ---- As it is shown ----------------------------------------------------------------------------------------
def test_the_table() -> None:
    lines = [Line("dense", "a", 3, 60.0, {"DRAM": "90%"}), Line("dense", "b", 6, 40.0), Line("sdpa", "c", 3, 7.0)]
    assert summary_lines(lines) == [
        "method  kernel  calls  share  DRAM",
        "dense   a           3    60%   90%",
        "        b           6    40%",
        "sdpa    c           3   100%",
    ]


def test_many_kernels_are_few_lines() -> None:
    lines = [Line("m", f"k{n}", 1, busy) for n, busy in enumerate([50.0, 30, 10, 5, 3, 1.9, 0.1])]
    shown = summary_lines(lines)
    assert [row.split() for row in shown[-2:]] == [["k3", "1", "5%"], ["3", "others", "3", "5%"]]
    shown = summary_lines([Line("m", "large", 1, 999.0), Line("m", "small", 4, 1.0)])
    assert shown[-1].split() == ["1", "others", "4", "<1%"]


def test_a_long_name_is_cut() -> None:
    (_, row) = summary_lines([Line("m", "k" * 200, 1, 1.0)])
    assert len(row) < 100 and "..." in row
