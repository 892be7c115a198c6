"""Cache sizes from a made-up sysfs, the policy's choice, and what a flush does to a run."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import pytest

from hsbench.kernels.device import CPU, CUDA
from hsbench.measure import cache
from hsbench.measure.cache import CachePolicy, Flusher, last_level_cache_bytes, policy

MIB = 1 << 20


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Describe a machine: per core, (level, type, size, shared list); and the cores that we may use."""

    def describe(cpus: dict[int, list[tuple[int, str, str, str]]], usable: list[int]) -> None:
        for cpu, caches in cpus.items():
            for index, (level, kind, size, shared) in enumerate(caches):
                folder = tmp_path / f"cpu{cpu}" / "cache" / f"index{index}"
                folder.mkdir(parents=True)
                values = {"level": level, "type": kind, "size": size, "shared_cpu_list": shared}
                for name, value in values.items():
                    (folder / name).write_text(f"{value}\n")
        monkeypatch.setattr(cache, "_SYSFS", tmp_path)
        monkeypatch.setattr(cache, "usable_cpus", lambda: usable)

    return describe


def core(cpu: int, last: str, shared: str) -> list[tuple[int, str, str, str]]:
    return [
        (1, "Data", "32K", str(cpu)),
        (1, "Instruction", "32K", str(cpu)),
        (2, "Unified", "1024K", str(cpu)),
        (3, "Unified", last, shared),
    ]


def test_one_shared_last_level_counts_once(machine):
    machine({i: core(i, "32768K", "0-3") for i in range(4)}, [0, 1, 2, 3])
    assert last_level_cache_bytes(CPU) == 32 * MIB
    assert cache._slice_bytes() == {i: 32 * MIB for i in range(4)}


def test_chiplets_add_up_over_the_cores_we_may_use(machine):
    cpus = {i: core(i, "16M", "0-1,4-5" if i in (0, 1, 4, 5) else "2-3,6-7") for i in range(8)}
    machine(cpus, [0, 1, 2])
    assert last_level_cache_bytes(CPU) == 32 * MIB
    assert cache._slice_bytes() == {0: 32 * MIB, 1: 32 * MIB, 2: 64 * MIB}


def test_a_slice_covers_the_private_cache_too(machine):
    machine({i: core(i, "2M", "0-7") for i in range(8)}, list(range(8)))
    assert set(cache._slice_bytes().values()) == {4 * MIB}  # 4 x 1 MiB of L2, not 4 x 2 MiB / 8


def test_without_a_third_level_the_second_is_last(machine):
    machine({0: core(0, "1M", "0")[:3]}, [0])
    assert last_level_cache_bytes(CPU) == MIB


def test_unreadable_entries_are_passed_over(machine, tmp_path):
    machine({0: core(0, "huge", "0")}, [0])
    assert last_level_cache_bytes(CPU) == MIB


def test_an_unknown_cache_falls_back(machine, monkeypatch):
    machine({}, [0, 1])
    monkeypatch.setattr(cache.os, "sysconf", lambda name: 0, raising=False)
    assert last_level_cache_bytes(CPU) == cache.FALLBACK_BYTES
    assert cache._slice_bytes() == {0: 2 * cache.FALLBACK_BYTES, 1: 2 * cache.FALLBACK_BYTES}
    monkeypatch.setattr(cache.os, "sysconf", lambda name: 8 * MIB if "LEVEL3" in name else 0)
    assert last_level_cache_bytes(CPU) == 8 * MIB


def test_this_machine_has_a_cache():
    assert last_level_cache_bytes(CPU) >= 1 << 16


def test_a_large_working_set_is_cold_by_itself(machine):
    machine({0: core(0, "2M", "0")}, [0])
    assert policy(8 * MIB, CPU) == CachePolicy("cold (working set)", None)
    flushed = policy(8 * MIB - 1, CPU, "cold")
    assert flushed.label == "cold (flushed)" and isinstance(flushed.flush, Flusher)
    assert flushed.flush.nbytes == 8 * MIB


def test_the_policy_says_what_goes_before_a_run(machine):
    machine({0: core(0, "1M", "0")}, [0])

    def run() -> None:
        pass

    flushed = policy(1, CPU)
    assert flushed.before(run) is flushed.flush
    assert policy(1 << 30, CPU).before(run) is None
    warm = policy(1, CPU, "warm")
    assert (warm.label, warm.flush) == ("warm", None)
    assert warm.before(run) is run  # in turn with others, only its own run warms the caches for it


def test_any_other_wish_is_refused():
    with pytest.raises(ValueError, match="lukewarm"):
        policy(1, CPU, "lukewarm")


def test_a_cpu_flush_touches_all_of_its_buffer_and_leaves_the_threads_where_they_were(machine):
    machine({0: core(0, "1M", "0-1"), 1: core(1, "1M", "0-1")}, [0, 1])
    before = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    flusher = Flusher(CPU)
    flusher()
    assert all((part == 2).all() for part in flusher._slices.values())  # once when made, once now
    if before is not None:
        assert os.sched_getaffinity(0) == before


def test_cores_that_refuse_pinning_are_swept_all_the_same(machine):
    machine({4095: core(4095, "1M", "4095")}, [4095])  # no machine here has that core
    flusher = Flusher(CPU)
    assert (flusher._slices[4095] == 1).all()


@pytest.fixture
def fake_cuda(monkeypatch):
    log: list[tuple[object, ...]] = []

    class Buffer:
        def zero_(self) -> None:
            log.append(("zero",))

    def empty(shape: object, dtype: object, device: str) -> Buffer:
        log.append(("empty", shape, device))
        return Buffer()

    torch = SimpleNamespace(
        cuda=SimpleNamespace(get_device_properties=lambda device: SimpleNamespace(L2_cache_size=50 * MIB)),
        float32="float32",
        empty=empty,
        amax=lambda buffer, dim, out: log.append(("read",)),
    )
    monkeypatch.setitem(sys.modules, "torch", torch)
    return SimpleNamespace(torch=torch, log=log)


def test_cuda_flush_writes_then_reads_four_times_the_l2(fake_cuda):
    flusher = Flusher(CUDA)
    assert flusher.nbytes == 200 * MIB
    assert fake_cuda.log[0] == ("empty", 50 * MIB, "cuda")  # fp32 values
    fake_cuda.log.clear()
    flusher()
    assert fake_cuda.log == [("zero",), ("read",)]


def test_cuda_policy_goes_by_the_l2(fake_cuda):
    assert policy(200 * MIB, CUDA).label == "cold (working set)"
    assert policy(199 * MIB, CUDA).label == "cold (flushed)"


def test_cuda_without_a_known_l2_falls_back(fake_cuda):
    fake_cuda.torch.cuda.get_device_properties = lambda device: SimpleNamespace()
    assert last_level_cache_bytes(CUDA) == cache.FALLBACK_BYTES
