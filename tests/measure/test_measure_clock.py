"""The clocks; the CUDA clock runs on a simulated stream, so that queueing can be made as slow as wished."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from hsbench.errors import HsbenchError
from hsbench.kernels.device import CPU, CUDA, Device
from hsbench.measure import clock as clock_module
from hsbench.measure.clock import ClockError, CudaClock, HostClock, Retake, clock_for, take_sample


class FakeDevice:
    """A host and one stream in virtual time: launches cost the host time, kernels run in order after their
    launch."""

    def __init__(self, hz: float = 1e9) -> None:
        self.now = 0.0  # of the host
        self.idle_at = 0.0  # of the stream
        self.hz = hz
        self.sleeps: list[float] = []
        self.cuda = SimpleNamespace(_sleep=self._sleep, Event=self._event)

    def launch(self, device_s: float, host_s: float = 5e-6) -> None:
        self.now += host_s
        self.idle_at = max(self.idle_at, self.now) + device_s

    def perf_counter(self) -> float:
        return self.now

    def _sleep(self, cycles: int) -> None:
        self.sleeps.append(cycles / self.hz)
        self.launch(cycles / self.hz)

    def _event(self, enable_timing: bool) -> FakeEvent:
        assert enable_timing
        return FakeEvent(self)


class FakeEvent:
    def __init__(self, device: FakeDevice) -> None:
        self.device, self.at = device, 0.0

    def record(self) -> None:
        self.device.launch(0.0)
        self.at = self.device.idle_at

    def query(self) -> bool:
        return self.at <= self.device.now

    def synchronize(self) -> None:
        self.device.now = max(self.device.now, self.at)

    def elapsed_time(self, end: FakeEvent) -> float:
        return (end.at - self.at) * 1e3


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> FakeDevice:
    fake = FakeDevice()
    monkeypatch.setitem(sys.modules, "torch", fake)
    monkeypatch.setattr(clock_module, "time", SimpleNamespace(perf_counter=fake.perf_counter))
    return fake


def launches(device: FakeDevice, count: int, device_s: float, host_s: float) -> Callable[[], None]:
    def run() -> None:
        for _ in range(count):
            device.launch(device_s, host_s)

    return run


def test_cuda_time_is_the_kernels_time_alone(device):
    assert CudaClock().time(launches(device, 10, 3e-6, 8e-6)) == pytest.approx(30e-6, abs=1e-9)


def test_cuda_launch_gaps_void_the_sample_and_lengthen_the_block(device):
    clock = CudaClock(min_block_s=1e-3)
    slow = launches(device, 10, 3e-6, 300e-6)  # 3 ms to queue: longer than the block
    with pytest.raises(Retake):
        clock.time(slow)
    assert clock.block_s > 3e-3
    assert clock.time(slow) == pytest.approx(30e-6, abs=1e-9)


def test_cuda_block_shrinks_again_after_a_slow_first_call(device):
    clock = CudaClock(min_block_s=1e-3, max_block_s=0.25)
    with pytest.raises(Retake):
        clock.time(launches(device, 1, 1e-6, 2.0))  # loading code, say
    quick = launches(device, 1, 1e-6, 10e-6)
    assert clock.block_s == 0.25
    clock.time(quick)
    assert clock.block_s == 1e-3


def test_cuda_cycles_are_measured_again_when_the_chip_speeds_up(device):
    device.hz = 0.3e9
    clock = CudaClock(min_block_s=1e-3)
    run = launches(device, 10, 1e-6, 50e-6)
    clock.time(run)
    device.hz = 2e9  # the cycles of 2 ms now last 0.3
    assert take_sample(clock, run) == pytest.approx(10e-6, abs=1e-9)
    calls = len(device.sleeps)
    for _ in range(5):
        clock.time(run)
    assert len(device.sleeps) == calls + 5  # no void sample among them


def test_cuda_run_that_waits_for_the_device_is_refused(device):
    def waits() -> None:
        device.launch(1e-3)
        device.now = max(device.now, device.idle_at)

    with pytest.raises(ClockError, match="waits for the device") as caught:
        take_sample(CudaClock(), waits)
    assert not isinstance(caught.value, Retake)
    assert isinstance(caught.value, HsbenchError)
    assert max(device.sleeps) <= 0.25 + 1e-9


def test_cuda_a_flush_before_is_not_timed(device):
    prepared = []

    def flush() -> None:
        device.launch(5e-3)
        prepared.append(device.now)

    assert take_sample(CudaClock(), launches(device, 1, 7e-6, 5e-6), flush) == pytest.approx(7e-6, abs=1e-9)
    assert len(prepared) == 1


def test_cuda_void_samples_are_prepared_again(device):
    prepared = []
    run = launches(device, 4, 1e-6, 1e-3)
    take_sample(CudaClock(min_block_s=1e-3), run, lambda: prepared.append(1))
    assert len(prepared) == 2


def test_take_sample_gives_up_in_the_end():
    class Never:
        calls = 0

        def time(self, run: Callable[[], None]) -> float:
            self.calls += 1
            raise Retake("void")

    never = Never()
    with pytest.raises(Retake):
        take_sample(never, lambda: None, attempts=3)
    assert never.calls == 3
    with pytest.raises(ValueError, match="attempts"):
        take_sample(never, lambda: None, attempts=0)


def test_host_clock_tells_wall_time():
    assert 0.02 <= HostClock().time(lambda: time.sleep(0.02)) < 2


@pytest.mark.parametrize("enabled", [True, False])
def test_host_clock_keeps_the_collector_out_and_restores_it(enabled):
    seen: list[bool] = []

    def run() -> None:
        seen.append(gc.isenabled())
        if len(seen) == 2:
            raise KeyError

    was = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        HostClock().time(run)
        with pytest.raises(KeyError):
            HostClock().time(run)
        assert gc.isenabled() == enabled and seen == [False, False]
    finally:
        (gc.enable if was else gc.disable)()


def test_each_device_has_its_clock(device):
    assert isinstance(clock_for(CPU), HostClock)
    assert isinstance(clock_for(CUDA), CudaClock)
    assert isinstance(clock_for(Device.of("cuda:1")), CudaClock)
