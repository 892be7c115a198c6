"""Does a model fit? What it needs, against what can be had: before any of it is taken."""

from __future__ import annotations

from hsbench import measure
from hsbench.errors import UnavailableError
from hsbench.kernels.device import Device
from hsbench.models.geometry import ModelGeometry

_SLACK = 256 << 20  # transformers' own modules, allocators' rounding, threads' heaps


def check_fits(what: str, nbytes: int, device: Device, remedy: str) -> None:
    """Make sure that so much memory can be had.

    Raises:
        UnavailableError: it cannot; says how much there is, whose limit that is, and the remedy.
    """
    free, need = measure.free_memory(device), nbytes + _SLACK
    if free is None or need <= free.nbytes:
        return
    limit, raising = (f" under {free.limit}", ", or raise the limit") if free.limit else ("", "")
    sizes = f"needs about {need / 2**30:.1f} GiB, {free.nbytes / 2**30:.1f} GiB is free{limit}"
    raise UnavailableError(f"{what} {sizes}: {remedy}{raising}")


def cache_bytes(geometry: ModelGeometry, batch: int, capacity: int, element_bytes: int) -> int:
    """Dense K and V of all layers."""
    return 2 * geometry.layers * batch * geometry.kv_heads * capacity * geometry.head_dim * element_bytes
