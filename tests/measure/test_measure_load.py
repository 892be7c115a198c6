"""A run repeated for a time: on a clock that the runs advance, and on a made-up device that is behind the host."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from hsbench.kernels.device import CPU, CUDA, Device
from hsbench.measure import sustain


class Timeline:
    """A host and one stream in virtual time; what is queued takes the device a while and the host nothing."""

    def __init__(self, run_s: float) -> None:
        self.now, self.idle_at, self.run_s = 0.0, 0.0, run_s
        self.queued = self.most_queued = self.runs = 0
        self.waits: list[str] = []
        self.cuda = SimpleNamespace(synchronize=self.synchronize)

    def run(self) -> None:
        self.runs += 1
        self.queued += 1
        self.most_queued = max(self.most_queued, self.queued)
        self.idle_at = max(self.now, self.idle_at) + self.run_s

    def synchronize(self, device: str) -> None:
        self.waits.append(device)
        self.now, self.queued = max(self.now, self.idle_at), 0


@pytest.mark.parametrize(("seconds", "runs"), [(0.25, 1), (1.0, 4), (1.1, 5), (3.0, 12)])
def test_it_repeats_until_the_time_has_passed(seconds: float, runs: int) -> None:
    """The last run is whole, and there is no other beyond the time."""
    ends: list[float] = [0.0]
    sustain(lambda: ends.append(ends[-1] + 0.25), seconds, CPU, now=lambda: 100 + ends[-1])
    assert len(ends) - 1 == runs


def test_one_run_that_takes_longer_is_enough() -> None:
    ends: list[float] = [0.0]
    sustain(lambda: ends.append(ends[-1] + 9), 0.3, CPU, now=lambda: ends[-1])
    assert ends == [0, 9]


@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
def test_nothing_is_asked_for_and_nothing_is_done(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []

    def note(name: str) -> Callable[..., float]:
        return lambda *_: called.append(name) or 0.0

    fake = SimpleNamespace(cuda=SimpleNamespace(synchronize=note("synchronize")))
    monkeypatch.setitem(sys.modules, "torch", fake)
    sustain(note("run"), 0.0, device, now=note("now"))
    assert called == []


def test_a_gpu_is_waited_for_after_each_run(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Timeline(0.25)
    monkeypatch.setitem(sys.modules, "torch", device)
    sustain(device.run, 1.0, Device.of("cuda:1"), now=lambda: device.now)
    assert (device.runs, device.most_queued, device.queued) == (4, 1, 0)
    assert device.waits == ["cuda:1"] * 4


def test_what_a_run_raises_is_raised() -> None:
    def run() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        sustain(run, 0.3, CPU)


def test_on_the_real_clock() -> None:
    import time

    begin = time.monotonic()
    sustain(lambda: time.sleep(1e-3), 0.05, CPU)
    assert 0.05 <= time.monotonic() - begin < 5
