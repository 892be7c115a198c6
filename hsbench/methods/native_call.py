"""What all methods on our own kernels share: from a compressor to a prepared call, and the shapes that they take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from torch import Tensor

from hsbench.attention import calls
from hsbench.cache.storage import Compressor, StoredKV
from hsbench.measure import ranges
from hsbench.methods.base import Prepared
from hsbench.problem.workload import Workload

KV_co = TypeVar("KV_co", bound=StoredKV[Any], covariant=True)
KV = TypeVar("KV", bound=StoredKV[Any])


class KVCompressor(Compressor, Protocol[KV_co]):
    """A compressor of K and V together."""

    @property
    def kv(self) -> KV_co:
        """The cache that its runs fill."""
        ...


@dataclass(kw_only=True)
class NativePrepared(Prepared):
    """A call of one of our kernels on a stored cache."""

    call: calls.Call
    kv: StoredKV[Any]
    exact: bool

    def run(self) -> None:
        self.call.run()

    def write_to(self, out: Tensor, lse: Tensor) -> bool:
        self.call.write_to(out, lse)
        self.out, self.lse = out, lse
        return True

    def pruned(self, batch: int, kv_head: int) -> tuple[Tensor, Tensor] | None:
        if self.exact:
            return None
        return self.kv.unpack_head(batch, kv_head)

    def left(self, batch: int, kv_head: int) -> Tensor | None:
        return self.kv.tokens_of(batch, kv_head)


def prepare_native(
    compressor: KVCompressor[KV],
    call_of: Callable[[KV], calls.Call],
    *,
    prunes: bool,
    exact: bool = False,
) -> NativePrepared:
    """Prunes and packs, and binds a kernel to what came of it.

    Args:
        call_of: the kernel's call on a cache.
        prunes: whether anything may be left out.
        exact: whether the cache holds the inputs themselves, so that the result is checked against these.

    Raises:
        NonFiniteError: K or V holds a NaN or an infinity.
        UnsupportedError: the call refuses the cache or q.
    """
    with ranges.annotate("prune"), ranges.annotate("compress"):  # one operation does both
        compressor.run()
        compressor.check()
    kv = compressor.kv
    call = call_of(kv)
    return NativePrepared(
        out=call.out,
        lse=call.lse,
        products=call.products,
        memory={component: size for component, size in kv.memory().items() if size},
        achieved_sparsity=kv.achieved_sparsity if prunes else None,
        achieved_evict=kv.achieved_evict if prunes else None,
        evict_by=kv.evict_by,
        compress=None if exact else compressor.run,
        call=call,
        kv=kv,
        exact=exact,
    )


def why_not_native(workload: Workload) -> str | None:
    """Shapes that our kernels do not take, with what they do take."""
    return calls.why_not_shape(workload.head_dim, workload.group)
