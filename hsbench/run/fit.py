"""Does a cell fit? What it needs of the memory, method by method, against what can be had: before any of it is taken.

    a CPU, a GPU    q, k, v | what each method holds | the most that one of them takes for a while
                            | the reference, or the ceiling's and the flush's buffers: whichever is more
    a GPU's host    one of the tensors, which are made there

All methods of a cell are held at the same time, since they are sampled in turn. A method that does not fit is refused,
takes nothing, and so leaves its room to those after it.
"""

from __future__ import annotations

from dataclasses import replace

from hsbench import measure
from hsbench.kernels.device import CPU, Device
from hsbench.machine import ceilings
from hsbench.measure.out_of_memory import REMEDY
from hsbench.methods.base import Method
from hsbench.problem.workload import Workload
from hsbench.run import check

# What nobody counts: the allocators' rounding and threads' own heaps; on a GPU also kernels that are loaded when first
# called, and the workspaces of cuBLAS and cuDNN.
_SLACK = {"cpu": 128 << 20, "cuda": 512 << 20}
# Reference scores alive at a time, in bytes: fp32 of methods.reference, the mask, and what softmax makes of them.
_SCORES = 3 * 4 << 24
# Bytes per element of a head in the reference: K and V in fp32; and where they are pruned, what unpacking them takes on
# the way, as measured of pages and of bitmaps (whose ranks and indices are int64).
_HEAD, _UNPACKING = 8, 20
_LEAST_KV = 0.5  # of dense bytes: no method stores less, since none prunes more than half, unless it evicts


class Fit:
    """The room for one cell.

    Args:
        workload, device: the cell.
        cold: whether the caches are to be cold.
        ceiling: whether a ceiling is sampled along.
        sharing: processes that the host's memory is shared by, each with as much need.
    """

    def __init__(self, workload: Workload, device: Device, *, cold: bool, ceiling: bool, sharing: int = 1) -> None:
        self._workload, self._device = workload, device
        self._free = _shared(measure.free_memory(device), sharing if device == CPU else 1)
        self._free_on_host = _shared(measure.free_memory(CPU), sharing) if device.is_cuda else None
        self._base = workload.dense_kv_bytes + workload.query_bytes + _SLACK[device.kind]
        self._measuring = _sampling(workload, device, cold=cold, ceiling=ceiling)
        self._held = self._passing = 0

    def refusal(self, method: Method) -> str | None:
        """Why a method does not fit beside those that did so far, with the remedy; None if it does, and counts it."""
        own, held = method.estimate_bytes(self._workload), method.held_bytes(self._workload)
        passing, measuring = max(self._passing, own - held), max(self._measuring, _checking(self._workload, method))
        reason = _short(self._base + self._held + held + passing + measuring, self._free)
        if reason is None and self._device.is_cuda:
            reason = _short(_on_the_host(self._workload), self._free_on_host, " of the host's memory")
        if reason is None:
            self._held, self._passing, self._measuring = self._held + held, passing, measuring
        return reason


def _shared(free: measure.FreeMemory | None, sharing: int) -> measure.FreeMemory | None:
    """One process's share of what is free."""
    return free and replace(free, nbytes=free.nbytes // sharing)


def _short(need: int, free: measure.FreeMemory | None, whose: str = "") -> str | None:
    """A line if what is needed is more than there is, or None."""
    if free is None or need <= free.nbytes:
        return None
    sizes = f"needs about {need / 2**30:.1f} GiB{whose}, {free.nbytes / 2**30:.1f} GiB is free"
    if free.limit is None:
        return f"{sizes}: {REMEDY}"
    return f"{sizes} under {free.limit}: {REMEDY}, or raise the limit"


def _checking(workload: Workload, method: Method) -> int:
    """The reference on the sampled rows, one head at a time, and the test that all of an output is finite."""
    rows = min(workload.q_len, check.SAMPLED_ROWS)
    scores = min(_SCORES, 3 * 4 * rows * workload.group * workload.seq)
    scores = max(scores, 3 * 4 * workload.group * workload.seq)  # a row is not cut
    head = (_HEAD + (0 if method.dense else _UNPACKING)) * workload.seq * workload.head_dim
    return scores + head + 2 * workload.query_bytes


def _sampling(workload: Workload, device: Device, *, cold: bool, ceiling: bool) -> int:
    """The buffers of the ceiling, and of the flush where the caches may hold what a method reads."""
    large = measure.COLD_FACTOR * measure.last_level_cache_bytes(device)
    least = _LEAST_KV * (1.0 - (workload.evict or 0.0))
    flushed = cold and least * workload.dense_kv_bytes < large
    probed = ceilings.ceiling_bytes(workload.phase, device) if ceiling else 0
    return probed + (measure.flush_bytes(device) if flushed else 0)


def _on_the_host(workload: Workload) -> int:
    return max(workload.dense_kv_bytes // 2, workload.query_bytes) + _SLACK[CPU.kind]
