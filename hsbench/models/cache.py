"""K and V of every layer, dense, in memory that is taken once: a transformers ``Cache`` of layers of our own.

Its methods' signatures differ between transformers 4.57 and 5.x (a tensor of positions became a number, a name was
changed); each of ours takes both.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin


class TensorLayer(CacheLayerMixin):
    """One layer: K and V, each ``[batch, kv_heads, capacity, head_dim]``; the first `length` tokens are in use."""

    is_sliding = False

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.device, self.dtype = keys.device, keys.dtype
        self.is_initialized = True
        self.length = 0

    def lazy_initialization(self, *_args: Any, **_kwargs: Any) -> None:
        """Nothing: all of it is there."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append ``[batch, kv_heads, n, head_dim]``; returns all that is there now."""
        end = self.length + key_states.shape[-2]
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.used()

    def used(self) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V of the tokens that there are, views."""
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def get_seq_length(self, *_args: Any) -> int:
        return self.length

    def get_mask_sizes(self, queries: torch.Tensor | int) -> tuple[int, int]:
        """(keys, offset of the first) once so many queries, or those at such positions, are appended."""
        return self.length + (queries if isinstance(queries, int) else queries.shape[0]), 0

    def get_max_length(self) -> int:
        return int(self.keys.shape[-2])

    get_max_cache_shape = get_max_length  # its name before 5.2x

    def reset(self) -> None:
        self.length = 0


class ModelCache:
    """Dense K and V of a model's layers, for a fixed number of tokens at most.

    Attributes:
        capacity: tokens that it holds at most.
        length: tokens in it.
    """

    def __init__(
        self, layers: int, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device | str
    ) -> None:
        """``shape`` is ``[batch, kv_heads, capacity, head_dim]``, of K and of V of each layer."""
        self.capacity, self.batch = shape[2], shape[0]
        self.length = 0
        pairs = ([torch.empty(shape, dtype=dtype, device=device) for _ in "kv"] for _ in range(layers))
        self._layers = [TensorLayer(*pair) for pair in pairs]
        self.hf = Cache(layers=list(self._layers))

    def rewind(self, length: int) -> None:
        """Drop the tokens from ``length`` on.

        Raises:
            ValueError: there are not that many.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot rewind a cache of {self.length} tokens to {length}")
        self.length = length
        for layer in self._layers:
            layer.length = length

    def layer(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V of a layer, views ``[batch, kv_heads, length, head_dim]``."""
        keys, values = self._layers[i].used()
        return keys[:, :, : self.length], values[:, :, : self.length]

    def appended(self, tokens: int) -> None:
        """All layers have appended so many tokens.

        Raises:
            RuntimeError: one of them has not.
        """
        self.length += tokens
        wrong = [i for i, layer in enumerate(self._layers) if layer.length != self.length]
        if wrong:
            raise RuntimeError(f"layers {wrong} did not append {tokens} tokens")
