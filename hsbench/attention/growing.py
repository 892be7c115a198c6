"""The public cache that lives: filled by a prompt, grown by a token a step, compressed as tokens leave its window."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hsbench.attention import arguments, calls
from hsbench.cache.basis import LayerBasis
from hsbench.cache.growing_kv import GrowingKV
from hsbench.cache.growth import Growth
from hsbench.cache.layouts import LAYOUTS, why_no_pages
from hsbench.cache.paged import HEAD_DIMS, check_kv
from hsbench.cache.prune import check_finite
from hsbench.cache.pruner import ALONG_HEAD_DIM, CENTERED, Pruner, check_sources, pruner_for
from hsbench.errors import UnavailableError, UnsupportedError, UsageError
from hsbench.kernels import forks, library
from hsbench.kernels.device import Device
from hsbench.problem.elements import (
    DEFAULT_INPUT,
    SIXTEEN_BIT,
    TORCH_INPUTS,
    CacheElements,
    StoredElements,
    element_of,
)

DEFAULT_SINK, DEFAULT_LOCAL = 64, 256
"""Tokens that stay dense at the beginning and at the end: without them a model pays dearly (docs/quality.md)."""


@dataclass(frozen=True)
class CacheMemory:
    """What a cache takes, in bytes by component.

    Attributes:
        reserved: all that is allocated for its capacity.
        used: of that, what its tokens are stored in now, and what is kept to grow.
    """

    reserved: dict[str, int]
    used: dict[str, int]

    @property
    def reserved_nbytes(self) -> int:
        """All components of it."""
        return sum(self.reserved.values())

    @property
    def used_nbytes(self) -> int:
        """All components of it."""
        return sum(self.used.values())


class Cache:
    """A KV cache that lives, for one layer: :meth:`append` a prompt, then a token or a chunk at a time, and attend to
    all of it at any time by :meth:`decode` and :meth:`prefill`.

    A sequence's first chunk is pruned as :func:`hsbench.compress` does, and the pruner is fitted to it: order, shift,
    weights and scales then stay. Later tokens are open, dense in 16 bits, until their block of 64 has left the window;
    then it is judged, and compressed at once. With a sparsity between 0 and 0.5 it becomes 2:4 if the losses of the
    blocks so far say so, as long as that keeps the share of 2:4 blocks within one block of what was asked.

    All memory is allocated here, and none of the methods but the first append synchronises a GPU with the host: append,
    decode and prefill can be captured into a CUDA graph, which replays as the cache grows. They run on the current
    stream, one after the other; two caches may be used on two streams, one on one.

    Args:
        batch, kv_heads: sizes.
        head_dim: 64 or 128.
        capacity: tokens that each sequence may have.
        dtype: of K, V and q, one of the inputs' 16-bit types.
        device: of all tensors.
        sparsity: share of elements pruned among judged blocks, 0 (all stay dense) to 0.5 (all become 2:4).
        key_sparsity, value_sparsity: override it for K and for V.
        pruner: by name, see :func:`hsbench.compress`; none that weighs V's tokens. Decode alone reads V along head_dim
            (``:hd``).
        sink, local: blocks that touch the first ``sink`` or the last ``local`` tokens stay open.
        chunk: the longest chunk whose queries shall see all of the chunk, and of ``local`` tokens before it, open: what
            chunked prefill wants. 1 for decode.
        elements, key_elements, value_elements: what judged blocks' values are, see :func:`hsbench.compress`.
        basis: of the layer, for a pruner that needs one.

    Raises:
        UsageError: an argument is out of range, or there is no such pruner or elements; names it and the remedy.
        UnsupportedError: no kernel grows, or reads, such a cache on the device.
        UnavailableError: the native library for the device is missing.
    """

    def __init__(
        self,
        batch: int,
        kv_heads: int,
        head_dim: int,
        capacity: int,
        dtype: torch.dtype = DEFAULT_INPUT.torch_dtype,
        device: torch.device | str = "cpu",
        *,
        sparsity: float = 0.5,
        key_sparsity: float | None = None,
        value_sparsity: float | None = None,
        pruner: str | Pruner = CENTERED,
        sink: int = DEFAULT_SINK,
        local: int = DEFAULT_LOCAL,
        chunk: int = 1,
        elements: str | CacheElements = SIXTEEN_BIT,
        key_elements: str | StoredElements | None = None,
        value_elements: str | StoredElements | None = None,
        basis: LayerBasis | None = None,
    ) -> None:
        batch, kv_heads, capacity, chunk = _sizes(batch=batch, kv_heads=kv_heads, capacity=capacity, chunk=chunk)
        self._shape = batch, kv_heads, head_dim, capacity
        self._device = _checked_device(device)
        if head_dim not in HEAD_DIMS:
            raise UsageError("head_dim", head_dim, f"the kernels take {' and '.join(map(str, HEAD_DIMS))}")
        if element_of(dtype) is None:
            raise UsageError("dtype", dtype, f"the kernels take {TORCH_INPUTS}")
        stored = arguments.cache_elements(elements, key_elements, value_elements)
        self._elements = stored
        self._pruner = pruner_for(arguments.pruner("pruner", pruner), stored)
        if self._pruner.needs_calibration and basis is None:
            check_sources(self._pruner, calibration=False, queries=True)
        ratios = [
            2 * (arguments.sparsity("sparsity", sparsity) if own is None else arguments.sparsity(name, own))
            for name, own in (("key_sparsity", key_sparsity), ("value_sparsity", value_sparsity))
        ]
        self._check_pruner(ratios[1])
        self.dtype = dtype
        with forks.torch_operations():
            self._kv = self._made(
                (batch, kv_heads, capacity, head_dim),
                dtype,
                self._device,
                growth=Growth(capacity, arguments.tokens("sink", sink), arguments.tokens("local", local), chunk),
                ratios=(ratios[0], ratios[1]),
                pruner=self._pruner,
                elements=stored,
                query_rms=None if basis is None else arguments.basis("basis", basis, kv_heads, head_dim),
            )
        self._calls: dict[tuple[str | int, ...], calls.NativeCall] = {}

    # ---- What is made once -------------------------------------------------------------------------------------

    def _made(self, *sizes: Any, **how: Any) -> GrowingKV:
        """Where K and V are kept; arguments are GrowingKV's."""
        return GrowingKV(*sizes, **how)

    def _check_pruner(self, value_ratio: float) -> None:
        device = Device.of(self._device)
        if reason := library.why_cannot("append", device):
            raise UnavailableError(reason)
        if reason := why_no_pages(self._elements, device, self._pruner.value_axis):
            raise UnsupportedError(reason)
        if self._pruner.value_weights != "none" and value_ratio > 0.0:
            name = self._pruner.name
            raise UsageError(
                "pruner",
                name,
                "weighs V's tokens against each other, which a cache that grows does not know yet; take"
                f" {CENTERED.name}, or {name}{ALONG_HEAD_DIM}",
            )

    # ---- Sizes -------------------------------------------------------------------------------------------------

    @property
    def lengths(self) -> Tensor:
        """Tokens of each sequence, int32 ``[batch]``, on the device, where append raises them."""
        return self._kv.lengths

    @property
    def batch(self) -> int:
        """Sequences."""
        return self._shape[0]

    @property
    def kv_heads(self) -> int:
        """Of each sequence."""
        return self._shape[1]

    @property
    def capacity(self) -> int:
        """Tokens that each sequence may have."""
        return self._shape[3]

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self._device

    def memory(self) -> CacheMemory:
        """What it takes; waits for the device."""
        with forks.torch_operations():
            return CacheMemory(self._kv.memory(used=False), self._kv.memory(used=True))

    def judged_blocks(self) -> tuple[int, int]:
        """Blocks of K and V, of all sequences and heads, that are 2:4, and those that were judged; waits for the
        device."""
        with forks.torch_operations():
            return self._kv.judged_blocks()

    @property
    def achieved_sparsity(self) -> float:
        """Share of elements pruned among judged blocks of K and V together, 0 to 0.5; waits for the device."""
        sparse, judged = self.judged_blocks()
        return 0.5 * sparse / judged if judged else 0.0

    def unpack(self) -> tuple[Tensor, Tensor]:
        """What is stored, back in the original basis: K and V, ``[batch, kv_heads, longest length, head_dim]``, zero
        behind shorter sequences' ends; in the cache's dtype, or in fp32 where the pruner shifts or values have a scale.
        Waits for the device."""
        with forks.torch_operations():
            return self._kv.unpack()

    # ---- Append ------------------------------------------------------------------------------------------------

    def append(
        self, k: Tensor, v: Tensor, *, lengths: Tensor | Sequence[int] | None = None, queries: Tensor | None = None
    ) -> None:
        """Appends tokens to each sequence, and compresses what has left its window.

        Args:
            k, v: ``[batch, kv_heads, n, head_dim]``, of the cache's dtype and device, finite.
            lengths: how many of the n each sequence gets, the first ones; whole numbers, or int32 ``[batch]`` on the
                device. All by default.
            queries: ``[batch, q_heads, m, head_dim]``: of a first chunk's last m tokens, for pruners that look at them;
                of all n where sequences get fewer.

        Raises:
            UsageError: more tokens than a sequence has room for, of which none is then written; or an argument that
                does not fit, or queries that the pruner needs are missing.
            NonFiniteError: K or V is not finite. On a GPU this is known of first chunks alone, and of later tokens by
                :meth:`check`.
            UnsupportedError: shapes, dtypes or devices are not the cache's.
        """
        k, v = arguments.tensor("k", k), arguments.tensor("v", v)
        self._check_tokens(k, v)
        counts = self._counts(lengths, k.shape[2])
        with forks.torch_operations():
            if isinstance(counts, Tensor):
                self._kv.append_counted(k, v, counts)
                return
            self._check_room(counts)
            begins = any(self._kv.begins(counts))
            if k.is_cuda and torch.cuda.is_current_stream_capturing():
                if begins or lengths is not None:
                    remedy = "append a first chunk before a graph is captured, and give lengths as a tensor on the GPU"
                    raise UsageError("k", "in a graph", remedy)
                self._kv.append_later(k, v, None)  # runs when it is replayed
                return
            if begins or not k.is_cuda:
                _check_finite(k, v, counts)
            self._kv.append(k, v, counts, queries)

    def _check_tokens(self, k: Tensor, v: Tensor) -> None:
        check_kv(k, v)
        batch, kv_heads, head_dim, _ = self._shape
        if k.device != self._device or k.dtype != self.dtype:
            raise UnsupportedError(f"k is {k.dtype} on {k.device}, but the cache {self.dtype} on {self._device}")
        if (k.shape[0], k.shape[1], k.shape[3]) != (batch, kv_heads, head_dim):
            raise UnsupportedError(f"k is {list(k.shape)}: this cache needs [{batch}, {kv_heads}, n, {head_dim}]")

    def _counts(self, lengths: Tensor | Sequence[int] | None, tokens: int) -> list[int] | Tensor:
        """Of each sequence; a tensor where only the device knows them, and each sequence has tokens already."""
        if lengths is None:
            return [tokens] * self.batch
        if isinstance(lengths, Tensor):
            self._check_lengths(lengths)
            if lengths.is_cuda and all(self._kv.known):
                return lengths
            lengths = lengths.tolist()
        counts = [arguments.tokens("lengths", count) for count in lengths]
        if len(counts) != self.batch or max(counts) > tokens:
            raise UsageError("lengths", counts, f"give {self.batch} numbers of tokens, at most the {tokens} of k")
        return counts

    def _check_lengths(self, lengths: Tensor) -> None:
        if lengths.shape != (self.batch,) or lengths.dtype != torch.int32 or lengths.device != self._device:
            raise UsageError("lengths", list(lengths.shape), f"give int32 [{self.batch}] on {self._device}")

    def _check_room(self, counts: list[int]) -> None:
        if not self.lengths.is_cuda:
            self._kv.known = self.lengths.tolist()
        for sequence, (length, count) in enumerate(zip(self._kv.known, counts, strict=True)):
            if length + count > self.capacity:
                raise UsageError(
                    "k",
                    f"of {count} tokens",
                    f"sequence {sequence} has {length} of {self.capacity}; make the cache with a larger capacity",
                )

    def check(self) -> None:
        """Says what append could not without waiting for the device, as it does now.

        Raises:
            UsageError: a sequence was full; what did not fit was not written.
            NonFiniteError: something appended was not finite, with its place among all elements of that append;
                :meth:`reset` the cache.
        """
        with forks.torch_operations():
            self._kv.check()

    def reset(self) -> None:
        """Back to no tokens; the pruner is fitted anew to what then comes first."""
        with forks.torch_operations():
            self._kv.reset()

    # ---- Attention ---------------------------------------------------------------------------------------------

    def decode(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Attention of one query per head over all tokens that there are.

        Args:
            q: ``[batch, q_heads, 1, head_dim]``, the cache's dtype and device; q_heads is 1 to 16 times kv_heads.

        Returns:
            See :func:`hsbench.decode`: ``out``, and ``lse``; 0 and -infinity for a sequence without tokens.

        Raises:
            UsageError, UnsupportedError: as :func:`hsbench.decode`.
        """
        q = arguments.tensor("q", q)
        if q.ndim == 4 and q.shape[2] != 1:
            raise UnsupportedError(f"q has {q.shape[2]} queries: decode takes one; use prefill for more")
        return self._attend(calls.growing_decode_call, q, self._kv.are_alike)

    def prefill(self, q: Tensor, *, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Causal attention of the last tokens' queries, whose K and V have been appended.

        Args:
            q: ``[batch, q_heads, n, head_dim]``: query i of a sequence sees its tokens up to that i.
            lengths: how many of the n each sequence has, the first ones, int32 ``[batch]`` on the device: those of
                append. All by default.

        Returns:
            ``out [batch, q_heads, n, head_dim]`` in q's dtype and ``lse [batch, q_heads, n]``, fp32, natural log; 0 and
            -infinity for queries that a sequence does not have, and for those that come before its first token.

        Raises:
            UsageError, UnsupportedError: as :func:`hsbench.prefill`.
        """
        q = arguments.tensor("q", q)
        device = Device.of(self._device)
        if reason := calls.why_not_prefill(self._elements, device, self._pruner.value_axis):
            raise UnsupportedError(reason)
        if lengths is not None:
            self._check_lengths(lengths)
        return self._attend(calls.growing_prefill_call, q, q_lengths=lengths)

    def _attend(
        self, make: Callable[..., calls.NativeCall], q: Tensor, *how: Any, **fields: Any
    ) -> tuple[Tensor, Tensor]:
        return self._call_of(make, q, *how).anew(q, **fields)

    def _call_of(self, make: Callable[..., calls.NativeCall], q: Tensor, *how: Any) -> calls.NativeCall:
        """One of :mod:`hsbench.attention.calls`, made once for each shape of q and ``how``, its last arguments."""
        batch, kv_heads, head_dim, capacity = self._shape
        calls.check_query(q, (batch, kv_heads, capacity, head_dim), self.dtype, self._device)
        key = (make.__name__, *q.shape, *how)
        if key not in self._calls:
            self._calls[key] = make(q, self._kv.k, self._kv.v, self._kv.lengths, *how)
        return self._calls[key]


def _check_finite(k: Tensor, v: Tensor, counts: list[int]) -> None:
    for name, x in (("k", k), ("v", v)):
        if min(counts) == x.shape[2]:
            check_finite(name, x)
        else:
            there = torch.arange(x.shape[2], device="cpu") < torch.tensor(counts, device="cpu").unsqueeze(1)
            check_finite(name, x.masked_fill(~there.to(x.device)[:, None, :, None], 0.0))


def _sizes(**sizes: Any) -> list[int]:
    """Whole numbers of 1 or more, by their names."""
    found = []
    for name, size in sizes.items():
        if arguments.tokens(name, size) < 1:
            raise UsageError(name, size, "give 1 or more")
        found.append(int(size))
    return found


def _checked_device(device: torch.device | str) -> torch.device:
    found = torch.device(device)
    if found.type not in LAYOUTS:
        raise UnavailableError(f"hsbench has no kernels for {found.type} tensors: take cpu or cuda")
    if found.type == "cuda" and found.index is None:
        found = torch.device("cuda", torch.cuda.current_device())
    return found
