"""The hierarchical cache: a block map, and a pool of pages for each kind of block, for K and for V.

A map entry (``block_map``) says a block's kind and its slot, slots counting within the pool of that kind. Pages of one
(batch, kv head) are contiguous in each pool and ascend with the block, so that a kernel streams them. The bytes of a
page are the device layout's (``cpu_layout``, ``cuda_layout``).
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from hsbench.cache.block_map import entries_of, kinds_of, slots_of
from hsbench.cache.compressor import TensorCompressor
from hsbench.cache.evict import Eviction
from hsbench.cache.fit import Fit, channel_order
from hsbench.cache.layout import PageLayout
from hsbench.cache.layouts import LAYOUTS, layouts_of
from hsbench.cache.prune import (
    BLOCK,
    BlockKind,
    BlockPlan,
    Operand,
    check_finite,
    choose_blocks,
    kinds_of_chosen,
    prune_hierarchical,
    split_blocks,
)
from hsbench.cache.pruner import MAGNITUDE, Axis, Order, Pruner
from hsbench.cache.storage import Shape, StoredKV
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
        return library.make(
            "hsb_pages",
            map=None if self.map.is_cuda and one_kind else self.map,
            stored=self.elements.code,
            scale=self.scale,
            wide_pages=len(self.pool_fields.get("wide", ())),
            value_axis=axis_code(self.value_axis),
            **self.pool_fields,
            **{f"{field}_page_bytes": pool.shape[1] for field, pool in self.pool_fields.items()},
        )

    def memory(self) -> dict[str, int]:
        """Bytes by component; they add up to the buffers' real sizes."""
        head_dim = self.shape[-1]
        metadata = {kind: len(pool) * self.layout[kind].metadata_bytes(head_dim) for kind, pool in self.pools.items()}
        scales = {kind: len(pool) * self.layout[kind].scale_bytes(head_dim) for kind, pool in self.pools.items()}
        values = {
            self.layout[kind].component: pool.nbytes - metadata[kind] - scales[kind]
            for kind, pool in self.pools.items()
        }
        scale = {} if self.scale is None else {"scale": self.scale.nbytes + sum(scales.values())}
        return {**values, "metadata": sum(metadata.values()), "map": self.map.nbytes, **scale}

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
        dtype = self.dtype if self.scale is None else torch.float32
        blocks = torch.empty(self.map.numel(), BLOCK, head_dim, dtype=dtype, device=self.device)
        entries = self.map.flatten()
        slots, kinds = slots_of(entries), kinds_of(entries)
        for kind, pool in self.pools.items():
            if len(pool):
                of_kind = kinds == kind
                blocks[of_kind] = self.layout[kind].unpack(pool, self.operand, self.dtype, head_dim)[slots[of_kind]]
        out = blocks.view(batch, kv_heads, -1, head_dim)[:, :, :seq]
        scale = self.placed_scale
        return out.contiguous() if scale is None else out * scale.unsqueeze(2)


