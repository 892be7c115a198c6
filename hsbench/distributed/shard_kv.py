"""A rank's part of K and V of a cache that grows over ranks: of what all are given, each keeps what is its shard's.

    capacity   | shard of rank 0 | shard of rank 1 | shard of rank 2 |
    tokens     ==================|======>                              those of rank 2 are still to come

All ranks count the whole sequence in the same way, from the same arguments, on the device: none asks another.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from hsbench.cache.growing_kv import GrowingKV
from hsbench.cache.growth import Growth
from hsbench.cache.storage import Shape
from hsbench.distributed.shards import Shard


class ShardKV(GrowingKV):
    """K and V of one layer, this rank's tokens of them. What is given to its methods is of the whole sequence.

    A first chunk is looked at by all ranks, also by those that keep nothing of it: the pruner is fitted to it, and so
    is the same on all ranks, and later tokens need no fit wherever they fall.

    Args:
        shape, growth: of all ranks together.
        shard: this rank's part of the capacity.

    Attributes:
        lengths: of this rank's tokens, as kernels read it.
        known: of the whole sequence.
    """

    def __init__(
        self,
        shape: Shape,
        dtype: torch.dtype,
        device: torch.device,
        *,
        growth: Growth,
        shard: Shard,
        group: dist.ProcessGroup | None,
        **how: Any,
    ) -> None:
        batch, kv_heads, _, head_dim = shape
        own = replace(growth, capacity=shard.tokens, sink=shard.sink(growth.sink))
        super().__init__((batch, kv_heads, shard.tokens, head_dim), dtype, device, growth=own, **how)
        self._shard, self._group, self._growth_of_all = shard, group, growth
        # Tokens of the whole sequence less those before the shard. May count some behind the capacity, which are
        # nowhere: to look for them at each token would take more launches than to count.
        self._reached = torch.full((batch,), -shard.first, dtype=torch.int32, device=device)

    @property
    def capacity(self) -> int:
        """Tokens that a sequence may have on all ranks together."""
        return self._shard.seq

    @property
    def lengths_of_all(self) -> Tensor:
        """Tokens of each whole sequence, int32 ``[batch]``, as they are now."""
        return (self._reached + self._shard.first).clamp_(max=self._shard.seq)

    def memory(self, *, used: bool) -> dict[str, int]:
        """As of :class:`GrowingKV`, of this rank."""
        found = super().memory(used=used)
        found["growth"] += self._reached.nbytes
        return found

    def _begin(self, which: slice, k: Tensor, v: Tensor, queries: Tensor | None) -> None:
        k, v = k.contiguous(), v.contiguous()
        fits = self._fitted(k, v, queries, self._growth_of_all)
        own = slice(self._shard.first, self._shard.last)
        self._store(which, k[:, :, own].contiguous(), v[:, :, own].contiguous(), fits)
        self._reached[which] = k.shape[2] - self._shard.first

    def append_later(self, k: Tensor, v: Tensor, counts: Tensor | None) -> None:
        """Appends to sequences that have tokens; ``counts`` int32 ``[batch]``, or None for all. A sequence that would
        be longer than the capacity gets none, and :meth:`check` says so."""
        shard, tokens = self._shard, k.shape[2]
        added = tokens if counts is None else counts
        if tokens == 1:
            self._reached.add_(added)
        else:
            before = self._reached.clone()
            after = before + added
            is_full = after > shard.seq - shard.first
            self._overflow.logical_or_(is_full)
            torch.where(is_full, before, after, out=self._reached)
            if shard.first:  # else its part of a chunk begins where the chunk does
                k, v = (_tokens_from(-before, x) for x in (k, v))
        own = torch.clamp(self._reached, 0, shard.tokens).sub_(self.lengths)
        super().append_later(k, v, own)

    def check(self) -> None:
        """As of :class:`GrowingKV`, alike on all ranks, all of which must call it."""
        most = self._shard.seq - self._shard.first
        self._overflow.logical_or_(self._reached > most)
        self._reached.clamp_(max=most)
        dist.all_reduce(self._non_finite, op=dist.ReduceOp.MAX, group=self._group)
        super().check()

    def reset(self) -> None:
        """As of :class:`GrowingKV`."""
        super().reset()
        self._reached.fill_(-self._shard.first)


def _tokens_from(first: Tensor, x: Tensor) -> Tensor:
    """The tokens of ``x [batch, kv_heads, n, head_dim]`` from ``first [batch]`` on; behind them is anything."""
    batch, _, tokens, _ = x.shape
    at = torch.arange(tokens, device=x.device) + first.clamp(min=0).unsqueeze(1)
    return x.gather(2, at.clamp_(max=tokens - 1).view(batch, 1, tokens, 1).expand_as(x))
