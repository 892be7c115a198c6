"""From K and V to a hierarchical cache under a pruner."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from torch import Tensor

from hsbench.cache.compressor import PairCompressor
from hsbench.cache.evict import Eviction, evict_blocks
from hsbench.cache.fit import Fit, fit_pruner
from hsbench.cache.hierarchical import HierarchicalKV
from hsbench.cache.layouts import why_no_pages
from hsbench.cache.packing import PageCompressor, empty_pages
from hsbench.cache.paged import PagedTensor
from hsbench.cache.prune import BlockPlan, Operand, check_finite, plan_blocks
from hsbench.cache.pruner import MAGNITUDE, Pruner, pruner_for
from hsbench.cache.storage import Compressor
from hsbench.errors import UnsupportedError
from hsbench.kernels import forks
from hsbench.kernels.device import Device
from hsbench.problem.elements import SIXTEEN_BIT, CacheElements, StoredElements


class _OfOne(Compressor, Protocol):
    """A compressor of one tensor."""

    pages: PagedTensor


class KVCompressor(PairCompressor):
    """A KV cache bound to the pages that it becomes, ``kv``, which each run fills.

    Args:
        k, v: ``[batch, kv_heads, seq, head_dim]``.
        pruner: fitted to k and v, unless ``fits`` are given: of an earlier cache of the same sequences.
        query_rms: see :func:`hsbench.cache.fit.fit_key`.
        queries: ``[batch, q_heads, n, head_dim]``, of the last n tokens, for a pruner that looks at their attention,
            and for eviction, which does wherever they are given.
        evict: share of the eligible blocks that are dropped, 0 to 1, before anything else, which each run chooses
            (:func:`hsbench.cache.evict.evict_blocks`); or what is left once it is chosen. The pruner is fitted to all
            of k and v, and prunes what is left.
        elements: what its values are. Those that have a scale have K and V shifted first, whatever the pruner
            (:func:`hsbench.cache.pruner.pruner_for`).

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
        evict: float | Eviction = 0.0,
        elements: CacheElements = SIXTEEN_BIT,
    ) -> None:
        pruner = pruner_for(pruner, elements)
        if reason := why_no_pages(elements, Device.of(k.device), pruner.value_axis):
            raise UnsupportedError(reason)
        sparsities = key_sparsity, value_sparsity
        plans = [plan_blocks(k.shape[2], s, sink=sink, local=local) for s in sparsities]
        with forks.torch_operations():
            fits = fits or fit_pruner(pruner, k, v, plans, query_rms=query_rms, queries=queries, elements=elements)
        self._whole = k, v
        self._evict: Callable[[], Eviction] | None = None
        eviction = evict if isinstance(evict, Eviction) else None
        if isinstance(evict, float) and evict > 0.0:
            self._evict = partial(evict_blocks, k, evict, sink=sink, local=local, queries=queries)
            eviction = self._evict()
        if eviction is not None and eviction.evicted == 0:
            eviction = None
        self._left = k, v
        if eviction is not None:
            self._left = eviction.room_for(k), eviction.room_for(v)  # each run gathers
            plans = [plan_blocks(eviction.length, s, sink=sink, local=local) for s in sparsities]
            key_fit, value_fit = fits
            fits = key_fit.at(eviction.tokens, eviction.seq), value_fit.at(eviction.tokens, eviction.seq)
        key = _compressor(self._left[0], "k", plans[0], fits[0], elements.key)
        value = _compressor(self._left[1], "v", plans[1], fits[1], elements.value)
        super().__init__(key, value)
        self.kv = HierarchicalKV(key.pages, value.pages, pruner, *fits, eviction)

    def run(self) -> None:
        """Evicts, prunes and packs both, as often as it is called."""
        if self.kv.eviction is not None:
            if self._evict is not None:
                self.kv.eviction.position.copy_(self._evict().position)
            for x, left in zip(self._whole, self._left, strict=True):
                self.kv.eviction.gather(x, left)
        super().run()

    def check(self) -> None:
        """Raises :class:`hsbench.errors.NonFiniteError` if K or V holds a NaN or an infinity, in an evicted block or
        not."""
        if self.kv.eviction is None:
            return super().check()
        with forks.torch_operations():
            for name, x in zip("kv", self._whole, strict=True):
                check_finite(name, x)


class _NothingLeft:
    """A tensor of which all blocks are evicted: no pages, and nothing to run."""

    def __init__(self, x: Tensor, operand: Operand, plan: BlockPlan, fit: Fit, elements: StoredElements) -> None:
        self.pages = empty_pages(x, operand, plan, fit, elements)

    def run(self) -> None: ...

    def check(self) -> None: ...


def _compressor(x: Tensor, operand: Operand, plan: BlockPlan, fit: Fit, elements: StoredElements) -> _OfOne:
    if not x.shape[2]:
        return _NothingLeft(x, operand, plan, fit, elements)
    return PageCompressor(x, operand, plan, fit, elements)


def compress_kv(k: Tensor, v: Tensor, **options: Any) -> HierarchicalKV:
    """Compresses a KV cache, arguments as of :class:`KVCompressor`; :func:`hsbench.compress` is the public form."""
    compressor = KVCompressor(k, v, **options)
    compressor.run()
    compressor.check()
    return compressor.kv
