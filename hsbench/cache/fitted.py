"""From K and V to a hierarchical cache under a pruner."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from hsbench.cache.compressor import PairCompressor
from hsbench.cache.fit import Fit, fit_pruner
from hsbench.cache.hierarchical import HierarchicalKV, PageCompressor, pack_torch
from hsbench.cache.prune import BlockPlan, Operand, check_finite, choose_blocks, plan_blocks, prune_hierarchical
from hsbench.cache.pruner import MAGNITUDE, Pruner
from hsbench.errors import UnsupportedError
from hsbench.kernels import forks


class FittedCompressor:
    """One tensor bound to the pages that it becomes under a pruner that was fitted to it.

    What native code chooses by is magnitude. Where a pruner weighs or folds, the definition in torch prunes, and native
    code packs what is left, which it finds by its magnitudes; with blocks of both kinds, the definition packs, too.

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
        if self._fit.is_plain:
            self._native.run()
            return
        with forks.torch_operations():
            packed = self._prune()
        if not packed:
            self._native.run()

    def _prune(self) -> bool:
        """Fills what native code packs; returns whether it packed already."""
        fit, plan = self._fit, self._plan
        prunes = plan.sparse > 0 and (fit.weighs or fit.fold > 0.0)
        batch, kv_heads = self._x.shape[:2]
        chosen = torch.zeros(batch, kv_heads, plan.blocks, dtype=torch.bool, device=self._x.device)
        for b, h in itertools.product(range(batch), range(kv_heads)):  # one at a time: what lies between takes room
            own, one = fit.head(b, h), (slice(b, b + 1), slice(h, h + 1))
            stored = own.stored(self._x[one])
            if prunes:
                scores = own.scores(stored)
                chosen[one] = choose_blocks(scores, self._operand, plan)
                stored = prune_hierarchical(stored, self._operand, chosen[one], scores=scores, fold=fit.fold)
            self._stored[one] = stored
        mixed = prunes and plan.sparse < plan.eligible
        if mixed:
            pack_torch(self._stored, self.pages, chosen)
        return mixed

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
