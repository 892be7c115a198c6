"""A cache that grows, beside its definition: the same appends, by the kernels and in torch, page by page.

What a page holds that no token has written is poisoned in both, so that what is read by mistake shows.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor

from hsbench.attention import calls
from hsbench.attention.growing import Cache
from hsbench.attention.reference import attention
from hsbench.cache.block_map import kinds_of, slots_of
from hsbench.cache.e4m3 import LARGEST
from hsbench.cache.growing import JUDGED, OPEN, GrowingTensor
from hsbench.cache.growing_torch import append_torch
from hsbench.cache.prune import BLOCK
from hsbench.cache.pruner import pruner_of
from hsbench.kernels import library
from hsbench.kernels.device import Device
from hsbench.problem.elements import STORED, CacheElements, elements_of
from hsbench.run.check import LSE_TOLERANCE, TOLERANCE

POISON = 0xFF
"""A NaN in every type of values, and a pattern that no page has."""

KEY_SPREADS, KEY_MEANS = (0.2, 3.0), (-2.0, 2.0)
"""Of the channels of K that :meth:`Grown.tokens` draws: of the first one and of the last, in equal steps."""

ROUNDED = 0.0265
"""What rounding to e4m3 takes of a number, as a share of it, in the mean square."""


def mean_square(first: float, last: float) -> float:
    """Of numbers from ``first`` to ``last`` in equal steps, many of them."""
    return (first * first + first * last + last * last) / 3


NARROW = 1.5 * ROUNDED * math.sqrt(2 + 2 * (mean_square(*KEY_SPREADS) + mean_square(*KEY_MEANS)))
"""Of prefill by products of e4m3: p, V, q and K are each rounded, the last two by as much as K's channels are large.
Half as much again is for single queries (docs/kernels/cuda-prefill-sm90.md)."""

APART = tuple(elements_of(key, value) for key, value in permutations(STORED.values(), 2))
"""Elements of K and of V that differ."""

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def that_grows(device: str) -> str:
    """The device; skips where no cache grows on it."""
    if reason := library.why_cannot("append", Device.of(device)):
        pytest.skip(reason)
    return device


def prefill_kernels(device: str, elements: CacheElements, pruner: str = "centered") -> list[str]:
    """Those that read such a cache in chunks; the CPU has one."""
    if calls.why_not_prefill(elements, Device.of(device), pruner_of(pruner).value_axis):
        return []
    if device == "cpu" or elements.has_scale:
        return ["auto"]
    return [path for path in library.PATHS if calls.why_not_path(path) is None]


@dataclass
class Grown:
    """A cache, and what the definition says that it holds.

    Attributes:
        lengths: of its sequences, as they must be.
    """

    cache: Cache
    seed: int = 0

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)
        self.lengths = [0] * self.cache.batch
        for tensor in self.tensors:
            poison(tensor)
        self._shadow: list[GrowingTensor] = []

    @property
    def tensors(self) -> tuple[GrowingTensor, GrowingTensor]:
        return self.cache._kv.k, self.cache._kv.v

    def tokens(self, n: int) -> tuple[Tensor, Tensor]:
        """Random K and V of n tokens of each sequence, K with means and channels of other sizes."""
        batch, kv_heads, head_dim, _ = self.cache._shape
        k, v = (torch.randn(batch, kv_heads, n, head_dim, generator=self.generator) for _ in "kv")
        k = k * torch.linspace(*KEY_SPREADS, head_dim) + torch.linspace(*KEY_MEANS, head_dim)
        return k.to(self.cache.dtype).to(self.cache.device), v.to(self.cache.dtype).to(self.cache.device)

    def queries(self, n: int, group: int = 4) -> Tensor:
        batch, kv_heads, head_dim, _ = self.cache._shape
        q = torch.randn(batch, kv_heads * group, n, head_dim, generator=self.generator)
        return q.to(self.cache.dtype).to(self.cache.device)

    def append(self, n: int, counts: list[int] | None = None, **how: Any) -> None:
        """Appends by the kernels and by the definition, which takes over what first chunks were compressed to; then
        both hold the same."""
        k, v = self.tokens(n)
        all_counts = [n] * self.cache.batch if counts is None else counts
        begins = [not length and count > 0 for length, count in zip(self.lengths, all_counts, strict=True)]
        later = [0 if first else count for first, count in zip(begins, all_counts, strict=True)]
        if any(begins):
            how = {"queries": self.queries(n), **how}
        self.cache.append(k, v, lengths=counts, **how)
        if any(begins):
            self._take_over([i for i, first in enumerate(begins) if first])
        for tensor, x in zip(self._shadow, (k, v), strict=True):
            append_torch(tensor, x.cpu(), self.lengths, later)
        self.lengths = [length + count for length, count in zip(self.lengths, all_counts, strict=True)]
        self.assert_as_defined()

    def _take_over(self, sequences: list[int]) -> None:
        """The definition goes on from what these sequences' first chunks became."""
        fresh = [on_cpu(tensor) for tensor in self.tensors]
        if not self._shadow:
            self._shadow = fresh
            return
        for shadow, now in zip(self._shadow, fresh, strict=True):
            for name in ("map", "free", "state", "losses", "shift", "scale", "weights"):
                if getattr(shadow, name) is not None:
                    getattr(shadow, name)[sequences] = getattr(now, name)[sequences]
            for kind, pool in shadow.pools.items():
                pages = shadow.pages_of(kind) * shadow.shape[1]
                for sequence in sequences:
                    mine = slice(sequence * pages, (sequence + 1) * pages)
                    pool[mine] = now.pools[kind][mine]

    def assert_as_defined(self) -> None:
        assert self.cache.lengths.tolist() == self.lengths
        for got, expected in zip(self.tensors, self._shadow, strict=True):
            assert_same(got, expected, self.lengths)

    def attend(self, q: Tensor, counts: list[int] | None, kernel: str) -> tuple[Tensor, Tensor]:
        """Prefill, by a kernel's name; ``decode`` is another, and ``decode of alike`` the same told that sequences
        are alike, be they or not."""
        if kernel == "decode":
            return self.cache.decode(q)
        lengths = None if counts is None else torch.tensor(counts, dtype=torch.int32).to(self.cache.device)
        if kernel == "auto":
            return self.cache.prefill(q, lengths=lengths)
        fields: dict[str, Any] = {}
        if kernel == "decode of alike":
            call = calls.growing_decode_call(q, *self.tensors, self.cache.lengths, True)
        else:
            call = calls.growing_prefill_call(q, *self.tensors, self.cache.lengths, kernel)
            fields["q_lengths"] = lengths
        return call.anew(q, (torch.full_like(q, math.nan), call.lse.fill_(math.nan)), **fields)

    def assert_attends(
        self, n: int = 1, counts: list[int] | None = None, *, group: int = 4, kernel: str = "decode"
    ) -> None:
        """See :meth:`attend`; of n queries, against fp32 over what is stored."""
        k, v = (x.cpu() for x in self.cache.unpack())
        q = self.queries(n, group)
        narrow = not kernel.startswith("decode") and self.cache.device.type == "cuda" and self.cache._elements.has_scale
        if narrow:  # what is open is read as it will be stored
            k, v = (saturated(x, tensor) for x, tensor in zip((k, v), self.tensors, strict=True))
        out, lse, q = (x.cpu() for x in (*self.attend(q, counts, kernel), q))
        for sequence, length in enumerate(self.lengths):
            queries = n if counts is None else counts[sequence]
            see = slice(max(queries - length, 0), queries)  # the others come before all tokens, or are none
            for blind in (slice(0, see.start), slice(see.stop, n)):
                assert not out[sequence, :, blind].any() and bool((lse[sequence, :, blind] == -torch.inf).all())
            if see.start == see.stop:
                continue
            one = slice(sequence, sequence + 1)
            right, sums = attention(q[one, :, see], k[one, :, :length], v[one, :, :length])
            error = (out[sequence, :, see].float() - right[0]).norm() / right.norm()
            assert error <= (NARROW if narrow else TOLERANCE[q.dtype]), f"sequence {sequence}: {error:.2e}"
            if not narrow:
                torch.testing.assert_close(lse[sequence, :, see], sums[0], rtol=LSE_TOLERANCE, atol=LSE_TOLERANCE)


