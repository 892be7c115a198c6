"""What to drop: the definition of hierarchical 2:4 and of per-token unstructured pruning, in torch.

Every backend must choose the same blocks and the same elements as this module, bit for bit (DESIGN: HieraSparse,
arXiv 2604.16864; the unstructured rival is MUSTAFAR's, arXiv 2505.22913). It is written to be read, not to be fast:
:func:`hsbench.compress` runs native code where there is any.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Literal

import torch
from torch import Tensor

from hsbench.errors import NonFiniteError
from hsbench.problem.elements import StoredElements, element_by

Operand = Literal["k", "v"]

BLOCK = 64
"""Tokens in a block."""

_LIMB_BITS = 32


class BlockKind(IntEnum):
    """hsb_block_kind: what a block of 64 tokens becomes."""

    DENSE = 0
    SPARSE_2_4 = 1
    WIDE = 2


def open_kind(elements: StoredElements) -> BlockKind:
    """What a block is that may still grow, or is kept from pruning, in a cache of such elements."""
    return BlockKind.WIDE if elements.has_scale else BlockKind.DENSE


def judged_kind(*, is_sparse: bool) -> BlockKind:
    """What a block is that may be pruned."""
    return BlockKind.SPARSE_2_4 if is_sparse else BlockKind.DENSE


@dataclass(frozen=True)
class BlockPlan:
    """Which blocks of one tensor may become 2:4, and how many per (batch, kv head) do.

    Blocks ``first <= i < last`` are eligible; ``sparse`` of them become 2:4; there are ``blocks`` in all. In a cache of
    narrow elements those that are not eligible stay ``wide``.
    """

    blocks: int
    first: int
    last: int
    sparse: int
    wide: int = 0

    def stored_as(self, elements: StoredElements) -> BlockPlan:
        """The plan of a cache of such elements: narrower ones than the input's are for eligible blocks alone."""
        return replace(self, wide=self.blocks - self.eligible if elements.has_scale else 0)

    @property
    def eligible(self) -> int:
        return self.last - self.first

    @property
    def dense(self) -> int:
        return self.blocks - self.sparse - self.wide

    def count(self, kind: BlockKind) -> int:
        """Blocks of a kind."""
        counts = {BlockKind.DENSE: self.dense, BlockKind.SPARSE_2_4: self.sparse, BlockKind.WIDE: self.wide}
        return counts[kind]

    @property
    def pruned(self) -> float:
        """What pruning drops, counted in blocks: half of each 2:4 block."""
        return 0.5 * self.sparse

    @property
    def achieved_sparsity(self) -> float:
        """Share of elements pruned among eligible blocks, 0 to 0.5; 0 where no block is eligible."""
        return self.pruned / self.eligible if self.eligible else 0.0

    def fields(self) -> dict[str, int]:
        """The fields of ``hsb_compress_params`` by which a kernel is told."""
        return {"first_eligible": self.first, "last_eligible": self.last, "sparse_per_head": self.sparse}


