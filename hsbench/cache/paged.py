"""K or V as pages: a block map, and a pool of pages for each kind of block.

A map entry (``block_map``) says a block's kind and its slot, slots counting within the pool of that kind. The bytes of
a page are the device layout's (``cpu_layout``, ``cuda_layout``).
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hsbench.cache.block_map import entries_of, kinds_of, slots_of
from hsbench.cache.fit import channel_order
from hsbench.cache.layout import PageLayout
from hsbench.cache.layouts import LAYOUTS, layouts_of
from hsbench.cache.prune import BLOCK, BlockKind, BlockPlan, Operand
from hsbench.cache.pruner import Axis, Order
from hsbench.cache.storage import Shape
from hsbench.errors import UnavailableError, UnsupportedError
from hsbench.kernels import forks, library, memory
from hsbench.problem.elements import (
    SIXTEEN_BIT,
    TORCH_INPUTS,
    Element,
    StoredElements,
    element_by,
    element_of,
)

HEAD_DIMS = (64, 128)


def axis_code(axis: Axis) -> int:
    """The ``hsb_axis`` of params.h."""
    return library.constants()[f"HSB_AXIS_{axis.upper()}"]


def page_bytes(device: str, head_dim: int, element: Element) -> tuple[int, int]:
    """Of a dense page and of a pruned one of 16-bit values, on a kind of device: what says which elements it kept."""
    layout = LAYOUTS[device][SIXTEEN_BIT]
    found = {page.metadata_bytes(head_dim) > 0: page.nbytes(head_dim, element) for page in layout.values()}
    return found[False], found[True]


@dataclass
class PagedTensor:
    """K or V of shape ``[batch, kv_heads, seq, head_dim]`` as pages.

    Attributes:
        map: int32 ``[batch, kv_heads, blocks]``.
        pools: for each kind of block uint8 ``[batch * kv_heads * plan.count(kind), page bytes]``.
        elements: what the values of its pages are; those of wide pages have 16 bits all the same.
        scale: of elements that have one, fp32 ``[batch, kv_heads, head_dim]``, in the tensor's own order of channels.
        order: of the channels in its pages (:func:`hsbench.cache.fit.channel_order`), where there is a scale.
        value_axis: of V: along which groups run (:class:`hsbench.cache.pruner.Pruner`).
    """

    operand: Operand
    shape: Shape
    dtype: torch.dtype
    plan: BlockPlan
    map: Tensor
    pools: dict[BlockKind, Tensor]
    elements: StoredElements = SIXTEEN_BIT
    scale: Tensor | None = None
    order: Order = "adjacent"
    value_axis: Axis = "tokens"

    @classmethod
    def empty(
        cls,
        x: Tensor,
        operand: Operand,
        plan: BlockPlan,
        elements: StoredElements = SIXTEEN_BIT,
        *,
        value_axis: Axis = "tokens",
        **of_scale: Any,
    ) -> PagedTensor:
        """Uninitialised pages for a tensor like ``x``; ``of_scale``: ``scale`` and ``order``."""
        batch, kv_heads, seq, head_dim = x.shape
        plan, element = plan.stored_as(elements), elements.of(element_by(x.dtype))
        pools = {
            kind: memory.empty(
                (batch * kv_heads * plan.count(kind), page.nbytes(head_dim, element)), torch.uint8, x.device
            )
            for kind, page in layouts_of(value_axis)[x.device.type][elements].items()
        }
        entries = torch.empty(batch, kv_heads, plan.blocks, dtype=torch.int32, device=x.device)
        shape = batch, kv_heads, seq, head_dim
        more = {"value_axis": value_axis, **of_scale}
        return cls(operand, shape, x.dtype, plan, entries, pools, elements, **more)

    @property
    def device(self) -> torch.device:
        return self.map.device

    @property
    def layout(self) -> PageLayout:
        return layouts_of(self.value_axis)[self.device.type][self.elements]

    @property
    def placed_scale(self) -> Tensor | None:
        """The scale, in the order of the channels in the pages."""
        if self.scale is None or self.order == "adjacent":
            return self.scale
        return self.scale[..., channel_order(self.order, self.shape[-1]).to(self.scale.device)]

    @property
    def pool_fields(self) -> dict[str, Tensor]:
        """The pools by the fields of params.h's structs that point to them."""
        return {self.layout[kind].pool: pool for kind, pool in self.pools.items()}

    def params(self) -> ctypes.Structure:
        """The ``hsb_pages`` struct that kernels take."""
        # Without a map, a CUDA kernel has one dependent load less before its first page.
        one_kind = self.plan.blocks in map(self.plan.count, self.pools)
        entries = None if self.map.is_cuda and one_kind else self.map
        return pages_struct(entries, self.pools, self.layout, self.elements, self.scale, self.value_axis)

    def memory(self) -> dict[str, int]:
        """Bytes by component; they add up to the buffers' real sizes."""
        counts = {kind: len(pool) for kind, pool in self.pools.items()}
        return page_memory(self.pools, counts, self.layout, self.shape[-1], self.map.nbytes, self.scale)

    def head(self, batch: int, kv_head: int) -> PagedTensor:
        """The pages of one (batch, kv head), as a cache of its own; only the map is copied."""
        index = batch * self.shape[1] + kv_head
        entries = self.map[batch, kv_head]
        slots, kinds = slots_of(entries), kinds_of(entries)
        pools = {}
        for kind, pool in self.pools.items():
            count = self.plan.count(kind)
            pools[kind] = pool[index * count : (index + 1) * count]
            slots = slots - (kinds == kind) * (index * count)
        scale = None if self.scale is None else self.scale[batch : batch + 1, kv_head : kv_head + 1]
        entries = entries_of(slots, kinds).view(1, 1, -1)
        return replace(self, shape=(1, 1, *self.shape[2:]), map=entries, pools=pools, scale=scale)

    def unpack(self) -> Tensor:
        """The pruned tensor, ``[batch, kv_heads, seq, head_dim]``: in its dtype, or in fp32 where there is a scale, for
        the dtype need not hold all that it makes of e4m3."""
        with forks.torch_operations():
            return self._unpack()

    def _unpack(self) -> Tensor:
        batch, kv_heads, seq, head_dim = self.shape
        blocks = unpack_entries(self.map, self.pools, self.layout, self.elements, self.operand, self.dtype, head_dim)
        out = blocks.view(batch, kv_heads, -1, head_dim)[:, :, :seq]
        scale = self.placed_scale
        return out.contiguous() if scale is None else out * scale.unsqueeze(2)


