"""From a setting to a cache: the one place here that knows what keeps K and V, and what attends to them."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch.nn.attention import sdpa_kernel

from hsbench.cache.basis import Basis
from hsbench.cache.layouts import why_no_pages
from hsbench.cache.pruner import AUTO_PRUNER, CENTERED, MAGNITUDE, auto_pruner
from hsbench.kernels.device import Device
from hsbench.methods.sdpa import BACKENDS
from hsbench.models.cache import TensorLayer
from hsbench.models.living import AttendingLayer, DenseLayer, HierarchicalCache, LivingCache
from hsbench.models.model import Model
from hsbench.problem.elements import CacheElements, Element, elements_by_name
from hsbench.run.generate.settings import TORCH, Generation, MethodSetting

_ROWS = "-rows"

SDPA_BACKENDS = tuple(f"{name}{form}" for name in BACKENDS for form in ("", _ROWS))
"""Variants of ``sdpa``; without one it is torch's own choice, with the query heads of a group as rows."""

_CACHED_SHARES = {"16bit": 0.4375, "fp8": 0.375, "int4": 0.29}
"""What 2:4 saves of a page, beside what the elements save."""


def pruner_name(asked: str, elements: CacheElements, device: Device) -> str:
    """The pruner of a cache that decode alone reads, whose tokens of V cannot be weighed against later ones: of
    ``auto`` the one that sees the prompt's last queries, along head_dim; where nothing reads such pages, the best that
    is left."""
    if asked != AUTO_PRUNER:
        return asked
    return CENTERED.name if why_no_pages(elements, device, "head_dim") else auto_pruner(decode_alone=True)


def cache_dtype(setting: MethodSetting, model: Model, asked: Element) -> torch.dtype:
    """What K, V and q are in the cache: torch's attention takes the model's own type."""
    return model.dtype if setting.family == TORCH else asked.torch_dtype


def new_cache(
    setting: MethodSetting,
    model: Model,
    task: Generation,
    capacity: int,
    element: Element,
    basis: Basis | None = None,
    *,
    batch: int | None = None,
) -> LivingCache:
    """An empty cache for a setting, with all of its memory.

    Args:
        element: of K, V and q in caches of ours.
        batch: sequences, where these are not the task's.

    Raises:
        UsageError, UnsupportedError, UnavailableError: as :class:`hsbench.Cache`.
    """
    batch = batch or task.batch
    if setting.family == TORCH:
        return _torch_cache(setting, model, batch, capacity)
    elements = elements_by_name(setting.elements)
    pruner = MAGNITUDE.name if setting.pruner is None else pruner_name(setting.pruner, elements, model.device)
    how: dict[str, Any] = {"pruner": pruner, "elements": elements, "sink": task.sink, "local": task.local}
    how |= {"key_sparsity": setting.key_sparsity, "value_sparsity": setting.value_sparsity}
    return HierarchicalCache(
        model.hf,
        batch,
        capacity,
        dtype=element.torch_dtype,
        shares=None if setting.plan is None else setting.plan.layers,
        basis=basis if setting.pruner is not None else None,
        attended=model.attended,
        **how,
    )


def _torch_cache(setting: MethodSetting, model: Model, batch: int, capacity: int) -> LivingCache:
    g = model.geometry
    shape = (batch, g.kv_heads, capacity, g.head_dim)
    how: Any = nullcontext
    rows = True
    if setting.variant is not None:
        how = partial(sdpa_kernel, BACKENDS[setting.variant.removesuffix(_ROWS)])
        rows = setting.variant.endswith(_ROWS)

    def layer(number: int) -> AttendingLayer | TensorLayer:
        if number not in model.attended:
            return TensorLayer(*(torch.empty(shape, dtype=model.dtype, device=str(model.device)) for _ in "kv"))
        return DenseLayer(shape, model.dtype, str(model.device), how=how, rows=rows)

    return LivingCache([layer(number) for number in range(g.layers)])


def about_bytes(setting: MethodSetting, model: Model, task: Generation, capacity: int, element: Element) -> int:
    """About what a cache will take: before anything is allocated."""
    g = model.geometry
    half = task.batch * g.kv_heads * capacity * g.head_dim
    own = element.nbytes(1) if setting.family != TORCH else model.dtype.itemsize
    total = 0.0
    elements = elements_by_name(setting.elements)
    for number in range(g.layers):
        shares = setting.plan.layers[number] if setting.plan else (setting.key_sparsity, setting.value_sparsity)
        for stored, share in zip((elements.key, elements.value), shares, strict=True):
            if number not in model.attended:
                total += half * model.dtype.itemsize
                continue
            whole = half * own if stored.element is None else half * stored.element.bits / 8 * 1.0625
            total += whole * (1 - 2 * share * _CACHED_SHARES[stored.name])
    return int(total)
