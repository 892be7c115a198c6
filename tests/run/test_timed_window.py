"""Nothing but the run is inside the timed window: no range opens or closes there, NVML is not called, and no memory is
accounted for."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
import types
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from hsbench import measure
from hsbench.kernels import library
from hsbench.kernels.device import CPU, CUDA
from hsbench.machine import ceilings
from hsbench.measure import clock as clock_module
from hsbench.measure import footprint as footprint_module
from hsbench.measure import ranges
from hsbench.problem.workload import make_workload
from hsbench.run.measuring import run_workload
from hsbench.run.observer import Observer
from hsbench.run.settings import Settings

MISSING = library.why_missing("cpu")
needs_native = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
TINY = {"q_heads": 4, "kv_heads": 2, "head_dim": 64, "seq": 300}
QUICK = Settings(budget_s=30.0, min_samples=3, max_samples=3, target=0.0)
START, STOP = "clock starts", "clock stops"


class Log(list):
    """All that happens, in order: the clock's readings between what might disturb them."""

    def windows(self) -> list[list[object]]:
        """What lies between each start of the clock and its stop."""
        windows, inside = [], None
        for event in self:
            if event == START:
                assert inside is None, "the clock was started twice"
                inside = []
            elif event == STOP:
                windows.append(inside)
                inside = None
            elif inside is not None:
                inside.append(event)
        assert inside is None
        return windows


class Nvml:
    """A pynvml of a GPU that its power limit holds down; each call is in the log."""

    NVML_CLOCK_SM = NVML_CLOCK_MEM = NVML_TEMPERATURE_GPU = NVML_MEMORY_ERROR_TYPE_UNCORRECTED = NVML_VOLATILE_ECC = 0
    ANSWERS = {
        "nvmlInit": None,
        "nvmlDeviceGetClockInfo": 1755,
        "nvmlDeviceGetPowerUsage": 698_000,
        "nvmlDeviceGetTemperature": 55,
        "nvmlDeviceGetCurrentClocksEventReasons": 0x4 | 0x1,
        "nvmlDeviceGetMemoryInfo": types.SimpleNamespace(total=80 << 30, used=3 << 30),
        "nvmlDeviceGetComputeRunningProcesses": [types.SimpleNamespace(pid=os.getpid(), usedGpuMemory=1)],
    }

    class NVMLError(Exception):
        pass

    def __init__(self, log: Log) -> None:
        self._log = log

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if not name.startswith("nvml"):
            raise AttributeError(name)

        def answer(*_: object) -> Any:
            self._log.append(name)
            if name not in self.ANSWERS:
                raise self.NVMLError
            return self.ANSWERS[name]

        return answer


class Watched(measure.Telemetry):
    """Telemetry of a GPU that only the fake NVML knows, whatever the device."""

    def __init__(self, device: str) -> None:
        super().__init__(CUDA)

    def _find(self, device: str) -> str:
        return "handle"

    def _reserved_bytes(self) -> int:
        return 0


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    """A log of the host clock's readings, ranges (ours and mirrored ones), calls of NVML, and memory accounts."""
    log = Log()

    def reading() -> int:
        log.append(STOP if sum(event in (START, STOP) for event in log) % 2 else START)
        return time.perf_counter_ns()

    @contextmanager
    def mirror(name: str, payload: object) -> Iterator[None]:
        log.append(f"mirror opens {name}")
        yield
        log.append(f"mirror closes {name}")

    def account(self: object) -> int:
        log.append("memory account")
        return 7 << 20

    def ceiling(device: str, kind: str) -> measure.Ceiling:
        return measure.Ceiling(kind, "GB/s", 1e-3, lambda: time.sleep(1e-4), "native")

    fake = types.SimpleNamespace(perf_counter_ns=reading, perf_counter=time.perf_counter)
    monkeypatch.setattr(clock_module, "time", fake)
    monkeypatch.setitem(sys.modules, "pynvml", Nvml(log))
    monkeypatch.setattr(measure, "Telemetry", Watched)
    for name in ("used", "peak", "reset"):
        monkeypatch.setattr(footprint_module._Resident, name, account)
    monkeypatch.setattr(measure, "OtherLoad", lambda: types.SimpleNamespace(share=lambda: 0.0))
    monkeypatch.setattr(ceilings, "ceiling", ceiling)
    with measure.recorder() as recorder, measure.mirrored(mirror):
        recorder.events = log
        yield log


class Watcher(Observer):
    def __init__(self, log: Log) -> None:
        self._log = log

    def sampled(self, method: str, done: int, total_hint: int | None, elapsed_s: float) -> None:
        self._log.append(f"observer {method}")


def exactly(name: str) -> str:
    """What asks for a row alone, not for its family."""
    return f"{name}:16bit" if name in ("dense", "hierarchical") else name