def pages_struct(
    entries: Tensor | None,
    pools: dict[BlockKind, Tensor],
    layout: PageLayout,
    elements: StoredElements,
    scale: Tensor | None,
    value_axis: Axis,
) -> ctypes.Structure:
    """The ``hsb_pages`` struct of pages; ``entries``: their map, which a cache of one kind may go without."""
    fields = {layout[kind].pool: pool for kind, pool in pools.items()}
    return library.make(
        "hsb_pages",
        map=entries,
        stored=elements.code,
        scale=scale,
        wide_pages=len(fields.get("wide", ())),
        value_axis=axis_code(value_axis),
        **fields,
        **{f"{field}_page_bytes": pool.shape[1] for field, pool in fields.items()},
    )


def page_memory(
    pools: dict[BlockKind, Tensor],
    counts: dict[BlockKind, int],
    layout: PageLayout,
    head_dim: int,
    map_nbytes: int,
    scale: Tensor | None,
) -> dict[str, int]:
    """Bytes by component of so many pages of each pool, of their map and of the channels' scale."""
    metadata = {kind: counts[kind] * layout[kind].metadata_bytes(head_dim) for kind in pools}
    scales = {kind: counts[kind] * layout[kind].scale_bytes(head_dim) for kind in pools}
    values = {
        layout[kind].component: counts[kind] * pool.shape[1] - metadata[kind] - scales[kind]
        for kind, pool in pools.items()
    }
    of_scale = {} if scale is None else {"scale": scale.nbytes + sum(scales.values())}
    return {**values, "metadata": sum(metadata.values()), "map": map_nbytes, **of_scale}


def unpack_entries(
    entries: Tensor,
    pools: dict[BlockKind, Tensor],
    layout: PageLayout,
    elements: StoredElements,
    operand: Operand,
    dtype: torch.dtype,
    head_dim: int,
) -> Tensor:
    """The blocks of map entries, ``[*entries.shape, 64, head_dim]``: in ``dtype``, or, of elements that have a scale,
    fp32 in units of it."""
    slots, kinds = slots_of(entries), kinds_of(entries)
    shape = (*entries.shape, BLOCK, head_dim)
    blocks = torch.empty(shape, dtype=torch.float32 if elements.has_scale else dtype, device=entries.device)
    for kind, pool in pools.items():
        of_kind = kinds == kind
        if bool(of_kind.any()):
            blocks[of_kind] = layout[kind].unpack(pool[slots[of_kind]], operand, dtype, head_dim).to(blocks.dtype)
    return blocks


def check_kv(k: Tensor, v: Tensor) -> None:
    """Raises :class:`UnsupportedError` unless k and v are alike, of a type that kernels take, ``[batch, kv_heads, seq,
    64|128]``, and :class:`UnavailableError` on a device that no library is for."""
    if k.device != v.device:
        raise UnsupportedError(f"k is on {k.device}, but v on {v.device}: give v.to('{k.device}')")
    if k.ndim != 4 or k.shape != v.shape or k.dtype != v.dtype:
        raise UnsupportedError(
            f"k {list(k.shape)} {k.dtype} and v {list(v.shape)} {v.dtype} must be alike: "
            "[batch, kv_heads, seq, head_dim], one dtype"
        )
    if k.device.type not in LAYOUTS:
        raise UnavailableError(f"hsbench has no kernels for {k.device.type} tensors: move k and v to cpu or cuda")
    if element_of(k.dtype) is None:
        raise UnsupportedError(f"k and v are {k.dtype}: convert them to {TORCH_INPUTS}")
    if k.shape[-1] not in HEAD_DIMS or 0 in k.shape:
        raise UnsupportedError(f"k is {list(k.shape)}: head_dim must be 64 or 128 and no size may be 0")
