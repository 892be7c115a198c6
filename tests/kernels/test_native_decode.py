"""The native decode kernels against attention in fp64 on the unpacked tensors: all shapes, formats, instruction sets.

Outputs, workspaces and unused pool slots are poisoned: what is not written, or read by mistake, shows.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import mmap
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from hsbench.cache.bitmap import BitmapTensor, compress_bitmap_torch
from hsbench.cache.block_map import entries_of, is_kind, slots_of
from hsbench.cache.hierarchical import PagedTensor, compress_tensor_torch
from hsbench.cache.prune import Operand, plan_blocks
from hsbench.kernels import library
from hsbench.problem.elements import FP16, element_by

BATCH, KV_HEADS, MAX_GROUP = 2, 2, 16
GROUPS = (1, 2, 3, 4, 7, 8, 16)
SEQS = (1, 63, 64, 65, 127, 200, 1000)
THREADS = (1, 3)
PAGE_MIXES = ((0.0, 0.0), (0.5, 0.5), (0.0, 0.5), (0.3, 0.15))  # key and value sparsity
BITMAP_MIXES = ((0.5, 0.5), (0.0, 0.9))


def isas() -> list[str]:
    """Those that this machine can run; none without the library, where all tests here are skipped with the reason."""
    if library.why_missing("cpu"):
        return []
    best = library.load("cpu").number("hsb_cpu_best_isa")
    return [name for name, value in library.ISAS.items() if 0 < value <= best]


pytestmark = pytest.mark.skipif(bool(library.why_missing("cpu")), reason=str(library.why_missing("cpu")))


def make_kv(
    dtype: torch.dtype, head_dim: int, seq: int, *, group: int = MAX_GROUP, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    shape = (BATCH, KV_HEADS, seq, head_dim)
    return normal(BATCH, KV_HEADS, group, head_dim), normal(*shape), normal(*shape)


def attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """``q [batch, kv_heads, group, head_dim]``: out of its shape and the log-sum-exp, fp64."""
    scores = q.double() @ k.double().mT / math.sqrt(q.shape[-1])
    lse = scores.logsumexp(-1)
    return (scores - lse.unsqueeze(-1)).exp() @ v.double(), lse


def scattered(x: Tensor, operand: Operand, sparsity: float) -> tuple[PagedTensor, Tensor]:
    """Pages in random slots of pools that are twice as large; other slots are all ones: NaNs, illegal codes.

    Returns the pages and the pruned tensor that they hold.
    """
    pages = compress_tensor_torch(x, operand, plan_blocks(x.shape[2], sparsity))
    pruned = pages.unpack()
    generator = torch.Generator().manual_seed(1)
    entries = pages.map.flatten()
    for kind, old in list(pages.pools.items()):
        new = torch.full((2 * len(old) + 1, old.shape[1]), 0xFF, dtype=torch.uint8)
        slots = torch.randperm(len(new), generator=generator)[: len(old)]
        new[slots] = old
        pages.pools[kind] = new
        of_kind = is_kind(entries, kind)
        if len(old):
            entries[of_kind] = entries_of(slots[slots_of(entries[of_kind])], kind)
    return pages, pruned


Operands = tuple[dict[str, Any], Tensor, Tensor]
"""What a kernel takes, and the pruned K and V."""


def make_pages(k: Tensor, v: Tensor, key_sparsity: float, value_sparsity: float) -> Operands:
    key_pages, pruned_k = scattered(k, "k", key_sparsity)
    value_pages, pruned_v = scattered(v, "v", value_sparsity)
    return {"k": key_pages, "v": value_pages}, pruned_k, pruned_v


def make_bitmaps(k: Tensor, v: Tensor, key_sparsity: float, value_sparsity: float) -> Operands:
    maps = {
        "k_bitmap": compress_bitmap_torch(k, "k", key_sparsity),
        "v_bitmap": compress_bitmap_torch(v, "v", value_sparsity),
    }
    return maps, maps["k_bitmap"].unpack(), maps["v_bitmap"].unpack()


def run(function: str, q: Tensor, seq: int, *, isa: str = "auto", threads: int = 1, **operands: Any) -> Any:
    """``q [batch, kv_heads, group, head_dim]``; out of its shape, lse ``[batch, kv_heads, group]``."""
    q = q.contiguous()
    batch, kv_heads, group, head_dim = q.shape
    out = torch.full_like(q, math.nan)
    lse = torch.full((batch, kv_heads, group), math.nan)
    params = library.make(
        "hsb_decode_params",
        batch=batch,
        q_heads=kv_heads * group,
        kv_heads=kv_heads,
        head_dim=head_dim,
        seq=seq,
        dtype=element_by(q.dtype).code,
        threads=threads,
        isa=library.ISAS[isa],
        scale=1 / math.sqrt(head_dim),
        q=q,
        out=out,
        lse=lse,
        **{name: operand.params() for name, operand in operands.items()},
    )
    cpu = library.load("cpu")
    size = cpu.number("hsb_cpu_decode_workspace", params)
    room = torch.full((size + 128,), 0xFF, dtype=torch.uint8)
    start = -room.data_ptr() % 64
    params.workspace = room.data_ptr() + start
    cpu.call(function, params)
    assert (room[start + size :] == 0xFF).all(), "written past the workspace"
    return out, lse


def assert_close(got: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    out, lse = got
    reference, reference_lse = expected
    step = torch.finfo(out.dtype).eps
    # Half a step of rounding, and fp32 sums whose error follows the largest terms.
    scale = reference.abs().amax(-1, keepdim=True)
    assert ((out.double() - reference).abs() <= 0.51 * step * reference.abs() + 2e-5 * scale + 1e-7).all()
    torch.testing.assert_close(lse.double(), reference_lse, rtol=2e-6, atol=2e-5)


def variants() -> Iterator[dict[str, Any]]:
    return ({"isa": isa, "threads": threads} for isa in isas() for threads in THREADS)


@pytest.mark.parametrize("seq", SEQS)
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_pages(dtype: torch.dtype, head_dim: int, seq: int) -> None:
    q, k, v = make_kv(dtype, head_dim, seq)
    for key_sparsity, value_sparsity in PAGE_MIXES:
        pages, *pruned = make_pages(k, v, key_sparsity, value_sparsity)
        reference = attention(q, *pruned)
        for variant in variants():
            for group in GROUPS:
                got = run("hsb_cpu_decode", q[:, :, :group], seq, **variant, **pages)
                assert_close(got, tuple(part[:, :, :group] for part in reference))


@pytest.mark.parametrize("seq", SEQS)
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_bitmaps(dtype: torch.dtype, head_dim: int, seq: int) -> None:
    q, k, v = make_kv(dtype, head_dim, seq)
    for key_sparsity, value_sparsity in BITMAP_MIXES:
        maps, *pruned = make_bitmaps(k, v, key_sparsity, value_sparsity)
        reference = attention(q, *pruned)
        for variant in variants():
            for group in GROUPS:
                got = run("hsb_cpu_decode_bitmap", q[:, :, :group], seq, **variant, **maps)
                assert_close(got, tuple(part[:, :, :group] for part in reference))


@pytest.mark.parametrize("isa", isas())
def test_many_splits_and_threads_give_the_same_bits(isa: str) -> None:
    q, k, v = make_kv(torch.float16, 128, 64 * 40 + 5, group=4)
    pages, *_ = make_pages(k, v, 0.25, 0.25)
    maps, *_ = make_bitmaps(k, v, 0.5, 0.5)
    for function, operands in (("hsb_cpu_decode", pages), ("hsb_cpu_decode_bitmap", maps)):
        first = run(function, q, k.shape[2], isa=isa, **operands)
        for threads in (1, 3, 3, 3, 4):
            again = run(function, q, k.shape[2], isa=isa, threads=threads, **operands)
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_degenerate_scores(sparsity: float, isa: str) -> None:
    seq = 300

    def check(q: Tensor, k: Tensor, v: Tensor) -> None:
        pages, *pruned = make_pages(k, v, sparsity, sparsity)
        assert_close(run("hsb_cpu_decode", q, seq, isa=isa, **pages), attention(q, *pruned))
        maps, *pruned = make_bitmaps(k, v, sparsity, sparsity)
        assert_close(run("hsb_cpu_decode_bitmap", q, seq, isa=isa, **maps), attention(q, *pruned))

    q, k, v = make_kv(torch.float16, 64, seq, group=4)
    check(torch.zeros_like(q), k, v)  # all scores equal
    check(q, torch.zeros_like(k), v)
    for token in (0, 130, seq - 1):  # one huge score, early, in the middle and in the tail block
        peaked = k.clone()
        peaked[:, :, token] = 60 * q[:, :, 0].sign()
        check(q, peaked, v)
    largest = torch.finfo(torch.float16).max
    check(q, k, torch.full_like(v, -largest))
    check(torch.full_like(q, largest), torch.full_like(k, -largest), v)
    # Sums of signs tie in many tokens, and rounding tells such scores apart: only finiteness can be asked.
    pages, *_ = make_pages(k.sign() * largest, v.sign() * largest, sparsity, sparsity)
    out, lse = run("hsb_cpu_decode", q.sign() * largest, seq, isa=isa, **pages)
    assert torch.isfinite(out).all() and torch.isfinite(lse).all()


@pytest.mark.parametrize("sparsity", [0.0, 0.5])
@pytest.mark.parametrize("seq", [1, 65, 64 * 20 + 5])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_values_near_the_largest(dtype: torch.dtype, seq: int, sparsity: float) -> None:
    """Their mean is finite, so that the output is, whatever the scores; sums of them, not yet divided, need not be."""
    q, k, v = (x[:1, :1] for x in make_kv(dtype, 64, seq, group=4))
    rising = q[:, :, :1].sign() * torch.linspace(0, 20, seq).view(1, 1, -1, 1).to(dtype)
    huge = torch.full_like(k, 2.0**15)  # scores of 2^33, beside which a few powers of 2 vanish
    queries = [(q, k), (q * 0, k), (q, rising), (q, rising.flip(2)), (q * 0 + 2.0**15, huge)]
    largest = torch.full_like(v, torch.finfo(dtype).max)
    for (some_q, keys), values in itertools.product(queries, (largest, -largest, largest * v.sign())):
        for function, make in (("hsb_cpu_decode", make_pages), ("hsb_cpu_decode_bitmap", make_bitmaps)):
            operands, *pruned = make(keys, values, sparsity, sparsity)
            reference = attention(some_q, *pruned)
            for isa in isas():
                assert_close(run(function, some_q, seq, isa=isa, **operands), reference)


@pytest.mark.parametrize("isa", isas())
def test_tiny_values_keep_their_precision(isa: str) -> None:
    """What makes room for the largest values takes none from small ones."""
    seq = 64 * 20 + 5
    q, k, v = make_kv(torch.bfloat16, 64, seq, group=4)
    for scale in (2.0**-100, 2.0**100):
        pages, *pruned = make_pages(k, v * scale, 0.5, 0.5)
        out, lse = run("hsb_cpu_decode", q, seq, isa=isa, **pages)
        reference, reference_lse = attention(q, *pruned)
        assert_close((out / scale, lse), (reference / scale, reference_lse))


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.97, 0.999])
def test_bitmap_values_are_not_read_past_their_end(sparsity: float, isa: str) -> None:
    """The values end where the next memory page is protected; a sparsity of 0.999 keeps nothing at all."""
    q, k, v = make_kv(torch.float16, 128, 130, group=4)
    maps, *pruned = make_bitmaps(k, v, sparsity, sparsity)
    guarded = [against_a_guard_page(bitmap) for bitmap in maps.values()]
    assert_close(run("hsb_cpu_decode_bitmap", q, 130, isa=isa, **maps), attention(q, *pruned))
    del guarded


def against_a_guard_page(bitmap: BitmapTensor) -> Any:
    """Moves the values so that they end where memory cannot be read; returns what keeps that memory alive."""
    size = bitmap.values.nbytes
    whole = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, whole + mmap.PAGESIZE)
    room = torch.frombuffer(memory, dtype=torch.uint8)
    protect = ctypes.CDLL(None).mprotect
    protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    values = room[whole - size : whole].view(bitmap.values.dtype) if size else bitmap.values.new_empty(0)
    if size:
        values.copy_(bitmap.values)
        bitmap.values = values
    else:  # an address all the same, at the very end
        bitmap.values = room[whole:].view(bitmap.values.dtype)
    assert protect(room.data_ptr() + whole, mmap.PAGESIZE, 0) == 0
    return memory, room


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head_dim": 96}, "head_dim must be 64 or 128"),
        ({"q_heads": 3}, "q_heads must be"),
        ({"q_heads": 34}, "q_heads must be"),
        ({"seq": 0}, "sizes must be positive"),
        ({"dtype": 2}, "dtype must be"),
        ({"threads": 0}, "threads must be positive"),
    ],
)
def test_bad_shapes_are_refused(change: dict[str, int], message: str) -> None:
    shape = dict(batch=1, q_heads=2, kv_heads=2, head_dim=64, seq=64, dtype=FP16.code, threads=1) | change
    params = library.make("hsb_decode_params", **shape)
    with pytest.raises(library.NativeError, match=message):
        library.load("cpu").number("hsb_cpu_decode_workspace", params)
