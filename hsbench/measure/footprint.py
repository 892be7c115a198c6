"""What preparing and running something takes of the memory at most, for comparison with an estimate made before.

On a GPU it is the count of torch's allocator, exact to its 512-byte blocks. A CPU has no such count; there it is
the resident memory of the process, whose peak Linux lets a process reset: good to some MiB, and None elsewhere.
Nothing here is called within a timed window.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from hsbench.kernels.device import Device

from . import procfs

_PROCESS = Path("/proc/self")


class Account(Protocol):
    """Bytes in use now, and at most since the peak was reset; each None where the system does not tell."""

    def used(self) -> int | None: ...
    def peak(self) -> int | None: ...
    def reset(self) -> None: ...


class Footprint:
    """The memory of one method. `preparing` encloses what makes it, `running` any later run of it.

    Others may be made in between: of a run only what comes on top counts, beside what the method holds.

    Args:
        device: whose.
        estimated_bytes: what was expected, before anything was allocated.

    Attributes:
        peak_bytes: the most that it took so far, beyond what was there before; None before `preparing` is through,
            and where the system does not tell.
        gpu_used_bytes: for the caller to fill: what NVML counts for the whole GPU.
    """

    def __init__(self, device: Device, estimated_bytes: int | None = None, *, account: Account | None = None) -> None:
        self.estimated_bytes = estimated_bytes
        self.peak_bytes: int | None = None
        self.gpu_used_bytes: int | None = None
        self._account = account or (_Allocator(device) if device.is_cuda else _Resident())
        self._held: int | None = None

    def columns(self) -> dict[str, int | None]:
        """The three numbers by name."""
        names = ("estimated_bytes", "peak_bytes", "gpu_used_bytes")
        return {name: getattr(self, name) for name in names}

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """Counts what the block takes at most, and what it leaves behind as held by the method."""
        before = self._begin()
        yield
        after = self._account.used()
        self._held = None if before is None or after is None else max(after - before, 0)
        self._end(before, 0)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Counts what the block takes at most, on top of what the method holds."""
        before = self._begin()
        yield
        self._end(before, self._held)

    def _begin(self) -> int | None:
        self._account.reset()
        return self._account.used()

    def _end(self, before: int | None, held: int | None) -> None:
        peak = self._account.peak()
        if before is not None and peak is not None and held is not None:
            self.peak_bytes = max(self.peak_bytes or 0, held + peak - before, 0)


class _Allocator:
    """Torch's allocator of one GPU."""

    def __init__(self, device: Device) -> None:
        self._device = device

    def used(self) -> int | None:
        import torch

        return torch.cuda.memory_allocated(str(self._device))

    def peak(self) -> int | None:
        import torch

        return torch.cuda.max_memory_allocated(str(self._device))

    def reset(self) -> None:
        import torch

        torch.cuda.reset_peak_memory_stats(str(self._device))


class _Resident:
    """This process's resident memory (proc(5): statm, VmHWM, and clear_refs, whose 5 resets the peak)."""

    def __init__(self) -> None:
        self._resets = True

    def used(self) -> int | None:
        try:
            return int((_PROCESS / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, ValueError, IndexError):
            return None

    def peak(self) -> int | None:
        if not self._resets:
            return None  # it would be the peak of everything so far
        return procfs.kib_fields(_PROCESS / "status").get("VmHWM")

    def reset(self) -> None:
        try:
            (_PROCESS / "clear_refs").write_text("5")
        except OSError:
            self._resets = False
