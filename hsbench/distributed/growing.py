"""The public cache that lives, over the ranks of a process group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from hsbench.attention import calls, growing
from hsbench.cache.prune import BLOCK
from hsbench.distributed.gathered import Gathered, check_group
from hsbench.distributed.shard_kv import ShardKV
from hsbench.distributed.shards import Shard, shards_of
from hsbench.errors import UnsupportedError, UsageError
from hsbench.problem.elements import DEFAULT_INPUT


class Cache(growing.Cache):
    """A KV cache that lives, for one layer, over the ranks of a process group: :class:`hsbench.Cache`, each rank's
    memory for its shard of the capacity alone.

    The capacity is dealt as :func:`shards_of` does, and filled from its beginning: tokens go to the first rank until
    its shard is full, then to the next; sequences of a batch may be in different shards. All ranks make the cache and
    call its methods with the same arguments, and each keeps the tokens that are its own. Only :meth:`decode` and
    :meth:`check` are collectives. Append and decode can be captured into a CUDA graph as those of
    :class:`hsbench.Cache` can, and its replays go on from shard to shard.

    The pruner is fitted to the first chunk, whole, on every rank, and so is the same on all. ``sink`` is the
    sequence's; ``local`` is kept at the end of each shard: where a sequence has gone on to the next one, the blocks
    that touch the last ``local`` tokens of the shard (and of the chunk that went over) stay open, which one cache would
    have judged. A share of 2:4 blocks between none and all is kept by each rank of its own blocks.

    Args:
        batch, kv_heads, head_dim, dtype, device: see :class:`hsbench.Cache`; the device is this rank's.
        capacity: tokens that each sequence may have on all ranks together, at least one block of 64 for each rank.
        group: None for the default one.
        options: the other arguments of :class:`hsbench.Cache`, by name.

    Raises:
        UsageError, UnsupportedError, UnavailableError: as :class:`hsbench.Cache`.
        UsageError: the capacity has fewer blocks than the group ranks, or this process is not in it.
        UnavailableError: there is no process group, or it has no backend for the device.
    """

    _kv: ShardKV

    def __init__(
        self,
        batch: int,
        kv_heads: int,
        head_dim: int,
        capacity: int,
        dtype: torch.dtype = DEFAULT_INPUT.torch_dtype,
        device: torch.device | str = "cpu",
        *,
        group: dist.ProcessGroup | None = None,
        **options: Any,
    ) -> None:
        self._group = group
        self._gathered: dict[torch.Size, Gathered] = {}
        super().__init__(batch, kv_heads, head_dim, capacity, dtype, device, **options)

    def _made(self, *sizes: Any, **how: Any) -> ShardKV:
        check_group(self._device, self._group)
        self._shard = _own_shard(self.capacity, self._group)
        return ShardKV(*sizes, shard=self._shard, group=self._group, **how)

    @property
    def shard(self) -> Shard:
        """This rank's part of the capacity."""
        return self._shard

    @property
    def lengths(self) -> Tensor:
        """Tokens of each sequence on all ranks together, int32 ``[batch]``, on the device, as they are now."""
        return self._kv.lengths_of_all

    def memory(self) -> growing.CacheMemory:
        """What this rank's part takes; waits for the device."""
        return super().memory()

    def judged_blocks(self) -> tuple[int, int]:
        """As of :class:`hsbench.Cache`, of this rank's blocks."""
        return super().judged_blocks()

    def unpack(self) -> tuple[Tensor, Tensor]:
        """As of :class:`hsbench.Cache`, of this rank's tokens alone: those of all are the ranks' parts in order."""
        return super().unpack()

    def append(
        self, k: Tensor, v: Tensor, *, lengths: Tensor | Sequence[int] | None = None, queries: Tensor | None = None
    ) -> None:
        """Appends tokens to each sequence, on the ranks in whose shards they fall; all ranks call it with the same.

        Args:
            k, v, lengths, queries: see :meth:`hsbench.Cache.append`.

        Raises:
            UsageError, NonFiniteError, UnsupportedError: as that does, and alike on all ranks, before anything is
                written on any.
        """
        super().append(k, v, lengths=lengths, queries=queries)

    def check(self) -> None:
        """Says what append could not without waiting for the device. A collective; says the same on all ranks.

        Raises:
            UsageError: a sequence was full; what did not fit was not written.
            NonFiniteError: something appended was not finite, with its place among all elements of that append, counted
                from the first token that was the rank's own; :meth:`reset` the cache.
        """
        super().check()

    def decode(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Attention of one query per head over the tokens of all ranks. A collective: each rank attends to its own, and
        one all-gather and a combination give the result, with the same bits on all ranks.

        Args:
            q: ``[batch, q_heads, 1, head_dim]``, the same on all ranks; the cache's dtype and device.

        Returns:
            See :func:`hsbench.distributed.decode`; 0 and -infinity for a sequence without tokens.

        Raises:
            UsageError, UnsupportedError: as :func:`hsbench.decode`.
            RuntimeError: torch.distributed's, where another rank is gone or called another collective.
        """
        return super().decode(q)

    def prefill(self, q: Tensor, *, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Is not there yet.

        Raises:
            UnsupportedError: always, with the remedy.
        """
        raise UnsupportedError(
            "no kernel prefills over a cache that grows over ranks: attend to a chunk by the model's own kernels before"
            " it is appended, or keep the prompt in an hsbench.Cache, on one device"
        )

    def _attend(
        self, make: Callable[..., calls.NativeCall], q: Tensor, *how: Any, **fields: Any
    ) -> tuple[Tensor, Tensor]:
        call = self._call_of(make, q, *how)
        if q.shape not in self._gathered:
            self._gathered[q.shape] = Gathered(q, self._group)
        gathered = self._gathered[q.shape]
        if not all(self._kv.known):  # else some rank has tokens of each sequence
            gathered.may_lack()
        call.anew(q, to=(gathered.own_out, gathered.own_lse), **fields)
        return gathered.anew()


def _own_shard(capacity: int, group: dist.ProcessGroup | None) -> Shard:
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    blocks = -(-capacity // BLOCK)
    if blocks < ranks:
        remedy = f"{ranks} ranks need a block of {BLOCK} tokens each; give {BLOCK * (ranks - 1) + 1} or more"
        raise UsageError("capacity", capacity, remedy)
    return shards_of(capacity, ranks)[rank]
