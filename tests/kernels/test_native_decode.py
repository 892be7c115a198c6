"""The native decode kernels against attention in fp64 on the unpacked tensors: all shapes, formats, instruction sets.

What is poisoned: see kernel_cases.py and cpu_calls.py.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import mmap
import re
from typing import Any

import pytest
import torch
from torch import Tensor

import cpu_calls
from cpu_calls import ISAS, make_case, needs_library, variants
from hsbench.cache.bitmap import BitmapTensor
from hsbench.cache.prune import Operand
from hsbench.kernels import library
from hsbench.problem.elements import FP16
from kernel_cases import (
    ALONG_HEAD_DIM,
    BAD_DECODE_SHAPES,
    DEGENERATE,
    INT4_ALONG_HEAD_DIM,
    WHOLE,
    Case,
    Operands,
    Pack,
    assert_close,
    assert_rounded,
    extreme,
    near_the_largest,
    padded_bitmap,
    scattered,
    scattered_fp8,
    scattered_int4,
    scattered_wide_ends,
)

pytestmark = needs_library

GROUPS = (1, 2, 3, 4, 7, 8, 16)
SEQS = (1, 63, 64, 65, 127, 200, 1000)
PACKS: dict[str, Pack] = {
    "decode": scattered,
    "decode_fp8": scattered_fp8,
    "decode_fp8_wide_ends": scattered_wide_ends,
    "decode_int4": scattered_int4,
    **{f"decode_{name}": pack for name, pack in ALONG_HEAD_DIM.items()},
    "decode_int4, V along head_dim": INT4_ALONG_HEAD_DIM["int4, V along head_dim"],
    "decode_bitmap": padded_bitmap,
}
"""What each operation reads; decode of all that pages may hold."""
_PAGED = ((0.0, 0.0), (0.5, 0.5), (0.0, 0.5), (0.3, 0.15))
MIXES = {operation: _PAGED for operation in PACKS} | {"decode_bitmap": ((0.5, 0.5), (0.0, 0.9))}
"""Key and value sparsity."""


def run(operation: str, *args: Any, **fields: Any) -> tuple[Tensor, Tensor]:
    return cpu_calls.run(re.sub("_(16bit|fp8|int4).*", "", operation), *args, **fields)


def assert_sound(operation: str, got: tuple[Tensor, Tensor], out: Tensor, lse: Tensor) -> None:
    if not operation.startswith("decode_int4"):
        return assert_rounded(got, out, lse)
    assert_rounded(got, out, lse, times=WHOLE)
    assert_close(got, out, got[1].double())  # each row, too, within what every method must keep


def check(operation: str, case: Case, isa: str) -> None:
    assert_sound(operation, run(operation, case.q, case.operands, isa=isa), case.out, case.lse)


@pytest.mark.parametrize("seq", SEQS)
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("operation", PACKS)
def test_every_shape(operation: str, dtype: torch.dtype, head_dim: int, seq: int) -> None:
    for mix in MIXES[operation]:
        case = make_case(dtype, head_dim, seq, group=max(GROUPS), mix=mix, pack=PACKS[operation])
        for variant, group in itertools.product(variants(), GROUPS):
            got = run(operation, case.q[:, :, :group], case.operands, **variant)
            assert_sound(operation, got, case.out[:, :, :group], case.lse[:, :, :group])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("operation", PACKS)
def test_many_splits_and_threads_give_the_same_bits(operation: str, isa: str) -> None:
    mix = (0.5, 0.5) if operation == "decode_bitmap" else (0.25, 0.25)
    case = make_case(torch.float16, 128, 64 * 40 + 5, mix=mix, pack=PACKS[operation])
    first = run(operation, case.q, case.operands, isa=isa)
    for threads in (1, 3, 3, 3, 4):
        again = run(operation, case.q, case.operands, isa=isa, threads=threads)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("sparsity", [0.0, 0.5])
@pytest.mark.parametrize("what", DEGENERATE)
@pytest.mark.parametrize("operation", PACKS)
def test_degenerate_inputs(operation: str, what: str, sparsity: float, isa: str) -> None:
    mix = (sparsity, sparsity)
    check(operation, make_case(torch.float16, 64, 300, mix=mix, change=DEGENERATE[what], pack=PACKS[operation]), isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("sparsity", [0.0, 0.5])
@pytest.mark.parametrize("operation", PACKS)
def test_extreme_inputs_stay_finite(operation: str, sparsity: float, isa: str) -> None:
    mix = (sparsity, sparsity)
    case = make_case(torch.float16, 64, 300, mix=mix, change=extreme, pack=PACKS[operation])
    out, lse = run(operation, case.q, case.operands, isa=isa)
    assert torch.isfinite(out).all() and torch.isfinite(lse).all()


@pytest.mark.parametrize("sparsity", [0.0, 0.5])
@pytest.mark.parametrize("seq", [1, 65, 64 * 20 + 5])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("operation", PACKS)
def test_values_near_the_largest(operation: str, dtype: torch.dtype, seq: int, sparsity: float) -> None:
    shape = dict(batch=1, kv_heads=1, mix=(sparsity, sparsity), pack=PACKS[operation])
    for _, change in near_the_largest():
        case = make_case(dtype, 64, seq, change=change, **shape)
        for isa in ISAS:
            check(operation, case, isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("scale", [2.0**-100, 2.0**100])
def test_tiny_values_keep_their_precision(scale: float, isa: str) -> None:
    """What makes room for the largest values takes none from small ones."""
    case = make_case(torch.bfloat16, 64, 64 * 20 + 5, change=lambda q, k, v: (q, k, v * scale))
    out, lse = run("decode", case.q, case.operands, isa=isa)
    assert_rounded((out / scale, lse), case.out / scale, case.lse)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [-0.2, 0.0, 0.001, 0.7])
@pytest.mark.parametrize("operation", PACKS)
def test_any_scale(operation: str, scale: float, dtype: torch.dtype, isa: str) -> None:
    case = make_case(dtype, 64, 300, scale=scale, pack=PACKS[operation])
    assert_sound(operation, run(operation, case.q, case.operands, isa=isa, scale=scale), case.out, case.lse)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_each_kept_value_meets_its_own_query_channel(dtype: torch.dtype, head_dim: int, isa: str) -> None:
    """One channel at a time, where sums over all of them would hide which."""
    stored: list[torch.Tensor] = []

    def pack(x: torch.Tensor, operand: Operand, sparsity: float) -> tuple[Operands, torch.Tensor]:
        pages, pruned = scattered(x, operand, sparsity)
        stored.append(pruned[0, 0].double())
        return pages, pruned

    case = make_case(dtype, head_dim, 64, batch=1, kv_heads=1, group=8, pack=pack)
    k, v = stored
    for channel in range(head_dim):
        q = torch.zeros_like(case.q)
        q[..., channel] = 1 + torch.arange(8).view(8, 1)
        out, lse = run("decode", q, case.operands, isa=isa)
        scores = q[0, 0, :, 0].double() @ k.mT / math.sqrt(head_dim)
        assert_rounded((out[0, 0, :, 0], lse[0, 0, :, 0]), scores.softmax(-1) @ v, scores.logsumexp(-1))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.97, 0.999])
def test_bitmap_values_are_not_read_past_their_end(sparsity: float, isa: str) -> None:
    """The values end where the next memory page is protected; a sparsity of 0.999 keeps nothing at all."""
    case = make_case(torch.float16, 128, 130, mix=(sparsity, sparsity), pack=padded_bitmap)
    guarded = [against_a_guard_page(bitmap) for bitmap in (case.k, case.v)]
    check("decode_bitmap", case, isa)
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


@pytest.mark.parametrize(("change", "message"), (*BAD_DECODE_SHAPES, ({"threads": 0}, "threads must be positive")))
def test_bad_shapes_are_refused(change: dict[str, int], message: str) -> None:
    shape = dict(batch=1, q_heads=2, kv_heads=2, head_dim=64, seq=64, dtype=FP16.code, threads=1) | change
    params = library.make("hsb_decode_params", **shape)
    with pytest.raises(library.NativeError, match=message):
        library.load("cpu").number("hsb_cpu_decode_workspace", params)
