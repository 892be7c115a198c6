"""From a setting to a cache: the one place here that knows what keeps K and V, and what attends to them."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch.nn.attention import sdpa_kernel

from hsbench.cache.basis import Basis
from hsbench.cache.pruner import MAGNITUDE
from hsbench.kernels.device import Device
from hsbench.methods.sdpa import BACKENDS
from hsbench.models.cache import TensorLayer
from hsbench.models.living import AttendingLayer, DenseLayer, HierarchicalCache, LivingCache, growing_pruner
from hsbench.models.model import Model
from hsbench.problem.elements import Element, elements_by_name
from hsbench.run.generate.settings import TORCH, Generation, MethodSetting

_ROWS = "-rows"

SDPA_BACKENDS = tuple(f"{name}{form}" for name in BACKENDS for form in ("", _ROWS))
"""Variants of ``sdpa``; without one it is the fastest of them, see :func:`choose_backend`."""

_TRIALS = 4

_SAVED = {"16bit": 0.4375, "fp8": 0.375, "int4": 0.29}
"""What 2:4 saves of a page, beside what the elements save."""


def pruner_name(setting: MethodSetting, device: Device) -> str | None:
    """What decides which elements are pruned, by name; None where K and V are not ours to keep, or as they are."""
    elements = elements_by_name(setting.elements)
    if setting.pruner is not None:
        return str(growing_pruner(setting.pruner, elements, device))
    return MAGNITUDE.name if elements.has_scale else None


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
    how: dict[str, Any] = {"pruner": setting.pruner or MAGNITUDE.name, "elements": elements_by_name(setting.elements)}
    how |= {"sink": task.sink, "local": task.local}
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
    how, rows = (nullcontext, True) if setting.variant is None else _form(setting.variant)

    def layer(number: int) -> AttendingLayer | TensorLayer:
        if number not in model.attended:
            return TensorLayer(*(torch.empty(shape, dtype=model.dtype, device=str(model.device)) for _ in "kv"))
        return DenseLayer(shape, model.dtype, str(model.device), how=how, rows=rows)

    return LivingCache([layer(number) for number in range(g.layers)])


def choose_backend(cache: LivingCache, q_heads: int) -> str | None:
    """Let a cache that torch attends to do so by the backend that is the fastest at its length, each tried in turn.

    Returns:
        Which one, a variant of ``sdpa``; None where none can, which leaves it to torch.
    """
    layers = [layer for layer in cache.layers if isinstance(layer, DenseLayer)]
    first = layers[0]
    batch, _, _, head_dim = first.keys.shape
    q = torch.zeros(batch, q_heads, 1, head_dim, dtype=first.dtype, device=first.device)
    best: tuple[float, str] | None = None
    for name in SDPA_BACKENDS:
        how, rows = _form(name)
        first.attend_by(how, rows=rows)
        with contextlib.suppress(RuntimeError), warnings.catch_warnings():  # a backend says no, or has no room
            warnings.simplefilter("ignore")
            seconds = _trial(lambda: first.attend_to(q, first.length), first.device)
            best = min(best or (seconds, name), (seconds, name))
    how, rows = (nullcontext, True) if best is None else _form(best[1])
    for layer in layers:
        layer.attend_by(how, rows=rows)
    return None if best is None else best[1]


def _trial(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of a few runs."""
    found = []
    for _ in range(_TRIALS):
        begin = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - begin)
    return min(found)


def _form(variant: str) -> tuple[Any, bool]:
    return partial(sdpa_kernel, BACKENDS[variant.removesuffix(_ROWS)]), variant.endswith(_ROWS)


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
            total += whole * (1 - 2 * share * _SAVED[stored.name])
    return int(total)
