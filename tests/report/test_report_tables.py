from __future__ import annotations

import dataclasses
import io
import re

import pytest
from rich.console import Console

from hsbench.report import console_for, markdown, render, render_sweep
from hsbench.results import MeasuredCeiling


def printed(*reports, width=100, show=render, **options) -> str:
    stream = io.StringIO()
    show(list(reports), Console(file=stream, width=width, **options))
    return stream.getvalue()


def line_of(text: str, method: str) -> str:
    return next(line for line in text.splitlines() if re.match(rf"{re.escape(method)}\*?\+? ", line))


def spread_out(report):
    """Every kind of row at its widest."""
    source = report(tensors="/data/captures/llama-3.1-8b-long-context.safetensors#layers.12", sink=64, local=256)
    for result in source.results:
        result.record.measures.throttled, result.record.measures.baseline = True, "sdpa:mem-efficient-rows"
        result.record.measures.sm_clock_mhz, result.record.measures.power_w = 1410.0, 698.2
        result.record.measures.throttle_reasons, result.record.measures.throttled_share = (
            "hw_slowdown+hw_thermal_slowdown",
            0.5,
        )
        result.record.measures.shared = True
        result.record.measures.peak_bytes = result.record.measures.estimated_bytes = (
            result.record.measures.gpu_used_bytes
        ) = 140 << 30
    return source


def test_rows_fit_100_columns(report):
    for source in (report(), spread_out(report), report(phase="prefill", q_len=131072)):
        for show in (render, render_sweep):
            text = printed(source, show=show)
            assert max(map(len, text.splitlines())) <= 100, text


def test_nothing_is_cut(report):
    source = spread_out(report)
    for width in (40, 80, 100, 200):
        text = printed(source, width=width)
        flat = "".join(text.split())
        assert "…" not in text
        for result in source.results:
            record = result.record
            assert record.method in text
            if record.reason:
                assert "".join(record.reason.split()) in flat
            for component in result.memory:
                assert component in text
        assert "".join(source.workload.tensors.split()) in flat


def test_what_a_row_says(report):
    text = printed(report())
    assert re.search(
        r"4\.57 4\.48-4\.71 +1\.62x \[1\.57, 1\.67\] .* 80% +288\.0 1\.78x +2\.1e-4$",
        line_of(text, "hierarchical"),
    )
    assert re.search(r"7\.40 .* baseline .* 512\.0 1\.00x", line_of(text, "dense"))
    assert "1.01x inconclusive" in line_of(text, "unstructured")
    assert "unstructured [0.98, 1.04]: the interval of the speedup holds 1" in text
    heading = " ".join(text.splitlines()[:2])
    for words in (
        "decode Llama-3.1-8B",
        "128k tokens",
        "batch 1",
        "32 q / 8 kv heads",
        "fp16",
        "cpu",
        "gaussian",
    ):
        assert words in heading
    assert "sparsity 0.5 (achieved 0.4998)" in heading and "baseline dense" in heading


def test_columns_line_up(report):
    lines = printed(report()).splitlines()
    rows = [line_of("\n".join(lines), name) for name in ("sdpa:mem-efficient-rows", "dense", "hierarchical")]
    header = next(line for line in lines if line.startswith("method"))
    assert len({len(row) for row in rows} | {len(header)}) == 1
    assert len({row.index(".") for row in rows}) == 1


def test_footers(report):
    source = report()
    source.machine["warnings"] = ["other processes use 31% of the cores: stop them and run again"]
    source.results[4].note = "read one page twice"
    text = printed(source)
    assert "read probe, 91.20 GB/s, measured here in this run" in text
    assert "budget: sdpa:mem-efficient-rows 5; converged: dense 41, hierarchical 41, unstructured 41" in text
    assert "cold (working set)" in text
    assert "hierarchical: read one page twice" in text
    assert "warning    other processes use 31%" in text
    assert "missing    CUDA library: no nvcc was found; install the CUDA toolkit" in text
    assert "AMD EPYC 9654 96-Core Processor, 4 cores, 4 threads used, AVX-512" in text
    assert "dense methods  512.0 MiB\n" in text
    assert "288.0 MiB (1.78x smaller) = 2:4 values 256.0 + metadata 32.0 + map <0.1" in text


