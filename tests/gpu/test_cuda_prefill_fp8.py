"""CUDA prefill over pages of e4m3, with queries and probabilities in e4m3, against attention in fp64.

Two questions: whether the kernel computes what it should, by rounded queries and a bound of each row; and how far that
is from attention on the queries as they are. Cases, bounds and what is poisoned: tests/kernels/fp8_prefill_cases.py,
tests/kernels/kernel_cases.py.
"""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import pytest
import torch

import evict_cases
import pruner_cases
from cuda_calls import DEVICE, Call, assert_repeats, make_case
from evict_cases import DROPS
from fp8_prefill_cases import Fp8Results, assert_fp8_close, assert_fp8_like_attention, fp8_results
from hsbench.attention import calls
from hsbench.cache.fitted import compress_kv
from hsbench.cache.pruner import CENTERED
from hsbench.kernels import library
from hsbench.kernels.device import CUDA
from hsbench.problem.elements import FP8, STORED_FP8
from kernel_cases import Case, attention, near_the_largest, scattered, scattered_fp8, scattered_wide_ends
from pruner_cases import PARTS
from test_cuda_prefill import DTYPES, HOSTILE, LENGTHS

pytestmark = pytest.mark.gpu

MIXES = ((0.0, 0.0), (0.5, 0.5), (0.0, 0.5), (0.5, 0.0), (0.3, 0.15))
"""Key and value sparsity."""

fp8_case = partial(make_case, pack=scattered_fp8)


@pytest.fixture(autouse=True)
def can_run() -> None:
    if reason := calls.why_not_prefill(STORED_FP8, CUDA):
        pytest.skip(reason)


def prefill(case: Case, group: int | None = None, **fields: Any) -> Call:
    return Call("prefill", case.q[:, :, :group], case.operands, **fields)


def check(case: Case, group: int | None = None, *, right: Fp8Results, message: str = "", **fields: Any) -> None:
    call = prefill(case, group, **fields)
    assert_fp8_close(call.run(), right, message=message)
    call.check_bounds()


# ---- Shapes --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("lengths", LENGTHS, ids=lambda lengths: "of".join(map(str, lengths)))
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_shape(dtype: torch.dtype, head_dim: int, lengths: tuple[int, int]) -> None:
    q_len, seq = lengths
    for mix in MIXES:
        case = fp8_case(dtype, head_dim, seq, q_len=q_len, batch=2, kv_heads=3, group=16, mix=mix)
        right = fp8_results(case)
        for group in (1, 3, 4, 16):
            check(case, group, right=right, message=f"mix {mix}, group {group}")


@pytest.mark.parametrize("mix", [(0.0, 0.0), (0.5, 0.5), (0.25, 0.4)], ids=str)
@pytest.mark.parametrize(
    ("batch", "kv_heads", "group", "q_len", "seq"),
    [(1, 2, 4, 4096, 4096), (2, 1, 3, 1000, 5003), (1, 8, 4, 1537, 1537), (1, 1, 16, 2, 20_032), (300, 2, 2, 3, 64)],
)
def test_every_way_to_cut_the_work(
    batch: int, kv_heads: int, group: int, q_len: int, seq: int, mix: tuple[float, float]
) -> None:
    case = fp8_case(torch.float16, 128, seq, q_len=q_len, batch=batch, kv_heads=kv_heads, group=group, mix=mix)
    check(case, right=fp8_results(case))


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_wide_blocks(dtype: torch.dtype, head_dim: int) -> None:
    """Of 16 bits at both ends, in a mix with all others or alone; they enter the products as e4m3."""
    for (q_len, seq), mix in itertools.product(((1, 65), (65, 65), (200, 333), (100, 1000), (512, 1024)), MIXES):
        case = make_case(dtype, head_dim, seq, q_len=q_len, batch=2, mix=mix, pack=scattered_wide_ends)
        check(case, right=fp8_results(case), message=f"mix {mix}, {q_len} of {seq}")


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_stated_error(dtype: torch.dtype, head_dim: int) -> None:
    """Of rows that see 400 tokens and more."""
    for mix, (q_len, seq) in itertools.product(MIXES, ((600, 1000), (1000, 5056))):
        case = fp8_case(dtype, head_dim, seq, q_len=q_len, mix=mix)
        got = prefill(case).run()
        assert_fp8_like_attention(got, case.out, case.lse, message=f"mix {mix}, {q_len} of {seq}")


