"""How K and V are stored, by method: the one place here that knows what compresses them, and what attends to them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hsbench.attention import calls
from hsbench.attention.reference import attention
from hsbench.cache import bitmap
from hsbench.cache.basis import Basis, LayerBasis
from hsbench.cache.evict import Eviction, evict_blocks, same_memory
from hsbench.cache.fit import Fit, fit_pruner, pooled_attention
from hsbench.cache.fitted import compress_kv
from hsbench.cache.hierarchical import HierarchicalKV
from hsbench.cache.layouts import why_decode_only, why_no_pages
from hsbench.cache.paged import HEAD_DIMS, page_bytes
from hsbench.cache.prune import BlockPlan, keep_unstructured, kept_per_token, plan_blocks
from hsbench.cache.pruner import DEFAULT_MODEL_PRUNER, MAGNITUDE, Pruner, pruner_for, pruner_of
from hsbench.cache.simulate import simulate
from hsbench.errors import UsageError, unknown
from hsbench.kernels import library
from hsbench.kernels.device import CUDA, Device
from hsbench.problem.elements import (
    SIXTEEN_BIT,
    STORED,
    CacheElements,
    Element,
    element_by,
    elements_by_name,
    elements_of,
)
from hsbench.run.quality.layer_plan import LayerPlan
from hsbench.run.quality.living import Living, reads_chunks, why_not_living
from hsbench.run.quality.protocol import Compressed, Store
from hsbench.run.quality.settings import BLOCK, MethodKind, Setting, Task


@dataclass
class _Stored:
    """What both kinds of store have: the sizes of K and V, and which blocks of them are pruned."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    plans: tuple[BlockPlan, BlockPlan]
    eviction: Eviction | None

    @property
    def tokens(self) -> Tensor | None:
        return None if self.eviction is None else self.eviction.tokens

    def evicted(self) -> tuple[int, int]:
        return (0, 0) if self.eviction is None else (self.eviction.evicted, self.eviction.eligible)

    @property
    def dense_nbytes(self) -> int:
        batch, kv_heads, length, head_dim = self.shape
        return element_by(self.dtype).nbytes(2 * batch * kv_heads * length * head_dim)

    def shares(self) -> tuple[float, float]:
        batch, kv_heads, _, head_dim = self.shape
        block = batch * kv_heads * BLOCK * head_dim
        return block * sum(0.5 * plan.sparse for plan in self.plans), block * sum(plan.eligible for plan in self.plans)


@dataclass
class _Paged(_Stored):
    """A hierarchical cache, and our kernels over it: decode for one query, prefill for more."""

    kv: HierarchicalKV
    simulated: bool = False

    @property
    def nbytes(self) -> int:
        return self.kv.nbytes

    def memory(self) -> dict[str, int]:
        return self.kv.memory()

    def attend(self, q: Tensor) -> Tensor:
        call = calls.decode_call(q, self.kv) if q.shape[2] == 1 else calls.prefill_call(q, self.kv)
        call.run()
        return call.out

    def unpack(self) -> tuple[Tensor, Tensor]:
        k, v = self.kv.unpack()
        return k.float(), v.float()


@dataclass
class _Simulated(_Stored):
    """What the definition says is stored, and fp32 attention over it."""

    k: Tensor
    v: Tensor
    nbytes: int
    components: dict[str, int] = field(default_factory=dict)
    simulated: bool = True

    def memory(self) -> dict[str, int]:
        return self.components

    def attend(self, q: Tensor) -> Tensor:
        return attention(q, self.k, self.v, tokens=self.tokens, seq=self.shape[2])[0]

    def unpack(self) -> tuple[Tensor, Tensor]:
        return self.k, self.v


