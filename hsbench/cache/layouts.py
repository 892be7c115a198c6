"""The layouts that there are: the one place that knows which pages a device has for what is stored."""

from __future__ import annotations

from hsbench.cache import cpu_head_dim, cpu_int4, cpu_layout, cuda_int4, cuda_layout
from hsbench.cache.layout import PageLayout
from hsbench.cache.pruner import ALONG_HEAD_DIM, Axis
from hsbench.kernels.device import CPU, CUDA, Device
from hsbench.problem.elements import SIXTEEN_BIT, STORED_FP8, STORED_INT4, CacheElements, StoredElements

Layouts = dict[str, dict[StoredElements, PageLayout]]
"""What the bytes of a page are, by kind of device and what its values are."""

LAYOUTS: Layouts = {
    CPU.kind: {SIXTEEN_BIT: cpu_layout.PAGES, STORED_FP8: cpu_layout.FP8_PAGES, STORED_INT4: cpu_int4.PAGES},
    CUDA.kind: {SIXTEEN_BIT: cuda_layout.PAGES, STORED_FP8: cuda_layout.FP8_PAGES, STORED_INT4: cuda_int4.PAGES},
}
"""Of groups along the contraction: head_dim of K, tokens of V."""

HEAD_DIM_LAYOUTS: Layouts = {
    CPU.kind: {
        SIXTEEN_BIT: cpu_head_dim.PAGES,
        STORED_FP8: cpu_head_dim.FP8_PAGES,
        STORED_INT4: cpu_head_dim.INT4_PAGES,
    },
    CUDA.kind: {
        SIXTEEN_BIT: cuda_layout.ALONG_HEAD_DIM,
        STORED_FP8: cuda_layout.FP8_ALONG_HEAD_DIM,
        STORED_INT4: cuda_int4.ALONG_HEAD_DIM,
    },
}
"""Of V in groups along head_dim."""

DECODE_ONLY: dict[str, tuple[StoredElements, ...]] = {CPU.kind: (), CUDA.kind: (STORED_INT4,)}
"""Values whose pages only decode reads: tensor cores want a prefill's operands in shared memory, 8 bits or 16 wide."""


def layouts_of(axis: Axis) -> Layouts:
    """The layouts of pages whose groups run along what they contract, or, V's, along head_dim."""
    return HEAD_DIM_LAYOUTS if axis == "head_dim" else LAYOUTS


def why_no_pages(elements: CacheElements, device: Device, axis: Axis = "tokens") -> str | None:
    """Why a device stores no such elements, with V's groups along ``axis``, or its kernels do not read them; None if it
    does."""
    if missing := [one for one in (elements.key, elements.value) if one not in LAYOUTS[device.kind]]:
        return f"no {device.kind.upper()} kernel reads {missing[0]} pages yet: the CPU's do"
    if elements.value not in layouts_of(axis)[device.kind]:
        along = f"no {device.kind.upper()} kernel reads V of {elements.value} in groups along head_dim yet"
        return f"{along}: take a pruner without {ALONG_HEAD_DIM}"
    return None


def why_decode_only(elements: CacheElements, device: Device) -> str | None:
    """Why no prefill kernel of a device reads such pages of K and V; None if one does, or if there are none."""
    if one := next((one for one in (elements.key, elements.value) if one in DECODE_ONLY[device.kind]), None):
        return f"no {device.kind.upper()} prefill kernel reads {one} pages: decode's does"
    if elements.key != elements.value and device.is_cuda:
        return f"no CUDA prefill kernel reads K and V of {elements}: decode's does"
    return None
