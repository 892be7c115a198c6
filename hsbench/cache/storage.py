"""What every way to store a KV cache offers, whatever its bytes are: one protocol, and what follows from it.

CONTRIBUTING.md says how to add one.
"""

from __future__ import annotations

import ctypes
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from hsbench.problem.elements import Element, element_of

Shape = tuple[int, int, int, int]
"""``(batch, kv_heads, seq, head_dim)``."""


class StoredTensor(Protocol):
    """K or V, stored."""

    @property
    def shape(self) -> Shape:
        """Of the tensor that it holds."""
        ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> torch.device: ...

    def params(self) -> ctypes.Structure:
        """The struct of params.h that kernels take."""
        ...

    def memory(self) -> dict[str, int]:
        """Bytes by component; they add up to everything that a kernel reads."""
        ...

    def head(self, batch: int, kv_head: int) -> StoredTensor:
        """One (batch, kv head), as a tensor of its own of shape ``[1, 1, seq, head_dim]``."""
        ...

    def unpack(self) -> Tensor:
        """The pruned tensor, ``[batch, kv_heads, seq, head_dim]``."""
        ...


Stored = TypeVar("Stored", bound=StoredTensor)


class Compressor(Protocol):
    """Tensors bound to the cache that they become."""

    def run(self) -> None:
        """Prunes and packs, as often as it is called."""
        ...

    def check(self) -> None:
        """Raises :class:`hsbench.errors.NonFiniteError` if the last run met a NaN or an infinity."""
        ...


@dataclass
class StoredKV(ABC, Generic[Stored]):
    """A KV cache: K and V in one format, of one shape."""

    k: Stored
    v: Stored

    @property
    def shape(self) -> Shape:
        """``(batch, kv_heads, length, head_dim)``."""
        return self.k.shape

    @property
    def dtype(self) -> torch.dtype:
        """Of the tensors that went in."""
        return self.k.dtype

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.k.device

    @property
    def element(self) -> Element:
        """The input's element type."""
        element = element_of(self.dtype)
        assert element is not None  # nothing else is ever stored
        return element

    @property
    def length(self) -> int:
        """Tokens that it holds."""
        return self.shape[2]

    def tokens_of(self, batch: int, kv_head: int) -> Tensor | None:
        """Which tokens are left of one (batch, kv head), int64 ``[n]``, ascending; None where all are."""
        return None

    @property
    def achieved_evict(self) -> float:
        """Share of the eligible blocks that are evicted, 0 to 1."""
        return 0.0

    @property
    def evict_by(self) -> str | None:
        """What chose the blocks that are evicted; None where there are none."""
        return None

    @property
    def capacity(self) -> int:
        """Tokens that it has room for; today a cache is made at its final length."""
        return self.length

    @property
    def nbytes(self) -> int:
        """Everything that a kernel reads: values, metadata, map, padding. Bytes."""
        return sum(self.memory().values())

    @property
    @abstractmethod
    def achieved_sparsity(self) -> float:
        """Share of elements pruned, K and V together."""

    def memory(self) -> dict[str, int]:
        """Bytes by component, K and V together."""
        key, value = self.k.memory(), self.v.memory()
        return {component: key.get(component, 0) + value.get(component, 0) for component in {**key, **value}}

    def unpack(self) -> tuple[Tensor, Tensor]:
        """The pruned K and V, the shapes and dtype of what was compressed."""
        return self.k.unpack(), self.v.unpack()

    def unpack_head(self, batch: int, kv_head: int) -> tuple[Tensor, Tensor]:
        """The pruned K and V of one (batch, kv head), ``[seq, head_dim]``."""
        return self.k.head(batch, kv_head).unpack()[0, 0], self.v.head(batch, kv_head).unpack()[0, 0]