def plan_blocks(seq: int, sparsity: float, *, sink: int = 0, local: int = 0) -> BlockPlan:
    """Plans the blocks of a tensor of ``seq`` tokens at ``sparsity`` (0 to 0.5).

    Not eligible, so always dense, or wide (:meth:`BlockPlan.stored_as`): blocks that touch the first ``sink`` or the
    last ``local`` tokens, and the partial tail block.
    """
    blocks = -(-seq // BLOCK)
    first = min(-(-sink // BLOCK), seq // BLOCK)
    last = max(first, (seq - local) // BLOCK)
    # 1e-9 comes off before the ceiling, so that 0.2 x 15 is 3 whatever binary floating point makes of it.
    sparse = max(0, math.ceil(2 * sparsity * (last - first) - 1e-9))
    return BlockPlan(blocks, first, last, sparse)


def check_finite(name: str, x: Tensor) -> None:
    """Raises :class:`NonFiniteError` with the first index (row-major) at which ``x`` is NaN or infinite."""
    bad = ~torch.isfinite(x)
    raise_if_non_finite(name, int(torch.argmax(bad.flatten().to(torch.uint8))) if bad.any() else -1, x.shape)


def raise_if_non_finite(name: str, flat: int, shape: torch.Size) -> None:
    """Raises :class:`NonFiniteError` for element ``flat`` of a tensor of ``shape``; -1 means that all is well."""
    if flat < 0:
        return
    index: list[int] = []
    for size in reversed(shape):
        flat, at = divmod(flat, size)
        index.insert(0, at)
    raise NonFiniteError(name, tuple(index))


def keep_2_of_4(x: Tensor, dim: int) -> Tensor:
    """The 2 elements of largest magnitude in each group of 4 along ``dim``; ties keep the lower index.

    Args:
        x: any shape, fp16 or bf16, finite, with ``x.shape[dim]`` a multiple of 4.

    Returns:
        bool mask of the shape of ``x``.
    """
    groups = x.abs().movedim(dim, -1).unflatten(-1, (-1, 4))
    mine, other = groups.unsqueeze(-1), groups.unsqueeze(-2)
    index = torch.arange(4, device=x.device)
    earlier = index.unsqueeze(0) < index.unsqueeze(1)  # [mine, other]: the other stands before mine
    beaten_by = (other > mine) | ((other == mine) & earlier)
    keep = beaten_by.sum(-1) < 2
    return keep.flatten(-2).movedim(-1, dim)


def contraction_dim(operand: Operand) -> int:
    """The dimension along which the product contracts, and groups of 4 run: head_dim for K, tokens for V."""
    return -1 if operand == "k" else -2


def split_blocks(x: Tensor) -> Tensor:
    """The full blocks of ``x [..., seq, head_dim]`` as ``[..., seq // 64, 64, head_dim]``; a tail is left out."""
    full = x.shape[-2] // BLOCK
    return x[..., : full * BLOCK, :].unflatten(-2, (full, BLOCK))


def block_loss(blocks: Tensor, operand: Operand) -> Tensor:
    """Sum of |x| over the elements that 2:4 would drop, exactly, so that no order of summation can change it.

    The sum is an integer in units of the dtype's smallest subnormal, held in base 2^32 digits. For fp16 it fits
    float64 as well; for bf16, whose exponents span 2^-133 to 2^127, only digits hold it.

    Args:
        blocks: ``[..., 64, head_dim]``, fp16 or bf16, finite.

    Returns:
        int64 ``[..., digits]``, most significant digit first: compare lexicographically.
    """
    mantissa_bits = element_by(blocks.dtype).mantissa_bits
    exponents = 1 << (15 - mantissa_bits)
    bits = blocks.contiguous().view(torch.int16).to(torch.int64) & 0x7FFF
    exponent = bits >> mantissa_bits
    mantissa = (bits & ((1 << mantissa_bits) - 1)) + ((exponent > 0).to(torch.int64) << mantissa_bits)
    dropped = ~keep_2_of_4(blocks, contraction_dim(operand))
    mantissa = torch.where(dropped, mantissa, 0)
    position = exponent.clamp(min=1) - 1  # the mantissa's lowest bit, in units of the smallest subnormal
    digits = []
    carry = torch.zeros(blocks.shape[:-2], dtype=torch.int64, device=blocks.device)
    for digit in range(-(-(exponents - 1) // _LIMB_BITS)):
        here = position // _LIMB_BITS == digit
        total = carry + torch.where(here, mantissa << (position % _LIMB_BITS), 0).sum((-2, -1))
        digits.append(total & ((1 << _LIMB_BITS) - 1))
        carry = total >> _LIMB_BITS
    return torch.stack([carry, *reversed(digits)], -1)


def choose_blocks(x: Tensor, operand: Operand, plan: BlockPlan) -> Tensor:
    """Which blocks become 2:4: per (batch, kv head) the ``plan.sparse`` eligible ones of lowest loss; ties take the
    lower block index.

    Args:
        x: ``[batch, kv_heads, seq, head_dim]``, fp16 or bf16, finite: as the pruner sees it.

    Returns:
        bool ``[batch, kv_heads, blocks]``.
    """
    chosen = torch.zeros(*x.shape[:2], plan.blocks, dtype=torch.bool, device=x.device)
    if plan.sparse in (0, plan.eligible):  # no losses are needed
        chosen[..., plan.first : plan.last] = plan.sparse > 0
        return chosen
    loss = block_loss(split_blocks(x)[..., plan.first : plan.last, :, :], operand)
    order = torch.arange(plan.eligible, device=x.device).expand(loss.shape[:-1])
    for digit in range(loss.shape[-1] - 1, -1, -1):  # stable sorts from the least significant digit up
        key = loss[..., digit].gather(-1, order)
        order = order.gather(-1, key.argsort(dim=-1, stable=True))
    return chosen.scatter(-1, plan.first + order[..., : plan.sparse], True)


def kinds_of_chosen(chosen: Tensor, plan: BlockPlan) -> Tensor:
    """What each block becomes, of :func:`choose_blocks`' choice: :class:`BlockKind` as int64, of the same shape."""
    kinds = torch.where(chosen, int(BlockKind.SPARSE_2_4), int(BlockKind.DENSE))
    if plan.wide:
        kinds[..., : plan.first] = kinds[..., plan.last :] = int(BlockKind.WIDE)
    return kinds


def chosen_of_kinds(kinds: Tensor) -> Tensor:
    """The inverse of :func:`kinds_of_chosen`."""
    return kinds == int(BlockKind.SPARSE_2_4)


def prune_hierarchical(
    x: Tensor, operand: Operand, chosen: Tensor, *, scores: Tensor | None = None, fold: float = 0.0
) -> Tensor:
    """``x [batch, kv_heads, seq, head_dim]`` with zeros in place of what the ``chosen`` blocks drop.

    Args:
        scores: of the shape of ``x``: what the two that stay of a group are chosen by, in place of ``x`` itself.
        fold: each of the two gets half of this share of the sum of the two that go.
    """
    pruned = x.clone()
    blocks = split_blocks(pruned)  # a view
    dim = contraction_dim(operand)
    keep = keep_2_of_4(blocks if scores is None else split_blocks(scores), dim)
    to_prune = chosen[..., : blocks.shape[-3], None, None]
    if fold:
        blocks.copy_(torch.where(to_prune & keep, folded(blocks, keep, dim, fold), blocks))
    blocks.masked_fill_(~keep & to_prune, 0.0)
    return pruned


def folded(x: Tensor, keep: Tensor, dim: int, fold: float) -> Tensor:
    """``x`` plus half of ``fold`` of the sum of what each group of 4 along ``dim`` does not keep, in fp32: the sum, its
    product with half of ``fold`` and the sum with ``x`` are rounded each; then once to the dtype, saturating.

    Two are not kept, and 0 is added for those that are: so no order of summation matters, and a sum of -0 is 0."""
    dropped = x.float().masked_fill(keep, 0.0).movedim(dim, -1).unflatten(-1, (-1, 4)).sum(-1, keepdim=True)
    share = (dropped * (fold / 2)).expand(*dropped.shape[:-1], 4).flatten(-2).movedim(-1, dim)
    largest = torch.finfo(x.dtype).max
    return (x.float() + share).clamp(-largest, largest).to(x.dtype)


def kept_per_token(sparsity: float, head_dim: int) -> int:
    """Elements that unstructured pruning keeps of each token: ``round((1 - sparsity) x head_dim)``."""
    return round((1 - sparsity) * head_dim)


def keep_unstructured(x: Tensor, sparsity: float) -> Tensor:
    """The ``round((1 - sparsity) x head_dim)`` elements of largest magnitude of each token; ties keep the lower index.

    Args:
        x: ``[..., head_dim]``, finite.
        sparsity: 0 <= sparsity < 1.

    Returns:
        bool mask of the shape of ``x``.
    """
    order = x.abs().argsort(dim=-1, descending=True, stable=True)
    kept = order[..., : kept_per_token(sparsity, x.shape[-1])]
    return torch.zeros(x.shape, dtype=torch.bool, device=x.device).scatter(-1, kept, True)
