"""A workload from tensors to report: statuses, baseline, speedups, what goes wrong and when, ranges, quiet samples.

Small workloads on the CPU with tiny budgets. Methods made up here join the registry for one test.
"""

from __future__ import annotations

import os
import random
import re
import statistics
import sys
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import hsbench.methods
from hsbench import measure
from hsbench.attention.reference import attention
from hsbench.errors import NonFiniteError, UnavailableError, UnsupportedError, UsageError
from hsbench.kernels import library
from hsbench.kernels.device import CPU, CUDA
from hsbench.machine import ceilings
from hsbench.machine.hardware import resolve_device
from hsbench.measure import cache as cache_module
from hsbench.methods.base import Method, Prepared
from hsbench.problem.captured import open_captured
from hsbench.problem.inputs import Inputs
from hsbench.problem.phase import DECODE
from hsbench.problem.workload import Workload, make_workload
from hsbench.results import Report, Result
from hsbench.run import accounting, measuring
from hsbench.run.measuring import run_workload
from hsbench.run.observer import Observer
from hsbench.run.settings import Settings

MISSING = library.why_missing("cpu")
needs_native = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
OURS = (
    "dense",
    "dense:fp8",
    "dense:int4",
    "hierarchical",
    "hierarchical:fp8",
    "hierarchical:int4",
    "evict",
    "unstructured",
)
QUICK = Settings(budget_s=0.05, min_samples=3, max_samples=3, target=0.0, cache="warm")


@pytest.fixture(autouse=True)
def quiet_machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A ceiling that is quick to measure, two threads, and nobody else's load in the report."""

    def ceiling(device: str, kind: str) -> measure.Ceiling:
        return measure.Ceiling(kind, "GB/s", 1e-3, lambda: time.sleep(1e-4), "native")

    monkeypatch.setattr(ceilings, "ceiling", ceiling)
    monkeypatch.setattr(measure, "OtherLoad", lambda: types.SimpleNamespace(share=lambda: 0.0))
    before = torch.get_num_threads()
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    yield
    torch.set_num_threads(before)


def decode(**overrides: Any) -> Workload:
    return make_workload("decode", **({"q_heads": 4, "kv_heads": 2, "head_dim": 64, "seq": 300} | overrides))


def prefill(**overrides: Any) -> Workload:
    return make_workload("prefill", **({"q_heads": 4, "kv_heads": 2, "head_dim": 64, "seq": 150} | overrides))


def run(workload: Workload, *methods: str, settings: Settings = QUICK, **options: Any) -> Report:
    return run_workload(workload, methods=methods or None, device=CPU, settings=settings, **options)


def statuses(report: Report) -> dict[str, str]:
    return {result.record.method: result.record.status for result in report.results}


def by_method(report: Report) -> dict[str, Result]:
    return {result.record.method: result for result in report.results}


# ---- Methods made up for a test ----------------------------------------------------------------------------
Hook = Callable[[int], None]


def nothing(_: int) -> None:
    pass


@dataclass(kw_only=True)
class FakePrepared(Prepared):
    right: torch.Tensor
    method: FakeMethod
    runs: int = 0

    def run(self) -> None:
        self.runs += 1
        self.method.on_run(self.runs)
        time.sleep(self.method.sleep_s)
        if self.method.lazy(self.runs):
            return
        self.out.copy_(self.right)
        if self.method.wrong(self.runs):
            self.out[..., -1] += 1

    def poison(self) -> None:
        super().poison()
        self.method.on_poison(self.runs)


@dataclass
class FakeMethod(Method):
    """Writes the right output, unless ``wrong(n)`` or, for no output at all, ``lazy(n)`` says so of the n-th run."""

    name: str
    dense: bool = False
    wrong: Callable[[int], bool] = field(default=lambda n: False)
    lazy: Callable[[int], bool] = field(default=lambda n: False)
    on_run: Hook = nothing
    on_poison: Hook = nothing
    on_prepare: Callable[[], Any] = lambda: None
    sleep_s: float = 0.0

    def prepare(self, workload: Workload, inputs: Inputs) -> Prepared:
        self.on_prepare()
        right = attention(inputs.q, inputs.k, inputs.v)[0].to(inputs.q.dtype)
        return FakePrepared(out=torch.empty_like(right), memory={"dense": 1000}, right=right, method=self)


@pytest.fixture
def given_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds A B C A B C, for tests that count the turns before something happens."""
    monkeypatch.setattr(random.Random, "shuffle", lambda self, turns: None)


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts methods named ``fake:...`` into the registry."""

    def put(*methods: FakeMethod) -> None:
        module = types.ModuleType("hsbench.methods.fake")
        module.methods = lambda phase, device: list(methods)
        monkeypatch.setitem(sys.modules, "hsbench.methods.fake", module)
        monkeypatch.setattr(hsbench.methods, "FAMILIES", (*hsbench.methods.FAMILIES, "fake"))

    return put