def sustained(source, seconds):
    for result in source.results:
        result.record.case = dataclasses.replace(result.record.case, sustain_s=seconds)


def test_what_was_sustained_is_said(report):
    source = report()
    for seconds in (None, 0.0):
        sustained(source, seconds)
        for show in (render, render_sweep):
            assert "sustained" not in printed(source, show=show)
        assert "sustained" not in markdown([source])
    sustained(source, 0.3)
    words = "each method alone for 0.3 s before each of its samples"
    text = printed(source)
    assert text.count(f"cache      cold (working set)\nsustained  {words}\n") == text.count("sustained") == 1
    assert printed(source, report(), show=render_sweep).count(f"sustained  {words}\n") == 1
    assert f"- cache: cold (working set)\n- sustained: {words}\n" in markdown([source])


def test_peaks_by_name_where_there_are_several(report):
    source = report(phase="prefill", q_len=131072)
    source.results[3].record.measures.ceiling = "gemm fp32"
    source.ceilings["gemm fp32"] = MeasuredCeiling("gemm fp32", 0.42, "TFLOP/s")
    text = " ".join(printed(source).split())
    assert "TFLOP/s peak" in text
    assert "gemm fp32 probe, 0.420 TFLOP/s, measured here in this run; percentages are of it (dense)" in text


def test_reasons_stand_in_place_of_numbers_and_wrap_beside_the_name(report):
    lines = printed(report()).splitlines()
    at = lines.index(next(line for line in lines if line.startswith("reference")))
    assert lines[at].startswith("reference                oom: the estimate of 34.0 GiB")
    assert lines[at + 1].startswith(" " * 25) and not lines[at + 1].startswith(" " * 26)


def test_a_failed_check_is_loud_and_has_no_speedup(report, row_failed):
    source = report()
    wrong = row_failed(source.workload, "hierarchical", "incorrect", "above the limit of 1e-3", rel_error=0.31)
    wrong.record.measures.speedup = 9.87
    wrong.record.measures.baseline = "dense"
    source.results[4] = wrong
    for text in (printed(source), printed(source, show=render_sweep), markdown([source])):
        assert "INCORRECT" in text and "9.87" not in text
        assert "hierarchical failed the check against the fp32 reference:" in " ".join(text.split())
    assert "INCORRECT: above the limit of 1e-3 (error 3.1e-1)" in printed(source)


def test_throttled_rows_are_marked(report):
    source = report()
    source.results[4].record.measures.throttled, source.results[4].record.measures.sm_clock_mhz = True, 1410.0
    text = printed(source)
    assert line_of(text, "hierarchical").startswith("hierarchical* ")
    assert "* hierarchical (1410 MHz): the clock was held down" in text
    assert "throttled  * the clock was held down while sampling: hierarchical in 1" in printed(
        source, show=render_sweep
    )


def test_a_cpu_quota_is_no_clock(report):
    source = report()
    source.machine["cpu"] |= {"cores": 4, "quota_cores": 0.25}
    for result in source.results[4:]:
        seen = result.record.measures
        seen.throttled, seen.throttle_reasons, seen.throttled_share = True, "cpu_quota", 0.5
    text = printed(source)
    assert "* hierarchical (cpu_quota, 50% of samples)" in text and "clock" not in text
    assert "a CPU quota stopped the threads while sampling" in text.replace("\n           ", " ")
    assert "4 cores, of which a quota allows 0.25, 4 threads used" in text
    source.machine["cpu"]["quota_cores"] = 8
    assert "quota allows" not in printed(source), "a quota of more than there is limits nothing"


def test_throttle_reasons_are_named(report):
    source = report()
    record = source.results[4].record
    record.measures.throttled, record.measures.throttle_reasons, record.measures.throttled_share = (
        True,
        "sw_power_cap",
        0.832,
    )
    assert "* hierarchical (sw_power_cap, 83% of samples): the clock was held down" in printed(source)


def test_rows_of_a_shared_run_are_marked(report):
    source = report()
    for result in source.results[2:]:
        result.record.measures.shared = True
    source.results[4].record.measures.throttled = True
    for text in (printed(source), markdown([source]).replace("\\", "")):
        assert re.search(r"hierarchical\*\+ ", text) and re.search(r"dense\+ ", text)
        assert "+ others used the device while these were sampled" in text
    text = printed(source, show=render_sweep)
    assert "shared     + others used the device meanwhile, in 1 of 1 cells" in text
    assert "+7.40 ms" in text and "*+4.57 ms" in text
    source.results[4].record.measures.shared = False
    assert re.search(r"^hierarchical\* ", printed(source), re.MULTILINE)


