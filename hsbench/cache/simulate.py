"""What a pruner leaves of K and V, by its definition alone: for settings that no kernel can run yet."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hsbench.cache.fit import Fit, fit_pruner
from hsbench.cache.layouts import LAYOUTS
from hsbench.cache.prune import BlockPlan, check_finite, choose_blocks, plan_blocks, prune_hierarchical
from hsbench.cache.pruner import Pruner, pruner_for
from hsbench.cache.quantise import quantised
from hsbench.kernels.device import CPU, CUDA
from hsbench.problem.elements import SIXTEEN_BIT, CacheElements, StoredElements, element_by


@dataclass(frozen=True)
class Simulated:
    """K and V as a cache would give them back.

    Attributes:
        k, v: ``[batch, kv_heads, seq, head_dim]``, the input's dtype, or fp32 where the pruner shifts.
        fits: the pruner, fitted; pass them on as the cache grows.
        nbytes: what such a cache would store: values, metadata, map, shifts.
        achieved_sparsity: share of elements pruned among eligible blocks, 0 to 0.5.
    """

    k: Tensor
    v: Tensor
    fits: tuple[Fit, Fit]
    nbytes: int
    achieved_sparsity: float


def simulate(
    k: Tensor,
    v: Tensor,
    *,
    key_sparsity: float,
    value_sparsity: float,
    sink: int = 0,
    local: int = 0,
    pruner: Pruner,
    query_rms: Tensor | None = None,
    queries: Tensor | None = None,
    fits: tuple[Fit, Fit] | None = None,
    elements: CacheElements = SIXTEEN_BIT,
) -> Simulated:
    """Prunes K and V; arguments and errors as of :class:`hsbench.cache.fitted.KVCompressor`, with any head_dim
    that is a multiple of 4."""
    pruner = pruner_for(pruner, elements)
    plans = [plan_blocks(k.shape[2], s, sink=sink, local=local) for s in (key_sparsity, value_sparsity)]
    fits = fits or fit_pruner(pruner, k, v, plans, query_rms=query_rms, queries=queries, elements=elements)
    pruned, nbytes = [], 0
    for x, fit, plan, narrow in zip((k, v), fits, plans, (elements.key, elements.value), strict=True):
        check_finite(fit.operand, x)
        stored = fit.stored(x)
        scores = fit.scores(stored)
        chosen = choose_blocks(scores, fit.groups, plan)
        left = prune_hierarchical(stored, fit.groups, chosen, scores=scores, fold=fit.fold)
        pruned.append(fit.restored(quantised(left, fit, plan, chosen, narrow)))
        nbytes += _page_bytes(x, plan, narrow) + fit.nbytes
        nbytes += 0 if fit.scale is None else fit.scale.nbytes
    eligible = sum(plan.eligible for plan in plans)
    achieved = sum(plan.pruned for plan in plans) / eligible if eligible else 0.0
    return Simulated(pruned[0], pruned[1], fits, nbytes, achieved)


def _page_bytes(x: Tensor, plan: BlockPlan, elements: StoredElements) -> int:
    """Pages, as CUDA's are, and map; as the CPU's, of elements that CUDA has no pages for."""
    batch, kv_heads, _, head_dim = x.shape
    element = elements.of(element_by(x.dtype))
    plan = plan.stored_as(elements)
    layout = next(LAYOUTS[device.kind][elements] for device in (CUDA, CPU) if elements in LAYOUTS[device.kind])
    pages = sum(plan.count(kind) * page.nbytes(head_dim, element) for kind, page in layout.items())
    return batch * kv_heads * (pages + plan.blocks * torch.int32.itemsize)
