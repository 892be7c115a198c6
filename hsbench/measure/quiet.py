"""Is anybody else using the cores?

Two kinds of anybody. Our own threads: OpenMP workers spin for milliseconds after a parallel region in case
another follows, so a sample right after another method's finds the cores busy; `settle` waits for them. And
other processes: `OtherLoad` tells how much of the machine they took, so that a report can say that the
machine is shared.
"""

from __future__ import annotations

import contextlib
import os
import resource
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_CPUCLOCK_SCHED_PER_THREAD = 6  # the low bits of a Linux clock id that names a thread's CPU time
_MIN_SPAN_S = 0.1  # /proc/stat counts in ticks of 10 ms: over less than this, a share would be noise


@dataclass(frozen=True)
class Settled:
    """How a wait ended: seconds waited, and whether the process had become quiet."""

    wait_s: float
    quiet: bool


def settle(max_wait_s: float = 0.1, *, window_s: float = 1e-3, share: float = 0.05) -> Settled:
    """Wait until the other threads of this process use less than a share of one core over a window.

    The calling thread does not count: it is the one that waits. At least one window is slept, so quiet
    threads cost about a millisecond. A thread that wants to run but gets no core, on a machine that is full,
    uses no time and yet is not quiet; so none may be runnable at the end of the window either.

    Args:
        max_wait_s: give up after this; threads that always spin (``OMP_WAIT_POLICY=active``) never settle.
        window_s: length of the window.
        share: of one core, summed over the threads.
    """
    begin = now = time.perf_counter()
    used = background_cpu_s()
    while True:
        time.sleep(window_s)
        later, used_later = time.perf_counter(), background_cpu_s()
        if used_later - used < share * (later - now) and not _runnable_in_background():
            return Settled(later - begin, quiet=True)
        if later - begin >= max_wait_s:
            return Settled(later - begin, quiet=False)
        now, used = later, used_later


def background_cpu_s() -> float:
    """CPU seconds used so far by all threads of this process but the calling one.

    Read thread by thread where Linux allows it: a thread's own clock includes the time slice it is in,
    whereas the process's total may not (on some kernels a thread that spins on another core adds to it only
    at the next timer tick, up to 10 ms later, and would look idle over a window of 1 ms). Elsewhere, process
    time less thread time. A thread that ends takes its time with it, so the sum can fall.
    """
    threads = _other_threads()
    if threads is None:
        return time.process_time() - time.thread_time()
    total = 0.0
    for thread in threads:
        with contextlib.suppress(OSError):  # it ended since the listing
            total += time.clock_gettime((~thread << 3) | _CPUCLOCK_SCHED_PER_THREAD)
    return total


def _runnable_in_background() -> bool:
    """Whether another thread of this process runs, or waits only for a core."""
    for thread in _other_threads() or ():
        with contextlib.suppress(OSError, IndexError):
            # "1234 (name) R ...", and the name may hold anything, parentheses too
            if Path(f"/proc/self/task/{thread}/stat").read_text().rpartition(")")[2].split()[0] == "R":
                return True
    return False


def _other_threads() -> list[int] | None:
    """Kernel ids of this process's threads but the calling one; None where the system does not list them."""
    try:
        threads = [int(entry) for entry in os.listdir("/proc/self/task")]
    except (OSError, ValueError):
        return None
    own = threading.get_native_id()
    return [thread for thread in threads if thread != own]


class OtherLoad:
    """The share of the machine's cores that other processes took since this was made or last restarted.

    Other processes are all of /proc/stat's busy time, including what a hypervisor took away (steal), less the
    time of this process and of the children it has waited for. In a container /proc/stat usually shows the
    whole host.

    Args:
        stat: the kernel's counters; another file in tests.
        own_cpu_s: CPU seconds of this process so far.
        now: seconds of a monotonic clock.
    """

    def __init__(
        self,
        stat: Path = Path("/proc/stat"),
        own_cpu_s: Callable[[], float] | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stat, self._own_cpu_s, self._now = stat, own_cpu_s or process_cpu_s, now
        self.restart()

    def restart(self) -> None:
        """Count from now."""
        self._began = self._snapshot()

    def share(self) -> float | None:
        """From 0 to 1, of all cores; None in the first tenth of a second, and without /proc/stat."""
        before, after = self._began, self._snapshot()
        if before is None or after is None:
            return None
        span = after.at - before.at
        if span < _MIN_SPAN_S or not after.cores:
            return None
        others = (after.busy_s - before.busy_s) - (after.own_s - before.own_s)
        return min(1.0, max(0.0, others / (span * after.cores)))

    def _snapshot(self) -> _Snapshot | None:
        try:
            lines = self._stat.read_text().splitlines()
            total = [int(field) for field in next(x for x in lines if x.startswith("cpu ")).split()[1:]]
            ticks_per_s = os.sysconf("SC_CLK_TCK")
        except (OSError, ValueError, StopIteration):
            return None
        cores = sum(1 for x in lines if x.startswith("cpu") and x[3:4].isdigit())
        # user nice system idle iowait irq softirq steal guest guest_nice: guest time is within user and nice.
        busy = sum(total[:8]) - sum(total[3:5])
        return _Snapshot(self._now(), busy / ticks_per_s, self._own_cpu_s(), cores)


@dataclass(frozen=True)
class _Snapshot:
    at: float
    busy_s: float
    own_s: float
    cores: int


def process_cpu_s() -> float:
    """CPU seconds used so far by this process, all threads, and by the children it has waited for."""
    total = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        usage = resource.getrusage(who)
        total += usage.ru_utime + usage.ru_stime
    return total
