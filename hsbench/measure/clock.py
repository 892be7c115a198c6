"""Clocks: how long one run takes, on the host or on a CUDA device.

A CUDA run is timed by events on the device and never by a host clock: the host only queues work, so its clock
would measure launches. The stream is held by a spinning kernel until everything is queued:

    stream:  | spin ............ | start | run's kernels | end |
    host:    queue spin, start, run, end; start not reached yet? then no gap between kernels is the host's

If start was reached before everything was queued, the sample may hold launch gaps: it is void, the block is
made longer and the sample is taken again (`Retake`), with its preparation, since the void run has warmed the
caches.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any, Protocol

from hsbench.kernels.device import Device

from ..errors import HsbenchError
from .ranges import Annotate, Payload, annotate

_MARGIN = 4  # block this many times as long as the last run took to queue
_CALIBRATION_CYCLES = 10_000_000  # 5 ms or so: long against the resolution of an event


class ClockError(HsbenchError):
    """A run that this clock cannot time."""


class Retake(ClockError):
    """The sample just taken is void and the clock has adjusted itself: prepare and take it again."""


class Clock(Protocol):
    """Times one run."""

    def time(self, run: Callable[[], None]) -> float:
        """Run once and return the seconds it took.

        Raises:
            Retake: the sample is void; `take_sample` does the repeating.
            ClockError: this clock cannot time such a run.
        """
        ...


class HostClock:
    """Wall time of a run that is over when it returns: CPU methods. The garbage collector waits meanwhile."""

    def time(self, run: Callable[[], None]) -> float:
        """Run once and return the seconds it took."""
        collecting = gc.isenabled()
        gc.disable()
        try:
            start = time.perf_counter_ns()
            run()
            end = time.perf_counter_ns()
        finally:
            if collecting:
                gc.enable()
        return (end - start) * 1e-9


class CudaClock:
    """Device time between two events around what a run queues on the current stream of the current device.

    Args:
        min_block_s: the shortest time to hold the stream.
        max_block_s: the longest; a run that takes longer to queue is refused.
        first: queues what comes before the run, untimed: it begins once that has ended.
    """

    def __init__(
        self,
        *,
        min_block_s: float = 0.5e-3,
        max_block_s: float = 0.25,
        first: Callable[[], None] = lambda: None,
    ) -> None:
        import torch

        self._cuda: Any = torch.cuda
        self._min_block_s, self._max_block_s = min_block_s, max_block_s
        self._block_s, self._first = min_block_s, first
        self._start = torch.cuda.Event(enable_timing=True)
        self._end = torch.cuda.Event(enable_timing=True)
        self._mark: Any = None
        self._cycles_per_s = 0.0  # measured by the first sample: making a clock touches no stream

    @property
    def block_s(self) -> float:
        """Seconds for which the next sample will hold the stream."""
        return self._block_s

    def time(self, run: Callable[[], None]) -> float:
        """Run once and return the seconds it took on the device.

        Raises:
            Retake: queueing outlasted the block, which is longer from now on.
            ClockError: queueing outlasted the longest block, so the run waits for the device, or queues more
                than a stream takes, and its time would be partly the host's.
        """
        if not self._cycles_per_s:
            self._cycles_per_s = self._calibrate()
        block_s = self._block_s
        begin = time.perf_counter()  # for the length of the block only
        self._cuda._sleep(int(block_s * self._cycles_per_s))
        self._first()
        self._start.record()
        run()
        self._end.record()
        blocked = not self._start.query()
        queue_s = time.perf_counter() - begin
        self._end.synchronize()
        self._block_s = min(self._max_block_s, max(self._min_block_s, _MARGIN * queue_s))
        if blocked:
            return self._start.elapsed_time(self._end) * 1e-3
        self._block_s = min(self._max_block_s, max(self._block_s, 2 * block_s))
        if block_s >= self._max_block_s:
            raise ClockError(
                f"the work of one run could not be queued within {self._max_block_s:g} s: it waits for the "
                "device, or queues more than a stream takes at once; queue it without waiting, or less of it"
            )
        self._cycles_per_s = 0.0  # measure again: a clock raised since then makes the same cycles too short
        raise Retake(f"queueing took {queue_s:.2g} s, longer than the stream was held")

    def mark(self) -> None:
        """Called within a run: what it has queued so far ends here, see :meth:`marked_s`."""
        if self._mark is None:
            self._mark = self._cuda.Event(enable_timing=True)
        self._mark.record()

    def marked_s(self) -> float:
        """Seconds from the start of the last run to its :meth:`mark`, on the device."""
        return self._start.elapsed_time(self._mark) * 1e-3

    def _calibrate(self) -> float:
        """Spin-kernel cycles per second at the present clock; the margin of the block covers its changes."""
        self._cuda._sleep(1000)  # loads the kernel
        self._start.record()
        self._cuda._sleep(_CALIBRATION_CYCLES)
        self._end.record()
        self._end.synchronize()
        return _CALIBRATION_CYCLES / (self._start.elapsed_time(self._end) * 1e-3)


class ProfiledClock:
    """Runs and waits for the device, for runs under a profiler; what it returns is no timing.

    A profiler may run one kernel at a time, or one kernel many times, while the host waits: CudaClock would void
    every such sample. Waiting inside also puts a sample's kernels inside its range on the profiler's time line.
    """

    def __init__(self, device: Device) -> None:
        self._device = device

    def time(self, run: Callable[[], None]) -> float:
        """Run once and return some seconds: they order samples, and must not be reported."""
        start = time.perf_counter()
        run()
        if self._device.is_cuda:
            import torch

            torch.cuda.synchronize(str(self._device))
        return time.perf_counter() - start


def clock_for(device: Device) -> Clock:
    """The clock for work on a device."""
    return CudaClock() if device.is_cuda else HostClock()


def take_sample(
    clock: Clock,
    run: Callable[[], None],
    prepare: Callable[[], None] | None = None,
    *,
    attempts: int = 8,
    name: str = "sample",
    payload: Payload = None,
    ranges: Annotate = annotate,
) -> float:
    """Seconds of one sample: prepare untimed, in the range "prepare", then time the run, in the range `name`.

    A void sample is taken again, preparation included, so `run` may be called more than once.

    Raises:
        ClockError: the clock cannot time this run, or every attempt was void.
    """
    for attempt in range(attempts):
        if prepare is not None:
            with ranges("prepare", payload):
                prepare()
        try:
            with ranges(name, payload):
                return clock.time(run)
        except Retake:
            if attempt == attempts - 1:
                raise
    raise ValueError(f"attempts {attempts} must be at least 1")