@dataclass
class HierarchicalKV(StoredKV[PagedTensor]):
    """A compressed KV cache, as :func:`hsbench.compress` returns it.

    Attributes:
        pruner: what pruned it.
        key_fit, value_fit: the pruner, fitted to it. The pages of ``k`` and ``v`` hold what is stored under it;
            :meth:`unpack` gives K and V themselves.
        eviction: which blocks are left, where some are evicted: ``k`` and ``v`` are what is stored of these alone.
    """

    pruner: Pruner = MAGNITUDE
    key_fit: Fit = field(default_factory=lambda: Fit("k"))
    value_fit: Fit = field(default_factory=lambda: Fit("v"))
    eviction: Eviction | None = None

    @property
    def shape(self) -> Shape:
        """``(batch, kv_heads, length, head_dim)``, evicted tokens counted."""
        batch, kv_heads, stored, head_dim = self.k.shape
        return (batch, kv_heads, stored if self.eviction is None else self.eviction.seq, head_dim)

    @property
    def achieved_sparsity(self) -> float:
        """Share of elements pruned among the eligible, not evicted blocks of K and V together, 0 to 0.5."""
        pruned = self.k.plan.pruned + self.v.plan.pruned
        eligible = self.k.plan.eligible + self.v.plan.eligible
        return pruned / eligible if eligible else 0.0

    @property
    def achieved_evict(self) -> float:
        """Share of the eligible blocks that are evicted, 0 to 1."""
        return 0.0 if self.eviction is None else self.eviction.achieved

    @property
    def evict_by(self) -> str | None:
        """What chose the blocks that are evicted; None where there are none."""
        return None if self.eviction is None else self.eviction.rule

    @property
    def tokens(self) -> Tensor | None:
        """Which tokens are left, int64 ``[batch, kv_heads, n]``, ascending; None where all are."""
        return None if self.eviction is None else self.eviction.tokens

    def tokens_of(self, batch: int, kv_head: int) -> Tensor | None:
        """Which tokens are left of one (batch, kv head), int64 ``[n]``; None where all are."""
        return None if self.eviction is None else self.eviction.tokens[batch, kv_head]

    def memory(self) -> dict[str, int]:
        """Bytes by component, K and V together."""
        shifts = self.key_fit.nbytes + self.value_fit.nbytes
        position = 0 if self.eviction is None else self.eviction.nbytes
        more = {"shift": shifts, "position": position}
        return {**super().memory(), **{component: size for component, size in more.items() if size}}

    def unpack(self) -> tuple[Tensor, Tensor]:
        """The pruned K and V, ``[batch, kv_heads, seq, head_dim]``, or of the tokens that are left (:attr:`tokens`): in
        the dtype of what was compressed, or in fp32 where the pruner shifts or values have a scale, for the dtype could
        not hold the sums."""
        with forks.torch_operations():
            return self.key_fit.restored(self.k.unpack()), self.value_fit.restored(self.v.unpack())

    def unpack_head(self, batch: int, kv_head: int) -> tuple[Tensor, Tensor]:
        """The pruned K and V of one (batch, kv head), ``[seq, head_dim]``, or of the tokens that are left of it
        (:meth:`tokens_of`); see :meth:`unpack`."""
        k, v = self.k.head(batch, kv_head).unpack(), self.v.head(batch, kv_head).unpack()
        key, value = self.key_fit.head(batch, kv_head), self.value_fit.head(batch, kv_head)
        return key.restored(k)[0, 0], value.restored(v)[0, 0]


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


class PageCompressor(TensorCompressor):
    """One tensor bound to the pages that it becomes: ``run()`` prunes, chooses blocks and packs.

    Args:
        fit: a pruner fitted to the tensor; by default its magnitudes choose. With a scale where elements have one.
        elements: what the values of its pages are.

    Raises:
        UnavailableError: there is no native library for the device.
    """

    def __init__(
        self,
        x: Tensor,
        operand: Operand,
        plan: BlockPlan,
        fit: Fit | None = None,
        elements: StoredElements = SIXTEEN_BIT,
    ) -> None:
        fit = fit or Fit(operand)
        self.pages = pages = empty_pages(x, operand, plan, fit, elements)
        self._fit, self._shift = fit, None if fit.shift is None else fit.shift.to(x.device).contiguous()
        # Only 2:4 blocks are chosen by weights. Those of V's tokens depend on the tensor: each run makes them.
        self._weights: Tensor | None = None
        if fit.weighs and plan.sparse > 0:
            sizes = x.shape[:2] + (x.shape[3] if operand == "k" else x.shape[2],)
            self._weights = torch.empty(sizes, dtype=x.dtype, device=x.device)
        super().__init__(
            "compress",
            x,
            operand,
            operand=library.KEY if operand == "k" else library.VALUE,
            map=pages.map,
            order=library.constants()[f"HSB_ORDER_{fit.order.upper()}"],
            shift=self._shift,
            weights=self._weights,
            fold=fit.fold if plan.sparse > 0 else 0.0,
            stored=elements.code,
            scale=pages.scale,
            value_axis=axis_code(fit.value_axis),
            **plan.fields(),
            **pages.pool_fields,
        )

    def run(self) -> None:
        """Prunes and packs, as often as it is called."""
        if self._weights is not None:
            with forks.torch_operations():
                self._weights.copy_(self._fit.weights_of(self._x))
        super().run()


