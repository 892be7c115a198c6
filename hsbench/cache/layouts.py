"""The layouts that there are: the one place that knows which pages a device has for what is stored."""

from __future__ import annotations

from hsbench.cache import cpu_int4, cpu_layout, cuda_layout
from hsbench.cache.layout import PageLayout
from hsbench.kernels.device import CPU, CUDA, Device
from hsbench.problem.elements import SIXTEEN_BIT, STORED_FP8, STORED_INT4, CacheElements, StoredElements

LAYOUTS: dict[str, dict[StoredElements, PageLayout]] = {
    CPU.kind: {SIXTEEN_BIT: cpu_layout.PAGES, STORED_FP8: cpu_layout.FP8_PAGES, STORED_INT4: cpu_int4.PAGES},
    CUDA.kind: {SIXTEEN_BIT: cuda_layout.PAGES, STORED_FP8: cuda_layout.FP8_PAGES},
}
"""What the bytes of a page are, by kind of device and what its values are."""


def why_no_pages(elements: CacheElements, device: Device) -> str | None:
    """Why a device stores no such elements, or its kernels do not read them; None if it does."""
    if missing := [one for one in (elements.key, elements.value) if one not in LAYOUTS[device.kind]]:
        return f"no {device.kind.upper()} kernel reads {missing[0]} pages yet: the CPU's do"
    if elements.key != elements.value and device.is_cuda:
        return f"no CUDA kernel reads K and V of {elements} yet: store both alike"
    return None
