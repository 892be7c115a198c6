"""K and V as generation stores them: a cache that lives, which each pass appends its tokens to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hsbench.attention import calls
from hsbench.attention.growing import Cache
from hsbench.cache.basis import LayerBasis
from hsbench.cache.layouts import why_no_pages
from hsbench.cache.prune import BLOCK, check_finite
from hsbench.cache.pruner import Pruner
from hsbench.kernels import library
from hsbench.kernels.device import Device
from hsbench.problem.elements import CacheElements, element_by
from hsbench.run.quality.protocol import Compressed

UNREAD = frozenset(("growth",))
"""Components of a cache that lives which no attention kernel reads."""


def why_not_living(pruner: Pruner, device: Device, elements: CacheElements, head_dim: int, group: int) -> str | None:
    """Why generation cannot store K and V so; None where it can."""
    if pruner.value_weights != "none":
        return f"{pruner} weighs V's tokens against each other, which a cache that grows does not know"
    found = calls.why_not_shape(head_dim, group) or why_no_pages(elements, device, pruner.value_axis)
    return found or library.why_cannot("append", device)


def reads_chunks(pruner: Pruner, device: Device, elements: CacheElements) -> bool:
    """Whether prefill gives for many queries at once what decode gives for one at a time."""
    return not (calls.why_not_prefill(elements, device, pruner.value_axis) or calls.prefill_products(elements, device))


class Living:
    """The layers' caches of one window.

    Args:
        shares: gives the sparsities of K and V of a layer.
        chunk: tokens of a pass, at most.
        capacity: tokens that a cache has room for.
        basis: gives a layer's, where the pruner needs one.
    """

    def __init__(
        self, pruner: Pruner, elements: CacheElements, shares: Any, *, chunk: int, capacity: int, basis: Any
    ) -> None:
        self._pruner, self._elements, self._shares = pruner, elements, shares
        self._chunk, self._capacity, self._basis = chunk, capacity, basis
        self._caches: dict[int, Cache] = {}

    def compress(
        self, layer: int, k: Tensor, v: Tensor, queries: Tensor, *, held: int, sink: int, local: int
    ) -> Compressed:
        """See :class:`hsbench.run.quality.protocol.Store`; passes come in order."""
        steps = not reads_chunks(self._pruner, Device.of(k.device), self._elements)
        new = k[:, :, held:], v[:, :, held:]
        for name, x in zip("kv", new, strict=True):
            check_finite(name, x)
        fresh = layer not in self._caches
        if fresh:
            window = local - (new[0].shape[2] - 1)
            self._caches[layer] = self._cache(layer, k, sink=sink, local=window, chunk=1 if steps else self._chunk)
        cache = self._caches[layer]
        if fresh and held:
            cache.append(k[:, :, :held], v[:, :, :held], queries=queries)
        alive = _Alive(cache, new, queries)
        if not steps:
            alive.append()
        return alive

    def _cache(self, layer: int, k: Tensor, *, sink: int, local: int, chunk: int) -> Cache:
        key, value = self._shares(layer)
        basis: LayerBasis | None = self._basis(layer) if self._pruner.needs_calibration else None
        return Cache(
            k.shape[0],
            k.shape[1],
            k.shape[3],
            self._capacity,
            k.dtype,
            k.device,
            key_sparsity=key,
            value_sparsity=value,
            pruner=self._pruner,
            sink=sink,
            local=local,
            chunk=chunk,
            elements=self._elements,
            basis=basis,
        )


@dataclass
class _Alive:
    """A layer's cache during a pass, whose tokens come in at once, or, where no kernel reads many queries as decode
    reads one, with their queries, one after the other."""

    cache: Cache
    new: tuple[Tensor, Tensor] | None
    queries: Tensor
    simulated: bool = False
    tokens: Tensor | None = None

    def append(self) -> None:
        assert self.new is not None
        k, v = self.new
        self.new = None
        self.cache.append(k, v, queries=self.queries)

    def attend(self, q: Tensor) -> Tensor:
        if self.new is None:
            return (self.cache.decode(q) if q.shape[2] == 1 else self.cache.prefill(q))[0]
        (k, v), self.new = self.new, None
        out = torch.empty_like(q)
        for at in range(q.shape[2]):
            one = slice(at, at + 1)
            self.cache.append(k[:, :, one], v[:, :, one])
            out[:, :, one] = self.cache.decode(q[:, :, one])[0]
        return out

    @property
    def nbytes(self) -> int:
        return sum(self.memory().values())

    @property
    def dense_nbytes(self) -> int:
        batch, kv_heads, head_dim = self.queries.shape[0], self.cache.kv_heads, self.queries.shape[3]
        tokens = int(self.cache.lengths.sum()) // batch
        return element_by(self.cache.dtype).nbytes(2 * batch * kv_heads * tokens * head_dim)

    def memory(self) -> dict[str, int]:
        return {name: size for name, size in self.cache.memory().used.items() if name not in UNREAD}

    def shares(self) -> tuple[float, float]:
        sparse, judged = self.cache.judged_blocks()
        block = BLOCK * self.queries.shape[3]
        return 0.5 * sparse * block, float(judged * block)

    def evicted(self) -> tuple[int, int]:
        return 0, 0

    def unpack(self) -> tuple[Tensor, Tensor]:
        k, v = self.cache.unpack()
        return k.float(), v.float()
