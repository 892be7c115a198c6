"""What narrow elements leave of what is stored, by their definitions in torch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hsbench.cache import e4m3, int4, wide
from hsbench.cache.fit import Fit
from hsbench.cache.prune import BLOCK, BlockPlan, Operand, contraction_dim, keep_2_of_4, split_blocks
from hsbench.problem.elements import STORED_FP8, STORED_INT4, StoredElements


def _of_e4m3(blocks: Tensor, operand: Operand) -> Tensor:
    return e4m3.from_bytes(e4m3.to_bytes(blocks))


ROUNDED: dict[StoredElements, Callable[[Tensor, Operand], Tensor]] = {
    STORED_FP8: _of_e4m3,
    STORED_INT4: int4.rounded,
}
"""What comes back of blocks ``[pages, 64, head_dim]``, in units of their channels' scales, fp32, by their elements."""


def quantised(stored: Tensor, fit: Fit, plan: BlockPlan, chosen: Tensor, elements: StoredElements) -> Tensor:
    """What a cache of narrow elements gives back, fp32; itself where elements are not.

    Args:
        stored: ``[batch, kv_heads, seq, head_dim]``, as the fit stores it, pruned.
        fit: with the scales of the channels, and along which dimension groups run.
        plan: of the blocks: those that are not eligible stay wide.
        chosen: which are 2:4, as of :func:`hsbench.cache.prune.choose_blocks`. As in pages, what is left says what is
            kept.
    """
    if fit.scale is None:
        return stored
    scale = fit.placed(fit.scale).unsqueeze(2)
    units = stored.float() / scale
    out = wide.rounded(units).float()
    eligible = slice(plan.first * BLOCK, plan.last * BLOCK)
    blocks = split_blocks(units[:, :, eligible])
    if blocks.numel():
        left = ROUNDED[elements](blocks.flatten(0, 2), fit.operand).view_as(blocks)
        dropped = ~keep_2_of_4(blocks, contraction_dim(fit.groups)) & chosen[..., plan.first : plan.last, None, None]
        out[:, :, eligible] = left.masked_fill_(dropped, 0.0).flatten(2, 3)
    return torch.mul(out, scale)