# ---- Scores and values that a lazy maximum and 14 bits must survive ------------------------------------------
@pytest.mark.parametrize("what", HOSTILE)
@pytest.mark.parametrize(("q_len", "seq"), [(700, 700), (150, 600), (320, 704)])
def test_hostile_scores(q_len: int, seq: int, what: str) -> None:
    for dtype, head_dim, mix in itertools.product(DTYPES, (64, 128), ((0.0, 0.0), (0.5, 0.5), (0.3, 0.3))):
        case = fp8_case(dtype, head_dim, seq, q_len=q_len, group=3, mix=mix, change=HOSTILE[what])
        check(case, right=fp8_results(case), message=f"{dtype}, head_dim {head_dim}, mix {mix}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_near_the_largest(dtype: torch.dtype) -> None:
    for (what, change), mix in itertools.product(near_the_largest(), ((0.0, 0.0), (0.5, 0.5), (0.3, 0.3))):
        case = fp8_case(dtype, 128, 704, q_len=130, kv_heads=1, group=2, mix=mix, change=change)
        check(case, right=fp8_results(case, alike=True), message=f"{what}, mix {mix}")


@pytest.mark.parametrize("scale", [-0.2, 0.0, 1.5])
def test_any_scale(scale: float) -> None:
    for mix, seq in (((0.0, 0.0), 777), ((0.3, 0.5), 777), ((0.5, 0.5), 640)):
        case = fp8_case(torch.float16, 64, seq, q_len=300, mix=mix, scale=scale)
        check(case, right=fp8_results(case, scale=scale), scale=scale)


@pytest.mark.parametrize("rises", [False, True])
@pytest.mark.parametrize("mix", [(0.0, 0.0), (0.5, 0.5), (0.25, 0.4)], ids=str)
def test_long_sums_of_one_sign(mix: tuple[float, float], rises: bool) -> None:
    """20,000 tokens of V that are 1 in the mean would lose an eighth in the tensor cores' 14 bits; also where
    references are raised late, when most has been moved."""

    def change(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if rises:
            steps = torch.arange(k.shape[2], device=k.device).div(4000, rounding_mode="floor").view(1, 1, -1, 1)
            q, k = q.abs(), (0.3 * k.float() + 0.7 * steps).to(k.dtype)
        return q, k, v + 1

    for head_dim in (64, 128):
        case = fp8_case(torch.float16, head_dim, 20_032, q_len=250, kv_heads=1, mix=mix, change=change)
        out, _ = prefill(case).run()
        error = (out.double() - case.out).norm(dim=-1) / case.out.norm(dim=-1)
        assert error.max() <= 0.06, f"head_dim {head_dim}: {error.max():.4f}"
        assert error.mean() <= 0.05, f"head_dim {head_dim}: {error.mean():.4f} in the mean"


# ---- What a pruner stores, and what is evicted ---------------------------------------------------------------
@pytest.mark.parametrize("mix", MIXES, ids=str)
@pytest.mark.parametrize("pruner", PARTS.values(), ids=PARTS)
def test_order_and_shifts(pruner: Any, mix: tuple[float, float]) -> None:
    for dtype, head_dim, (q_len, seq) in itertools.product(DTYPES, (64, 128), ((1, 65), (200, 333), (385, 1000))):
        shape = dict(q_len=q_len, batch=2, kv_heads=3, group=3, mix=mix, elements=STORED_FP8)
        case = pruner_cases.make_pruner_case(dtype, head_dim, seq, pruner, device=DEVICE, **shape)
        call = prefill(case, **case.fields)
        out, lse = (x.double() for x in call.run())
        call.check_bounds()
        # Without K's shift its mean is rounded with all else, and with V's there is little else.
        shift = case.value_shift.double()[:, :, None, None]
        size = (case.out - shift).norm(dim=-1) if pruner.key_shift else case.out.norm(dim=-1)
        half_step = 0.51 * torch.finfo(dtype).eps * case.out.norm(dim=-1)  # of the sum with V's shift
        error = ((out - case.out).norm(dim=-1) - half_step).clamp_min(0) / size
        where = f"{dtype}, head_dim {head_dim}, {q_len} of {seq}"
        seeing = torch.arange(q_len, device=DEVICE) + seq - q_len >= 100
        if pruner.key_shift:
            assert seeing.sum() == 0 or error[..., seeing].max() <= 0.25, f"{where}: {error[..., seeing].max():.3f}"
            assert error.mean() <= 0.08, f"{where}: {error.mean():.3f}"
        off = (lse - case.lse).abs() - 2.0**-4 * 0.1 * case.taken
        assert off.max() <= 0.4 + (0 if pruner.key_shift else 2.0**-5 * case.lse.abs().max()), where


@pytest.mark.parametrize("drop", DROPS)
@pytest.mark.parametrize(("q_len", "seq"), [(1, 300), (65, 1088), (700, 700)])
def test_what_is_evicted_takes_no_part(q_len: int, seq: int, drop: str) -> None:
    for dtype, head_dim, mix in itertools.product(DTYPES, (64, 128), ((0.0, 0.0), (0.5, 0.5), (0.3, 0.15))):
        case = evict_cases.evict_case(
            dtype, head_dim, seq, drop, device=DEVICE, q_len=q_len, batch=1, group=3, mix=mix, pack=scattered_fp8
        )
        if case is None:
            pytest.skip("nothing would be left")
        right = fp8_results(case, tokens=case.eviction.tokens, seq=case.eviction.seq)
        check(case, right=right, message=f"{dtype}, head_dim {head_dim}, mix {mix}", **case.fields)


def test_a_cache_as_users_make_it() -> None:
    """Means of 50 in both tensors, which shifts take before e4m3 does; pages of one kind, which have no map."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    for dtype, head_dim, sparsity in itertools.product(DTYPES, (64, 128), (0.0, 0.3, 0.5)):
        k, v, q = (
            (mean + torch.randn(2, heads, length, head_dim, generator=generator, device=DEVICE)).to(dtype)
            for mean, heads, length in ((50, 3, 1024), (50, 3, 1024), (0, 12, 600))
        )
        how = {"key_sparsity": sparsity, "value_sparsity": sparsity, "pruner": CENTERED, "elements": STORED_FP8}
        kv = compress_kv(k, v, **how)
        call = calls.prefill_call(q, kv)
        assert call.products is FP8
        call.run()
        out, lse = attention(q.unflatten(1, (3, 4)), *kv.unpack())
        got = call.out.unflatten(1, (3, 4)).double()
        rest = out - 50
        assert (got - out).norm() <= FP8.tolerance * rest.norm() + torch.finfo(dtype).eps * out.norm()
        assert ((call.lse.unflatten(1, (3, 4)) - lse).abs() <= FP8.tolerance * lse.abs().clamp_min(1)).all()


# ---- What every kernel promises ------------------------------------------------------------------------------
def test_runs_repeat_bit_for_bit() -> None:
    for mix in ((0.25, 0.4), (0.5, 0.5), (0.0, 0.0)):
        assert_repeats(prefill(fp8_case(torch.float16, 128, 3008, q_len=1000, kv_heads=8, mix=mix)))


def test_what_is_refused() -> None:
    case = fp8_case(torch.float16, 64, 128, q_len=64)
    with pytest.raises(library.NativeError, match="pages of e4m3 need path sm90"):
        prefill(case, path=library.PATHS["sm80"]).run()
    other = make_case(torch.float16, 64, 128, q_len=64, pack=scattered)
    with pytest.raises(library.NativeError, match="stored so"):
        Call("prefill", case.q, {"k": case.k, "v": other.v}).run()
    without = prefill(case)
    without.params.k.scale = 0
    with pytest.raises(library.NativeError, match="need a scale"):
        without.run()
