"""CPU decode and prefill over pages of K in another order, of K and V less their means, against attention in fp64 on
what the pages stand for; and whole caches of every pruner, against the fp32 reference on what they say that they hold.

What is poisoned: see kernel_cases.py and cpu_calls.py. Cases: pruner_cases.py.
"""

from __future__ import annotations

import itertools
import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import pruner_cases
from cpu_calls import ISAS, make_case, needs_library, run, variants
from hsbench.attention import calls
from hsbench.attention.reference import attention
from hsbench.cache.fitted import compress_kv
from hsbench.cache.pruner import CENTERED, PRUNERS, Pruner
from hsbench.kernels import library
from hsbench.problem.elements import SIXTEEN_BIT, STORED, STORED_FP8, STORED_INT4, StoredElements
from hsbench.run.check import LSE_TOLERANCE, TOLERANCE
from kernel_cases import padded_bitmap
from pruner_cases import PARTS, PrunerCase

pytestmark = [needs_library, pytest.mark.usefixtures("one_torch_thread")]

DTYPES = (torch.float16, torch.bfloat16)
GROUPS = (1, 2, 3, 4, 7, 8, 16)
MIXES = ((0.0, 0.0), (0.5, 0.5), (0.3, 0.15))
"""Key and value sparsity."""

make_pruner_case = partial(pruner_cases.make_pruner_case, device="cpu", batch=2)

of_every_part = pytest.mark.parametrize(
    ("pruner", "elements"),
    [(pruner, SIXTEEN_BIT) for pruner in PARTS.values()] + [(CENTERED, STORED_FP8), (CENTERED, STORED_INT4)],
    ids=[*PARTS, "order and shifts of fp8", "of int4"],
)


def called(operation: str, case: PrunerCase, group: int | None = None, **how: Any) -> tuple[Tensor, Tensor]:
    return run(operation, case.q[:, :, :group], case.operands, **(case.fields | how))


# ---- One part, and all of them -------------------------------------------------------------------------------
@pytest.mark.parametrize("seq", [1, 65, 200, 1000])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@of_every_part
def test_decode_of_every_shape(
    pruner: Pruner, elements: StoredElements, dtype: torch.dtype, head_dim: int, seq: int
) -> None:
    for mix in MIXES:
        case = make_pruner_case(dtype, head_dim, seq, pruner, mix=mix, group=max(GROUPS), elements=elements)
        for variant, group in itertools.product(variants(), GROUPS):
            case.assert_close(called("decode", case, group, **variant), message=f"{mix}, group {group}, {variant}")


@pytest.mark.parametrize("isa", ISAS)
def test_decode_cut_in_many_splits_or_none(isa: str) -> None:
    """What was taken comes back once a query, however many units its tokens were cut into."""
    for batch, kv_heads, seq in ((1, 1, 64 * 130 + 7), (2, 70, 100)):
        case = make_pruner_case(torch.float16, 64, seq, CENTERED, batch=batch, kv_heads=kv_heads, group=2)
        for threads in (1, 3):
            case.assert_close(called("decode", case, isa=isa, threads=threads), message=f"{batch}, {kv_heads}, {seq}")


@pytest.mark.parametrize(("q_len", "seq"), [(1, 1), (1, 65), (65, 65), (200, 333)])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@of_every_part
def test_prefill_of_every_shape(
    pruner: Pruner, elements: StoredElements, dtype: torch.dtype, head_dim: int, q_len: int, seq: int
) -> None:
    for mix in MIXES:
        case = make_pruner_case(dtype, head_dim, seq, pruner, mix=mix, q_len=q_len, group=8, elements=elements)
        for variant, group in itertools.product(variants(), (1, 3, 4, 8)):
            case.assert_close(called("prefill", case, group, **variant), message=f"{mix}, group {group}, {variant}")


@pytest.mark.parametrize("operation", ["decode", "prefill"])
@pytest.mark.parametrize("scale", [-0.2, 0.0, 1.5])
def test_any_scale(scale: float, operation: str) -> None:
    for dtype, isa in itertools.product(DTYPES, ISAS):
        q_len = 1 if operation == "decode" else 70
        case = make_pruner_case(dtype, 64, 277, CENTERED, q_len=q_len, scale=scale, mix=(0.3, 0.5))
        case.assert_close(called(operation, case, isa=isa, scale=scale), message=f"{dtype}, {isa}")