def test_telemetry_spans_the_methods(report):
    source = report()
    for at, result in enumerate(source.results[3:]):
        record = result.record
        record.measures.sm_clock_mhz, record.measures.memory_clock_mhz = 1980.0 - 100 * at, 3201.0
        record.measures.power_w, record.measures.temperature_c = 400.0 + at, 41.0 + at
    text = " ".join(printed(source).split())
    assert "telemetry SM 1780-1980 MHz, memory 3201 MHz, 400-402 W, 41-43 C" in text
    assert "telemetry" not in printed(report())


def test_the_gpu_and_how_it_is_set(report):
    source = report()
    source.machine["gpu"] = {"name": "NVIDIA H200", "driver": "580.1", "power_limit_w": 700.0, "ecc": True}
    source.machine["gpu"] |= {"mig": False, "persistence": None, "ecc_errors": None}
    assert "gpu        NVIDIA H200, driver 580.1, limit 700 W, ECC on, MIG off\n" in printed(source)
    source.machine["gpu"] = dict.fromkeys(source.machine["gpu"]) | {"name": "NVIDIA H200"}
    assert "gpu        NVIDIA H200\n" in printed(source)


def test_memory_taken_stands_under_a_heading(report):
    source = report()
    for result in source.results[3:]:
        result.record.measures.estimated_bytes, result.record.measures.peak_bytes = 700 << 20, 520 << 20
    lines = printed(source).splitlines()
    at = next(at for at, line in enumerate(lines) if re.fullmatch(r"memory MiB +peak +estimated", line))
    assert lines[at + 1].split() == ["sdpa:mem-efficient-rows"]  # of which nothing is known
    assert lines[at + 2].split() == ["dense", "520.0", "700.0"]
    assert "| memory MiB" in markdown([source])
    for result in source.results[3:]:
        result.record.measures.gpu_used_bytes = 12 << 30
    assert re.search(r"^memory MiB +peak +estimated +GPU in use$", printed(source), re.MULTILINE)
    assert re.search(r"^dense +520\.0 +700\.0 +12288$", printed(source), re.MULTILINE)
    for result in source.results:  # an estimate alone is no news
        result.record.measures.peak_bytes = result.record.measures.gpu_used_bytes = None
    assert "estimated" not in printed(source)


def test_without_a_baseline_nothing_is_compared(report):
    source = report()
    for result in source.results:
        record = result.record
        record.measures.baseline = record.measures.speedup = record.measures.speedup_lo = record.measures.speedup_hi = (
            None
        )
    text = printed(source)
    assert "no baseline: no dense method ran" in " ".join(text.split())
    assert "4.57 4.48-4.71" in line_of(text, "hierarchical") and "[" not in line_of(text, "hierarchical")
    assert "none ran" in printed(source, show=render_sweep)


def test_rows_with_nothing_but_a_name_are_fine(report, row_ok, workload):
    source = report()
    empty = row_ok(workload(), "hierarchical", 1.0, {"map": 1})
    empty.memory = {"map": 0}
    for name in (
        "time_us",
        "time_us_p25",
        "time_us_p75",
        "samples",
        "speedup",
        "speedup_lo",
        "kv_bytes",
        "kv_ratio",
        "gb_per_s",
        "percent_of_ceiling",
        "ceiling",
        "rel_error",
        "cold_by",
        "throttled",
    ):
        setattr(empty.record.measures, name, None)
    source.results = [empty]
    source.machine, source.ceilings = {}, {}
    for show in (render, render_sweep):
        assert "hierarchical" in printed(source, show=show)
    assert "hierarchical" in markdown([source])
    assert printed(show=render) == printed(show=render_sweep) == ""


def test_an_interrupted_run_says_so(report, row_failed):
    source = report()
    source.interrupted = True
    source.results[5] = row_failed(source.workload, "unstructured", "interrupted", None)
    text = printed(source)
    assert re.search(r"^unstructured +interrupted$", text, re.MULTILINE)
    assert "the run was interrupted" in text and "the run was interrupted" in printed(source, show=render_sweep)


