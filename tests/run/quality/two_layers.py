"""A model of two layers, small enough to run a window in milliseconds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hsbench.problem.elements import INPUTS

VOCAB, LAYERS, Q_HEADS, KV_HEADS = 64, 2, 4, 2


class TinyCache:
    def __init__(self, capacity: int, head_dim: int) -> None:
        self.capacity, self.length = capacity, 0
        self.kv = torch.zeros(LAYERS, 2, 1, KV_HEADS, capacity, head_dim)

    def rewind(self, length: int) -> None:
        assert length <= self.length
        self.length = length


class TinyModel:
    """Two layers of random weights, whose next token depends on what attention gives."""

    name, identity, attended, notes = "tiny", "abc123", (0, 1), ()
    dtype, element = torch.float32, INPUTS["fp16"]

    def __init__(self, head_dim: int = 64, start: int = 0) -> None:
        draw = torch.Generator().manual_seed(0)
        width = Q_HEADS * head_dim
        self.head_dim, self.start = head_dim, start
        self.geometry = SimpleNamespace(
            layers=LAYERS, q_heads=Q_HEADS, kv_heads=KV_HEADS, head_dim=head_dim, max_positions=4096, vocab=VOCAB
        )
        self.embedding = torch.randn(VOCAB, width, generator=draw)
        self.positions = torch.randn(4096, width, generator=draw)
        sizes = (width, KV_HEADS * head_dim, KV_HEADS * head_dim, width)
        self.weights = [
            [torch.randn(width, size, generator=draw) / width**0.5 for size in sizes] for _ in range(LAYERS)
        ]

    def tokens(self, text: str) -> Tensor:
        return torch.tensor([1] * self.start + [byte % VOCAB for byte in text.encode()], dtype=torch.int64)

    def check_pass(self, tokens: int) -> None:
        """There is room for all of them."""

    def new_cache(self, batch: int, capacity: int) -> TinyCache:
        return TinyCache(capacity, self.head_dim)

    def forward(self, ids: Tensor, cache: TinyCache, attend: Any = None, *, logits: str = "all") -> Tensor:
        first, end = cache.length, cache.length + ids.shape[1]
        assert end <= cache.capacity
        x = self.embedding[ids] + self.positions[first:end]
        for layer, (wq, wk, wv, wo) in enumerate(self.weights):
            q, k, v = ((x @ w).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for w in (wq, wk, wv))
            cache.kv[layer, 0, :, :, first:end], cache.kv[layer, 1, :, :, first:end] = k, v
            keys, values = cache.kv[layer, :, :, :, :end]
            out = plain(q, keys, values) if attend is None else attend(layer, q, keys, values)
            x = x + 4 * out.transpose(1, 2).flatten(2) @ wo
            x = x / x.square().mean(-1, keepdim=True).sqrt()
        cache.length = end
        shown = {"all": x, "last": x[:, -1:], "none": x[:, :0]}[logits]
        return shown @ self.embedding.T / 12


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
