"""From K and V to a hierarchical cache under a pruner."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hsbench.cache.block_map import kinds_of
from hsbench.cache.compressor import PairCompressor
from hsbench.cache.fit import Fit, fit_pruner
from hsbench.cache.hierarchical import HierarchicalKV, PageCompressor
from hsbench.cache.prune import (
    BlockPlan,
    Operand,
    check_finite,
    choose_blocks,
    chosen_of_kinds,
    plan_blocks,
    prune_hierarchical,
)
from hsbench.cache.pruner import MAGNITUDE, Pruner
from hsbench.errors import UnsupportedError
from hsbench.kernels import forks


class FittedCompressor:
    """One tensor bound to the pages that it becomes under a pruner that was fitted to it.

    What native code chooses by is magnitude. Where a pruner weighs or folds, it is given the scores to choose blocks by
    and the definition in torch prunes them; then native code packs what is left, which it finds by its magnitudes.

    Raises:
        UnavailableError: there is no native library for the device.
    """

    def __init__(self, x: Tensor, operand: Operand, plan: BlockPlan, fit: Fit) -> None:
        self._x, self._operand, self._plan, self._fit = x, operand, plan, fit
        self._stored = x if fit.is_plain else torch.empty_like(x, memory_format=torch.contiguous_format)
        self._native = PageCompressor(self._stored, operand, plan)
        self.pages = self._native.pages

    def run(self) -> None:
        """Prunes and packs, as often as it is called."""
        fit, plan = self._fit, self._plan
        if fit.is_plain:
            self._native.run()
            return
        prunes = plan.sparse > 0 and (fit.weighs or fit.fold > 0.0)
        chosen = self._choose() if prunes else None
        with forks.torch_operations():
            for own, one in self._heads():
                stored = own.stored(self._x[one])
                if chosen is not None:
                    scores = own.scores(stored)
                    stored = prune_hierarchical(stored, self._operand, chosen[one], scores=scores, fold=fit.fold)
                self._stored[one] = stored
        # Blocks that are pruned lose nothing by 2:4, and so are those that native code chooses, too.
        self._native.run()

    def _choose(self) -> Tensor:
        """Which blocks become 2:4: as :func:`hsbench.cache.prune.choose_blocks` says of the scores, by native code."""
        if self._plan.sparse == self._plan.eligible:
            return choose_blocks(self._x, self._operand, self._plan)  # all of them, whatever the scores
        with forks.torch_operations():
            for own, one in self._heads():
                self._stored[one] = own.scores(own.stored(self._x[one]))
        self._native.run()
        return chosen_of_kinds(kinds_of(self.pages.map))

    def _heads(self) -> Iterator[tuple[Fit, tuple[slice, slice]]]:
        """Each (batch, kv head): its fit and where it is. One at a time, for what lies between takes room."""
        for b, h in itertools.product(*map(range, self._x.shape[:2])):
            yield self._fit.head(b, h), (slice(b, b + 1), slice(h, h + 1))

    def check(self) -> None:
        """Raises :class:`hsbench.errors.NonFiniteError` if the tensor holds a NaN or an infinity."""
        if self._fit.is_plain:
            self._native.check()
        else:
            with forks.torch_operations():
                check_finite(self._operand, self._x)


class KVCompressor(PairCompressor):
    """A KV cache bound to the pages that it becomes, ``kv``, which each run fills.

    Args:
        k, v: ``[batch, kv_heads, seq, head_dim]``.
        pruner: fitted to k and v, unless ``fits`` are given: of an earlier cache of the same sequences.
        query_rms: see :func:`hsbench.cache.fit.fit_key`.
        queries: ``[batch, q_heads, n, head_dim]``, of the last n tokens, for a pruner that looks at their attention.

    Raises:
        UsageError: the pruner needs a calibration or queries, which are not given.
        UnsupportedError: no kernel reads what it stores.
        UnavailableError: there is no native library for the device.
    """

    def __init__(
        self,
        k: Tensor,
        v: Tensor,
        *,
        key_sparsity: float,
        value_sparsity: float,
        sink: int = 0,
        local: int = 0,
        pruner: Pruner = MAGNITUDE,
        query_rms: Tensor | None = None,
        queries: Tensor | None = None,
        fits: tuple[Fit, Fit] | None = None,
    ) -> None:
        if reason := pruner.why_simulated:
            raise UnsupportedError(reason)
        plans = [plan_blocks(k.shape[2], s, sink=sink, local=local) for s in (key_sparsity, value_sparsity)]
        if fits is None:
            with forks.torch_operations():
                fits = fit_pruner(pruner, k, v, plans, query_rms=query_rms, queries=queries)
        key, value = (FittedCompressor(x, "k" if i == 0 else "v", plans[i], fits[i]) for i, x in enumerate((k, v)))
        super().__init__(key, value)
        self.kv = HierarchicalKV(key.pages, value.pages, pruner, *fits)


def compress_kv(k: Tensor, v: Tensor, **options: Any) -> HierarchicalKV:
    """Compresses a KV cache, arguments as of :class:`KVCompressor`; :func:`hsbench.compress` is the public form."""
    compressor = KVCompressor(k, v, **options)
    compressor.run()
    compressor.check()
    return compressor.kv