def test_piped_output_is_plain_and_as_wide_as_it_needs(report, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    stream = io.StringIO()
    render([report()], console_for(stream))
    assert "\x1b" not in stream.getvalue()
    assert "KV MiB ratio" in stream.getvalue()
    assert stream.getvalue() == printed(report(), width=80)


def test_a_terminal_has_colour_and_no_color_takes_it(report, monkeypatch):
    coloured = re.compile(r"\x1b\[[0-9;]*3[0-7][0-9;]*m")
    assert coloured.search(printed(report(), force_terminal=True))
    monkeypatch.setenv("NO_COLOR", "1")
    text = printed(report(), force_terminal=True)
    assert not coloured.search(text)
    assert re.sub(r"\x1b\[[0-9;]*m", "", text) == printed(report())


def test_an_ascii_stream_gets_ascii(report):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", write_through=True)
    render([report()], console_for(stream))
    render_sweep([report()], console_for(stream))
    text = raw.getvalue().decode("ascii")
    assert "heads x 128 - fp16" in text and "\n-----" in text and "\\u" not in text


def test_narrow_terminals_get_the_cache_in_its_own_lines(report):
    text = printed(report(), width=80, force_terminal=True, no_color=True)
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in text.splitlines()]
    assert max(map(len, lines)) <= 80
    assert not any("KV MiB" in line for line in lines)
    assert any("288.0 MiB (1.78x smaller)" in line for line in lines)


def test_sweep(report, row_failed):
    cells = [report(seq=seq, hierarchical_us=time) for seq, time in ((8192, 7500.0), (32768, 6000.0))]
    last = report(seq=131072, phase="prefill", q_len=131072, hierarchical_us=8000.0)
    last.results[5] = row_failed(last.workload, "unstructured", "unsupported", "decode only")
    text = printed(*cells, last, show=render_sweep)
    assert max(map(len, text.splitlines())) <= 100, text
    rows = [line for line in text.splitlines() if line.startswith(("decode", "prefill"))]
    assert " ".join(rows[0].split()) == "decode 8k 0.5 dense 7.40 ms 7.50 ms ~0.99x 1.78x 7.35 ms ~1.01x 1.60x"
    assert re.search(r"32k .* 1\.23x ", rows[1])
    assert re.search(r"^prefill +128k .* 0\.93x .* unsupported$", rows[2])
    flat = " ".join(text.split())
    assert "of 3 cells: faster than the baseline in 1 (1.23x), slower in 1 (0.93x), inconclusive in 1" in flat
    assert "of 3 cells: inconclusive in 2, not compared in 1" in flat
    assert "unstructured unsupported in 1: decode only" in text
    assert text.splitlines()[0] == "summary · Llama-3.1-8B · batch 1 · heads 32/8×128 · fp16 · gaussian · cpu"


def test_sweep_shows_what_varies(report):
    text = printed(report(batch=1, key_sparsity=0.25), report(batch=8), show=render_sweep)
    assert re.search(r"phase +seq +batch +sparsity", text)
    assert "0.25/0.5" in text
    assert "batch 1" not in text.splitlines()[0]


def test_markdown(report):
    source = report()
    source.results[0].record.reason = "a | b"
    text = markdown([source, report(seq=32768)])
    assert text.count("\n### decode Llama-3.1-8B") + text.startswith("### decode") == 2
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in table}) == 1
    assert "- reference: oom: a \\| b" in text
    assert re.search(r"\| hierarchical +\| +4\.57 4\.48-4\.71 \| +1\.62x \[1\.57, 1\.67\] \|", text)
    assert text.count("AMD EPYC") == 1


def test_markdown_of_nothing():
    assert markdown([]).strip() == ""


@pytest.mark.parametrize("times", [[0.4, 0.9], [950.0, 12_000.0], [3e6, 8e6]])
def test_the_time_unit_suits_the_table(report, times):
    source = report()
    source.results = source.results[3:5]
    for result, time in zip(source.results, times, strict=True):
        result.record.measures.time_us = time
    unit = {0.4: "us", 950.0: "ms", 3e6: "s"}[times[0]]
    assert f"time {unit} " in printed(source)