class Hierarchical:
    """Hierarchical 2:4 by a pruner, which is fitted at the first compression to what was held before it, of the blocks
    that are not evicted: by the attention of the last queries then. What is evicted stays so.

    Where nothing is evicted, and no weights of V's tokens are needed, a cache that lives stores it; else all is
    compressed anew for each pass."""

    def __init__(self, setting: Setting, group: int, basis: Any, task: Task, capacity: int) -> None:
        self._setting, self._group, self._basis, self._task = setting, group, basis, task
        self._elements = elements_by_name(setting.elements)
        self._pruner = pruner_for(pruner_of(setting.pruner or MAGNITUDE.name), self._elements)
        self._fits: dict[int, tuple[Fit, Fit]] = {}
        self._dropped: dict[int, Tensor] = {}
        chunk = task.chunk if task.has_chunks else BLOCK
        self._living = Living(
            self._pruner, self._elements, setting.shares, chunk=chunk, capacity=capacity, basis=self._layer_basis
        )

    def _layer_basis(self, layer: int) -> LayerBasis | None:
        return self._basis.layer(layer) if self._basis else None

    def _lives(self, k: Tensor) -> bool:
        device = Device.of(k.device)
        # A chunk that no kernel reads at once cannot be the first: token by token nothing would be there to fit to.
        grows = self._task.keeps_prefix or (
            self._task.has_chunks and reads_chunks(self._pruner, device, self._elements)
        )
        if self._setting.evict or not grows:
            return False
        return why_not_living(self._pruner, device, self._elements, k.shape[-1], self._group) is None

    def compress(
        self, layer: int, k: Tensor, v: Tensor, queries: Tensor, *, held: int, sink: int, local: int
    ) -> Compressed:
        if self._lives(k):
            return self._living.compress(layer, k, v, queries, held=held, sink=sink, local=local)
        key, value = self._setting.shares(layer)
        where = {"sink": sink, "local": local}
        eviction = self._evict(layer, k, queries, held, where)
        length = k.shape[2] if eviction is None else eviction.length
        plans = plan_blocks(length, key, **where), plan_blocks(length, value, **where)
        asked: dict[str, Any] = {"key_sparsity": key, "value_sparsity": value, **where}
        asked |= {"pruner": self._pruner, "fits": self._fit(layer, k, v, queries, held, where)}
        asked |= {"elements": self._elements}
        shape = tuple(k.shape)
        if why_simulated(self._pruner, k, self._group, self._elements) is None:
            return _Paged(shape, k.dtype, plans, eviction, compress_kv(k, v, evict=eviction or 0.0, **asked))
        if eviction is not None:
            k, v = eviction.gather(k), eviction.gather(v)
            asked["fits"] = tuple(fit.at(eviction.tokens, eviction.seq) for fit in asked["fits"])
        found = simulate(k, v, **asked)
        nbytes = found.nbytes + (0 if eviction is None else eviction.nbytes)
        return _Simulated(shape, k.dtype, plans, eviction, found.k.float(), found.v.float(), nbytes)

    def _evict(self, layer: int, k: Tensor, queries: Tensor, held: int, where: dict[str, int]) -> Eviction | None:
        if not self._setting.evict:
            return None
        before = self._dropped.get(layer)
        found = evict_blocks(k, self._setting.evict, **where, queries=queries, before=before, held=held or None)
        if not found.evicted:
            return None
        self._dropped[layer] = found.dropped
        return found

    def _fit(
        self, layer: int, k: Tensor, v: Tensor, queries: Tensor, held: int, where: dict[str, int]
    ) -> tuple[Fit, Fit]:
        # What comes after the first query must not move what it sees, except where all is pruned at once.
        seen = held or k.shape[2]
        if layer not in self._fits:
            plans = [plan_blocks(seen, 0.5, **where)] * 2
            query_rms = self._basis.layer(layer).query_rms if self._pruner.needs_calibration and self._basis else None
            how: dict[str, Any] = {"query_rms": query_rms, "queries": queries, "elements": self._elements}
            self._fits[layer] = fit_pruner(self._pruner, k[:, :, :seen], v[:, :, :seen], plans, **how)
        elif self._fits[layer][1].token_weights is not None:
            key, value = self._fits[layer]
            self._fits[layer] = key, value.extended(pooled_attention(queries, k[:, :, :seen]))
        return self._fits[layer]


