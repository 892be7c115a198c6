"""CUDA decode and prefill over pages of K in another order, of K and V less their means, against attention in fp64 on
what the pages stand for.

What is poisoned: see kernel_cases.py and cuda_calls.py. Cases: tests/kernels/pruner_cases.py.
"""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import pytest
import torch

import pruner_cases
from cuda_calls import DEVICE, Call, assert_repeats, decode_counters
from hsbench.attention import calls
from hsbench.attention.reference import attention
from hsbench.cache.fitted import compress_kv
from hsbench.cache.layouts import why_no_pages
from hsbench.cache.pruner import CENTERED, Pruner, pruner_of
from hsbench.kernels import library
from hsbench.kernels.device import CUDA
from hsbench.problem.elements import SIXTEEN_BIT, STORED, STORED_FP8, STORED_INT4, CacheElements
from hsbench.run.check import LSE_TOLERANCE, TOLERANCE
from kernel_cases import make_case, padded_bitmap
from pruner_cases import PARTS, PrunerCase
from small_cases import APART

pytestmark = pytest.mark.gpu

DTYPES = (torch.float16, torch.bfloat16)
GROUPS = (1, 2, 3, 4, 7, 8, 9, 16)
MIXES = ((0.0, 0.0), (0.5, 0.5), (0.0, 0.5), (0.3, 0.15))
"""Key and value sparsity."""
NARROW = (STORED_FP8, STORED_INT4, *APART)

make_pruner_case = partial(pruner_cases.make_pruner_case, device=DEVICE)


def decode(case: PrunerCase, group: int | None = None, **fields: Any) -> Call:
    q = case.q[:, :, :group]
    return Call("decode", q, case.operands, counters=decode_counters(q), **(case.fields | fields))


def prefill(case: PrunerCase, kernel: str, group: int | None = None, **fields: Any) -> Call:
    fields = case.fields | fields
    return Call("prefill", case.q[:, :, :group], case.operands, path=library.PATHS[kernel], **fields)


def check(case: PrunerCase, call: Call, message: str = "") -> None:
    case.assert_close(call.run(), message=message)
    call.check_bounds()


# ---- Decode --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seq", [1, 65, 200, 1000, 64 * 40])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("pruner", "elements"),
    [(pruner, SIXTEEN_BIT) for pruner in PARTS.values()] + [(CENTERED, stored) for stored in NARROW],
    ids=[*PARTS, *(f"order and shifts of {stored}" for stored in NARROW)],
)
def test_decode_of_every_shape(
    pruner: Pruner, elements: CacheElements, dtype: torch.dtype, head_dim: int, seq: int
) -> None:
    for (batch, kv_heads), mix in itertools.product(((1, 1), (2, 3)), MIXES):
        shape = dict(batch=batch, kv_heads=kv_heads, group=max(GROUPS))
        case = make_pruner_case(dtype, head_dim, seq, pruner, mix=mix, elements=elements, **shape)
        for group in GROUPS:
            check(case, decode(case, group), f"batch {batch}, kv heads {kv_heads}, mix {mix}, group {group}")


@pytest.mark.parametrize("mix", MIXES, ids=str)
@pytest.mark.parametrize(
    ("batch", "kv_heads", "seq"),
    [(1, 8, 8192), (1, 1, 40_000), (3, 5, 64 * 131 + 7), (64, 8, 100), (300, 2, 64), (1, 8, 64 * 33)],
)
def test_decode_cut_in_every_way(batch: int, kv_heads: int, seq: int, mix: tuple[float, float]) -> None:
    """Heads over many CTAs, whole heads in one, heads that begin and end within one."""
    for head_dim in (64, 128):
        case = make_pruner_case(torch.float16, head_dim, seq, CENTERED, batch=batch, kv_heads=kv_heads, mix=mix)
        check(case, decode(case), f"head_dim {head_dim}")


# ---- Prefill -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("q_len", "seq"), [(1, 1), (1, 65), (65, 65), (65, 200), (200, 200), (200, 333), (385, 400), (217, 1000)]
)
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pruner", PARTS.values(), ids=PARTS)
def test_prefill_of_every_shape(
    pruner: Pruner, dtype: torch.dtype, head_dim: int, q_len: int, seq: int, kernel: str
) -> None:
    for mix in MIXES:
        shape = dict(q_len=q_len, batch=2, kv_heads=3, group=max(GROUPS))
        case = make_pruner_case(dtype, head_dim, seq, pruner, mix=mix, **shape)
        for group in (1, 3, 4, 16):
            check(case, prefill(case, kernel, group), f"mix {mix}, group {group}")


@pytest.mark.parametrize("mix", MIXES, ids=str)
@pytest.mark.parametrize(
    ("batch", "kv_heads", "group", "q_len", "seq"),
    [(1, 2, 4, 4096, 4096), (2, 1, 3, 1000, 5003), (1, 8, 4, 1537, 1537), (8, 8, 4, 65, 100), (300, 2, 2, 3, 64)],
)
def test_prefill_cut_in_every_way(
    batch: int, kv_heads: int, group: int, q_len: int, seq: int, mix: tuple[float, float], kernel: str
) -> None:
    shape = dict(q_len=q_len, batch=batch, kv_heads=kv_heads, group=group)
    for dtype in DTYPES:
        case = make_pruner_case(dtype, 128, seq, CENTERED, mix=mix, **shape)
        check(case, prefill(case, kernel), str(dtype))


