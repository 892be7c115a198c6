"""A mock of what measures: the commands are tested without measuring anything."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from hsbench.cli.main import main
from hsbench.errors import UnavailableError, UsageError
from hsbench.kernels.device import CPU, CUDA, Device
from hsbench.methods import find_methods
from hsbench.problem.phase import Phase
from hsbench.problem.workload import Workload
from hsbench.results import MeasuredCeiling, Record, Report, Result
from hsbench.run.observer import Observer
from hsbench.run.plan import Cell
from hsbench.run.settings import Settings


@pytest.fixture(autouse=True)
def no_signal_is_ignored() -> Iterator[None]:
    """As at a terminal, also where the tests run under nohup or in a script's background, whose processes inherit that
    signals are ignored."""
    heard = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.getsignal(number) for number in heard}
    for number, handler in before.items():
        if handler == signal.SIG_IGN:
            signal.signal(number, heard[number])
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@dataclass
class Bench:
    """Stands for hsbench.run.measuring: remembers what it was asked, and answers with rows as scripted."""

    rows: Callable[[Workload], Sequence[tuple[str, str]]] = lambda workload: [
        ("dense", "ok"),
        ("hierarchical", "ok"),
    ]
    calls: list[dict[str, Any]] = field(default_factory=list)
    before: Callable[[int], None] = lambda call: None  # called with the number of the run, from 1
    interrupt_at: int | None = None
    cuda: bool = False
    probed: list[bool] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def workloads(self) -> list[Workload]:
        return [call["workload"] for call in self.calls]

    def measure_cell(self, cell: Cell, device: Device, settings: Settings, observer: Observer) -> Report:
        workload = cell.workload
        given = {"methods": list(cell.methods), "captured": cell.captured, "device": device, "settings": settings}
        given["basis"] = cell.basis
        self.calls.append({"workload": workload, "observer": observer, **given})
        self.before(len(self.calls))
        observer.stage("generate")
        report = Report(
            workload, [], {"cpu": {"model": "Test CPU", "cores": 2}}, {"read": MeasuredCeiling("read", 10.0, "GB/s")}
        )
        report.interrupted = self.interrupt_at == len(self.calls)
        for at, (method, status) in enumerate(self.rows(workload)):
            observer.sampled(method, 3, 10, 0.1)
            if report.interrupted and at:
                status = "interrupted"
            result = Result(record(workload, method, status, device), {"dense": 1024})
            report.results.append(result)
            if status == "ok":
                observer.finished(result)
        return report

    def resolve_device(self, name: str) -> Device:
        if name == "cuda" and not self.cuda:
            raise UnavailableError("--device cuda: no CUDA device; install a driver")
        return CUDA if self.cuda and name != "cpu" else CPU

    def find_methods(
        self, names: Sequence[str] | None, phase: Phase, device: Device, *, rows_alone: bool = False
    ) -> list[Any]:
        made_up = "dense:decode-only"
        if names is None or made_up not in names:
            return find_methods(names, phase, device, rows_alone=rows_alone)
        if phase.causal:
            raise UsageError("methods", made_up, "no such variant for prefill")
        return [SimpleNamespace(name=name) for name in names]

    def surroundings(self, device: Device) -> dict[str, Any]:
        return {
            "machine": {"cpu": {"model": "Test CPU", "threads": 2}, "gpu": {"name": "Test GPU"} if self.cuda else None},
            "versions": {"hsbench": "0.1.0", "torch": "2.13.0"},
            "libraries": {"abi": "a" * 64, "cpu": "c" * 64, "cuda": None},
            "git": {"commit": "0123456789abcdef", "dirty": False},
            "environment": dict(self.environment),
        }

    def diagnose(self, probe: bool) -> dict[str, Any]:
        self.probed.append(probe)
        absent = {"device": "cuda", "status": "unavailable", "reason": "no GPU driver " * 12}
        return {
            "machine": {"cpu": {"model": "Test CPU", "governor": None, "memory_bytes": 2**25}, "isa": "avx2"},
            "methods": [
                {"method": "dense", "device": "cpu", "status": "ok", "reason": ""},
                {"method": "dense", **absent},
                {"method": "sdpa", **absent},
            ],
            "probes": [{"name": "read", "value": 36.5, "unit": "GB/s"}] if probe else [],
            "missing": [{"what": "nvcc", "why": "not on PATH", "remedy": "install the CUDA toolkit"}],
        }


def record(workload: Workload, method: str, status: str, device: Device = CPU) -> Record:
    asked = {"device": device, "cache": "cold", "sustain_s": 0.0, "machine": {"cpu": {"threads": 2}}}
    if status != "ok":
        return Record.of(workload, method=method, status=status, reason=f"made to be {status}", **asked)
    numbers = {
        "achieved_sparsity": 0.0, "time_us": 1000.0, "time_us_p25": 990.0, "time_us_p75": 1010.0,
        "samples": 9, "stop": "converged", "speedup": 1.0, "speedup_lo": 0.9, "speedup_hi": 1.1,
        "baseline": "dense", "kv_bytes": 1024, "kv_ratio": 1.0, "read_bytes": 1024, "gb_per_s": 5.0,
        "percent_of_ceiling": 50.0, "ceiling": "read", "rel_error": 1e-4, "cold_by": "working set",
    }  # fmt: skip
    return Record.of(workload, method=method, status=status, **asked, **numbers)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    """The mock, in place of what measures and of what looks at the machine."""
    mock = Bench()
    monkeypatch.setattr("hsbench.run.measuring.measure_cell", mock.measure_cell)
    monkeypatch.setattr("hsbench.run.plan.resolve_device", mock.resolve_device)
    monkeypatch.setattr("hsbench.machine.hardware.resolve_device", mock.resolve_device)
    monkeypatch.setattr("hsbench.run.plan.find_methods", mock.find_methods)
    monkeypatch.setattr("hsbench.machine.hardware.surroundings", mock.surroundings)
    monkeypatch.setattr("hsbench.run.diagnosis.diagnose", mock.diagnose)
    return mock


@dataclass
class Ran:
    """What a command left: its exit code and both streams."""

    code: int
    out: str
    err: str


@pytest.fixture
def hsbench(bench: Bench, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Runs a command line in this process against the mock."""

    def run(*argv: str) -> Ran:
        code = main(argv)
        streams = capsys.readouterr()
        return Ran(code, streams.out, streams.err)

    return run
