"""Allocation of the large buffers, the same for every method, so that none has better pages than another."""

from __future__ import annotations

import ctypes
import functools
import mmap
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_HUGE = 2 << 20  # bytes of a transparent huge page on x86-64 Linux


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """``torch.empty``, on huge pages where the machine gives them on request.

    A sequence of 128k tokens is 512 MiB of K and V: with 4 KiB pages a scan of it is also 131,072 translations. Many
    distributions give huge pages only to those who ask (``madvise``); nothing is changed where that fails.
    """
    tensor = torch.empty(*shape, dtype=dtype, device=device)
    size = tensor.numel() * tensor.element_size()
    if tensor.device.type == "cpu" and size >= 2 * _HUGE:
        start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (tensor.data_ptr() + size) // mmap.PAGESIZE * mmap.PAGESIZE
        advise = _madvise()
        if advise is not None:
            advise(start, end - start, mmap.MADV_HUGEPAGE)  # a hint: a refusal costs nothing
    return tensor


def scratch(size: int, device: torch.device | str) -> Tensor:
    """``size`` bytes of workspace, uint8, zeroed: kernels may keep counters there that they reset themselves."""
    workspace = empty((size,), torch.uint8, device)
    if workspace.device.type != "cpu":
        return workspace.zero_()
    # Not by torch: its threads spin for a while afterwards, and a forked child does not have them (``forks``).
    ctypes.memset(workspace.data_ptr(), 0, size)
    return workspace


@functools.cache
def _madvise() -> Any | None:
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    try:
        advise = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return advise