@needs_native
@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_only_the_run_is_between_start_and_stop(log: Log, phase: str) -> None:
    names = ["sdpa:flash", "dense", "hierarchical", *["unstructured"] * (phase == "decode")]
    report = run_workload(
        make_workload(phase, **TINY),
        methods=[exactly(name) for name in names],
        device=CPU,
        settings=QUICK,
        observer=Watcher(log),
    )
    assert {row.record.status for row in report.results} == {"ok"}
    windows = log.windows()
    assert len(windows) >= 4 * (len(names) + 1), "a warm-up and three samples of each, and of the probe"
    assert windows == [[] for _ in windows]
    # And all of it happened outside: the test listens to the right things.
    assert [log.count(f"observer {name}") for name in names] == [3] * len(names)
    assert log.count("nvmlDeviceGetPowerUsage") == 3 * len(names), "after each sample"
    assert "nvmlDeviceGetComputeRunningProcesses" in log and log.count("nvmlDeviceGetMemoryInfo") > len(names)
    assert log.count("memory account") > 2 * len(names)
    samples = [event for event in log if isinstance(event, ranges.Event) and event.name == "sample"]
    assert len(samples) == 2 * 3 * (len(names) + 1) and log.count("mirror opens sample") == 3 * (len(names) + 1)


@needs_native
def test_what_is_sustained_is_sustained_outside(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before each sample, of the probe too, in the range "prepare" and nowhere else."""
    real, inside = measure.sustain, "sustains"

    def sustain(run: Callable[[], None], seconds: float, device: str) -> None:
        def watched() -> None:
            log.append(inside)
            run()

        real(watched, seconds, device)

    monkeypatch.setattr(measure, "sustain", sustain)
    settings = dataclasses.replace(QUICK, sustain_s=2e-3)
    names = ["sdpa:flash", "dense"]
    asked = [exactly(name) for name in names]
    report = run_workload(make_workload("decode", **TINY), methods=asked, device=CPU, settings=settings)
    assert {(row.record.status, row.record.case.sustain_s) for row in report.results} == {("ok", 2e-3)}
    windows = log.windows()
    assert windows == [[] for _ in windows]
    at: tuple[str, ...] = ()
    before: object = None
    turns: Counter[str] = Counter()
    for event in log:
        if isinstance(event, ranges.Event):
            at = event.path if event.kind == "open" else event.path[:-1]
        elif event == inside:
            assert at[-1] == "prepare"
            if before != inside:
                assert isinstance(before, ranges.Event) and before.kind == "open", "something else came first"
                turns[at[-2]] += 1
        before = event
    assert turns == dict.fromkeys([*names, "probe"], 4), "a warm-up and three samples each"


def test_what_was_seen_between_the_samples_is_in_the_row(log: Log) -> None:
    workload = make_workload("decode", **TINY)
    (result,) = run_workload(workload, methods=["sdpa:flash"], device=CPU, settings=QUICK).results
    row = result.record
    assert (
        row.measures.sm_clock_mhz,
        row.measures.memory_clock_mhz,
        row.measures.power_w,
        row.measures.temperature_c,
    ) == (1755, 1755, 698, 55)
    assert (row.measures.throttled, row.measures.throttle_reasons, row.measures.throttled_share) == (
        True,
        "sw_power_cap",
        1.0,
    )
    assert (row.measures.gpu_used_bytes, row.measures.peak_bytes) == (3 << 30, 0)
    assert row.marks == "*"


def test_each_sample_is_one_range_around_its_window(log: Log) -> None:
    run_workload(make_workload("decode", **TINY), methods=["sdpa:flash"], device=CPU, settings=QUICK)
    at = [
        index
        for index, event in enumerate(log)
        if isinstance(event, ranges.Event) and event.path == ("workload", "sdpa:flash", "sample")
    ]
    kinds = [[event if isinstance(event, str) else event.kind for event in log[a : b + 1]] for a, b in pairs(at)]
    assert kinds == 3 * [["open", START, STOP, "close"]]


def pairs(indices: list[int]) -> Iterator[tuple[int, int]]:
    return zip(indices[::2], indices[1::2], strict=True)


@pytest.mark.parametrize(
    "disturb",
    [
        lambda: measure.annotate("inside").__enter__().__exit__(None, None, None),
        lambda: measure.mark("inside"),
        lambda: measure.Telemetry(CUDA).read(),
        lambda: measure.Footprint(CPU).running().__enter__(),
    ],
    ids=["range", "mark", "telemetry", "memory"],
)
def test_what_is_inside_would_be_seen(log: Log, disturb: Callable[[], None]) -> None:
    measure.take_sample(measure.HostClock(), disturb)
    assert log.windows() != [[]]


class FakeCuda:
    """torch.cuda as far as the clock needs it, its events in the log; a spin of any length is long enough."""

    def __init__(self, log: list[object]) -> None:
        self._log, self._names = log, iter((START, STOP))

    def _sleep(self, cycles: int) -> None:
        self._log.append("spin")

    def Event(self, *, enable_timing: bool) -> Any:  # noqa: N802 - torch's name
        name = next(self._names)
        return types.SimpleNamespace(
            record=lambda: self._log.append(name),
            query=lambda: False,
            synchronize=lambda: None,
            elapsed_time=lambda end: 1.0,
        )


def test_nothing_is_queued_between_the_events_of_cuda_but_the_run(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "cuda", FakeCuda(log))
    clock = measure.CudaClock()
    measure.take_sample(clock, lambda: log.append("run"), lambda: log.append("prepare"))
    assert log.windows() == [["spin"], ["run"]], "the spin kernel's calibration, and the sample"
