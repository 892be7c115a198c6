"""Does a cell fit: what is counted, per method and beside the others, and what a refusal says."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from hsbench import measure
from hsbench.kernels.device import CPU, CUDA, Device
from hsbench.machine import ceilings
from hsbench.problem.workload import Workload, make_workload
from hsbench.run import fit
from hsbench.run.fit import Fit

MIB, GIB = 1 << 20, 1 << 30


Room = dict[Device, measure.FreeMemory | None]


@pytest.fixture(autouse=True)
def room(monkeypatch: pytest.MonkeyPatch) -> Room:
    """What is free, by device; and a machine with a small cache, whose ceiling takes 100 MiB."""
    free: Room = {CPU: measure.FreeMemory(64 * GIB), CUDA: None}
    monkeypatch.setattr(measure, "free_memory", lambda device: free[device])
    monkeypatch.setattr(measure, "last_level_cache_bytes", lambda device: 10 * MIB)
    monkeypatch.setattr(measure, "flush_bytes", lambda device: 40 * MIB)
    monkeypatch.setattr(ceilings, "ceiling_bytes", lambda phase, device: 100 * MIB)
    return free


def cell(**overrides: Any) -> Workload:
    return make_workload("decode", **({"q_heads": 8, "kv_heads": 8, "head_dim": 128, "seq": 4096} | overrides))


def method(own: int, held: int | None = None, dense: bool = True) -> Any:
    kept = own if held is None else held
    return SimpleNamespace(dense=dense, estimate_bytes=lambda workload: own, held_bytes=lambda workload: kept)


def needed(*methods: Any, workload: Workload | None = None, **how: bool) -> int:
    """The least memory of a CPU in which all methods of a cell fit, in MiB."""
    low, high = 0, 1 << 20
    while high - low > 1:
        middle = (low + high) // 2
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(measure, "free_memory", lambda device: measure.FreeMemory(middle * MIB))  # noqa: B023
            tried = Fit(workload or cell(), CPU, **({"cold": True, "ceiling": True} | how))
        fits = all(tried.refusal(one) is None for one in methods)
        low, high = (low, middle) if fits else (middle, high)
    return high


def test_all_methods_are_held_at_once_and_take_turns_with_the_rest() -> None:
    base = needed(method(0))
    assert needed(method(500 * MIB)) == base + 500
    assert needed(method(500 * MIB), method(300 * MIB)) == base + 800
    passing = needed(method(500 * MIB, held=100 * MIB), method(300 * MIB, held=100 * MIB))
    assert passing == base + 600, "both hold 100 MiB; what the first takes in passing is more than the second's"


def test_the_tensors_and_the_buffers_count() -> None:
    tensors = 2 * 8 * 4096 * 128 * 2 // MIB
    base = needed(method(0))
    slack = fit._SLACK["cpu"] // MIB
    assert base == pytest.approx(tensors + 100 + 40 + slack, abs=1)
    assert base - needed(method(0), cold=False) == 40
    assert base - needed(method(0), cold=True, ceiling=False) >= 90
    # A cache that no method's copy of K and V fits in needs no flush.
    large = cell(seq=65536)
    assert needed(method(0), workload=large) == needed(method(0), workload=large, cold=False)


def test_the_reference_of_a_method_that_prunes_takes_more_than_the_buffers() -> None:
    workload = cell(seq=1 << 20, kv_heads=1, q_heads=1)
    more = needed(method(0, dense=False), workload=workload) - needed(method(0), workload=workload)
    assert more == pytest.approx(20 * (1 << 20) * 128 // MIB, abs=1)


def test_what_is_refused_leaves_its_room_to_those_after_it(room: Room) -> None:
    room[CPU] = measure.FreeMemory(2 * GIB)
    tried = Fit(cell(), CPU, cold=True, ceiling=True)
    assert tried.refusal(method(8 * GIB)) is not None
    assert tried.refusal(method(GIB)) is None
    assert tried.refusal(method(GIB)) is not None, "beside the one that fits"


def test_a_refusal_names_the_limit(room: Room) -> None:
    def reason(free: measure.FreeMemory | None, device: Device = CPU) -> str | None:
        room[device] = free
        return Fit(cell(), device, cold=True, ceiling=True).refusal(method(30 * GIB))

    said = reason(measure.FreeMemory(8 * GIB))
    assert said.startswith("needs about 30.") and said.endswith(
        " GiB, 8.0 GiB is free: give a smaller --seq or --batch, or fewer --methods"
    )
    said = reason(measure.FreeMemory(8 * GIB, "ulimit -v"))
    assert "8.0 GiB is free under ulimit -v: give" in said and said.endswith(", or raise the limit")
    assert reason(None) is None, "a system that does not tell"


def test_a_gpus_tensors_are_made_on_the_host(room: Room) -> None:
    workload = cell(seq=1 << 20)  # 4 GiB of K and V
    room[CUDA] = measure.FreeMemory(64 * GIB)
    assert Fit(workload, CUDA, cold=True, ceiling=True).refusal(method(0)) is None
    room[CPU] = measure.FreeMemory(2 * GIB)
    said = Fit(workload, CUDA, cold=True, ceiling=True).refusal(method(0))
    assert said.startswith("needs about 2.1 GiB of the host's memory, 2.0 GiB is free: ")
