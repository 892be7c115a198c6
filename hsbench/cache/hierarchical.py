"""The hierarchical cache: a block map, and a pool of pages for each kind of block, for K and for V.

A map entry (``block_map``) says a block's kind and its slot, slots counting within the pool of that kind. Pages of one
(batch, kv head) are contiguous in each pool and ascend with the block, so that a kernel streams them. The bytes of a
page are the device layout's (``cpu_layout``, ``cuda_layout``).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from hsbench.cache.evict import Eviction
from hsbench.cache.fit import Fit
from hsbench.cache.paged import PagedTensor
from hsbench.cache.pruner import MAGNITUDE, Pruner
from hsbench.cache.storage import Shape, StoredKV
from hsbench.kernels import forks


@dataclass
class HierarchicalKV(StoredKV[PagedTensor]):
    """A compressed KV cache, as :func:`hsbench.compress` returns it.

    Attributes:
        pruner: what pruned it.
        key_fit, value_fit: the pruner, fitted to it. The pages of ``k`` and ``v`` hold what is stored under it;
            :meth:`unpack` gives K and V themselves.
        eviction: which blocks are left, where some are evicted: ``k`` and ``v`` are what is stored of these alone.
    """

    pruner: Pruner = MAGNITUDE
    key_fit: Fit = field(default_factory=lambda: Fit("k"))
    value_fit: Fit = field(default_factory=lambda: Fit("v"))
    eviction: Eviction | None = None

    @property
    def shape(self) -> Shape:
        """``(batch, kv_heads, length, head_dim)``, evicted tokens counted."""
        batch, kv_heads, stored, head_dim = self.k.shape
        return (batch, kv_heads, stored if self.eviction is None else self.eviction.seq, head_dim)

    @property
    def achieved_sparsity(self) -> float:
        """Share of elements pruned among the eligible, not evicted blocks of K and V together, 0 to 0.5."""
        pruned = self.k.plan.pruned + self.v.plan.pruned
        eligible = self.k.plan.eligible + self.v.plan.eligible
        return pruned / eligible if eligible else 0.0

    @property
    def achieved_evict(self) -> float:
        """Share of the eligible blocks that are evicted, 0 to 1."""
        return 0.0 if self.eviction is None else self.eviction.achieved

    @property
    def evict_by(self) -> str | None:
        """What chose the blocks that are evicted; None where there are none."""
        return None if self.eviction is None else self.eviction.rule

    @property
    def tokens(self) -> Tensor | None:
        """Which tokens are left, int64 ``[batch, kv_heads, n]``, ascending; None where all are."""
        return None if self.eviction is None else self.eviction.tokens

    def tokens_of(self, batch: int, kv_head: int) -> Tensor | None:
        """Which tokens are left of one (batch, kv head), int64 ``[n]``; None where all are."""
        return None if self.eviction is None else self.eviction.tokens[batch, kv_head]

    def memory(self) -> dict[str, int]:
        """Bytes by component, K and V together."""
        shifts = self.key_fit.nbytes + self.value_fit.nbytes
        position = 0 if self.eviction is None else self.eviction.nbytes
        more = {"shift": shifts, "position": position}
        return {**super().memory(), **{component: size for component, size in more.items() if size}}

    def unpack(self) -> tuple[Tensor, Tensor]:
        """The pruned K and V, ``[batch, kv_heads, seq, head_dim]``, or of the tokens that are left (:attr:`tokens`): in
        the dtype of what was compressed, or in fp32 where the pruner shifts or values have a scale, for the dtype could
        not hold the sums."""
        with forks.torch_operations():
            return self.key_fit.restored(self.k.unpack()), self.value_fit.restored(self.v.unpack())

    def unpack_head(self, batch: int, kv_head: int) -> tuple[Tensor, Tensor]:
        """The pruned K and V of one (batch, kv head), ``[seq, head_dim]``, or of the tokens that are left of it
        (:meth:`tokens_of`); see :meth:`unpack`."""
        k, v = self.k.head(batch, kv_head).unpack(), self.v.head(batch, kv_head).unpack()
        key, value = self.key_fit.head(batch, kv_head), self.value_fit.head(batch, kv_head)
        return key.restored(k)[0, 0], value.restored(v)[0, 0]
