"""What something takes of the memory: the bookkeeping on a made-up account, and the real one of this process."""

from __future__ import annotations

import mmap

import pytest

from hsbench.kernels.device import CPU
from hsbench.measure import Footprint, footprint

MIB = 1 << 20


class Bank:
    """An account whose bytes a test moves."""

    def __init__(self) -> None:
        self.now, self.most = 100, 100

    def used(self) -> int:
        return self.now

    def peak(self) -> int:
        return self.most

    def reset(self) -> None:
        self.most = self.now

    def move(self, *changes: int) -> None:
        for change in changes:
            self.now += change
            self.most = max(self.most, self.now)


def test_the_peak_is_what_came_on_top():
    bank = Bank()
    one = Footprint(CPU, 90, account=bank)
    assert (one.estimated_bytes, one.peak_bytes) == (90, None)
    with one.preparing():
        bank.move(+70, -30)  # holds 40, took 70
    assert one.peak_bytes == 70
    bank.move(+1000, -500)  # others are prepared
    with one.running():
        bank.move(+20, -20)
    assert one.peak_bytes == 70
    with one.running():
        bank.move(+35, -35)  # 75 with the 40 that it holds
    assert one.peak_bytes == 75
    assert one.columns() == {"estimated_bytes": 90, "peak_bytes": 75, "gpu_used_bytes": None}


def test_a_failure_is_not_counted():
    bank = Bank()
    one = Footprint(CPU, account=bank)
    with pytest.raises(MemoryError), one.preparing():
        bank.move(+70)
        raise MemoryError
    assert one.peak_bytes is None
    with one.running():
        bank.move(+5)
    assert one.peak_bytes is None, "what the method holds is not known"


@pytest.mark.parametrize("silent", ["used", "peak"])
def test_where_the_system_does_not_tell(silent):
    bank = Bank()
    setattr(bank, silent, lambda: None)
    one = Footprint(CPU, account=bank)
    with one.preparing():
        bank.move(+70)
    with one.running():
        bank.move(+70)
    assert one.peak_bytes is None


def test_resident_memory_of_this_process():
    one = Footprint(CPU)
    with one.preparing():
        kept, passing = mmap.mmap(-1, 64 * MIB), mmap.mmap(-1, 32 * MIB)
        for area in (kept, passing):
            area.write(b"\1" * len(area))
        passing.close()
    if one.peak_bytes is None:
        pytest.skip("this system does not let a process reset its peak")
    # The bytes that are written in one piece are there too, as large as the larger area.
    assert 96 * MIB <= one.peak_bytes < 176 * MIB
    with one.running():
        more = mmap.mmap(-1, 256 * MIB)
        more.write(b"\1" * len(more))
    assert one.peak_bytes >= 64 * MIB + 256 * MIB


def test_without_proc_nothing_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(footprint, "_PROCESS", tmp_path / "none")
    one = Footprint(CPU)
    with one.preparing(), one.running():
        pass
    assert one.peak_bytes is None
