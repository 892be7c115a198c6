"""Which blocks a cache drops altogether: the definition of eviction, in torch, for all devices.

An evicted block is gone from K and from V, and its tokens take no part in the softmax. It has no page, no slot and no
entry in a block map: of each (batch, kv head) the blocks that are left are stored, as many of every head, and
:attr:`Eviction.position` says which they are. So a decode kernel reads fewer blocks and knows nothing of it, and a
prefill kernel asks only which block of the sequence a stored one is. Sink, window and tail are never evicted, so that
what is left of a tensor is one of fewer tokens with the same sink, window and tail, which is then pruned as any other
(:func:`hsbench.cache.prune.plan_blocks` of its length).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hsbench.cache.fit import pooled_attention
from hsbench.cache.prune import BLOCK, plan_blocks
from hsbench.kernels import forks

Rule = Literal["attention mass", "key norm"]


@dataclass(frozen=True)
class Eviction:
    """What is left of the blocks of a cache.

    Attributes:
        position: int32 ``[batch, kv_heads, stored]``, ascending: which block of the sequence each stored one is.
        seq: tokens of the sequence.
        eligible: blocks of each (batch, kv head) that could be evicted.
        evicted: how many of them are.
        rule: what chose them.
    """

    position: Tensor
    seq: int
    eligible: int
    evicted: int
    rule: Rule

    @property
    def achieved(self) -> float:
        """Share of the eligible blocks that are evicted, 0 to 1."""
        return self.evicted / self.eligible if self.eligible else 0.0

    @property
    def length(self) -> int:
        """Tokens that are left of each (batch, kv head)."""
        return self.seq - BLOCK * self.evicted

    @property
    def nbytes(self) -> int:
        """Bytes that a kernel reads because of it."""
        return self.position.nbytes

    @property
    def tokens(self) -> Tensor:
        """Which tokens of the sequence are left, int64 ``[batch, kv_heads, length]``, ascending."""
        offsets = torch.arange(BLOCK, device=self.position.device)
        return (self.position.long().unsqueeze(-1) * BLOCK + offsets).flatten(-2)[..., : self.length]

    @property
    def dropped(self) -> Tensor:
        """Which blocks are evicted, bool ``[batch, kv_heads, blocks]``."""
        batch, kv_heads, stored = self.position.shape
        left = torch.ones(batch, kv_heads, stored + self.evicted, dtype=torch.bool, device=self.position.device)
        return left.scatter(-1, self.position.long(), False)

    def room_for(self, x: Tensor) -> Tensor:
        """Uninitialised, for what is left of ``x``."""
        batch, kv_heads, _, head_dim = x.shape
        return x.new_empty(batch, kv_heads, self.length, head_dim)

    def gather(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """What is left of ``x [batch, kv_heads, seq, head_dim]``: ``[batch, kv_heads, length, head_dim]``, contiguous;
        in ``out`` where that is given."""
        batch, kv_heads, seq, _ = x.shape
        left = self.room_for(x) if out is None else out
        full, tail = seq // BLOCK, seq % BLOCK
        whole = self.position.shape[-1] - (tail > 0)
        for b in range(batch):
            for h in range(kv_heads):
                blocks = x[b, h, : full * BLOCK].unflatten(0, (full, BLOCK))
                to = left[b, h, : whole * BLOCK].unflatten(0, (whole, BLOCK))
                torch.index_select(blocks, 0, self.position[b, h, :whole], out=to)
                if tail:
                    left[b, h, whole * BLOCK :] = x[b, h, full * BLOCK :]
        return left


def evicted_blocks(share: float, eligible: int) -> int:
    """How many of so many blocks a share of them is; part of a block counts as one, as of 2:4."""
    return max(0, math.ceil(share * eligible - 1e-9))


def plan_eviction(seq: int, share: float, *, sink: int = 0, local: int = 0) -> int:
    """Blocks that each (batch, kv head) of ``seq`` tokens drops at ``share``, 0 to 1. Those that may not become 2:4 are
    not evicted either."""
    return evicted_blocks(share, plan_blocks(seq, 0.0, sink=sink, local=local).eligible)


def evict_blocks(
    k: Tensor,
    share: float,
    *,
    sink: int = 0,
    local: int = 0,
    queries: Tensor | None = None,
    before: Tensor | None = None,
    held: int | None = None,
) -> Eviction:
    """Chooses per (batch, kv head) the eligible blocks that are dropped: those of least attention mass, which the last
    queries paid to the block's tokens (:func:`hsbench.cache.fit.pooled_attention`), where queries are given; else those
    of largest key norm, the sum over the block's tokens of their lengths, which attention is known to pass over (Devoto
    et al., arXiv 2406.11430). Ties take the lower index. Both are compared in fp32; norms are added up in fp64 before,
    so that the order of additions, which differs by device, chooses nothing.

    Args:
        k: ``[batch, kv_heads, seq, head_dim]``, in its own order and place.
        share: of the eligible blocks, 0 to 1; see :func:`plan_eviction`.
        queries: ``[batch, q_heads, n, head_dim]``, of the last n tokens, or of the last n of the first ``held``.
        before: bool ``[batch, kv_heads, some blocks]``, as many of every head: what is evicted already, of a cache that
            has grown, and stays so. It is no part of the attention that is looked at.
    """
    with forks.torch_operations():
        return _evict_blocks(k, share, sink, local, queries, before, held or k.shape[2])


def _evict_blocks(
    k: Tensor, share: float, sink: int, local: int, queries: Tensor | None, before: Tensor | None, held: int
) -> Eviction:
    batch, kv_heads, seq, _ = k.shape
    plan = plan_blocks(seq, 0.0, sink=sink, local=local)
    gone = torch.zeros(batch, kv_heads, plan.blocks, dtype=torch.bool, device=k.device)
    if before is not None:
        gone[..., : before.shape[-1]] = before
    evicted = max(evicted_blocks(share, plan.eligible), int(gone[0, 0].sum()))
    eligible = slice(plan.first, plan.last)
    rule: Rule = "key norm" if queries is None else "attention mass"
    if evicted == plan.eligible:  # no scores are needed
        gone[..., eligible] = True
    elif evicted:
        scores = _mass(k, queries, gone, held) if queries is not None else -_norms(k)
        # What is gone stands first; stable, so that ties take the lower index.
        order = scores.masked_fill(gone, float("-inf"))[..., eligible].argsort(dim=-1, stable=True)
        gone = gone.scatter(-1, plan.first + order[..., :evicted], True)
    position = (~gone).nonzero()[:, 2].view(batch, kv_heads, plan.blocks - evicted)
    return Eviction(position.to(torch.int32), seq, plan.eligible, evicted, rule)


def _by_block(of_tokens: Tensor, blocks: int) -> Tensor:
    """Sums over the tokens of each of so many blocks, fp32 ``[batch, kv_heads, blocks]``, of ``[batch, kv_heads, some
    tokens]``; those that there are not add nothing."""
    missing = blocks * BLOCK - of_tokens.shape[-1]
    return torch.nn.functional.pad(of_tokens, (0, missing)).unflatten(-1, (-1, BLOCK)).sum(-1).float()


def _mass(k: Tensor, queries: Tensor, gone: Tensor, held: int) -> Tensor:
    hidden = gone.repeat_interleave(BLOCK, -1)[..., :held] if gone.any() else None
    return _by_block(pooled_attention(queries, k[:, :, :held], hidden=hidden), gone.shape[-1])


def _norms(k: Tensor) -> Tensor:
    """One head at a time, for fp64 takes room, and the squares of bf16's larger values need it."""
    batch, kv_heads, seq, _ = k.shape
    heads = [
        _by_block(torch.linalg.vector_norm(k[b : b + 1, h : h + 1], dim=-1, dtype=torch.float64), -(-seq // BLOCK))
        for b in range(batch)
        for h in range(kv_heads)
    ]
    return torch.cat(heads).view(batch, kv_heads, -1)


def same_memory(shares: tuple[float, float], page_bytes: tuple[int, int]) -> float:
    """The share of eligible blocks, 0 to 1, that is to be evicted from a dense cache so that it is as small as one with
    2:4 blocks.

    Args:
        shares: which shares of the eligible blocks of K and of V are 2:4 there, 0 to 1.
        page_bytes: of a dense and of a 2:4 page.
    """
    dense, sparse = page_bytes
    return sum(shares) / 2 * (1 - sparse / dense)
