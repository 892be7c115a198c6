"""Ceilings of the machine, measured in the run that they are compared with: copy, read, matrix product.

A ceiling is what the machine sustains at its best, so the samples that something disturbed must not lower it,
and a single lucky one must not raise it: it is the median of the faster half of the samples.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from hsbench.kernels.device import Device

from .available import free_memory
from .cache import COLD_FACTOR, last_level_cache_bytes
from .clock import Clock, take_sample

if TYPE_CHECKING:
    import torch

_GEMM_SIZE = {"cpu": 2048, "cuda": 8192}
_FEWEST = 4  # samples, whatever they cost: a half of them still has a median


@dataclass(frozen=True)
class Ceiling:
    """Work whose rate is a ceiling: to be run by itself (:func:`probe`), or in turn with what it is compared to.

    Attributes:
        name: "copy", "read" or "gemm" and the dtype.
        unit: "GB/s" (10^9 bytes) or "TFLOP/s" (10^12).
        amount: GB or TFLOP that one run moves or computes.
        run: the work, once.
        source: "native" when the caller gave the run, "torch" for the fallback.
    """

    name: str
    unit: str
    amount: float
    run: Callable[[], None]
    source: str

    def rate(self, times_s: Sequence[float]) -> float:
        """The ceiling that these samples show, in `unit`."""
        return self.amount / faster_half_median(times_s)


@dataclass(frozen=True)
class Probe:
    """A ceiling that was measured by itself: `value` in `unit`, from `samples` (seconds, in order)."""

    name: str
    value: float
    unit: str
    samples: tuple[float, ...]
    source: str


def copy_ceiling(device: Device, run: Callable[[], None] | None = None, bytes_moved: int | None = None) -> Ceiling:
    """Copying memory to memory, in GB/s of bytes read plus bytes written.

    On a CPU, stores that are not streaming read each line before writing it; that traffic is not counted (as
    in STREAM), so the figure can stay a third below what streaming stores reach.

    Args:
        device: whose.
        run: one copy, much larger than the caches; torch's `copy_` when None.
        bytes_moved: bytes that `run` reads and writes; needed with `run`.

    Raises:
        ValueError: `run` without `bytes_moved` or the reverse.
    """
    source = _source(run, bytes_moved)
    if run is None or bytes_moved is None:
        src, dst = _buffer(device), _buffer(device)
        bytes_moved = 2 * src.nbytes

        def run() -> None:
            dst.copy_(src)

    return Ceiling("copy", "GB/s", bytes_moved / 1e9, run, source)


def read_ceiling(device: Device, run: Callable[[], None] | None = None, bytes_moved: int | None = None) -> Ceiling:
    """Reading memory, in GB/s. As `copy_ceiling`; the fallback is torch's sum of fp32.

    Raises:
        ValueError: `run` without `bytes_moved` or the reverse.
    """
    source = _source(run, bytes_moved)
    if run is None or bytes_moved is None:
        src = _buffer(device)
        bytes_moved = src.nbytes

        def run() -> None:
            src.sum()

    return Ceiling("read", "GB/s", bytes_moved / 1e9, run, source)


def gemm_ceiling(device: Device, dtype: torch.dtype, name: str, size: int | None = None) -> Ceiling:
    """A square matrix product through torch, in TFLOP/s, counting 2 size^3 operations.

    The values are random: constant ones draw less power and would show a clock that real work does not get.

    Args:
        device: whose.
        dtype: of both operands and of the result.
        name: what the dtype is called in the ceiling's name.
        size: rows and columns; None for 2048 on a CPU and 8192 on CUDA.
    """
    import torch

    size = size or _GEMM_SIZE[device.kind]
    generator = torch.Generator(str(device)).manual_seed(0)
    a, b = (
        torch.randn(size, size, device=str(device), dtype=torch.float32, generator=generator).to(dtype)
        for _ in range(2)
    )
    out = torch.empty(size, size, device=str(device), dtype=dtype)

    def run() -> None:
        torch.matmul(a, b, out=out)

    return Ceiling(f"gemm {name}", "TFLOP/s", 2 * size**3 / 1e12, run, "torch")


def gemm_bytes(device: Device, itemsize: int) -> int:
    """Memory that `gemm_ceiling` of its own size takes at most: two fp32 operands, and all three in a dtype of
    `itemsize` bytes."""
    return _GEMM_SIZE[device.kind] ** 2 * (2 * 4 + 3 * itemsize)


def probe(ceiling: Ceiling, clock: Clock, *, count: int = 20, budget_s: float = 1.0) -> Probe:
    """Measures a ceiling by itself.

    Args:
        ceiling: what to run.
        clock: the device's, see `clock_for`.
        count: samples.
        budget_s: stop early after this many seconds, but not below 4 samples.
    """
    take_sample(clock, ceiling.run, name="warm-up")
    times: list[float] = []
    begin = time.monotonic()
    while len(times) < count and (len(times) < _FEWEST or time.monotonic() - begin < budget_s):
        times.append(take_sample(clock, ceiling.run, name="probe", payload=len(times)))
    return Probe(ceiling.name, ceiling.rate(times), ceiling.unit, tuple(times), ceiling.source)


def fastest(ceilings: Sequence[Ceiling], clock: Clock, *, count: int = 6) -> Ceiling:
    """Of several ways to do the same, the one that proves fastest here: a ceiling is the most that the machine gives.

    Raises:
        ValueError: no ceilings.
    """
    return max(ceilings, key=lambda ceiling: probe(ceiling, clock, count=count).value)


def faster_half_median(times_s: Sequence[float]) -> float:
    """The median of the faster half, in seconds; of an odd number, the middle one is in that half.

    Raises:
        ValueError: no times.
    """
    if not times_s:
        raise ValueError("a ceiling needs at least one sample")
    return median(sorted(times_s)[: (len(times_s) + 1) // 2])


def _source(run: Callable[[], None] | None, bytes_moved: int | None) -> str:
    if (run is None) != (bytes_moved is None):
        raise ValueError("run and bytes_moved go together: a bandwidth needs both or neither")
    return "torch" if run is None else "native"


def _buffer(device: Device) -> torch.Tensor:
    """fp32 values, far larger than the caches, and at most an eighth of the memory that is free."""
    import torch

    wanted = 1 << 30 if device.is_cuda else 1 << 28
    free = free_memory(device)
    nbytes = max(wanted, COLD_FACTOR * last_level_cache_bytes(device))
    if free is not None:
        nbytes = min(nbytes, free.nbytes // 8)
    return torch.ones(nbytes // 4, dtype=torch.float32, device=str(device))
