"""Decode over bitmaps on CUDA against attention in fp64 on the unpacked tensors.

What is poisoned: see kernel_cases.py and cuda_calls.py.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import cuda_calls
from cuda_calls import DEVICE, Call, assert_keeps_to_its_stream, assert_repeats, assert_replays
from hsbench.kernels import library
from hsbench.problem.elements import INPUTS
from kernel_cases import DEGENERATE, Case, Change, assert_close, extreme, near_the_largest, padded_bitmap, small_values

DTYPES = tuple(element.torch_dtype for element in INPUTS.values())

pytestmark = pytest.mark.gpu

GROUPS = (1, 2, 3, 4, 7, 8, 9, 16)
SEQS = (1, 15, 16, 17, 63, 64, 65, 200, 1000, 3001)
MIXES = ((0.5, 0.5), (0.0, 0.9), (0.98, 0.25))  # key and value sparsity

make_case = partial(cuda_calls.make_case, pack=padded_bitmap)


def decode(case: Case, group: int | None = None, **fields: Any) -> Call:
    q = case.q if group is None else case.q[:, :, :group]
    return Call("decode_bitmap", q, case.operands, counters=0, **fields)


def check_case(case: Case, group: int | None = None, *, message: str = "", **fields: Any) -> None:
    call = decode(case, group, **fields)
    assert_close(call.run(), case.out[:, :, :group], case.lse[:, :, :group], message=message)
    call.check_bounds()


@pytest.mark.parametrize("seq", SEQS)
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
def test_every_group_and_sparsity(dtype: torch.dtype, head_dim: int, seq: int) -> None:
    for mix in MIXES:
        case = make_case(dtype, head_dim, seq, batch=2, group=max(GROUPS), mix=mix)
        for group in GROUPS:
            check_case(case, group, message=f"sparsity {mix}, group {group}")


def peak_at(token: int) -> Change:
    """One score of the group's first head far above the rest."""

    def change(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        k = k.clone()
        k[:, :, token] = q[:, :, 0, 0] * 20
        return q, k, v

    return change


CACHES: dict[str, tuple[Change | None, float]] = {
    **{what: (change, 0.5) for what, change in DEGENERATE.items()},
    "nothing kept": (None, 0.999),
    "peak in the first token": (peak_at(0), 0.0),
    "peak in the last token": (peak_at(-1), 0.0),
}
"""What is changed, and K's sparsity."""


@pytest.mark.parametrize("what", CACHES)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
def test_degenerate_caches(dtype: torch.dtype, what: str) -> None:
    change, key_sparsity = CACHES[what]
    check_case(make_case(dtype, 128, 500, batch=2, mix=(key_sparsity, 0.5), change=change))


@pytest.mark.parametrize("seq", [1, 65, 64 * 100 + 3])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
def test_values_near_the_largest(dtype: torch.dtype, head_dim: int, seq: int) -> None:
    for what, change in near_the_largest():
        case = make_case(dtype, head_dim, seq, kv_heads=1, group=9, change=change)
        for group in (1, 9):  # one column of 8 query heads, and two
            check_case(case, group, message=what)


def test_small_values_keep_their_precision() -> None:
    check_case(make_case(torch.bfloat16, 128, 64 * 100 + 3, batch=2, change=small_values))


def test_extreme_inputs_stay_finite() -> None:
    out, lse = decode(make_case(torch.float16, 128, 1000, batch=2, change=extreme)).run()
    assert torch.isfinite(out).all() and torch.isfinite(lse).all()


@pytest.mark.parametrize("scale", [-0.2, 0.0, 1.5])
def test_any_scale(scale: float) -> None:
    check_case(make_case(torch.float16, 64, 777, batch=2, scale=scale), scale=scale)


def test_values_of_nothing_are_zero() -> None:
    out, _ = decode(make_case(torch.float16, 64, 100, batch=2, mix=(0.5, 0.999))).run()
    assert (out == 0).all()


def test_a_cache_longer_than_one_look_up() -> None:
    """Each warp looks up 32 tiles of 32 tokens at a time: here it comes back for more."""
    warps = torch.cuda.get_device_properties(0).multi_processor_count * 4 * 4
    check_case(make_case(torch.float16, 64, warps * 42 * 32 + 5, kv_heads=1, mix=(0.7, 0.5)))


def test_runs_repeat_bit_for_bit() -> None:
    assert_repeats(decode(make_case(torch.float16, 128, 5000, batch=2)))


@pytest.mark.parametrize("promise", [assert_replays, assert_keeps_to_its_stream])
def test_graphs_and_streams(promise: Any) -> None:
    case = make_case(torch.float16, 128, 3000, batch=2)
    promise(decode(case), case.out, case.lse)


@pytest.mark.parametrize(("field", "value"), [("head_dim", 96), ("dtype", 2), ("q_heads", 3), ("seq", 0)])
def test_bad_parameters_are_refused(field: str, value: Any) -> None:
    call = decode(make_case(torch.float16, 64, 100, batch=2))
    setattr(call.params, field, value)
    with pytest.raises(library.NativeError):
        library.load(DEVICE).number(f"hsb_{DEVICE}_decode_bitmap_workspace", call.params)
    with pytest.raises(library.NativeError):
        call.run()
