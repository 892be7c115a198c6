"""Kernels by method: the join of work and samples, what each profiler's own words become, and how it is shown."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from hsbench.kernels.device import CPU, CUDA
from hsbench.profiling.base import ProfilerError
from hsbench.profiling.ncu import parse_raw
from hsbench.profiling.nsys_export import read_export
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


@pytest.fixture
def export(tmp_path: Path) -> Path:
    path = tmp_path / "an export?.sqlite"
    change(path, (DATA / "nsys_export.sql").read_text())
    return path


def change(export: Path, sql: str) -> None:
    with closing(sqlite3.connect(export)) as database:
        database.executescript(sql)


def test_kernels_of_nsys_by_method(export: Path) -> None:
    """The memset and the fill, which lie in no sample, are left out, and so are ranges of another domain."""
    has_ranges, lines = read_export(export, CUDA)
    assert has_ranges and told(lines) == EXPECTED


def test_calls_into_the_os_by_method(export: Path) -> None:
    """Of the thread that ran the samples; a call inside a call is part of it."""
    has_ranges, lines = read_export(export, CPU)
    unseen = "outside the OS (compiled code, Python)"
    assert has_ranges and told(lines) == [
        ("dense", unseen, 2, 2 * 2850.0 - 285),
        ("dense", "pthread_cond_wait", 1, 285.0),
        ("sdpa:flash", unseen, 1, 1450.0 - 290),
        ("sdpa:flash", "pthread_mutex_lock", 1, 290.0),
    ]


def test_nsys_without_calls_into_the_os(export: Path) -> None:
    change(export, "DROP TABLE OSRT_API")
    assert [(line.method, line.calls) for line in read_export(export, CPU)[1]] == [("dense", 2), ("sdpa:flash", 1)]


def test_nsys_keeps_a_domains_name_with_the_strings(export: Path) -> None:
    change(
        export,
        "INSERT INTO StringIds VALUES (30, 'hsbench');"
        "UPDATE NVTX_EVENTS SET text = NULL, textId = 30 WHERE text = 'hsbench'",
    )
    assert told(read_export(export, CUDA)[1]) == EXPECTED


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("DELETE FROM NVTX_EVENTS WHERE eventType = 59", (False, [])),  # a domain and nothing in it
        ("UPDATE NVTX_EVENTS SET domainId = 2 WHERE eventType = 59", (False, [])),  # another's ranges alone
        ("DROP TABLE NVTX_EVENTS", (False, [])),
        ("DROP TABLE CUPTI_ACTIVITY_KIND_RUNTIME", (True, [])),  # ours, and no CUDA
    ],
)
def test_nsys_without_ranges_or_without_cuda(export: Path, sql: str, expected: tuple[bool, list[Line]]) -> None:
    change(export, sql)
    assert read_export(export, CUDA) == expected


def test_an_export_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("no database, and longer than the head of one would be: " + 99 * "x")
    with pytest.raises(ProfilerError, match="cannot be read"):
        read_export(tmp_path / "x", CUDA)


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
    assert told(parse_trace([*events, *RANGES], CPU)) == [
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
    assert told(parse_trace([*events, *RANGES], CUDA)) == [
        ("dense", "decode_kernel", 1, 90),
        ("sdpa:math", "flash_fwd", 1, 40),
    ]


def test_a_sample_outside_a_method_is_none() -> None:
    assert parse_trace([event("user_annotation", "sample", 0, 10)], CPU) == []


# ---- As it is shown ----------------------------------------------------------------------------------------
def test_the_table() -> None:
    lines = [Line("dense", "a", 3, 60.0, {"DRAM": "90%"}), Line("dense", "b", 6, 40.0), Line("sdpa", "c", 3, 7.0)]
    assert summary_lines(lines) == [
        "method  kernel  calls  share  DRAM",
        "dense   a           3    60%   90%",
        "        b           6    40%",
        "sdpa    c           3   100%",
    ]
    assert summary_lines(lines, "OS call")[0] == "method  OS call  calls  share  DRAM"


def test_many_kernels_are_few_lines() -> None:
    lines = [Line("m", f"k{n}", 1, busy) for n, busy in enumerate([50.0, 30, 10, 5, 3, 1.9, 0.1])]
    shown = summary_lines(lines)
    assert [row.split() for row in shown[-2:]] == [["k3", "1", "5%"], ["3", "others", "3", "5%"]]
    shown = summary_lines([Line("m", "large", 1, 999.0), Line("m", "small", 4, 1.0)])
    assert shown[-1].split() == ["1", "others", "4", "<1%"]


def test_a_long_name_is_cut() -> None:
    (_, row) = summary_lines([Line("m", "k" * 200, 1, 1.0)])
    assert len(row) < 100 and "..." in row
