"""What a text makes of each layer's q, K and V: means and second moments, added up piece by piece in fp64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hsbench.cache.basis import Basis, BasisSource, LayerBasis, make_basis
from hsbench.errors import UnsupportedError
from hsbench.models.dense import dense_attend
from hsbench.models.model import Model
from hsbench.models.text import Text
from hsbench.problem.tensor_output import AXES

CHUNK = 512
"""Tokens of a pass."""


@dataclass
class Moments:
    """Sums over the tokens of one layer so far, in fp64, per KV head.

    Attributes:
        queries, tokens: how many were added; queries count each query head of a group.
        query: of q q^T, ``[kv_heads, head_dim, head_dim]``.
        key, value: of k and v, ``[kv_heads, head_dim]``.
        key_square: of k k^T, ``[kv_heads, head_dim, head_dim]``.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    key_square: Tensor
    queries: int = 0
    tokens: int = 0

    @classmethod
    def empty(cls, kv_heads: int, head_dim: int, device: str = "cpu") -> Moments:
        """Of nothing yet."""
        flat, square = (kv_heads, head_dim), (kv_heads, head_dim, head_dim)
        query, key, value, key_square = (
            torch.zeros(shape, dtype=torch.float64, device=device) for shape in (square, flat, flat, square)
        )
        return cls(query, key, value, key_square)

    def add(self, q: Tensor, k: Tensor, v: Tensor) -> None:
        """Tokens: q ``[batch, q_heads, n, head_dim]``, k and v ``[batch, kv_heads, n, head_dim]``."""
        kv_heads, d = self.key.shape
        grouped = q.double().unflatten(1, (kv_heads, -1)).movedim(0, 2).reshape(kv_heads, -1, d)
        keys, values = (x.double().movedim(0, 1).reshape(kv_heads, -1, d) for x in (k, v))
        self.query += grouped.mT @ grouped
        self.key_square += keys.mT @ keys
        self.key += keys.sum(1)
        self.value += values.sum(1)
        self.queries += grouped.shape[1]
        self.tokens += keys.shape[1]

    def basis(self, axes: str = AXES[0]) -> LayerBasis:
        """The basis that fits them, along axes of a kind of `AXES`; on the CPU."""
        key_mean, value_mean = self.key / self.tokens, self.value / self.tokens
        spread = self.key_square / self.tokens - key_mean[:, :, None] * key_mean[:, None, :]
        read, store = make_basis((self.query / self.queries).cpu(), spread.cpu(), axes)
        return LayerBasis(key_mean.float().cpu(), value_mean.float().cpu(), read, store)


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


def calibrate(
    model: Model,
    text: Text,
    ids: Tensor,
    axes: str = AXES[0],
    progress: Callable[[int], None] = lambda tokens: None,
) -> Basis:
    """The basis of a model's attended layers, from the first tokens of a text.

    Raises:
        UnsupportedError: no layer is attended, or a layer's moments cannot be inverted.
    """
    if not model.attended:
        raise UnsupportedError(f"MODEL {model.name}: {'; '.join(model.notes)}; no layer is left")
    layers = {}
    for layer, moments in measure_moments(model, ids, progress=progress).items():
        try:
            layers[layer] = moments.basis(axes)
        except ValueError as error:
            raise UnsupportedError(f"MODEL {model.name}: layer {layer}: {error}") from error
    shape = model.geometry.to_dict()
    return Basis(BasisSource(model.name, model.identity, shape, text.sha256, len(ids), axes), layers)
