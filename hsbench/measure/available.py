"""How much memory can really be had now, whoever sets the limit: the machine, a control group, the shell, a GPU."""

from __future__ import annotations

import gc
import resource
from dataclasses import dataclass
from pathlib import Path

from hsbench.kernels.device import Device

from . import cgroup, procfs

_DEFAULT_STACK = 8 << 20  # of a thread, where there is no limit for it


@dataclass(frozen=True)
class FreeMemory:
    """Memory that can still be allocated.

    Attributes:
        nbytes: bytes.
        limit: the limit that leaves the least, such as "ulimit -v"; None where it is the machine's or GPU's own memory.
    """

    nbytes: int
    limit: str | None = None


def free_memory(device: Device, root: Path = Path("/")) -> FreeMemory | None:
    """What can still be allocated on a device; None where the system does not tell.

    On a CPU it is the least of: what the system has available without swapping; what control groups leave, at every
    level; under strict overcommit, what may still be promised; and what the limits on address space (``ulimit -v``) and
    data (``ulimit -d``) leave beside what is mapped already.

    On CUDA it is what the driver has, with what torch's allocator keeps for later use: it gives that back before it
    refuses anybody anything. Before work that takes memory from the driver itself, see `release_memory`.

    Args:
        device: whose.
        root: where /proc and /sys are; another folder in tests.
    """
    if device.is_cuda:
        import torch

        kept = torch.cuda.memory_reserved(str(device)) - torch.cuda.memory_allocated(str(device))
        return FreeMemory(int(torch.cuda.mem_get_info(str(device))[0]) + max(kept, 0))
    meminfo = procfs.kib_fields(root / "proc/meminfo")
    found = [FreeMemory(meminfo["MemAvailable"])] if "MemAvailable" in meminfo else []
    if (left := cgroup.memory_left(root)) is not None:
        found.append(FreeMemory(left, "the memory limit of the control group"))
    if {"CommitLimit", "Committed_AS"} <= meminfo.keys() and _strict(root):
        promised = max(meminfo["CommitLimit"] - meminfo["Committed_AS"], 0)
        found.append(FreeMemory(promised, "vm.overcommit_memory=2"))
    found += _within_limits(procfs.kib_fields(root / "proc/self/status"))
    return min(found, key=lambda free: free.nbytes, default=None)


def release_memory(device: Device) -> None:
    """Give back what nothing uses any more: cycles of objects that hold tensors, and what torch's allocator of a GPU
    keeps. The allocator would reuse it, but only for torch, and in pieces as they happened to be left; what runs next
    finds the memory as the first one did. Never inside a timed window."""
    gc.collect()
    if device.is_cuda:
        import torch

        torch.cuda.empty_cache()


def thread_bytes(count: int) -> int:
    """Address space that the stacks of so many new threads take."""
    stack, _ = resource.getrlimit(resource.RLIMIT_STACK)
    return count * (_DEFAULT_STACK if stack == resource.RLIM_INFINITY else stack)


def _within_limits(status: dict[str, int]) -> list[FreeMemory]:
    """What this process's limits leave, beside what it has mapped (proc(5): VmSize, VmData)."""
    limits = ((resource.RLIMIT_AS, "VmSize", "ulimit -v"), (resource.RLIMIT_DATA, "VmData", "ulimit -d"))
    found = []
    for kind, field, name in limits:
        limit, _ = resource.getrlimit(kind)
        if limit != resource.RLIM_INFINITY:
            found.append(FreeMemory(max(limit - status.get(field, 0), 0), name))
    return found


def _strict(root: Path) -> bool:
    return procfs.text(root / "proc/sys/vm/overcommit_memory") == "2"