# ---- Both ----------------------------------------------------------------------------------------------------
def both(case: PrunerCase, kernel: str, **fields: Any) -> list[Call]:
    """Calls of prefill, and of decode where there is one query."""
    return [prefill(case, kernel, **fields), *([decode(case, **fields)] if case.q.shape[3] == 1 else [])]


@pytest.mark.parametrize("scale", [-0.2, 0.0, 1.5])
@pytest.mark.parametrize("q_len", [1, 200])
def test_any_scale(q_len: int, scale: float, kernel: str) -> None:
    for dtype, head_dim in itertools.product(DTYPES, (64, 128)):
        case = make_pruner_case(dtype, head_dim, 777, CENTERED, q_len=q_len, scale=scale, mix=(0.3, 0.5))
        for call in both(case, kernel, scale=scale):
            check(case, call, f"{dtype}, head_dim {head_dim}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("q_len", [1, 100])
def test_sums_beyond_the_type_saturate(q_len: int, dtype: torch.dtype, kernel: str) -> None:
    largest = torch.finfo(dtype).max
    for head_dim, mix in itertools.product((64, 128), MIXES):
        case = make_pruner_case(dtype, head_dim, 300, PARTS["V's shift"], q_len=q_len, mix=mix)
        signs = case.value_shift.sign()
        shift = signs * min(2 * largest, torch.finfo(torch.float32).max)
        want = (signs * largest)[:, :, None, None].expand_as(case.out).to(dtype)
        for call in both(case, kernel, value_shift=shift):
            assert torch.equal(call.run()[0], want)


def test_runs_repeat_bit_for_bit(kernel: str) -> None:
    for q_len, seq in ((1, 64 * 300 + 5), (1000, 3005)):
        case = make_pruner_case(torch.float16, 128, seq, CENTERED, q_len=q_len, kv_heads=8, mix=(0.25, 0.4))
        for call in both(case, kernel):
            assert_repeats(call)


@pytest.mark.parametrize("elements", [e for e in (*STORED.values(), *APART) if why_no_pages(e, CUDA) is None], ids=str)
@pytest.mark.parametrize("name", ["mirror", "centered"])
@pytest.mark.parametrize(("q_len", "seq"), [(1, 200), (65, 333), (200, 1000)])
def test_a_cache_of_the_pruner(q_len: int, seq: int, name: str, elements: CacheElements, kernel: str) -> None:
    """As users call it, against the fp32 reference on what the cache says that it holds."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    for dtype, head_dim in itertools.product(DTYPES, (64, 128)):

        def normal(*shape: int, dtype: torch.dtype = dtype, head_dim: int = head_dim) -> torch.Tensor:
            return torch.randn(*shape, head_dim, generator=generator, device=DEVICE).to(dtype)

        k, v, q = 50 + normal(2, 3, seq), 50 + normal(2, 3, seq), normal(2, 12, q_len)
        kv = compress_kv(k, v, key_sparsity=0.5, value_sparsity=0.3, pruner=pruner_of(name), elements=elements)
        out, lse = attention(q, *kv.unpack())
        bound = [calls.decode_call(q, kv)] if q_len == 1 else []
        if calls.why_not_prefill(elements, CUDA) is None and (kernel != "sm80" or not elements.has_scale):
            bound.append(calls.prefill_call(q, kv, kernel))
        for call in bound:
            call.run()
            coarse = call.products and call.products.tolerance
            assert (call.out.float() - out).norm() <= (coarse or TOLERANCE[dtype]) * out.norm()
            assert ((call.lse - lse).abs() <= (coarse or LSE_TOLERANCE) * lse.abs().clamp_min(1)).all()


# ---- What is refused -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("key_order", 2, "key_order"), ("key_order", -1, "key_order")]
    + [(field, 4, "16-byte aligned") for field in ("q", "key_shift", "value_shift")],
)
def test_bad_arguments_are_refused(field: str, value: int, message: str, kernel: str) -> None:
    case = make_pruner_case(torch.float16, 64, 64, CENTERED)
    for call in both(case, kernel):
        moved = 0 if field == "key_order" else getattr(call.params, field)
        setattr(call.params, field, moved + value)
        with pytest.raises(library.NativeError, match=message):
            call.run()
        assert call.out.isnan().all(), "nothing runs"


@pytest.mark.parametrize("field", ["key_order", "key_shift", "value_shift"])
def test_bitmaps_know_none_of_it(field: str) -> None:
    fields = make_pruner_case(torch.float16, 64, 64, CENTERED).fields
    case = make_case(torch.float16, 64, 64, device=DEVICE, pack=padded_bitmap)
    call = Call("decode_bitmap", case.q, case.operands, **{field: fields[field]})
    with pytest.raises(library.NativeError, match="bitmaps"):
        call.run()
    assert call.out.isnan().all(), "nothing runs"
