"""Ceilings: the arithmetic on a made-up clock, and small real runs on the CPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hsbench.kernels.device import CPU
from hsbench.measure import FreeMemory, probes
from hsbench.measure.clock import HostClock
from hsbench.measure.probes import copy_ceiling, faster_half_median, fastest, gemm_ceiling, probe, read_ceiling


class Scripted:
    """A clock that runs and tells made-up times; the first is the warm-up's."""

    def __init__(self, *times: float) -> None:
        self.times = iter(times)

    def time(self, run: Callable[[], None]) -> float:
        run()
        return next(self.times)


@pytest.mark.parametrize(
    ("times", "expected"),
    [([4.0], 4.0), ([5.0, 3.0], 3.0), ([9.0, 1.0, 2.0], 1.5), ([8.0, 1.0, 3.0, 9.0, 2.0], 2.0)],
)
def test_a_ceiling_is_the_median_of_the_faster_half(times, expected):
    assert faster_half_median(times) == expected


def test_a_ceiling_needs_samples():
    with pytest.raises(ValueError):
        faster_half_median([])


@pytest.mark.parametrize(("make", "name"), [(copy_ceiling, "copy"), (read_ceiling, "read")])
def test_a_native_run_is_used_and_its_bytes_are_counted(make, name):
    calls: list[int] = []
    ceiling = make(CPU, run=lambda: calls.append(1), bytes_moved=10**9)
    result = probe(ceiling, Scripted(99.0, 0.5, 0.1, 0.2, 0.4), count=4)
    assert (result.name, result.unit, result.source) == (name, "GB/s", "native")
    assert result.value == pytest.approx(1 / 0.15)
    assert result.samples == (0.5, 0.1, 0.2, 0.4) and len(calls) == 5


@pytest.mark.parametrize("make", [copy_ceiling, read_ceiling])
@pytest.mark.parametrize("half", [{"run": print}, {"bytes_moved": 1}])
def test_run_and_bytes_go_together(make, half):
    with pytest.raises(ValueError, match="both or neither"):
        make(CPU, **half)


def test_the_budget_ends_it_but_not_below_four_samples():
    result = probe(copy_ceiling(CPU, lambda: None, 1), Scripted(*[1.0] * 9), budget_s=0)
    assert len(result.samples) == 4


@pytest.fixture
def small_buffers(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(probes, "_buffer", lambda device: torch.ones(1 << 20))
    return 4 << 20


def test_the_fallback_copy_counts_both_ways(small_buffers):
    result = probe(copy_ceiling(CPU), Scripted(*[0.001] * 5), count=4)
    assert result.value == pytest.approx(2 * small_buffers / 0.001 / 1e9) and result.source == "torch"


def test_the_fallback_read_counts_one(small_buffers):
    result = probe(read_ceiling(CPU), Scripted(*[0.001] * 5), count=4)
    assert result.value == pytest.approx(small_buffers / 0.001 / 1e9)


def test_the_fallback_runs_on_the_real_clock(small_buffers):
    assert probe(copy_ceiling(CPU), HostClock(), count=4).value > 0.01
    assert probe(read_ceiling(CPU), HostClock(), count=4).value > 0.01


def test_buffers_are_far_larger_than_the_cache_and_leave_memory(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch, "ones", lambda count, **kind: count)
    monkeypatch.setattr(probes, "last_level_cache_bytes", lambda device: 100 << 20)
    memory = 64 << 30
    monkeypatch.setattr(probes, "free_memory", lambda device: memory and FreeMemory(memory))
    assert probes._buffer(CPU) * 4 == 400 << 20
    memory = 1 << 30
    assert probes._buffer(CPU) * 4 == 128 << 20
    memory = None  # a system that does not tell
    assert probes._buffer(CPU) * 4 == 400 << 20


@pytest.mark.parametrize("first", [1.0, 3.0])
def test_of_several_ways_the_fastest_is_the_ceiling(first):
    one, other = (read_ceiling("cuda", run=lambda: None, bytes_moved=10**9) for _ in range(2))
    clock = Scripted(99.0, *[first] * 4, 0.1, *[2.0] * 4)
    assert fastest([one, other], clock, count=4) is (one if first < 2.0 else other)


def test_gemm_counts_two_operations_per_product():
    torch = pytest.importorskip("torch")
    result = probe(gemm_ceiling(CPU, torch.float32, "fp32", size=64), Scripted(9.0, *[0.5] * 4), count=4)
    assert result.name == "gemm fp32" and result.unit == "TFLOP/s"
    assert result.value == pytest.approx(2 * 64**3 / 0.5 / 1e12)


def test_gemm_in_other_dtypes_on_the_real_clock():
    torch = pytest.importorskip("torch")
    result = probe(gemm_ceiling(CPU, torch.bfloat16, "bf16", size=64), HostClock(), count=4)
    assert result.name == "gemm bf16" and result.value > 0