@pytest.mark.parametrize("operation", ["decode", "prefill"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sums_beyond_the_type_saturate(dtype: torch.dtype, operation: str) -> None:
    """As what a shift stores does: a mean of finite values is finite."""
    largest = torch.finfo(dtype).max
    for head_dim, isa in itertools.product((64, 128), ISAS):
        case = make_pruner_case(dtype, head_dim, 300, PARTS["V's shift"], q_len=1 if operation == "decode" else 100)
        signs = case.value_shift.sign()
        shift = signs * min(2 * largest, torch.finfo(torch.float32).max)
        out, _ = called(operation, case, isa=isa, value_shift=shift)
        assert torch.equal(out, (signs * largest)[:, :, None, None].expand_as(case.out).to(dtype))


@pytest.mark.parametrize("operation", ["decode", "prefill"])
def test_what_is_no_number_stays_none(operation: str) -> None:
    case = make_pruner_case(torch.float16, 64, 100, CENTERED, q_len=1 if operation == "decode" else 10)
    shift = case.value_shift.clone()
    shift[1, 0, 7] = math.nan
    for isa in ISAS:
        out, _ = called(operation, case, isa=isa, value_shift=shift)
        assert out[1, 0, :, :, 7].isnan().all() and out.isnan().sum() == out[1, 0, :, :, 7].numel()


@pytest.mark.parametrize("operation", ["decode", "prefill"])
@pytest.mark.parametrize("isa", ISAS)
def test_the_fields_of_before_are_the_bits_of_before(isa: str, operation: str) -> None:
    """Shifts of nothing, and channels put in the other order by the caller, change not a bit of the output."""
    case = make_pruner_case(torch.float16, 128, 333, PARTS["order"], q_len=1 if operation == "decode" else 70)
    out, lse = called(operation, case, isa=isa)
    order = [c for g in range(32) for c in (g, 63 - g, 64 + g, 127 - g)]
    plain = run(operation, case.q[..., order], case.operands, isa=isa)
    assert torch.equal(out, plain[0]) and torch.equal(lse, plain[1])
    none = torch.zeros_like(case.value_shift)
    assert torch.equal(called(operation, case, isa=isa, key_shift=none)[1], lse)
    shifted = called(operation, case, isa=isa, value_shift=none)[0]
    torch.testing.assert_close(shifted, out, rtol=torch.finfo(out.dtype).eps, atol=0)  # by a reciprocal


# ---- Whole caches --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", PRUNERS)
@pytest.mark.parametrize("elements", STORED.values(), ids=str)
def test_a_cache_of_every_pruner(
    elements: StoredElements, name: str, dtype: torch.dtype, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As users call it, with means of 50 beside noise of 1."""
    monkeypatch.setenv("HSBENCH_ISA", isa)
    generator = torch.Generator().manual_seed(0)
    for head_dim, kv_heads, group, seq, mix in (
        (64, 3, 3, 333, (0.5, 0.3)),
        (128, 2, 4, 200, (0.3, 0.5)),
        (64, 1, 16, 65, (0.5, 0.5)),
        (128, 1, 1, 7, (0.5, 0.5)),
    ):

        def normal(heads: int, n: int, head_dim: int = head_dim) -> Tensor:
            return torch.randn(2, heads, n, head_dim, generator=generator)

        k, v = ((50 * normal(kv_heads, 1) + normal(kv_heads, seq)).to(dtype) for _ in range(2))
        q = normal(kv_heads * group, min(seq, 70)).to(dtype)
        sources = dict(queries=q, query_rms=torch.rand(kv_heads, head_dim, generator=generator))
        sparsities = dict(key_sparsity=mix[0], value_sparsity=mix[1])
        kv = compress_kv(k, v, pruner=PRUNERS[name], elements=elements, **sparsities, **sources)
        kept_k, kept_v = kv.unpack()
        for one, call in ((q[:, :, -1:], calls.decode_call), (q, calls.prefill_call)):
            out, lse = attention(one, kept_k, kept_v)
            made = call(one, kv)
            made.run()
            error = (made.out.float() - out).norm(dim=-1) / out.norm(dim=-1)
            assert (error <= TOLERANCE[dtype]).all(), f"{head_dim}, {seq}: {error.max():.2e}"
            assert ((made.lse - lse).abs() <= LSE_TOLERANCE * lse.abs().clamp_min(1)).all()


# ---- What is refused -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("operation", ["decode", "prefill"])
@pytest.mark.parametrize("order", [2, -1])
def test_an_unknown_order_is_refused(order: int, operation: str) -> None:
    case = make_pruner_case(torch.float16, 64, 64, CENTERED)
    with pytest.raises(library.NativeError, match="key_order"):
        called(operation, case, key_order=order)


@pytest.mark.parametrize("field", ["key_order", "key_shift", "value_shift"])
def test_bitmaps_know_none_of_it(field: str) -> None:
    fields = make_pruner_case(torch.float16, 64, 64, CENTERED).fields
    case = make_case(torch.float16, 64, 64, pack=padded_bitmap)
    with pytest.raises(library.NativeError, match="bitmaps"):
        run("decode_bitmap", case.q, case.operands, **{field: fields[field]})