def saturated(x: Tensor, tensor: GrowingTensor) -> Tensor:
    """What e4m3 can hold of the values of a tensor, fp32 ``[batch, kv_heads, seq, head_dim]``: later tokens may be
    larger than the scales of the first ones allow."""
    assert tensor.scale is not None
    scale, shift = (0.0 if of is None else of.cpu().unsqueeze(2) for of in (tensor.scale, tensor.shift))
    most = LARGEST * scale
    return (x - shift).clamp(-most, most) + shift


def poison(tensor: GrowingTensor) -> None:
    """All pages, and the map."""
    for pool in tensor.pools.values():
        pool.fill_(POISON)
    tensor.map.fill_(-1)


def on_cpu(tensor: GrowingTensor) -> GrowingTensor:
    """A copy, whose pages are still those of the device's layout."""
    found = copy.copy(tensor)
    for name in ("map", "free", "state", "losses", "shift", "scale", "weights"):
        x = getattr(tensor, name)
        setattr(found, name, None if x is None else x.detach().cpu().clone())
    found.pools = {kind: pool.cpu().clone() for kind, pool in tensor.pools.items()}
    return found


def assert_same(got: GrowingTensor, expected: GrowingTensor, lengths: list[int]) -> None:
    """The same pages for every block that there is, and the same state; free pages are in the same order."""
    state = got.state.cpu()
    assert torch.equal(state, expected.state), f"{got.operand}: state {state.tolist()}, not {expected.state.tolist()}"
    entries = got.map.cpu()
    for sequence, length in enumerate(lengths):
        blocks = -(-length // BLOCK)
        mine = entries[sequence, :, :blocks]
        assert torch.equal(mine, expected.map[sequence, :, :blocks]), f"{got.operand}: map of sequence {sequence}"
        slots, kinds = slots_of(mine), kinds_of(mine)
        for kind, pool in got.pools.items():
            there = slots[kinds == kind]
            if len(there):
                a, b = pool.cpu()[there], expected.pools[kind][there]
                assert torch.equal(a, b), f"{got.operand}: {int((a != b).any(-1).sum())} {kind.name} pages differ"
    for at in range(state.shape[0]):
        for head in range(state.shape[1]):
            taken = int(state[at, head, OPEN])
            assert torch.equal(got.free[at, head, taken:].cpu(), expected.free[at, head, taken:])
    if got.losses is not None:
        for at, judged in enumerate(state[..., JUDGED].tolist()):
            for head, count in enumerate(judged):
                assert torch.equal(got.losses[at, head, :count].cpu(), expected.losses[at, head, :count])


def make_cache(
    device: str,
    *,
    batch: int = 2,
    kv_heads: int = 2,
    head_dim: int = 64,
    capacity: int = 700,
    elements: CacheElements | None = None,
    dtype: torch.dtype = torch.float16,
    **options: Any,
) -> Cache:
    more = {} if elements is None else {"elements": elements}
    return Cache(batch, kv_heads, head_dim, capacity, dtype, device, **more, **options)
