"""From K and V to a hierarchical cache under a pruner."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hsbench.cache.compressor import PairCompressor
from hsbench.cache.fit import Fit, fit_pruner
from hsbench.cache.hierarchical import HierarchicalKV, PageCompressor
from hsbench.cache.prune import plan_blocks
from hsbench.cache.pruner import MAGNITUDE, Pruner
from hsbench.errors import UnsupportedError
from hsbench.kernels import forks


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
        key, value = (PageCompressor(x, "k" if i == 0 else "v", plans[i], fits[i]) for i, x in enumerate((k, v)))
        super().__init__(key, value)
        self.kv = HierarchicalKV(key.pages, value.pages, pruner, *fits)


def compress_kv(k: Tensor, v: Tensor, **options: Any) -> HierarchicalKV:
    """Compresses a KV cache, arguments as of :class:`KVCompressor`; :func:`hsbench.compress` is the public form."""
    compressor = KVCompressor(k, v, **options)
    compressor.run()
    compressor.check()
    return compressor.kv