def raises(error: BaseException, *, at: int = 0) -> Callable[..., None]:
    """A hook that raises, from the ``at``-th run on."""

    def hook(count: int = 0) -> None:
        if count >= at:
            raise error

    return hook


class Log(Observer):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.samples: list[tuple[str, int]] = []
        self.elapsed: list[float] = []
        self.warnings: list[str] = []
        self.results: list[Result] = []

    def stage(self, text: str) -> None:
        self.stages.append(text)

    def sampled(self, method: str, done: int, total_hint: int | None, elapsed_s: float) -> None:
        self.samples.append((method, done))
        self.elapsed.append(elapsed_s)

    def warning(self, text: str) -> None:
        self.warnings.append(text)

    def finished(self, result: Result) -> None:
        self.results.append(result)


# ---- End to end --------------------------------------------------------------------------------------------
def check_rows(report: Report) -> None:
    """What holds for the rows of any report."""
    rows = [result.record for result in report.results]
    ok = {row.method: row for row in rows if row.status == "ok"}
    dense = [row for row in ok.values() if row.case.dense]
    baseline = min(dense, key=lambda row: row.measures.time_us) if dense else None
    for result in report.results:
        row = result.record
        if row.status != "ok" or baseline is None:
            assert (row.measures.speedup, row.measures.speedup_lo, row.measures.speedup_hi, row.measures.baseline) == (
                None,
            ) * 4
            continue
        assert row.measures.baseline == baseline.method
        assert row.measures.speedup == pytest.approx(baseline.measures.time_us / row.measures.time_us)
        assert row.measures.speedup_lo <= row.measures.speedup <= row.measures.speedup_hi
        assert row.measures.time_us_p25 <= row.measures.time_us <= row.measures.time_us_p75
        assert row.reason is None and 0 <= row.measures.rel_error < 8e-3
        assert row.measures.kv_bytes == row.measures.read_bytes == sum(result.memory.values())
        assert row.measures.kv_ratio == pytest.approx(report.workload.dense_kv_bytes / row.measures.kv_bytes)
        if row.case.phase == "decode":
            assert row.measures.tflop_per_s is None
            rate = row.measures.gb_per_s
            assert rate == pytest.approx(row.measures.kv_bytes / (row.measures.time_us * 1e3))
        else:
            assert row.measures.gb_per_s is None
            rate = row.measures.tflop_per_s
            assert rate == pytest.approx(report.workload.flops / (row.measures.time_us * 1e6))
        assert row.measures.percent_of_ceiling == pytest.approx(
            100 * rate / report.ceilings[row.measures.ceiling].value
        )
        assert row.measures.samples == 3 and row.measures.stop == "max_samples"
    if baseline is not None:
        assert (baseline.measures.speedup, baseline.measures.speedup_lo, baseline.measures.speedup_hi) == (
            1.0,
            1.0,
            1.0,
        )


def test_the_steps_after_which_compression_has_paid() -> None:
    class Millisecond:
        def time(self, run: Callable[[], None]) -> float:
            run()
            return 1e-3

    def note(gain_s: float) -> str:
        return accounting.compress_note(decode(), 1000, lambda: None, Millisecond(), gain_s)

    assert note(0.4e-3).endswith("; paid for after 3 steps") and note(1e-9).endswith("after 1,000,000 steps")
    assert "paid" not in note(0.0) and "paid" not in note(-1e-3)


@pytest.mark.slow
@needs_native
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_decode(dtype: str) -> None:
    log = Log()
    report = run(decode(dtype=dtype, key_sparsity=0.25, seq=640), observer=log)
    assert set(statuses(report).values()) == {"ok"} and not report.interrupted
    assert list(statuses(report)) == [method.name for method in hsbench.methods.find_methods(None, DECODE, CPU)]
    check_rows(report)
    rows = by_method(report)
    hierarchical = rows["hierarchical"]
    assert hierarchical.record.measures.achieved_sparsity == pytest.approx(0.375)
    assert "prunes and packs K and V in" in hierarchical.note and rows["dense"].note == ""
    assert {"dense", "2:4 values", "metadata", "map"} == set(hierarchical.memory)
    assert rows["dense"].record.measures.achieved_sparsity is None
    assert hierarchical.record.measures.kv_bytes < rows["dense"].record.measures.kv_bytes
    assert hierarchical.record.case.cache == "warm"
    # The observer saw each row once, as the report has it, and every sample.
    assert log.results == report.results
    for name in statuses(report):
        assert [done for method, done in log.samples if method == name] == [1, 2, 3]
    assert all(0 < elapsed < 60 for elapsed in log.elapsed)
    names = [name for name, _ in log.samples]
    rounds = [names[i : i + len(rows)] for i in range(0, len(names), len(rows))]
    assert all(sorted(taken) == sorted(rows) for taken in rounds), "everyone once in a round"
    assert len(set(map(tuple, rounds))) > 1, "rounds have orders of their own"


