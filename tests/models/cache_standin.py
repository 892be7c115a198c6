"""A cache with the face of ``hsbench.Cache`` that compresses nothing, for what only needs to fill one and to attend."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from hsbench.errors import UsageError


class StandIn:
    """All of it in torch, with lengths on the device, so that a graph of it replays as it grows.

    Attributes:
        how: what it was asked to be.
        queries: those that came with the first chunk.
    """

    def __init__(
        self, batch: int, kv_heads: int, head_dim: int, capacity: int, dtype: torch.dtype, device: Any, **how: Any
    ) -> None:
        self.k, self.v = torch.zeros(2, batch, kv_heads, capacity, head_dim, dtype=dtype, device=device)
        self.batch, self.capacity, self.dtype, self.device = batch, capacity, dtype, self.k.device
        self.how, self.queries = how, None
        self.lengths = torch.zeros(batch, dtype=torch.int32, device=device)
        self._places = torch.arange(capacity, device=device)

    def append(self, k: Tensor, v: Tensor, *, lengths: Any = None, queries: Tensor | None = None) -> None:
        assert k.dtype == self.dtype and lengths is None
        tokens = k.shape[2]
        if not k.is_cuda and int(self.lengths[0]) + tokens > self.capacity:
            raise UsageError("k", f"of {tokens} tokens", "make the cache with a larger capacity")
        places = self.lengths[:1] + torch.arange(tokens, device=k.device)
        self.k.index_copy_(2, places, k)
        self.v.index_copy_(2, places, v)
        self.queries = self.queries if queries is None else queries
        self.lengths += tokens

    def decode(self, q: Tensor) -> tuple[Tensor, Tensor]:
        assert q.shape[2] == 1
        return self.prefill(q)

    def prefill(self, q: Tensor) -> tuple[Tensor, Tensor]:
        assert q.dtype == self.dtype
        batch, q_heads, n, d = q.shape
        grouped = q.float().unflatten(1, (self.k.shape[1], -1))
        last = self.lengths[0] - n + torch.arange(n, device=q.device)
        scores = (grouped @ self.k.float().unsqueeze(2).mT) * d**-0.5
        scores = scores.masked_fill(self._places > last[:, None], -torch.inf)
        out = (scores.softmax(-1) @ self.v.float().unsqueeze(2)).to(q.dtype)
        return out.flatten(1, 2), scores.logsumexp(-1).flatten(1, 2)

    def unpack(self) -> tuple[Tensor, Tensor]:
        length = int(self.lengths[0])
        return self.k[:, :, :length], self.v[:, :, :length]

    def memory(self) -> SimpleNamespace:
        reserved = self.k.nbytes + self.v.nbytes
        used = reserved // self.capacity * int(self.lengths[0])
        return SimpleNamespace(reserved={"dense": reserved}, used={"dense": used})

    def reset(self) -> None:
        self.lengths.zero_()

    def check(self) -> None:
        """Nothing can be wrong."""
