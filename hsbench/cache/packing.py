"""One tensor to pages: by the native kernels, and by the definition in torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hsbench.cache.block_map import entries_of, kinds_of
from hsbench.cache.compressor import TensorCompressor
from hsbench.cache.fit import Fit
from hsbench.cache.paged import PagedTensor, axis_code
from hsbench.cache.prune import (
    BLOCK,
    BlockPlan,
    Operand,
    check_finite,
    choose_blocks,
    kinds_of_chosen,
    prune_hierarchical,
    split_blocks,
)
from hsbench.kernels import forks, library
from hsbench.problem.elements import SIXTEEN_BIT, StoredElements


class PageCompressor(TensorCompressor):
    """One tensor bound to the pages that it becomes: ``run()`` prunes, chooses blocks and packs.

    Args:
        fit: a pruner fitted to the tensor; by default its magnitudes choose. With a scale where elements have one.
        elements: what the values of its pages are.
        pages: where to, in place of pages of its own; they may be the first of more, of which ``room`` says how many
            there are, by the fields of ``hsb_compress_params``.

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
        *,
        pages: PagedTensor | None = None,
        **room: int,
    ) -> None:
        fit = fit or Fit(operand)
        self.pages = pages = pages or empty_pages(x, operand, plan, fit, elements)
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
            **room,
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