@needs_native
def test_prefill_of_a_chunk() -> None:
    report = run(prefill(q_len=40))
    rows = statuses(report)
    assert rows.pop("unstructured") == "unsupported"
    assert set(rows.values()) == {"ok"} and "reference" not in rows
    check_rows(report)
    unsupported = by_method(report)["unstructured"].record
    assert (
        "decode only" in unsupported.reason
        and unsupported.measures.time_us is None
        and unsupported.measures.kv_bytes is None
    )
    assert list(report.ceilings) == ["gemm"]


@needs_native
def test_cold_is_the_default_and_real(monkeypatch: pytest.MonkeyPatch) -> None:
    flushes = []
    monkeypatch.setattr(cache_module, "Flusher", lambda device: lambda: flushes.append(device))
    cold = Settings(budget_s=0.05, min_samples=3, max_samples=3, target=0.0)
    report = run(decode(), "dense:16bit", "hierarchical:16bit", settings=cold)
    assert {(row.record.case.cache, row.record.measures.cold_by) for row in report.results} == {("cold", "flushed")}
    assert flushes == [CPU] * 8  # each method: a warm-up and three samples
    monkeypatch.setattr(cache_module, "last_level_cache_bytes", lambda device: 1024)
    report = run(decode(), "dense:16bit", "hierarchical:16bit", settings=cold)
    assert {row.record.measures.cold_by for row in report.results} == {"working set"} and len(flushes) == 8


@pytest.mark.parametrize("cache", ["cold", "warm"])
@pytest.mark.usefixtures("given_order")
def test_a_method_is_sustained_before_all_else(register: Any, monkeypatch: pytest.MonkeyPatch, cache: str) -> None:
    """Its own runs, then poison, then the caches, so that neither is undone. The probe's, too."""
    log: list[str] = []
    monkeypatch.setattr(cache_module, "Flusher", lambda device: lambda: log.append("flush"))
    monkeypatch.setattr(measure, "settle", lambda: log.append("settle"))

    def ceiling(device: str, kind: str) -> measure.Ceiling:
        return measure.Ceiling(kind, "GB/s", 1e-3, lambda: log.append("probe"), "native")

    def twice(run: Callable[[], None], seconds: float, device: str) -> None:
        log.append(f"{seconds:g} s on {device}")
        run()
        run()

    def method(name: str) -> FakeMethod:
        return FakeMethod(
            f"fake:{name}", on_run=lambda n: log.append(name), on_poison=lambda n: log.append(f"poison {name}")
        )

    monkeypatch.setattr(ceilings, "ceiling", ceiling)
    monkeypatch.setattr(measure, "sustain", twice)
    register(method("a"), method("b"))
    settings = Settings(budget_s=9, min_samples=2, max_samples=2, target=0.0, cache=cache, sustain_s=0.3)
    report = run(decode(), "fake", settings=settings)
    assert [row.record.case.sustain_s for row in report.results] == [0.3, 0.3]
    begins = "0.3 s on cpu"

    def turn(name: str) -> list[str]:
        return [begins, name, name, f"poison {name}", "flush" if cache == "cold" else name, "settle", name]

    probe = [begins, "probe", "probe", "settle", "probe"]
    assert log[log.index(begins) :] == 3 * (turn("a") + turn("b") + probe), "a warm-up and two samples"


def test_sustaining_takes_its_time_from_the_budget(register: Any) -> None:
    counts: dict[str, int] = {}
    register(FakeMethod("fake:a", on_run=lambda n: counts.update(a=n)))
    settings = Settings(budget_s=0.2, min_samples=3, max_samples=200, target=0.0, cache="warm", sustain_s=0.05)
    row = by_method(run(decode(), "fake", settings=settings))["fake:a"].record
    assert (row.measures.stop, row.case.sustain_s) == ("budget", 0.05) and 3 <= row.measures.samples <= 4
    assert counts["a"] > 5 * row.measures.samples, "run after run of it, in 50 ms"


def test_a_row_without_samples_tells_what_was_asked_all_the_same(register: Any) -> None:
    register(
        FakeMethod("fake:a"),
        FakeMethod("fake:wrong", wrong=lambda n: True),
        FakeMethod("fake:full", on_prepare=raises(MemoryError())),
    )
    rows = {name: result.record for name, result in by_method(run(decode(), "fake")).items()}
    assert {
        name: (row.status, row.case.cache, row.case.sustain_s, row.measures.cold_by) for name, row in rows.items()
    } == {
        "fake:a": ("ok", "warm", 0.0, None),
        "fake:wrong": ("incorrect", "warm", 0.0, None),
        "fake:full": ("oom", "warm", 0.0, None),
    }


