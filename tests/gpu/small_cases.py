"""One small case of every CUDA kernel, checked against torch: what tests/gpu/sanitize runs under compute-sanitizer.

Run by itself: ``python tests/gpu/small_cases.py [TYPE-HEAD_DIM ...]``. Needs no pytest, whose own work would only slow
the sanitizer, under which a type and head_dim take minutes: :data:`CASES` are what may run at the same time.
"""

from __future__ import annotations

import itertools
import sys

import torch

import hsbench
from hsbench.attention import calls
from hsbench.attention.reference import attention
from hsbench.cache.bitmap import BitmapKV, compress_bitmap
from hsbench.cache.fitted import compress_kv
from hsbench.cache.pruner import CENTERED, MAGNITUDE
from hsbench.kernels import library
from hsbench.kernels.device import CUDA
from hsbench.machine import ceilings
from hsbench.problem.elements import FP8, SIXTEEN_BIT, STORED, STORED_FP8, STORED_INT4, CacheElements, elements_of

APART = (elements_of(SIXTEEN_BIT, STORED_INT4), elements_of(STORED_INT4, STORED_FP8))
"""Two of the pairs that one kernel reads: K of each order of rows, V of both orders of tokens."""

CASES = {
    f"{name}-{head_dim}": (dtype, head_dim)
    for name, dtype in {"fp16": torch.float16, "bf16": torch.bfloat16}.items()
    for head_dim in (64, 128)
}


def main(names: list[str]) -> None:
    for name in names or CASES:
        check_case(*CASES[name])
    torch.cuda.synchronize()
    print(f"{', '.join(names or CASES)}: all right; prefill by {', '.join(prefill_kernels())}")


def prefill_kernels() -> list[str]:
    return [path for path in library.PATHS if path != "auto" and calls.why_not_path(path) is None]


def check_case(dtype: torch.dtype, head_dim: int) -> None:
    torch.manual_seed(0)
    kernels = prefill_kernels()
    for group in (4, 12):
        k, v = (torch.randn(1, 2, 300, head_dim, device="cuda").to(dtype) for _ in range(2))
        q = torch.randn(1, 2 * group, 1, head_dim, device="cuda").to(dtype)
        chunk = torch.randn(1, 2 * group, 150, head_dim, device="cuda").to(dtype)
        for sparsity, pruner in itertools.product((0.0, 0.25, 0.5), (MAGNITUDE, CENTERED)):
            kv = compress_kv(k, v, key_sparsity=sparsity, value_sparsity=sparsity, pruner=pruner)
            check(hsbench.decode(q, kv)[0], q, *kv.unpack())
            for kernel in kernels if group == 4 else ():
                call = calls.prefill_call(chunk, kv, kernel)
                call.run()
                check(call.out, chunk, *kv.unpack())
            left = compress_kv(k, v, key_sparsity=sparsity, value_sparsity=sparsity, pruner=pruner, evict=0.5)
            for kernel in kernels if group == 4 else ():
                call = calls.prefill_call(chunk, left, kernel)
                call.run()
                check(call.out, chunk, *left.unpack(), tokens=left.tokens)
        for sparsity, elements in itertools.product((0.0, 0.25, 0.5), (STORED_FP8, STORED_INT4, *APART)):
            kv = compress_kv(k, v, key_sparsity=sparsity, value_sparsity=sparsity, pruner=CENTERED, elements=elements)
            check(hsbench.decode(q, kv)[0], q, *kv.unpack())
            if group == 4 and calls.why_not_prefill(elements, CUDA) is None:
                call = calls.prefill_call(chunk, kv)
                call.run()
                check(call.out, chunk, *kv.unpack(), tolerance=FP8.tolerance)
        for elements in STORED.values() if group == 4 and dtype is torch.float16 else ():
            # Longer than what one cluster of CTAs takes.
            long = [torch.randn(1, 2, 64 * 260 + 3, head_dim, device="cuda").to(dtype) for _ in range(2)]
            kv = compress_kv(*long, key_sparsity=0.25, value_sparsity=0.5, pruner=CENTERED, elements=elements, local=64)
            check(hsbench.decode(q, kv)[0], q, *kv.unpack())
        if group == 4:
            for elements, share in itertools.product((*STORED.values(), *APART), (0.3, 0.5)):
                check_living(dtype, head_dim, elements, share, kernels)
        bitmaps = BitmapKV(compress_bitmap(k, "k", 0.5), compress_bitmap(v, "v", 0.5))
        call = calls.decode_bitmap_call(q, bitmaps)
        call.run()
        check(call.out, q, *bitmaps.unpack())
    for kind in ("read", "copy"):
        ceilings.ceiling(CUDA, kind, size=1 << 20).run()


def check_living(dtype: torch.dtype, head_dim: int, elements: CacheElements, share: float, kernels: list[str]) -> None:
    """Caches that grow: one sequence, and three of other lengths, some of whose blocks leave the window."""
    for begin in ([200], [130, 0, 65]):
        batch, lengths = len(begin), begin
        cache = hsbench.Cache(
            batch, 2, head_dim, 400, dtype, "cuda", sparsity=share, elements=elements, sink=1, local=64
        )  # fmt: skip
        for counts in (begin, [1] * batch, [70, 3, 64][:batch]):
            k, v = (torch.randn(batch, 2, max(counts), head_dim, device="cuda").to(dtype) for _ in range(2))
            cache.append(k, v, lengths=counts)
            lengths = cache.lengths.tolist()
        q = torch.randn(batch, 8, 1, head_dim, device="cuda").to(dtype)
        out = cache.decode(q)[0]
        for sequence, length in enumerate(lengths):
            one = slice(sequence, sequence + 1)
            check(out[one], q[one], *(x[one, :, :length] for x in cache.unpack()))
        chunk = torch.randn(batch, 8, 70, head_dim, device="cuda").to(dtype)
        last = torch.tensor([70, 3, 64][:batch], dtype=torch.int32, device="cuda")
        for kernel in () if elements.has_scale else kernels:
            call = calls.growing_prefill_call(chunk, cache._kv.k, cache._kv.v, cache.lengths, kernel)
            out = call.anew(chunk, q_lengths=last)[0]
            for sequence, (length, count) in enumerate(zip(lengths, last.tolist(), strict=True)):
                one = slice(sequence, sequence + 1)
                mine = (x[one, :, :length] for x in cache.unpack())
                check(out[one, :, :count], chunk[one, :, :count], *mine)


def check(
    out: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    tokens: torch.Tensor | None = None,
    tolerance: float | None = None,
) -> None:
    want = attention(q, k, v, tokens=tokens, seq=k.shape[2] if tokens is None else 300)[0]
    error = float((out.float() - want).norm() / want.norm())
    assert error < (tolerance or (1e-3 if out.dtype == torch.float16 else 8e-3)), error


if __name__ == "__main__":
    main(sys.argv[1:])