def why_simulated(pruner: Pruner, k: Tensor, group: int, elements: CacheElements = SIXTEEN_BIT) -> str | None:
    """Why no kernel can attend to what a pruner stores; None where ours does."""
    device = Device.of(k.device)
    without_kernel = calls.why_not_shape(k.shape[-1], group) or why_no_pages(elements, device, pruner.value_axis)
    # Many queries at once, which prefill takes, stand for one at a time.
    without_kernel = without_kernel or calls.why_not_prefill_along(pruner.value_axis)
    without_kernel = without_kernel or why_decode_only(elements, device)
    if products := calls.prefill_products(elements, device):
        without_kernel = without_kernel or f"prefill on {device} rounds q to {products}, which decode does not"
    return without_kernel or library.why_missing(device.kind)


class Unstructured:
    """The largest elements of each token, in bitmaps, in the same blocks that :class:`Hierarchical` may prune.

    No kernel attends to that beside dense tokens, so attention is simulated; bytes are of the real bitmaps.
    """

    def __init__(self, setting: Setting, *_: Any) -> None:
        self._setting = setting

    def compress(
        self, layer: int, k: Tensor, v: Tensor, queries: Tensor, *, held: int, sink: int, local: int
    ) -> Compressed:
        plans, kept, components = [], [], {"dense": 0}
        for name, x, share in zip("kv", (k, v), self._setting.shares(layer), strict=True):
            plan = plan_blocks(x.shape[2], share, sink=sink, local=local)
            some = slice(plan.first * BLOCK, plan.last * BLOCK)
            pruned = x.float()
            if share and plan.eligible:
                pruned[:, :, some] *= keep_unstructured(x[:, :, some], share)
                # Its kernel's share is of each token; an eligible block is 2 x share "2:4" blocks in `_Stored.shares`.
                plan = BlockPlan(plan.blocks, plan.first, plan.last, round(2 * share * plan.eligible))
                for component, size in _bitmap_bytes(x[:, :, some], name, share).items():
                    components[component] = components.get(component, 0) + size
                components["dense"] += element_by(x.dtype).nbytes(x.numel() - x[:, :, some].numel())
            else:
                components["dense"] += element_by(x.dtype).nbytes(x.numel())
            plans.append(plan)
            kept.append(pruned)
        shape = tuple(k.shape)
        return _Simulated(
            shape, k.dtype, (plans[0], plans[1]), None, kept[0], kept[1], sum(components.values()), components
        )


