"""Cold and warm: what the caches hold when a timed run begins.

Cold is the default and must be real. Either the working set is at least 4 times the last-level cache, so that
a run itself evicts what the next one starts with, or the caches are flushed before each run, outside the
timed window.

Both flushes write a buffer of 4 times the cache and then read it. Writing evicts everything, on any
replacement policy; reading replaces most of the dirty lines by clean ones, so that the timed run does not pay
for writing them back, as it does not when its own working set did the evicting.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hsbench.kernels.device import CPU, Device

COLD_FACTOR = 4
"""A working set or a flush that is cold, in units of the last-level cache."""
# Where nothing tells the size: larger than most, since a flush that is too long is only slow.
FALLBACK_BYTES = 64 << 20

_SYSFS = Path("/sys/devices/system/cpu")
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass(frozen=True)
class CachePolicy:
    """How the caches are put in order before each timed run.

    Attributes:
        label: for the `cache` column: "cold (working set)", "cold (flushed)" or "warm".
        flush: to be called before each timed run, or None.
    """

    label: str
    flush: Callable[[], None] | None = None

    @property
    def cold_by(self) -> str | None:
        """What makes the caches cold: "working set", "flushed", or None where they are warm."""
        return None if self.label == "warm" else "working set" if self.flush is None else "flushed"

    def before(self, run: Callable[[], None]) -> Callable[[], None] | None:
        """What to do before each timed call of `run`: the flush; or, warm, `run` itself.

        When subjects are sampled in turn, what lies in the caches is another subject's data: only an untimed
        run of its own makes a subject warm.
        """
        return run if self.label == "warm" else self.flush


def policy(working_set_bytes: int, device: Device, wanted: Literal["cold", "warm"] = "cold") -> CachePolicy:
    """The policy for runs that each touch that many bytes.

    Subjects that are compared should share one policy: give the bytes of the one that touches least.

    Args:
        working_set_bytes: distinct bytes that one run reads or writes.
        device: where they are.
        wanted: "cold" or "warm".

    Raises:
        ValueError: `wanted` is neither.
    """
    if wanted == "warm":
        return CachePolicy("warm")
    if wanted != "cold":
        raise ValueError(f'cache policy "{wanted}" must be cold or warm')
    if working_set_bytes >= COLD_FACTOR * last_level_cache_bytes(device):
        return CachePolicy("cold (working set)")
    return CachePolicy("cold (flushed)", Flusher(device))


def last_level_cache_bytes(device: Device) -> int:
    """Bytes of the last cache before memory: a GPU's L2, or a CPU's last level.

    For a CPU it is the total over the last-level caches of the cores that this process may run on.
    """
    if device.is_cuda:
        import torch

        size = int(getattr(torch.cuda.get_device_properties(str(device)), "L2_cache_size", 0) or 0)
        return size or FALLBACK_BYTES
    domains = {cache.shared: cache.nbytes for cache in _last_levels(usable_cpus()).values()}
    return sum(domains.values()) or _sysconf_cache_bytes() or FALLBACK_BYTES


class Flusher:
    """Evicts a device's caches when called; holds a buffer of 4 times the last-level cache.

    On a CPU, one thread per core, pinned to it, sweeps a slice of the buffer and ends. A single thread would
    leave the private caches of all other cores as they are (a shared last level need not contain them, and on
    many chips does not), and on chips with several last-level caches it would reach only its own. A slice is
    therefore the core's share of 4 times its last-level cache, and at least 4 times the next nearer one.

    On CUDA it is queued on the current stream: it is over before what is queued next, and the host does not
    wait.

    Raises:
        MemoryError, torch.cuda.OutOfMemoryError: the buffer does not fit.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        if device.is_cuda:
            import torch

            count = flush_bytes(device) // 4
            self._buffer: Any = torch.empty(count, dtype=torch.float32, device=str(device))
            self._largest: Any = torch.empty((), dtype=torch.float32, device=str(device))
            self.nbytes = 4 * count
        else:
            self._slices = {cpu: np.zeros(nbytes // 8, np.uint64) for cpu, nbytes in _slice_bytes().items()}
            self.nbytes = sum(part.nbytes for part in self._slices.values())
        self()  # zeroed memory is not there before it is written; each core places its own slice

    def __call__(self) -> None:
        """Evict."""
        if self.device.is_cuda:
            import torch

            self._buffer.zero_()
            torch.amax(self._buffer, dim=0, out=self._largest)
            return
        started = []
        try:
            for item in self._slices.items():
                thread = threading.Thread(target=_sweep, args=item, daemon=True)
                thread.start()  # RuntimeError where there is no room for its stack
                started.append(thread)
        finally:
            for thread in started:
                thread.join()


def flush_bytes(device: Device) -> int:
    """What a `Flusher` holds, known before it is made."""
    if device.is_cuda:
        return COLD_FACTOR * last_level_cache_bytes(device)
    return sum(_slice_bytes().values())


def usable_cpus() -> list[int]:
    """The logical cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


@dataclass(frozen=True)
class _Cache:
    level: int
    nbytes: int
    shared: frozenset[int]  # the logical cores that share it


def _sweep(cpu: int, part: np.ndarray) -> None:
    if hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):  # not allowed here: swept all the same, by whichever core
            os.sched_setaffinity(0, {cpu})  # 0 is the calling thread, not the process
    np.add(part, 1, out=part)
    part.sum()


def _slice_bytes() -> dict[int, int]:
    """Bytes that each usable core sweeps, a multiple of 8."""
    cpus = usable_cpus()
    caches = {cpu: _caches(cpu) for cpu in cpus}
    if not all(caches.values()):
        even = -(-last_level_cache_bytes(CPU) // len(cpus))
        return {cpu: COLD_FACTOR * _up_to_8(even) for cpu in cpus}
    slices = {}
    for cpu, levels in caches.items():
        last = levels[-1]
        share = last.nbytes // len(last.shared.intersection(cpus) or {cpu})
        nearer = levels[-2].nbytes if len(levels) > 1 else 0
        slices[cpu] = COLD_FACTOR * _up_to_8(max(share, nearer))
    return slices


def _up_to_8(nbytes: int) -> int:
    return -(-nbytes // 8) * 8


def _last_levels(cpus: list[int]) -> dict[int, _Cache]:
    """The last-level cache of each core, for those of which it is known."""
    return {cpu: levels[-1] for cpu in cpus if (levels := _caches(cpu))}


def _caches(cpu: int) -> list[_Cache]:
    """The data caches of one logical core as Linux describes them, nearest first; empty where it does not."""
    found = []
    for folder in sorted((_SYSFS / f"cpu{cpu}" / "cache").glob("index*")):
        try:
            if (folder / "type").read_text().strip() == "Instruction":
                continue
            level = int((folder / "level").read_text())
            size = _parse_size((folder / "size").read_text())
            shared = _parse_cpu_list((folder / "shared_cpu_list").read_text())
        except (OSError, ValueError):
            continue
        if size:
            found.append(_Cache(level, size, shared))
    return sorted(found, key=lambda cache: cache.level)


def _parse_size(text: str) -> int:
    """Bytes of a size such as "32768K"."""
    text = text.strip()
    unit = _UNITS.get(text[-1:].upper())
    return int(text[:-1]) * unit if unit else int(text)


def _parse_cpu_list(text: str) -> frozenset[int]:
    """The cores of a list such as "0-3,8"."""
    cpus: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        cpus.update(range(int(first), int(last or first) + 1))
    return frozenset(cpus)


def _sysconf_cache_bytes() -> int:
    """What the C library knows, 0 where it does not."""
    for name in ("SC_LEVEL3_CACHE_SIZE", "SC_LEVEL2_CACHE_SIZE"):
        try:
            size = os.sysconf(name)
        except (AttributeError, ValueError, OSError):
            continue
        if size > 0:
            return size
    return 0
