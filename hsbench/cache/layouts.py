"""The layouts that there are: the one place that knows which pages a device has for what is stored."""

from __future__ import annotations

from hsbench.cache import cpu_layout, cuda_layout
from hsbench.cache.layout import PageLayout
from hsbench.kernels.device import CPU, CUDA
from hsbench.problem.elements import SIXTEEN_BIT, STORED_FP8, StoredElements

LAYOUTS: dict[str, dict[StoredElements, PageLayout]] = {
    CPU.kind: {SIXTEEN_BIT: cpu_layout.PAGES, STORED_FP8: cpu_layout.FP8_PAGES},
    CUDA.kind: {SIXTEEN_BIT: cuda_layout.PAGES, STORED_FP8: cuda_layout.FP8_PAGES},
}
"""What the bytes of a page are, by kind of device and what its values are."""