def test_a_method_that_fails_while_it_is_sustained_fails_alone(register: Any) -> None:
    # The first run is the check's; the second is the first to be sustained.
    register(FakeMethod("fake:a"), FakeMethod("fake:b", on_run=raises(MemoryError(), at=2)))
    settings = Settings(budget_s=9, min_samples=2, max_samples=2, target=0.0, sustain_s=1e-3)
    assert statuses(run(decode(), "fake", settings=settings)) == {"fake:a": "ok", "fake:b": "oom"}


def test_the_facts_of_the_machine_come_along() -> None:
    report = run(decode(), "sdpa:flash")
    assert {"cpu", "gpu", "versions", "missing", "warnings"} <= set(report.machine)
    case, cpu = report.results[0].record.case, report.machine["cpu"]
    assert (case.threads, case.isa) == (cpu["threads"], cpu["isa"])
    assert report.machine["cpu"]["threads"] == torch.get_num_threads() and report.machine["gpu"] is None
    assert report.machine["versions"]["torch"] == torch.__version__
    assert report.machine["warnings"] == []


def test_a_shared_machine_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "OtherLoad", lambda: types.SimpleNamespace(share=lambda: 0.37))
    log = Log()
    report = run(decode(), "sdpa:flash", observer=log)
    assert log.warnings == report.machine["warnings"] and "37%" in log.warnings[0] and "stop them" in log.warnings[0]
    assert [result.record.measures.shared for result in report.results] == [True]
    monkeypatch.setattr(measure, "OtherLoad", lambda: types.SimpleNamespace(share=lambda: 0.05))
    assert run(decode(), "sdpa:flash").results[0].record.measures.shared is False
    monkeypatch.setattr(measure, "OtherLoad", lambda: types.SimpleNamespace(share=lambda: None))
    assert run(decode(), "sdpa:flash").results[0].record.measures.shared is None


class StoppedAt(measure.QuotaWatch):
    """A quota of a quarter core that stops every second sample of sdpa:flash."""

    def __init__(self) -> None:
        self.cores, self._stopped = 0.25, {}
        self.begun = 0

    def before(self) -> None:
        self.begun += 1

    def after(self, tag: str) -> None:
        samples = self._stopped.setdefault(tag, [])
        samples.append(tag == "sdpa:flash" and len(samples) % 2 == 0)


def test_a_quota_is_named_and_nobody_else_is_blamed(monkeypatch: pytest.MonkeyPatch) -> None:
    watches: list[StoppedAt] = []

    def watch() -> StoppedAt:
        watches.append(StoppedAt())
        return watches[-1]

    monkeypatch.setattr(measure, "QuotaWatch", watch)
    monkeypatch.setattr(measure, "OtherLoad", lambda: types.SimpleNamespace(share=lambda: 0.37))
    log = Log()
    report = run(decode(), "sdpa:flash", "reference", observer=log)
    assert log.warnings == report.machine["warnings"] and len(log.warnings) == 1
    assert "a CPU quota of 0.25 cores stopped the" in log.warnings[0] and "others" not in log.warnings[0]
    records = [by_method(report)[name].record for name in ("sdpa:flash", "reference")]
    assert [record.marks for record in records] == ["*", ""]
    flash, reference = (record.measures for record in records)
    assert (flash.throttled, flash.throttle_reasons) == (True, "cpu_quota")
    assert flash.throttled_share == pytest.approx(2 / 3)
    assert (reference.throttled, reference.throttle_reasons, reference.throttled_share) == (False, None, 0.0)
    assert flash.shared is reference.shared is None
    turns = flash.samples + reference.samples
    assert watches[0].begun == turns + 2, "and the warm-ups, which count for nobody"


# ---- Telemetry and memory ----------------------------------------------------------------------------------
def test_a_throttled_or_shared_gpu_is_one_warning() -> None:
    seen = types.SimpleNamespace(
        summary=lambda: measure.TelemetrySummary(throttled=True, reasons=("sw_power_cap",)), shared=True, seen={7: None}
    )
    load = types.SimpleNamespace(share=lambda: 0.9)
    shared, text = measuring.company(CUDA, load, measure.QuotaWatch(), seen)
    assert shared is True and text is not None
    assert "sw_power_cap" in text and "process 7" in text and "cores" not in text


@pytest.mark.slow
def test_memory_is_that_of_the_method(register: Any) -> None:
    def blocks(size: int) -> Callable[..., None]:
        return lambda n=0: torch.ones(size << 18).sum()  # MiB of fp32, and gone

    register(
        FakeMethod("fake:prepares", dense=True, on_prepare=blocks(192)),
        FakeMethod("fake:runs", on_run=blocks(320)),
        FakeMethod("fake:frugal"),
    )
    rows = {name: result.record for name, result in by_method(run(decode(), "fake")).items()}
    if rows["fake:frugal"].measures.peak_bytes is None:
        pytest.skip("this system does not let a process reset its peak")
    peaks = {name: row.measures.peak_bytes >> 20 for name, row in rows.items()}
    assert 190 <= peaks["fake:prepares"] < 250 and 315 <= peaks["fake:runs"] < 380 and peaks["fake:frugal"] < 64


