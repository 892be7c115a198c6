"""Decode over bitmaps on CUDA against attention in fp64 on the unpacked tensors.

What is poisoned: see cuda_calls.py; here also what lies past the kept values.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from cuda_calls import (
    DEVICE,
    Call,
    assert_close,
    assert_keeps_to_its_stream,
    assert_repeats,
    assert_replays,
    attention,
    near_the_largest,
    small_values,
)
from hsbench.cache.bitmap import BitmapTensor, compress_bitmap_torch
from hsbench.kernels import library
from hsbench.problem.elements import INPUTS

DTYPES = tuple(element.torch_dtype for element in INPUTS.values())

pytestmark = pytest.mark.gpu

BATCH, KV_HEADS, MAX_GROUP = 2, 2, 16
GROUPS = (1, 2, 3, 4, 7, 8, 9, 16)
SEQS = (1, 15, 16, 17, 63, 64, 65, 200, 1000, 3001)
MIXES = ((0.5, 0.5), (0.0, 0.9), (0.98, 0.25))  # key and value sparsity


def make_qkv(
    dtype: torch.dtype, head_dim: int, seq: int, *, batch: int = BATCH, kv_heads: int = KV_HEADS, group: int = MAX_GROUP
) -> tuple[Tensor, Tensor, Tensor]:
    """``q [batch, kv_heads, group, 1, head_dim]``."""
    generator = torch.Generator(DEVICE).manual_seed(seq)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=DEVICE).to(dtype)

    shape = (batch, kv_heads, seq, head_dim)
    return normal(batch, kv_heads, group, 1, head_dim), normal(*shape), normal(*shape)


def compressed(x: Tensor, sparsity: float) -> tuple[BitmapTensor, Tensor]:
    """With its values at the start of a buffer that goes on with NaNs; and the pruned tensor."""
    packed = compress_bitmap_torch(x, "k", sparsity)
    room = torch.full((packed.values.numel() + 4096,), math.nan, dtype=x.dtype, device=DEVICE)
    values = room[: packed.values.numel()].copy_(packed.values)
    return BitmapTensor(packed.name, packed.shape, packed.bitmap, packed.offset, values, packed.keep), packed.unpack()


def decode(q: Tensor, k: BitmapTensor, v: BitmapTensor, **fields: Any) -> Call:
    return Call("decode_bitmap", q, {"k_bitmap": k, "v_bitmap": v}, counters=0, **fields)


@pytest.mark.parametrize("seq", SEQS)
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
def test_every_group_and_sparsity(dtype: torch.dtype, head_dim: int, seq: int) -> None:
    q, k, v = make_qkv(dtype, head_dim, seq)
    for key_sparsity, value_sparsity in MIXES:
        packed_k, pruned_k = compressed(k, key_sparsity)
        packed_v, pruned_v = compressed(v, value_sparsity)
        out, lse = attention(q, pruned_k, pruned_v)
        for group in GROUPS:
            call = decode(q[:, :, :group], packed_k, packed_v)
            here = f"sparsity {key_sparsity}, {value_sparsity}, group {group}"
            assert_close(call.run(), out[:, :, :group], lse[:, :, :group], message=here)
            call.check_bounds()


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
def test_degenerate_caches(dtype: torch.dtype) -> None:
    """Nothing kept; all scores alike; one score far above the rest, in the first and in the last token."""
    q, k, v = make_qkv(dtype, 128, 500, group=4)
    huge, late = k.clone(), k.clone()
    huge[:, :, 0] = late[:, :, -1] = q[:, :, 0, 0] * 20
    for keys, key_sparsity in ((k, 0.999), (torch.zeros_like(k), 0.5), (huge, 0.0), (late, 0.0)):
        packed_k, pruned_k = compressed(keys, key_sparsity)
        packed_v, pruned_v = compressed(v, 0.5)
        assert_close(decode(q, packed_k, packed_v).run(), *attention(q, pruned_k, pruned_v))


@pytest.mark.parametrize("seq", [1, 65, 64 * 100 + 3])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
def test_values_near_the_largest(dtype: torch.dtype, head_dim: int, seq: int) -> None:
    inputs = make_qkv(dtype, head_dim, seq, batch=1, kv_heads=1, group=9)
    for what, change in near_the_largest():
        q, k, v = change(*inputs)
        packed_k, pruned_k = compressed(k, 0.5)
        packed_v, pruned_v = compressed(v, 0.5)
        out, lse = attention(q, pruned_k, pruned_v)
        for group in (1, 9):  # one column of 8 query heads, and two
            got = decode(q[:, :, :group], packed_k, packed_v).run()
            assert_close(got, out[:, :, :group], lse[:, :, :group], message=what)


def test_small_values_keep_their_precision() -> None:
    q, k, v = small_values(*make_qkv(torch.bfloat16, 128, 64 * 100 + 3, group=4))
    packed_k, pruned_k = compressed(k, 0.5)
    packed_v, pruned_v = compressed(v, 0.5)
    assert_close(decode(q, packed_k, packed_v).run(), *attention(q, pruned_k, pruned_v))


def test_extreme_inputs_stay_finite() -> None:
    """Sums of signs tie in many tokens, and rounding tells such scores apart: only finiteness can be asked."""
    q, k, v = (x.sign() * 65504 for x in make_qkv(torch.float16, 128, 1000, group=4))
    out, lse = decode(q, compressed(k, 0.5)[0], compressed(v, 0.5)[0]).run()
    assert torch.isfinite(out).all() and torch.isfinite(lse).all()


@pytest.mark.parametrize("scale", [-0.2, 0.0, 1.5])
def test_any_scale(scale: float) -> None:
    q, k, v = make_qkv(torch.float16, 64, 777, group=4)
    packed_k, pruned_k = compressed(k, 0.5)
    packed_v, pruned_v = compressed(v, 0.5)
    got = decode(q, packed_k, packed_v, scale=scale).run()
    assert_close(got, *attention(q, pruned_k, pruned_v, scale=scale))


def test_values_of_nothing_are_zero() -> None:
    q, k, v = make_qkv(torch.float16, 64, 100)
    out, _ = decode(q, compressed(k, 0.5)[0], compressed(v, 0.999)[0]).run()
    assert (out == 0).all()


def test_a_cache_longer_than_one_look_up() -> None:
    """Each warp looks up 32 tiles of 32 tokens at a time: here it comes back for more."""
    warps = torch.cuda.get_device_properties(0).multi_processor_count * 4 * 4
    q, k, v = make_qkv(torch.float16, 64, warps * 42 * 32 + 5, batch=1, kv_heads=1, group=4)
    packed_k, pruned_k = compressed(k, 0.7)
    packed_v, pruned_v = compressed(v, 0.5)
    assert_close(decode(q, packed_k, packed_v).run(), *attention(q, pruned_k, pruned_v))


def test_runs_repeat_bit_for_bit() -> None:
    q, k, v = make_qkv(torch.float16, 128, 5000, group=4)
    assert_repeats(decode(q, compressed(k, 0.5)[0], compressed(v, 0.5)[0]))


@pytest.mark.parametrize("promise", [assert_replays, assert_keeps_to_its_stream])
def test_graphs_and_streams(promise: Any) -> None:
    q, k, v = make_qkv(torch.float16, 128, 3000, group=4)
    packed_k, pruned_k = compressed(k, 0.5)
    packed_v, pruned_v = compressed(v, 0.5)
    promise(decode(q, packed_k, packed_v), *attention(q, pruned_k, pruned_v))


@pytest.mark.parametrize(("field", "value"), [("head_dim", 96), ("dtype", 2), ("q_heads", 3), ("seq", 0)])
def test_bad_parameters_are_refused(field: str, value: Any) -> None:
    q, k, v = make_qkv(torch.float16, 64, 100)
    call = decode(q, compressed(k, 0.5)[0], compressed(v, 0.5)[0])
    setattr(call.params, field, value)
    with pytest.raises(library.NativeError):
        library.load(DEVICE).number(f"hsb_{DEVICE}_decode_bitmap_workspace", call.params)
    with pytest.raises(library.NativeError):
        call.run()
