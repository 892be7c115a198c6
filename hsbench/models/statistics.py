"""What a text makes of each layer's q, K and V: means, and the size of q, added up piece by piece in fp64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hsbench.cache.basis import Basis, BasisSource, LayerBasis
from hsbench.errors import UnsupportedError
from hsbench.models.dense import dense_attend
from hsbench.models.model import Model
from hsbench.models.text import Text

CHUNK = 512
"""Tokens of a pass."""

SINK, LOCAL = 64, 256
"""First tokens, and last before a query, that a model's caches keep dense: what a query pays those does not count."""

_PAID_FLOOR = 1e-4
"""A query that looks at nothing else counts this much, so that a short text has a size of q, too."""

_PIECE = 1 << 24
"""Scores that are alive at a time: 64 MiB."""


def paid_to_pruned(q: Tensor, k: Tensor) -> Tensor:
    """What each query pays the tokens that pruning takes: all but the first and those just before it.

    Args:
        q: ``[batch, q_heads, n, head_dim]``, the last n of m tokens.
        k: ``[batch, kv_heads, m, head_dim]``.

    Returns:
        fp32 ``[batch, q_heads, n]``, 0 to 1.
    """
    batch, q_heads, n, d = q.shape
    kv_heads, m = k.shape[1:3]
    token = torch.arange(m, device=q.device)
    out = torch.empty(batch, q_heads, n, dtype=torch.float32, device=q.device)
    step = max(1, _PIECE // (batch * q_heads * m))
    keys = k.float().mT.unsqueeze(2) / math.sqrt(d)
    for first in range(0, n, step):
        some = slice(first, first + step)
        position = torch.arange(m - n, m, device=q.device)[some, None]
        scores = q[:, :, some].float().unflatten(1, (kv_heads, -1)) @ keys
        paid = scores.masked_fill_(token > position, float("-inf")).softmax(-1)
        out[:, :, some] = paid.masked_fill_((token < SINK) | (token > position - LOCAL), 0.0).sum(-1).flatten(1, 2)
    return out


@dataclass
class Moments:
    """Sums over the tokens of one layer so far, in fp64, per KV head.

    Attributes:
        tokens: how many were added.
        query_square: of the squares of q's channels, ``[kv_heads, head_dim]``, each query as much as it looks at what
            is pruned: what one loses that looks at the rest costs nothing.
        query_weight: of what queries counted, ``[kv_heads, 1]``.
        key, value: of k and v, ``[kv_heads, head_dim]``.
    """

    query_square: Tensor
    query_weight: Tensor
    key: Tensor
    value: Tensor
    tokens: int = 0

    @classmethod
    def empty(cls, kv_heads: int, head_dim: int, device: str = "cpu") -> Moments:
        """Of nothing yet."""
        query_square, key, value = torch.zeros(3, kv_heads, head_dim, dtype=torch.float64, device=device)
        query_weight = torch.zeros(kv_heads, 1, dtype=torch.float64, device=device)
        return cls(query_square, query_weight, key, value)

    def add(self, q: Tensor, k: Tensor, v: Tensor) -> None:
        """The last n tokens of m: q ``[batch, q_heads, n, head_dim]``, k and v ``[batch, kv_heads, m, head_dim]``."""
        kv_heads, n = k.shape[1], q.shape[2]
        weights = paid_to_pruned(q, k).double().unflatten(1, (kv_heads, -1)).unsqueeze(-1) + _PAID_FLOOR
        self.query_square += (q.double().unflatten(1, (kv_heads, -1)).square() * weights).sum((0, 2, 3))
        self.query_weight += weights.sum((0, 2, 3))
        self.key += k[:, :, -n:].sum((0, 2), dtype=torch.float64)
        self.value += v[:, :, -n:].sum((0, 2), dtype=torch.float64)
        self.tokens += k.shape[0] * n

    def basis(self) -> LayerBasis:
        """What they come to; on the CPU."""
        rms = (self.query_square / self.query_weight).sqrt()
        return LayerBasis(*(x.float().cpu() for x in (self.key / self.tokens, self.value / self.tokens, rms)))


def measure_moments(
    model: Model, ids: Tensor, *, chunk: int = CHUNK, progress: Callable[[int], None] = lambda tokens: None
) -> dict[int, Moments]:
    """Run a text through a model and add up each attended layer's moments.

    Args:
        ids: the tokens, ``[n]``.
        chunk: tokens of a pass.
        progress: called with the tokens that are done.
    """
    shape = model.geometry
    moments = {layer: Moments.empty(shape.kv_heads, shape.head_dim, str(model.device)) for layer in model.attended}

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        moments[layer].add(q, k, v)
        return dense_attend(q, k, v)

    cache = model.new_cache(1, len(ids))
    for piece in ids[None].split(chunk, dim=1):
        model.forward(piece, cache, attend, logits="none")
        progress(cache.length)
    return moments


def calibrate(model: Model, text: Text, ids: Tensor, progress: Callable[[int], None] = lambda tokens: None) -> Basis:
    """The basis of a model's attended layers, from the first tokens of a text.

    Raises:
        UnsupportedError: no layer is attended, or what a layer computes is not finite.
    """
    if not model.attended:
        raise UnsupportedError(f"MODEL {model.name}: {'; '.join(model.notes)}; no layer is left")
    layers = {layer: moments.basis() for layer, moments in measure_moments(model, ids, progress=progress).items()}
    for number, layer in layers.items():
        if not all(bool(torch.isfinite(tensor).all()) for tensor in vars(layer).values()):
            raise UnsupportedError(f"MODEL {model.name}: layer {number}: its q, K or V is not finite on this text")
    return Basis(BasisSource(model.name, model.identity, model.geometry.to_dict(), text.sha256, len(ids)), layers)