def _bitmap_bytes(x: Tensor, name: str, share: float) -> dict[str, int]:
    """What the format takes, which depends on x: the kept values of each 64 are padded."""
    if x.shape[-1] % bitmap.CHUNK or library.why_cannot("compress_bitmap", Device.of(x.device)):
        tokens = x.numel() // x.shape[-1]
        values = element_by(x.dtype).nbytes(tokens * kept_per_token(share, x.shape[-1]))
        return {"values": values, "bitmap": x.numel() // 8, "offset": tokens * 4}
    return bitmap.compress_bitmap(x.contiguous(), name, share).memory()


@dataclass(frozen=True)
class Method:
    """A way to store K and V that can be asked for.

    Attributes:
        store: makes one for a window: of a setting, the query heads per kv head, a basis where one was given, the task,
            and the tokens that it has room for.
        kind: its name, and by what its rows differ.
    """

    store: Callable[[Setting, int, Any, Task, int], Store]
    kind: MethodKind


METHODS = {
    method.kind.name: method
    for method in (
        Method(Hierarchical, MethodKind("hierarchical", pruners=True, evicts=True, elements=True)),
        Method(Hierarchical, MethodKind("dense", pruners=False, prunes=False, elements=True)),
        # Its blocks are all dense, and of 16 bits, as the cache is that it is as small as.
        Method(Hierarchical, MethodKind("evict", pruners=False, evicts=True, prunes=False)),
        Method(Unstructured, MethodKind("unstructured", pruners=False)),
    )
}
"""By name; the first runs where none is asked for."""


def check_settings(
    methods: Sequence[str] | None,
    asked: Sequence[str] | None,
    plan: LayerPlan | None,
    basis: Path | None,
    evicts: Sequence[float] | None = None,
    elements: tuple[Sequence[str] | None, ...] = (None, None, None),
) -> tuple[list[MethodKind], list[str], Any, list[str]]:
    """The methods; the pruners; the basis, where one is needed; and what stored values are.

    Args:
        methods, asked: names; None for the default.
        elements: names of what is stored of both, of K and of V; None for the default, and for that of both.
        plan: of layers, whose pruner is taken where none is asked for.
        basis: its file.
        evicts: shares of blocks to be evicted; None where nobody asked.

    Raises:
        UsageError: an unknown name, shares that are for nothing, or a basis that is missing, damaged, or for nothing.
    """
    chosen = [next(iter(METHODS))] if methods is None else list(dict.fromkeys(methods))
    for name in chosen:
        if name not in METHODS:
            raise unknown("methods", name, METHODS)
    kinds = [METHODS[name].kind for name in chosen]
    if evicts is not None and not any(kind.evicts for kind in kinds):
        typed = ",".join(f"{share:g}" for share in evicts)
        raise UsageError("evict", typed, f"{', '.join(chosen)} evicts nothing; leave it out, or add --methods evict")
    if asked is None:
        asked = [DEFAULT_MODEL_PRUNER if plan is None or plan.pruner is None else plan.pruner]
    elif not any(kind.pruners for kind in kinds):
        raise UsageError("pruner", ",".join(asked), f"{', '.join(chosen)} has none; leave it out")
    found = [pruner_of(name) for name in dict.fromkeys(asked)]
    needing = [pruner.name for pruner in found if pruner.needs_calibration]
    if needing and basis is None:
        raise UsageError(
            "pruner", needing[0], "needs a calibration; make one with hsbench calibrate and give it as `basis`"
        )
    if basis is not None and not needing:
        raise UsageError("basis", basis, "none of the pruners takes a basis; give --pruner calibrated")
    opened = None if basis is None else Basis.load(basis)
    return kinds, list(dict.fromkeys(asked)), opened, _check_elements(kinds, *elements)


def _check_elements(
    kinds: Sequence[MethodKind], both: Sequence[str] | None, key: Sequence[str] | None, value: Sequence[str] | None
) -> list[str]:
    """The names of what caches store, K's and V's crossed where they are asked for apart."""
    for option, names in {"elements": both, "key_elements": key, "value_elements": value}.items():
        for name in names or ():
            if name not in STORED:
                raise unknown(option, name, STORED)
    found: dict[str, None] = {}
    for one in both or [SIXTEEN_BIT.name]:
        for of_key, of_value in itertools.product(key or [one], value or [one]):
            found[elements_of(STORED[of_key], STORED[of_value]).name] = None
    if SIXTEEN_BIT.name not in found and not all(kind.elements for kind in kinds):
        fixed = ", ".join(kind.name for kind in kinds if not kind.elements)
        option = "elements" if both is not None else "key_elements" if key is not None else "value_elements"
        typed = ",".join(both or key or value or ())
        raise UsageError(option, typed, f"{fixed} stores 16 bits only; leave it out, or add 16bit")
    return list(found)


def same_memory_of(device: Device, head_dim: int, element: Element, key: float, value: float) -> float:
    """The share of blocks to be evicted from a dense cache that leaves as few bytes as 2:4 of sparsities ``key`` and
    ``value``, both of 16 bits."""
    kind = device.kind if head_dim in HEAD_DIMS else CUDA.kind  # whose pages stand in, see `simulate`
    return same_memory((2 * key, 2 * value), page_bytes(kind, head_dim, element))