def compress_tensor(x: Tensor, operand: Operand, plan: BlockPlan) -> PagedTensor:
    """Prunes, chooses blocks and packs one tensor; raises as :class:`PageCompressor` and its ``check`` do."""
    compressor = PageCompressor(x, operand, plan)
    compressor.run()
    compressor.check()
    return compressor.pages


def empty_pages(x: Tensor, operand: Operand, plan: BlockPlan, fit: Fit, elements: StoredElements) -> PagedTensor:
    """For a tensor under a fit; elements that have a scale take the fit's."""
    of_scale: dict[str, Any] = {}
    if elements.has_scale:
        assert fit.scale is not None
        of_scale = {"scale": fit.scale.to(x.device).contiguous(), "order": fit.order}
    return PagedTensor.empty(x, operand, plan, elements, value_axis=fit.value_axis, **of_scale)


def compress_tensor_torch(
    x: Tensor, operand: Operand, plan: BlockPlan, fit: Fit | None = None, elements: StoredElements = SIXTEEN_BIT
) -> PagedTensor:
    """The definition of what :class:`PageCompressor` does: the same bytes, in torch, slowly."""
    check_finite(operand, x)
    fit = fit or Fit(operand)
    stored = fit.stored(x)
    scores = fit.scores(stored)
    chosen = choose_blocks(scores, fit.groups, plan)
    pages = empty_pages(x, operand, plan, fit, elements)
    pack_torch(prune_hierarchical(stored, fit.groups, chosen, scores=scores, fold=fit.fold), pages, chosen, scores)
    return pages


def pack_torch(x: Tensor, pages: PagedTensor, chosen: Tensor, scores: Tensor | None = None) -> None:
    """Packs ``x [batch, kv_heads, seq, head_dim]`` in torch; ``chosen`` as of :func:`choose_blocks`. What blocks keep
    is chosen by ``scores``, of the shape of ``x``, or by ``x`` itself."""
    write_map(pages, chosen)
    kinds = kinds_of(pages.map).flatten()
    scale = pages.placed_scale
    blocks = padded_blocks(x if scale is None else x.float() / scale.unsqueeze(2), pages.plan)
    # Values in units of their scales compare otherwise than those that are stored.
    scored = None if scores is None and scale is None else padded_blocks(x if scores is None else scores, pages.plan)
    for kind, pool in pages.pools.items():
        if pages.plan.count(kind):
            of_kind = kinds == kind
            by = None if scored is None else scored[of_kind]
            pool.copy_(pages.layout[kind].pack(blocks[of_kind], pages.operand, by))


def write_map(pages: PagedTensor, chosen: Tensor) -> None:
    """Fills the map: slots of each kind in the order of the blocks, head by head; ``chosen`` as of
    :func:`choose_blocks`."""
    kinds = kinds_of_chosen(chosen, pages.plan).flatten()
    slots = torch.zeros_like(kinds)
    for kind in pages.pools:
        of_kind = kinds == kind
        slots = torch.where(of_kind, of_kind.cumsum(0) - 1, slots)
    pages.map.copy_(entries_of(slots, kinds).view_as(pages.map))


def padded_blocks(x: Tensor, plan: BlockPlan) -> Tensor:
    """All blocks of ``x``, ``[batch * kv_heads * blocks, 64, head_dim]``, the last ones' missing tokens zero."""
    batch, kv_heads, seq, head_dim = x.shape
    padded = torch.zeros(batch, kv_heads, plan.blocks * BLOCK, head_dim, dtype=x.dtype, device=x.device)
    padded[:, :, :seq] = x
    return split_blocks(padded).flatten(0, 2)
