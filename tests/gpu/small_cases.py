"""One small case of every CUDA kernel, checked against torch: what tests/gpu/sanitize runs under compute-sanitizer.

Run by itself: ``python tests/gpu/small_cases.py [PART-TYPE-HEAD_DIM ...]``, as ``living-fp16-64``; all by default,
and ``--list`` names them. No pytest, whose own work would only slow the sanitizer: it takes a minute or more for each
of :data:`CASES`.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import hsbench
from hsbench.attention import calls
from hsbench.attention.combine import combine
from hsbench.attention.reference import attention
from hsbench.cache.bitmap import BitmapKV, compress_bitmap
from hsbench.cache.fitted import compress_kv
from hsbench.cache.hierarchical import HierarchicalKV
from hsbench.cache.pruner import BALANCED, CENTERED, MAGNITUDE, pruner_of
from hsbench.distributed.gathered import Message
from hsbench.kernels import library
from hsbench.kernels.device import CUDA
from hsbench.machine import ceilings
from hsbench.problem.elements import FP8, SIXTEEN_BIT, STORED, STORED_FP8, STORED_INT4, CacheElements, elements_of

APART = (elements_of(SIXTEEN_BIT, STORED_INT4), elements_of(STORED_INT4, STORED_FP8))
"""Two of the pairs that one kernel reads: K of each order of rows, V of both orders of tokens."""

TOKENS = 300
GROUPS = (4, 12)
SHARES = (0.0, 0.25, 0.5)
PRUNERS = (MAGNITUDE, CENTERED, BALANCED)


@dataclass(frozen=True)
class Drawn:
    """Random tensors of a type and head_dim, of 2 kv heads."""

    dtype: torch.dtype
    head_dim: int

    def tokens(self, count: int = TOKENS, batch: int = 1) -> tuple[Tensor, Tensor]:
        k, v = (torch.randn(batch, 2, count, self.head_dim, device="cuda").to(self.dtype) for _ in "kv")
        return k, v

    def queries(self, count: int = 1, group: int = 4, batch: int = 1) -> Tensor:
        return torch.randn(batch, 2 * group, count, self.head_dim, device="cuda").to(self.dtype)

    def stored(self, share: float, count: int = TOKENS, **how: Any) -> HierarchicalKV:
        return compress_kv(*self.tokens(count), key_sparsity=share, value_sparsity=share, **how)


# ---- What is checked -----------------------------------------------------------------------------------------------
def check_pages(drawn: Drawn) -> None:
    """Of 16 bits, by all kernels."""
    for group, share, pruner in itertools.product(GROUPS, SHARES, PRUNERS):
        check_decode(drawn.stored(share, pruner=pruner), drawn.queries(group=group))
    for share, pruner in itertools.product(SHARES, PRUNERS):
        check_prefill(drawn.stored(share, pruner=pruner), drawn.queries(150), prefill_kernels())


def check_evicted(drawn: Drawn) -> None:
    for share, pruner in itertools.product(SHARES, (MAGNITUDE, CENTERED)):
        check_prefill(drawn.stored(share, pruner=pruner, evict=0.5), drawn.queries(150), prefill_kernels())


def check_elements(drawn: Drawn, *elements: CacheElements, pruner: str = "centered") -> None:
    for of, share in itertools.product(elements, SHARES):
        kv = drawn.stored(share, pruner=pruner_of(pruner), elements=of)
        for group in GROUPS:
            check_decode(kv, drawn.queries(group=group))
        if calls.why_not_prefill(of, CUDA, pruner_of(pruner).value_axis) is None:
            check_prefill(kv, drawn.queries(150), ["auto"], tolerance=FP8.tolerance)


def check_long(drawn: Drawn) -> None:
    """Longer than what one cluster of CTAs takes."""
    for elements in STORED.values():
        kv = drawn.stored(0.5, count=64 * 260 + 3, pruner=CENTERED, elements=elements, local=64)
        check_decode(kv, drawn.queries())


def check_others(drawn: Drawn) -> None:
    """Bitmaps, what ranks combine, and what measures a machine."""
    k, v = drawn.tokens()
    for group in GROUPS:
        q = drawn.queries(group=group)
        bitmaps = BitmapKV(compress_bitmap(k, "k", 0.5), compress_bitmap(v, "v", 0.5))
        call = calls.decode_bitmap_call(q, bitmaps)
        call.run()
        check(call.out, q, *bitmaps.unpack())
    parts = Message(drawn.queries(5), 3)
    parts.outs.normal_()
    parts.lses.normal_()
    out = combine(parts.outs, parts.lses, drawn.dtype)[0].float()
    torch.testing.assert_close(out, combine(parts.outs.float(), parts.lses)[0], rtol=1e-2, atol=1e-2)
    for kind in ("read", "copy"):
        ceilings.ceiling(CUDA, kind, size=1 << 20).run()


def check_living(drawn: Drawn, *elements: CacheElements, pruner: str = "centered") -> None:
    """Caches that grow: one sequence, and three of other lengths, some of whose blocks leave the window."""
    for of, share, begin in itertools.product(elements, (0.3, 0.5), ([200], [130, 0, 65])):
        batch, lengths = len(begin), begin
        how: dict[str, Any] = {"sparsity": share, "elements": of, "pruner": pruner, "sink": 1, "local": 64}
        cache = hsbench.Cache(batch, 2, drawn.head_dim, 400, drawn.dtype, "cuda", **how)
        for counts in (begin, [1] * batch, [70, 3, 64][:batch]):
            cache.append(*drawn.tokens(max(counts), batch), lengths=counts)
            lengths = cache.lengths.tolist()
        stored = cache.unpack()
        q = drawn.queries(batch=batch)
        for alike in (True, False):
            call = calls.growing_decode_call(q, cache._kv.k, cache._kv.v, cache.lengths, alike)
            check_sequences(call.anew(q)[0], q, stored, lengths, [1] * batch)
        if calls.why_not_prefill(of, CUDA, pruner_of(pruner).value_axis) is not None:
            continue
        chunk, counts = drawn.queries(150, batch=batch), [70, 3, 64][:batch]
        q_lengths = torch.tensor(counts, dtype=torch.int32, device="cuda")
        tolerance = FP8.tolerance if of.has_scale else None
        for kernel in ["auto"] if of.has_scale else prefill_kernels():
            call = calls.growing_prefill_call(chunk, cache._kv.k, cache._kv.v, cache.lengths, kernel)
            check_sequences(call.anew(chunk, q_lengths=q_lengths)[0], chunk, stored, lengths, counts, tolerance)
            check_sequences(call.anew(chunk, q_lengths=None)[0], chunk, stored, lengths, [150] * batch, tolerance)


PARTS: dict[str, Callable[[Drawn], None]] = {
    "pages": check_pages,
    "evicted": check_evicted,
    "fp8": lambda drawn: check_elements(drawn, STORED_FP8),
    "int4": lambda drawn: check_elements(drawn, STORED_INT4),
    "apart": lambda drawn: check_elements(drawn, *APART),
    "long": check_long,
    "others": check_others,
    "along_head_dim": lambda drawn: check_elements(drawn, *STORED.values(), APART[0], pruner="centered:hd"),
    "living": lambda drawn: check_living(drawn, SIXTEEN_BIT),
    "living_fp8": lambda drawn: check_living(drawn, STORED_FP8),
    "living_int4": lambda drawn: check_living(drawn, STORED_INT4),
    "living_apart": lambda drawn: check_living(drawn, *APART),
    "living_along_head_dim": lambda drawn: check_living(drawn, *STORED.values(), pruner="magnitude:hd"),
}

CASES = {
    f"{part}-{name}-{head_dim}": (check_part, Drawn(dtype, head_dim))
    for part, check_part in PARTS.items()
    for name, dtype in {"fp16": torch.float16, "bf16": torch.bfloat16}.items()
    for head_dim in (64, 128)
}


# ---- Against fp32 ----------------------------------------------------------------------------------------------------
def prefill_kernels() -> list[str]:
    return [path for path in library.PATHS if path != "auto" and calls.why_not_path(path) is None]


def check_decode(kv: HierarchicalKV, q: Tensor) -> None:
    check(hsbench.decode(q, kv)[0], q, *kv.unpack())


def check_prefill(kv: HierarchicalKV, chunk: Tensor, kernels: list[str], tolerance: float | None = None) -> None:
    for kernel in kernels:
        call = calls.prefill_call(chunk, kv, kernel)
        call.run()
        check(call.out, chunk, *kv.unpack(), tokens=kv.tokens, tolerance=tolerance)


def check_sequences(
    out: Tensor,
    q: Tensor,
    stored: tuple[Tensor, Tensor],
    lengths: list[int],
    queries: list[int],
    tolerance: float | None = None,
) -> None:
    """Of each sequence, the last of so many queries that see a token."""
    for i, (length, count) in enumerate(zip(lengths, queries, strict=True)):
        see = slice(max(count - length, 0), count)
        assert not out[i, :, : see.start].any() and not out[i, :, count:].any()
        one = slice(i, i + 1)
        check(out[one, :, see], q[one, :, see], *(x[one, :, :length] for x in stored), tolerance=tolerance)


def check(
    out: Tensor, q: Tensor, k: Tensor, v: Tensor, *, tokens: Tensor | None = None, tolerance: float | None = None
) -> None:
    want = attention(q, k, v, tokens=tokens, seq=k.shape[2] if tokens is None else TOKENS)[0]
    error = float((out.float() - want).norm() / want.norm())
    assert error < (tolerance or (1e-3 if out.dtype == torch.float16 else 8e-3)), error


def main(names: list[str]) -> None:
    for name in names or CASES:
        torch.manual_seed(0)
        check_part, drawn = CASES[name]
        check_part(drawn)
        torch.cuda.synchronize()
        print(f"{name}: all right; prefill by {', '.join(prefill_kernels())}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["--list"]:
        print(*CASES, sep="\n")
    else:
        main(sys.argv[1:])
