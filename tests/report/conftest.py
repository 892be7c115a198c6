"""Made-up reports with realistic names, sizes and reasons."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hsbench.problem.workload import Workload
from hsbench.results import MeasuredCeiling, Record, Report, Result

LONG_REASON = (
    "the estimate of 34.0 GiB does not fit the 15.2 GiB of free memory; pass a smaller --seq or --batch, or "
    "free memory; this row is only there for checking and takes no part in any speedup"
)
DENSE_BYTES = 512 * 1024**2


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would make rich believe in a terminal, or in none, is up to each test."""
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def make_workload(**changes: Any) -> Workload:
    shape = dict(
        phase="decode",
        name="Llama-3.1-8B",
        batch=1,
        q_heads=32,
        kv_heads=8,
        head_dim=128,
        dtype="fp16",
        q_len=1,
        seq=131072,
        key_sparsity=0.5,
        value_sparsity=0.5,
        sink=0,
        local=0,
        tensors="gaussian",
        seed=0,
    )
    return Workload.from_dict({**shape, **changes})


def record(workload: Workload, method: str, status: str, **columns: Any) -> Record:
    """A record of a run on the CPU, cold and not sustained unless said."""
    case = {"device": "cpu", "cache": "cold", "sustain_s": 0.0}
    return Record.of(workload, method=method, status=status, **{**case, **columns})


def timed(workload: Workload, method: str, time_us: float, memory: dict[str, int], **columns: Any) -> Result:
    """An ok row, 7.4 ms being the baseline's time."""
    stored, ratio = sum(memory.values()), 7400 / time_us
    values: dict[str, Any] = dict(
        time_us=time_us,
        time_us_p25=time_us * 0.98,
        time_us_p75=time_us * 1.03,
        samples=41,
        stop="converged",
        speedup=ratio,
        speedup_lo=ratio * 0.97,
        speedup_hi=ratio * 1.03,
        baseline="dense",
        kv_bytes=stored,
        kv_ratio=DENSE_BYTES / stored,
        read_bytes=stored,
        gb_per_s=stored / time_us / 1e3,
        percent_of_ceiling=79.6,
        tflop_per_s=0.31,
        ceiling="read",
        rel_error=2.1e-4,
        cold_by="working set",
        throttled=False,
    )
    return Result(record(workload, method, "ok", **{**values, **columns}), memory)


def failed(workload: Workload, method: str, status: str, reason: str | None, **columns: Any) -> Result:
    return Result(record(workload, method, status, reason=reason, **columns))


def make_report(*, hierarchical_us: float = 4568.0, **changes: Any) -> Report:
    workload = make_workload(**changes)
    dense = {"dense": DENSE_BYTES}
    results = [
        failed(workload, "reference", "oom", LONG_REASON),
        failed(workload, "sdpa:mem-efficient", "unsupported", "torch has no such kernel on the CPU"),
        timed(workload, "sdpa:mem-efficient-rows", 102_900.0, dense, samples=5, stop="budget"),
        timed(workload, "dense", 7400.0, dense),
        timed(
            workload,
            "hierarchical",
            hierarchical_us,
            {"2:4 values": DENSE_BYTES // 2, "metadata": DENSE_BYTES // 16, "map": 32768},
            achieved_sparsity=0.4998,
        ),
        timed(workload, "unstructured", 7350.0, {"values": DENSE_BYTES // 2, "bitmap": DENSE_BYTES // 8}),
    ]
    machine = {
        "cpu": {"model": "AMD EPYC 9654 96-Core Processor", "cores": 4, "threads": 4, "isa": "AVX-512"},
        "gpu": None,
        "versions": {"torch": "2.13.0"},
        "missing": ["CUDA library: no nvcc was found; install the CUDA toolkit and reinstall hsbench"],
    }
    return Report(workload, results, machine, {"read": MeasuredCeiling("read", 91.2, "GB/s")})


@pytest.fixture
def report() -> Callable[..., Report]:
    return make_report


@pytest.fixture
def row_ok() -> Callable[..., Result]:
    return timed


@pytest.fixture
def row_failed() -> Callable[..., Result]:
    return failed


@pytest.fixture
def workload() -> Callable[..., Workload]:
    return make_workload