@pytest.mark.slow
@needs_native
def test_estimates_hold() -> None:
    """For every method of decode, at a size where the caches are what counts."""
    for result in run(decode(q_heads=8, head_dim=128, seq=128 << 10)).results:
        row = result.record
        assert row.status == "ok" and row.measures.estimated_bytes is not None
        if row.measures.peak_bytes is not None:
            assert row.measures.peak_bytes < row.measures.estimated_bytes * 1.1 + (32 << 20), row.method


def test_a_row_that_does_not_fit_says_what_was_estimated(register: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeMethod, "estimate_bytes", lambda self, workload: 30 << 30)
    monkeypatch.setattr(measure, "free_memory", lambda device: measure.FreeMemory(8 << 30))
    register(FakeMethod("fake:large"))
    row = by_method(run(decode(), "fake"))["fake:large"].record
    assert (row.status, row.measures.estimated_bytes, row.measures.peak_bytes) == ("oom", 30 << 30, None)


def test_nothing_runs_for_a_usage_error() -> None:
    log = Log()
    with pytest.raises(UsageError):
        run(decode(), "dense", "no-such-method", observer=log)
    assert log.stages == log.results == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu() -> None:
    with pytest.raises(UnavailableError, match="--device cuda"):
        resolve_device("cuda")


# ---- Wrong results -----------------------------------------------------------------------------------------
def test_a_wrong_output_is_never_fast(register: Any) -> None:
    """Not timed against, not the baseline, though it is by far the fastest dense method."""
    register(
        FakeMethod("fake:wrong", dense=True, wrong=lambda n: True),
        FakeMethod("fake:right", dense=True, sleep_s=0.02),
        FakeMethod("fake:slow", dense=True, sleep_s=0.05),
        FakeMethod("fake:pruned", sleep_s=0.01),
    )
    report = run(decode(), "fake")
    rows = {name: result.record for name, result in by_method(report).items()}
    assert statuses(report) == {
        "fake:wrong": "incorrect",
        "fake:right": "ok",
        "fake:slow": "ok",
        "fake:pruned": "ok",
    }
    wrong = rows["fake:wrong"]
    assert "relative error" in wrong.reason and wrong.measures.rel_error > 1e-3
    assert wrong.measures.speedup is None and wrong.measures.baseline is None
    assert wrong.measures.time_us < rows["fake:right"].measures.time_us
    assert {row.measures.baseline for row in rows.values() if row is not wrong} == {"fake:right"}
    assert rows["fake:right"].measures.speedup == 1.0 and rows["fake:slow"].measures.speedup < 0.7
    assert rows["fake:pruned"].measures.speedup > 1.4


@pytest.mark.parametrize("kind", ["wrong", "lazy"])
def test_what_breaks_after_the_first_check_is_caught(register: Any, kind: str) -> None:
    """Also where nothing is written any more: the right answer of the run before was poisoned."""
    register(
        FakeMethod("fake:late", dense=True, **{kind: lambda n: n > 2}),
        FakeMethod("fake:good", dense=True, sleep_s=0.005),
    )
    report = run(decode(), "fake")
    assert statuses(report) == {"fake:late": "incorrect", "fake:good": "ok"}
    late = by_method(report)["fake:late"].record
    said = {"wrong": "relative error", "lazy": "the output is not finite everywhere"}[kind]
    assert late.reason.startswith(f"after the timed runs: {said}")
    assert (late.measures.speedup, late.measures.baseline) == (None, None)
    assert by_method(report)["fake:good"].record.measures.baseline == "fake:good"


def test_an_output_that_is_never_written_is_caught(register: Any) -> None:
    register(FakeMethod("fake:lazy", dense=True, lazy=lambda n: True))
    report = run(decode(), "fake")
    assert statuses(report) == {"fake:lazy": "incorrect"}
    assert by_method(report)["fake:lazy"].record.reason.startswith("the output is not finite everywhere")


def test_without_a_right_dense_method_there_is_no_speedup(register: Any) -> None:
    register(FakeMethod("fake:wrong", dense=True, wrong=lambda n: True), FakeMethod("fake:pruned"))
    report = run(decode(), "fake")
    assert statuses(report) == {"fake:wrong": "incorrect", "fake:pruned": "ok"}
    assert all(row.record.measures.speedup is None and row.record.measures.baseline is None for row in report.results)
    assert by_method(report)["fake:pruned"].record.measures.time_us > 0


