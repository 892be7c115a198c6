"""CUDA decode over pages against attention in fp64 on the unpacked tensors.

What is poisoned: see kernel_cases.py and cuda_calls.py.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from cuda_calls import Call, assert_keeps_to_its_stream, assert_repeats, assert_replays, decode_counters, make_case
from hsbench.kernels import library
from hsbench.problem.elements import FP16
from kernel_cases import (
    ALONG_HEAD_DIM,
    BAD_DECODE_SHAPES,
    DEGENERATE,
    ELEMENTS_APART,
    INT4_ALONG_HEAD_DIM,
    Case,
    Pack,
    assert_close,
    extreme,
    near_the_largest,
    scattered,
    scattered_fp8,
    scattered_int4,
    scattered_int4_wide_ends,
    scattered_wide_ends,
    small_values,
)

pytestmark = pytest.mark.gpu

GROUPS = (1, 2, 3, 4, 7, 8, 9, 16)
SEQS = (1, 63, 64, 65, 200, 1000, 64 * 40)
MIXES = ((0.0, 0.0), (0.5, 0.5), (0.0, 0.5), (0.5, 0.0), (0.3, 0.15))
"""Key and value sparsity."""
SHAPES = ((1, 1), (2, 3))
"""Batch and kv heads."""

PACKS = {
    "16bit": scattered,
    "fp8": scattered_fp8,
    "fp8 with wide ends": scattered_wide_ends,
    "int4": scattered_int4,
    "int4 with wide ends": scattered_int4_wide_ends,
    **ALONG_HEAD_DIM,
    **INT4_ALONG_HEAD_DIM,
    **ELEMENTS_APART,
}
of_all_elements = pytest.mark.parametrize("pack", PACKS.values(), ids=PACKS)


def decode(case: Case, group: int | None = None, **fields: Any) -> Call:
    q = case.q if group is None else case.q[:, :, :group]
    return Call("decode", q, case.operands, counters=decode_counters(q), **fields)


@of_all_elements
@pytest.mark.parametrize("seq", SEQS)
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_shape(dtype: torch.dtype, head_dim: int, seq: int, pack: Pack) -> None:
    for (batch, kv_heads), mix in itertools.product(SHAPES, MIXES):
        case = make_case(dtype, head_dim, seq, batch=batch, kv_heads=kv_heads, group=max(GROUPS), mix=mix, pack=pack)
        for group in GROUPS:
            call = decode(case, group)
            got = call.run()
            here = f"batch {batch}, kv heads {kv_heads}, mix {mix}, group {group}"
            assert_close(got, case.out[:, :, :group], case.lse[:, :, :group], message=here)
            call.check_bounds()


@of_all_elements
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize(
    ("batch", "kv_heads", "seq"),
    [
        *[(1, 8, 8192), (1, 1, 40_000), (3, 5, 64 * 131 + 7), (64, 8, 100), (300, 2, 64), (1, 8, 64 * 33)],
        *[(1, 8, 64 * 300 + 5), (8, 8, 64 * 70 + 1), (1, 2, 64 * 560 + 9)],  # several clusters to a head
    ],
)
def test_every_way_to_cut_the_work(batch: int, kv_heads: int, seq: int, mix: tuple[float, float], pack: Pack) -> None:
    """Heads over many CTAs, many heads to a CTA, heads that begin and end within one."""
    case = make_case(torch.float16, 128, seq, batch=batch, kv_heads=kv_heads, mix=mix, pack=pack)
    call = decode(case)
    assert_close(call.run(), case.out, case.lse)
    call.check_bounds()


def rising(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every block beats the reference maximum of those before."""
    ramp = torch.linspace(0, 40, k.shape[2], device=k.device, dtype=k.dtype).view(1, 1, -1, 1)
    return q, q[:, :, 0].sign() * ramp, v


HARD = DEGENERATE | {"scores rise steeply": rising}


@of_all_elements
@pytest.mark.parametrize("seq", [300, 64 * 200 + 3])
@pytest.mark.parametrize("sparsity", [0.0, 0.5])
@pytest.mark.parametrize("what", HARD)
def test_degenerate_inputs(what: str, sparsity: float, seq: int, pack: Pack) -> None:
    case = make_case(torch.float16, 64, seq, mix=(sparsity, sparsity), change=HARD[what], pack=pack)
    assert_close(decode(case).run(), case.out, case.lse)


@of_all_elements
@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_extreme_inputs_stay_finite(sparsity: float, pack: Pack) -> None:
    out, lse = decode(make_case(torch.float16, 128, 1000, mix=(sparsity, sparsity), change=extreme, pack=pack)).run()
    assert torch.isfinite(out).all() and torch.isfinite(lse).all()


@of_all_elements
@pytest.mark.parametrize("seq", [1, 65, 64 * 300 + 3])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_values_near_the_largest(dtype: torch.dtype, head_dim: int, seq: int, pack: Pack) -> None:
    for (what, change), mix in itertools.product(near_the_largest(), ((0.0, 0.0), (0.5, 0.5))):
        case = make_case(dtype, head_dim, seq, kv_heads=1, group=9, mix=mix, change=change, pack=pack)
        for group in (1, 9):  # one column of 8 query heads, and two
            got = decode(case, group).run()
            assert_close(got, case.out[:, :, :group], case.lse[:, :, :group], message=f"{what}, mix {mix}")


@of_all_elements
def test_small_values_keep_their_precision(pack: Pack) -> None:
    case = make_case(torch.bfloat16, 128, 64 * 300 + 3, change=small_values, pack=pack)
    assert_close(decode(case).run(), case.out, case.lse)


@of_all_elements
@pytest.mark.parametrize("scale", [-0.2, 0.0, 1.5])
def test_any_scale(scale: float, pack: Pack) -> None:
    case = make_case(torch.float16, 64, 777, scale=scale, pack=pack)
    assert_close(decode(case, scale=scale).run(), case.out, case.lse)


@of_all_elements
@pytest.mark.parametrize(("batch", "kv_heads", "seq"), [(1, 8, 64 * 300 + 5), (64, 8, 64 * 3)])
def test_runs_repeat_bit_for_bit(batch: int, kv_heads: int, seq: int, pack: Pack) -> None:
    case = make_case(torch.float16, 128, seq, batch=batch, kv_heads=kv_heads, mix=(0.25, 0.4), pack=pack)
    assert_repeats(decode(case))


@of_all_elements
def test_graph_replays(pack: Pack) -> None:
    case = make_case(torch.float16, 128, 64 * 50 + 1, kv_heads=4, pack=pack)
    assert_replays(decode(case), case.out, case.lse)


def test_a_side_stream_is_used() -> None:
    case = make_case(torch.float16, 128, 5000)
    assert_keeps_to_its_stream(decode(case), case.out, case.lse)


@pytest.mark.parametrize(("change", "message"), BAD_DECODE_SHAPES)
def test_bad_shapes_are_refused(change: dict[str, int], message: str) -> None:
    shape = dict(batch=1, q_heads=2, kv_heads=2, head_dim=64, seq=64, dtype=FP16.code) | change
    params = library.make("hsb_decode_params", **shape)
    with pytest.raises(library.NativeError, match=message):
        library.load("cuda").number("hsb_cuda_decode_workspace", params)
