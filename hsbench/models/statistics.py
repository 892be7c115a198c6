"""What a text makes of each layer's q, K and V: means, and the size of q, added up piece by piece in fp64."""

from __future__ import annotations

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


@dataclass
class Moments:
    """Sums over the tokens of one layer so far, in fp64, per KV head.

    Attributes:
        queries, tokens: how many were added; queries count each query head of a group.
        query_square: of the squares of q's channels, ``[kv_heads, head_dim]``.
        key, value: of k and v, the same shape.
    """

    query_square: Tensor
    key: Tensor
    value: Tensor
    queries: int = 0
    tokens: int = 0

    @classmethod
    def empty(cls, kv_heads: int, head_dim: int, device: str = "cpu") -> Moments:
        """Of nothing yet."""
        query_square, key, value = torch.zeros(3, kv_heads, head_dim, dtype=torch.float64, device=device)
        return cls(query_square, key, value)

    def add(self, q: Tensor, k: Tensor, v: Tensor) -> None:
        """Tokens: q ``[batch, q_heads, n, head_dim]``, k and v ``[batch, kv_heads, n, head_dim]``."""
        kv_heads, d = self.key.shape
        grouped = q.double().unflatten(1, (kv_heads, -1)).movedim(0, 2).reshape(kv_heads, -1, d)
        keys, values = (x.double().movedim(0, 1).reshape(kv_heads, -1, d) for x in (k, v))
        self.query_square += grouped.square().sum(1)
        self.key += keys.sum(1)
        self.value += values.sum(1)
        self.queries += grouped.shape[1]
        self.tokens += keys.shape[1]

    def basis(self) -> LayerBasis:
        """What they come to; on the CPU."""
        rms = (self.query_square / self.queries).sqrt()
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
        n = q.shape[2]
        moments[layer].add(q, k[:, :, -n:], v[:, :, -n:])
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