# ---- Rows that cannot run ----------------------------------------------------------------------------------
def test_what_does_not_fit_by_estimate_is_a_row(register: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Large(FakeMethod):
        def estimate_bytes(self, workload: Workload) -> int:
            return 30 << 30

        def prepare(self, workload: Workload, inputs: Inputs) -> Prepared:
            raise AssertionError("must not be prepared")

    register(Large("fake:large"), FakeMethod("fake:small", dense=True))
    monkeypatch.setattr(measure, "free_memory", lambda device: measure.FreeMemory(8 << 30))
    report = run(decode(), "fake", "sdpa:flash")
    assert statuses(report) == {"fake:large": "oom", "fake:small": "ok", "sdpa:flash": "ok"}
    reason = by_method(report)["fake:large"].record.reason
    assert re.match(r"needs about 3\d\.\d GiB, 8\.0 GiB is free: give a smaller --seq", reason)
    monkeypatch.setattr(measure, "free_memory", lambda device: None)  # a system that does not tell
    register(FakeMethod("fake:small", dense=True))
    assert statuses(run(decode(), "fake")) == {"fake:small": "ok"}


def test_the_tensors_count_in_the_estimate(register: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    workload = decode(seq=4096)
    register(FakeMethod("fake:any"))  # takes nothing itself
    log = Log()
    monkeypatch.setattr(measure, "free_memory", lambda device: measure.FreeMemory(workload.dense_kv_bytes - 1))
    assert statuses(run(workload, "fake", observer=log)) == {"fake:any": "oom"}
    assert not any("generating" in stage for stage in log.stages), "nothing is made where no row can run"


def torch_out_of_memory() -> None:
    torch.empty(1 << 50, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("failure", "status", "reason"),
    [
        (raises(UnsupportedError("no such shape")), "unsupported", "no such shape"),
        (raises(UnavailableError("no such unit: buy one")), "unavailable", "no such unit: buy one"),
        (raises(MemoryError()), "oom", "ran out of memory: give a smaller --seq"),
        (raises(torch.OutOfMemoryError("CUDA out of memory")), "oom", "ran out of memory"),
        (torch_out_of_memory, "oom", "ran out of memory"),
    ],
    ids=["unsupported", "unavailable", "MemoryError", "CUDA", "torch"],
)
def test_a_failure_to_prepare_is_a_row(register: Any, failure: Any, status: str, reason: str) -> None:
    log = Log()
    register(FakeMethod("fake:bad", dense=True, on_prepare=failure), FakeMethod("fake:good", dense=True))
    report = run(decode(), "fake", observer=log)
    assert statuses(report) == {"fake:bad": status, "fake:good": "ok"}
    bad = by_method(report)["fake:bad"].record
    assert bad.reason.startswith(reason)
    assert (bad.measures.speedup, bad.measures.time_us, bad.measures.kv_bytes) == (None,) * 3
    assert log.results[0].record is bad, "told at once, not at the end"


@pytest.mark.parametrize("at", [1, 2, 4], ids=["in the check", "in the warm-up", "in a sample"])
def test_a_failure_to_run_is_a_row(register: Any, at: int) -> None:
    settings = Settings(budget_s=0.05, min_samples=3, max_samples=3, target=0.0)
    register(
        FakeMethod("fake:bad", dense=True, on_run=raises(MemoryError(), at=at)),
        FakeMethod("fake:good", dense=True),
    )
    report = run(decode(), "fake", settings=settings)
    assert statuses(report) == {"fake:bad": "oom", "fake:good": "ok"}
    assert by_method(report)["fake:bad"].record.measures.time_us is None
    assert by_method(report)["fake:good"].record.measures.samples == 3


def test_a_bug_is_not_taken_for_a_row(register: Any) -> None:
    register(FakeMethod("fake:bug", on_prepare=raises(ZeroDivisionError("a bug"))))
    with pytest.raises(ZeroDivisionError, match="a bug"):
        run(decode(), "fake")
    register(FakeMethod("fake:bug", on_run=raises(ZeroDivisionError("later"), at=3)))
    with pytest.raises(ZeroDivisionError, match="later"):
        run(decode(), "fake")


def test_tensors_that_are_not_finite_end_the_run(register: Any) -> None:
    register(FakeMethod("fake:bad", on_prepare=raises(NonFiniteError("k", (0, 1, 2, 3)))))
    with pytest.raises(NonFiniteError, match=r"k is not finite at index \[0, 1, 2, 3\]"):
        run(decode(), "fake")


@pytest.mark.slow
@needs_native
@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_tensors_that_overflow_fp32_are_said_to(phase: str, tmp_path: Path) -> None:
    """No method is called incorrect for them, the reference least of all; and the next cell runs."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"q": (1, 4, 100, 64), "k": (1, 2, 300, 64), "v": (1, 2, 300, 64)}
    named = {f"layers.0.{name}": torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    reports = []
    for scale in (1e20, 1.0):
        path = tmp_path / f"{scale}.safetensors"
        save_file({name: (scale * x).bfloat16() for name, x in named.items()}, path)
        captured = open_captured(path)
        captured = captured.last(1) if phase == "decode" else captured
        shape = {name: getattr(captured, name) for name in ("q_heads", "kv_heads", "head_dim", "dtype", "q_len", "seq")}
        workload = make_workload(phase, **shape, tensors=captured.source)
        methods = ("sdpa:math", "dense", "hierarchical", *(["reference"] if phase == "decode" else []))
        reports.append(run(workload, *methods, captured=captured))
    large, usual = reports
    assert len(large.results) >= 3 and set(statuses(large).values()) == {"unsupported"}
    for result in large.results:
        assert result.record.reason.startswith("q k^T overflows fp32 (|q| up to ")
        assert result.record.reason.endswith(": scale q or k down, or capture values of a usual size")
    assert set(statuses(usual).values()) == {"ok"}


def test_without_the_native_library_torch_still_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = library.LIB / "params.h"
    if not source.exists():
        source = Path(__file__).parents[2] / "csrc" / "params.h"
    (tmp_path / "params.h").write_bytes(source.read_bytes())
    monkeypatch.setattr(library, "LIB", tmp_path)

    def forget() -> None:
        for cached in (library.structs, library.constants, library.load, library._header):
            cached.cache_clear()

    forget()
    try:
        report = run(decode())
    finally:
        forget()
    rows = statuses(report)
    assert {rows.pop(name) for name in OURS} == {"unavailable"}
    assert set(rows.values()) == {"ok"} and any(name.startswith("sdpa") for name in rows)
    check_rows(report)
    for name in OURS:
        reason = by_method(report)[name].record.reason
        assert "CPU library was not built: install a C++17 compiler" in reason and "pip install" in reason
    assert any(line.startswith("CPU kernels: ") for line in report.machine["missing"])
    assert report.machine["cpu"]["isa"] is None


# ---- Ctrl-C ------------------------------------------------------------------------------------------------
class Impatient(Log):
    """Presses Ctrl-C at a sample, or at a stage."""

    def __init__(self, *, sample: tuple[str, int] | None = None, stage: str | None = None) -> None:
        super().__init__()
        self._sample, self._stage = sample, stage

    def stage(self, text: str) -> None:
        super().stage(text)
        if text == self._stage:
            raise KeyboardInterrupt

    def sampled(self, method: str, done: int, total_hint: int | None, elapsed_s: float) -> None:
        super().sampled(method, done, total_hint, elapsed_s)
        if (method, done) == self._sample:
            raise KeyboardInterrupt


@pytest.mark.usefixtures("given_order")
def test_ctrl_c_during_sampling_keeps_what_is_done(register: Any) -> None:
    register(
        FakeMethod("fake:refused", on_prepare=raises(UnsupportedError("not this"))),
        FakeMethod("fake:a", dense=True),
        FakeMethod("fake:b"),
        FakeMethod("fake:c"),
    )
    log = Impatient(sample=("fake:b", 1))
    report = run(decode(), "fake", observer=log)
    assert report.interrupted
    assert statuses(report) == {
        "fake:refused": "unsupported",
        "fake:a": "ok",
        "fake:b": "ok",
        "fake:c": "interrupted",
    }
    rows = {name: result.record for name, result in by_method(report).items()}
    assert (
        rows["fake:a"].measures.samples == rows["fake:b"].measures.samples == 1
        and rows["fake:a"].measures.stop == "interrupted"
    )
    assert rows["fake:b"].measures.speedup > 0 and rows["fake:b"].measures.baseline == "fake:a"
    assert rows["fake:b"].measures.speedup_lo is None, "one sample says nothing of the spread"
    assert rows["fake:c"].measures.time_us is None and rows["fake:c"].measures.speedup is None
    assert sorted(result.record.method for result in log.results) == sorted(rows)


@pytest.mark.parametrize("stage", ["generating q, k, v", "fake:b: preparing", "fake:b: checking against fp32"])
def test_ctrl_c_before_sampling(register: Any, stage: str) -> None:
    register(
        FakeMethod("fake:a", on_prepare=raises(UnsupportedError("not this"))),
        FakeMethod("fake:b"),
        FakeMethod("fake:c"),
    )
    log = Impatient(stage=stage)
    report = run(decode(), "fake", observer=log)
    assert report.interrupted and log.stages[-1] == stage
    first = "interrupted" if "generating" in stage else "unsupported"
    assert statuses(report) == {"fake:a": first, "fake:b": "interrupted", "fake:c": "interrupted"}
    assert len(log.results) == 3


@pytest.mark.usefixtures("given_order")
@pytest.mark.parametrize("moment", ["on_poison", "on_run"])
def test_ctrl_c_amid_a_turn_makes_no_row_incorrect(register: Any, moment: str) -> None:
    """The output is then poisoned or half written, but the samples so far were sound."""
    pressed = []

    def press_once(n: int) -> None:
        if not pressed and n == {"on_poison": 4, "on_run": 5}[moment]:  # after a check, a warm-up and two samples
            pressed.append(n)
            raise KeyboardInterrupt

    register(FakeMethod("fake:a", dense=True, **{moment: press_once}), FakeMethod("fake:b"))
    # Cold, so that a sample is one run.
    settings = Settings(budget_s=1.0, min_samples=5, max_samples=5, target=0.0)
    report = run(decode(), "fake", settings=settings)
    assert report.interrupted and pressed
    rows = {name: result.record for name, result in by_method(report).items()}
    assert statuses(report) == {"fake:a": "ok", "fake:b": "ok"}, rows["fake:a"].reason
    assert rows["fake:a"].measures.samples == rows["fake:b"].measures.samples == 2
    assert {row.measures.stop for row in rows.values()} == {"interrupted"}


# ---- NVTX ranges -------------------------------------------------------------------------------------------
@needs_native
def test_ranges_nest_and_names_carry_no_numbers() -> None:
    with measure.recorder() as seen:
        run(decode(), "sdpa:flash", "hierarchical:16bit")
    paths = seen.opened()
    assert seen.stack == [], "every range was closed"
    assert all(path == "workload" or path.startswith("workload/") for path in paths)
    for name in ("sdpa:flash", "hierarchical"):
        assert paths.count(f"workload/{name}/warm-up") == 1
        assert paths.count(f"workload/{name}/sample") == 3
        assert paths.count(f"workload/{name}/prepare") == 4, "before the warm-up and each sample"
        assert paths.count(f"workload/{name}/check") == 2
    assert paths.count("workload/hierarchical/prune/compress") == 2, "in preparing, and timed by itself"
    assert not any(path.startswith("workload/sdpa:flash/prune") for path in paths)

    order = [
        "workload",
        "workload/generate",
        "workload/sdpa:flash",
        "workload/hierarchical/prune/compress",
        "workload/sdpa:flash/check",
        "workload/hierarchical/check",
        "workload/sdpa:flash/warm-up",
        "workload/sdpa:flash/sample",
    ]
    assert [paths.index(path) for path in order] == sorted(paths.index(path) for path in order)
    last = {end: max(i for i, path in enumerate(paths) if path.endswith(end)) for end in ("/sample", "/check")}
    assert last["/sample"] < last["/check"], "checked again after"
    assert paths[-1] == "workload/hierarchical/prune/compress/probe", "what compressing costs, timed at the end"
    assert not any(char.isdigit() for path in paths for char in path)
    samples = [event for event in seen.events if event.kind == "open" and event.path[-2:] == ("hierarchical", "sample")]
    assert [event.payload for event in samples] == [0, 1, 2], "what varies, the round, is the payload"


def test_ranges_close_on_ctrl_c(register: Any) -> None:
    register(FakeMethod("fake:a", on_run=raises(KeyboardInterrupt(), at=1)))
    with measure.recorder() as seen:
        assert run(decode(), "fake").interrupted
    assert seen.stack == []
    kinds = [event.kind for event in seen.events]
    assert kinds.count("open") == kinds.count("close")


# ---- Torch's threads and ours ------------------------------------------------------------------------------
class Listener:
    """A clock that first listens, for half a millisecond, to what the other threads of this process use."""

    def __init__(self) -> None:
        self.shares: list[float] = []

    def time(self, run: Callable[[], None]) -> float:
        begin, used = time.perf_counter(), measure.background_cpu_s()
        time.sleep(5e-4)
        self.shares.append((measure.background_cpu_s() - used) / (time.perf_counter() - begin))
        return measure.HostClock().time(run)


@pytest.mark.slow
@needs_native
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
@pytest.mark.parametrize(
    "workload",
    [
        pytest.param(decode(seq=8192, q_heads=16, kv_heads=8), id="decode"),
        # An output large enough that torch fills it with all its threads, which spin afterwards.
        pytest.param(prefill(seq=512, q_heads=32, kv_heads=8), id="prefill"),
    ],
)
def test_other_threads_are_quiet_when_a_timed_run_begins(workload: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's workers spin after each parallel region; none may do so into a sample of ours, nor ours into torch's.

    The tensors count as larger than the caches here: a flush would only give the threads time to calm down.
    """
    monkeypatch.setattr(cache_module, "last_level_cache_bytes", lambda device: 1024)
    clock = Listener()
    monkeypatch.setattr(measure, "clock_for", lambda device: clock)
    settings = Settings(budget_s=30.0, min_samples=7, max_samples=7, target=0.0)
    report = run(workload, "sdpa:flash", "dense:16bit", settings=settings)
    assert set(statuses(report).values()) == {"ok"}
    assert {row.record.measures.cold_by for row in report.results} == {"working set"}
    assert len(clock.shares) == 3 * 8  # a warm-up each, then in turn; the third is the ceiling's probe
    for first, name in enumerate(("sdpa:flash", "dense")):
        busy = clock.shares[3 + first :: 3]
        assert statistics.median(busy) < 0.2, f"before {name}, other threads used {busy} cores"
