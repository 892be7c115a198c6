"""K or V of a cache that grows: pages for a capacity, taken as tokens come, and given back as blocks are pruned.

``hsb_growing`` in csrc/params.h says what each buffer is; :mod:`hsbench.cache.growing_torch` defines what append does
to them. All of them are allocated once, and nothing but their contents ever changes.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from hsbench.cache.block_map import entries_of, kinds_of, slots_of
from hsbench.cache.fit import Fit
from hsbench.cache.growth import Growth
from hsbench.cache.layout import PageLayout
from hsbench.cache.layouts import layouts_of
from hsbench.cache.paged import PagedTensor, axis_code, page_memory, pages_struct, unpack_entries
from hsbench.cache.prune import BLOCK, BlockKind, BlockPlan, Operand, judged_kind, open_kind
from hsbench.cache.storage import Shape
from hsbench.kernels import library, memory
from hsbench.problem.elements import StoredElements, element_by

OPEN, SPARSE, NARROW, JUDGED = range(4)
"""What ``state`` counts of a (batch, kv head): taken pages of the open kind, 2:4 ones, narrow dense ones; judged
blocks."""


@dataclass
class GrowingTensor:
    """K or V as pages.

    Attributes:
        shape: ``(batch, kv_heads, capacity, head_dim)``.
        growth: what is open when.
        ratio: share of judged blocks that become 2:4, 0 to 1.
        elements: what the values of judged blocks' pages are.
        fit: what a pruner stores, without anything of the sequences: those have rows of the tensors below.
        map: int32 ``[batch, kv_heads, blocks of the capacity]``.
        pools: for each kind of block uint8 ``[batch * kv_heads * pages of it, page bytes]``.
        free, state, losses: see ``hsb_growing``.
        shift, scale: fp32 ``[batch, kv_heads, head_dim]``, in the tensor's own order of channels; None where the pruner
            or the elements have none.
        weights: of K's channels, in ``dtype``, likewise.
        layout: what the bytes of its pages are.
    """

    operand: Operand
    shape: Shape
    dtype: torch.dtype
    growth: Growth
    ratio: float
    elements: StoredElements
    fit: Fit
    map: Tensor
    pools: dict[BlockKind, Tensor]
    free: Tensor
    state: Tensor
    losses: Tensor | None
    shift: Tensor | None
    scale: Tensor | None
    weights: Tensor | None
    layout: PageLayout

    @classmethod
    def empty(
        cls,
        operand: Operand,
        shape: Shape,
        dtype: torch.dtype,
        device: torch.device,
        *,
        growth: Growth,
        ratio: float,
        elements: StoredElements,
        fit: Fit,
        shifts: bool,
        weighs: bool,
    ) -> GrowingTensor:
        """Of no tokens.

        Args:
            fit: order, fold and axis.
            shifts, weighs: whether the pruner takes a shift off, and weighs K's channels.
        """
        batch, kv_heads, _, head_dim = shape
        heads, element = batch * kv_heads, elements.of(element_by(dtype))
        counts = growth.pages(ratio, elements)
        layout = layouts_of(fit.value_axis)[device.type][elements]
        pools = {
            kind: memory.empty((heads * counts[kind], page.nbytes(head_dim, element)), torch.uint8, device)
            for kind, page in layout.items()
        }

        def of_channels(is_there: bool, dtype: torch.dtype = torch.float32, value: float = 0.0) -> Tensor | None:
            return torch.full((batch, kv_heads, head_dim), value, dtype=dtype, device=device) if is_there else None

        def of_heads(size: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.zeros(batch, kv_heads, size, dtype=dtype, device=device)

        found = cls(
            operand,
            shape,
            dtype,
            growth,
            ratio,
            elements,
            fit,
            of_heads(growth.blocks),
            pools,
            of_heads(counts[open_kind(elements)]),
            of_heads(4),
            of_heads(growth.blocks, torch.float64) if 0.0 < ratio < 1.0 else None,
            of_channels(shifts),
            of_channels(elements.has_scale, value=1.0),
            of_channels(weighs, dtype, 1.0),
            layout,
        )
        found.reset()
        return found

    def reset(self) -> None:
        """Back to no tokens."""
        self.free.copy_(torch.arange(self.free.shape[-1], dtype=torch.int32, device=self.free.device))
        self.state.zero_()

    @property
    def device(self) -> torch.device:
        return self.map.device

    @property
    def open_kind(self) -> BlockKind:
        """Of blocks that are not judged."""
        return open_kind(self.elements)

    @property
    def placed_scale(self) -> Tensor | None:
        """The scale, in the order of the channels in the pages."""
        return None if self.scale is None else self.fit.placed(self.scale)

    def pages_of(self, kind: BlockKind) -> int:
        """Pages of a kind that each (batch, kv head) has."""
        return len(self.pools[kind]) // (self.shape[0] * self.shape[1]) if kind in self.pools else 0

    def params(self) -> ctypes.Structure:
        """The ``hsb_pages`` struct that kernels read it by."""
        return pages_struct(self.map, self.pools, self.layout, self.elements, self.scale, self.fit.value_axis)

    def growing(self) -> ctypes.Structure:
        """The ``hsb_growing`` struct that append takes."""
        return library.make(
            "hsb_growing",
            map=self.map,
            free=self.free,
            state=self.state,
            losses=self.losses,
            shift=self.shift,
            weights=self.weights,
            scale=self.scale,
            ratio=self.ratio,
            fold=self.fit.fold,
            stored=self.elements.code,
            order=library.constants()[f"HSB_ORDER_{self.fit.order.upper()}"],
            value_axis=axis_code(self.fit.value_axis),
            **{page.pool: self.pools[kind] for kind, page in self.layout.items()},
            **{f"{page.pool}_pages": self.pages_of(kind) for kind, page in self.layout.items()},
        )

    def of_sequences(self, first: int, last: int, plan: BlockPlan, length: int) -> PagedTensor:
        """The pages of some sequences, for a tensor of ``length`` tokens that is compressed into the first of them by
        ``plan``: views, whose slots count from the first sequence's pages on."""
        heads = self.shape[1]
        pools = {
            kind: pool[first * heads * self.pages_of(kind) : last * heads * self.pages_of(kind)]
            for kind, pool in self.pools.items()
        }
        shape = (last - first, heads, length, self.shape[3])
        scale = None if self.scale is None else self.scale[first:last]
        plan, entries = plan.stored_as(self.elements), self.map[first:last]
        pages = PagedTensor(self.operand, shape, self.dtype, plan, entries, pools, self.elements, scale)
        pages.order, pages.value_axis = self.fit.order, self.fit.value_axis
        return pages

    def compressed(self, first: int, last: int, plan: BlockPlan, losses: Tensor | None) -> None:
        """The sequences now have what ``plan`` says, in :meth:`of_sequences`' pages: counts it in.

        Args:
            losses: fp64 ``[sequences, kv_heads, plan.eligible]``, where they are kept.
        """
        plan = plan.stored_as(self.elements)
        open_ones = plan.wide if self.elements.has_scale else plan.dense
        narrow = plan.dense if self.elements.has_scale else 0
        counts = torch.tensor([open_ones, plan.sparse, narrow, plan.eligible], dtype=torch.int32, device="cpu")
        self.state[first:last] = counts.to(self.device)
        if self.losses is not None and losses is not None:
            self.losses[first:last, :, : plan.eligible] = losses
        if first:
            entries = self.map[first:last, :, : plan.blocks]
            slots, kinds = slots_of(entries), kinds_of(entries)
            before = torch.zeros_like(slots)
            for kind in self.pools:
                before += (kinds == kind) * (first * self.shape[1] * self.pages_of(kind))
            entries.copy_(entries_of(slots + before, kinds))

    def unpack(self, sequence: int, length: int) -> Tensor:
        """What is stored of a sequence under the fit, ``[kv_heads, length, head_dim]``: in its dtype, or in fp32 where
        there is a scale."""
        entries = self.map[sequence, :, : -(-length // BLOCK)]
        blocks = unpack_entries(
            entries, self.pools, self.layout, self.elements, self.operand, self.dtype, self.shape[3]
        )
        out = blocks.flatten(1, 2)[:, :length]
        scale = self.placed_scale
        return out if scale is None else out * scale[sequence].unsqueeze(1)

    def memory(self, *, used: bool) -> dict[str, int]:
        """Bytes by component: all that was taken, or what is in use now, which asks the device."""
        counts, entries = {kind: len(pool) for kind, pool in self.pools.items()}, self.map.numel()
        if used:
            open_ones, sparse, narrow, _ = self.state.sum((0, 1)).tolist()
            entries = open_ones + sparse + narrow
            counts = dict.fromkeys(self.pools, 0)
            counts[judged_kind(is_sparse=True)] = sparse
            counts[judged_kind(is_sparse=False)] += narrow
            counts[self.open_kind] += open_ones
        nbytes = entries * self.map.itemsize
        found = page_memory(self.pools, counts, self.layout, self.shape[3], nbytes, self.scale)
        if self.shift is not None:
            found["shift"] = self.shift.nbytes
        kept = [self.free, self.state, *([] if self.losses is None else [self.losses])]
        found["growth"] = sum(x.nbytes for x in kept)
        return found
