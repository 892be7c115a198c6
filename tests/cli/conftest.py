"""A mock experiment: the commands are tested without measuring anything."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from hsbench.cli.main import main
from hsbench.errors import UnavailableError, UsageError
from hsbench.kernels.device import CPU, CUDA, Device
from hsbench.problem.phase import Phase
from hsbench.problem.workload import Workload
from hsbench.results import MeasuredCeiling, Record, Report, Result


@dataclass
class Bench:
    """Stands for hsbench.run.experiment: remembers what it was asked, and answers with rows as scripted."""

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

    def run_workload(self, workload: Workload, **given: Any) -> Report:
        self.calls.append({"workload": workload, **given})
        self.before(len(self.calls))
        observer = given["observer"]
        observer.stage("generate")
        report = Report(
            workload, [], {"cpu": {"model": "Test CPU", "cores": 2}}, {"read": MeasuredCeiling("read", 10.0, "GB/s")}
        )
        report.interrupted = self.interrupt_at == len(self.calls)
        for at, (method, status) in enumerate(self.rows(workload)):
            observer.sampled(method, 3, 10, 0.1)
            if report.interrupted and at:
                status = "interrupted"
            result = Result(record(workload, method, status, given["device"]), {"dense": 1024})
            report.results.append(result)
            if status == "ok":
                observer.finished(result)
        return report

    def resolve_device(self, name: str) -> Device:
        if name == "cuda" and not self.cuda:
            raise UnavailableError("--device cuda: no CUDA device; install a driver")
        return CUDA if self.cuda and name != "cpu" else CPU

    def find_methods(self, names: Sequence[str], phase: Phase, device: Device) -> list[str]:
        if phase.causal and "dense:decode-only" in names:
            raise UsageError("--methods", "dense:decode-only", "no such variant for prefill")
        return list(names)

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


def record(workload: Workload, method: str, status: str, device: str = "cpu") -> Record:
    asked = {"device": device, "cache": "cold", "sustain_s": 0.0}
    if status != "ok":
        return Record.of(workload, method=method, status=status, reason=f"made to be {status}", **asked)
    numbers = {
        "achieved_sparsity": 0.0, "time_us": 1000.0, "time_us_p25": 990.0, "time_us_p75": 1010.0,
        "samples": 9, "stop": "converged", "speedup": 1.0, "speedup_lo": 0.9, "speedup_hi": 1.1,
        "baseline": "dense", "kv_bytes": 1024, "kv_ratio": 1.0, "read_bytes": 1024, "gb_per_s": 5.0,
        "percent_of_ceiling": 50.0, "ceiling": "read", "rel_error": 1e-4, "cold_by": "flushed",
    }  # fmt: skip
    return Record.of(workload, method=method, status=status, **asked, **numbers)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    """The mock, in place of the experiment."""
    mock = Bench()
    experiment = importlib.import_module("hsbench.run.experiment")
    for name in ("run_workload", "resolve_device", "diagnose", "surroundings"):
        monkeypatch.setattr(experiment, name, getattr(mock, name))
    monkeypatch.setattr("hsbench.cli.request.find_methods", mock.find_methods)
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
