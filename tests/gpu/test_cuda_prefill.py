"""CUDA prefill, each of its kernels, against causal attention in fp64 on the unpacked tensors.

What is poisoned: see kernel_cases.py and cuda_calls.py.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import hsbench
from cuda_calls import (
    DEVICE,
    Call,
    assert_keeps_to_its_stream,
    assert_repeats,
    assert_replays,
    make_case,
)
from hsbench.attention import calls
from hsbench.cache.prune import BLOCK
from hsbench.kernels import library
from hsbench.run.check import TOLERANCE
from kernel_cases import Case, assert_close, attention, near_the_largest, small_values

pytestmark = pytest.mark.gpu

KERNELS = ("sm80", "sm90")
DTYPES = (torch.float16, torch.bfloat16)
GROUPS = (1, 2, 3, 4, 8, 16)
MIXES = ((0.0, 0.0), (0.5, 0.5), (0.0, 0.5), (0.5, 0.0), (0.3, 0.15))
"""Key and value sparsity."""
LENGTHS = (
    *((1, 1), (63, 63), (64, 64), (65, 65), (96, 96), (129, 129), (257, 257)),  # whole prompts
    *((1, 65), (5, 200), (64, 640), (200, 333), (250, 1000), (385, 400)),  # last chunks
)
"""q_len and seq."""


def prefill(case: Case, kernel: str, group: int | None = None, **fields: Any) -> Call:
    q = case.q if group is None else case.q[:, :, :group]
    return Call("prefill", q, case.operands, path=library.PATHS[kernel], **fields)


def check_case(case: Case, kernel: str, group: int | None = None, *, message: str = "", **fields: Any) -> None:
    call = prefill(case, kernel, group, **fields)
    assert_close(call.run(), case.out[:, :, :group], case.lse[:, :, :group], message=f"{kernel}, {message}")
    call.check_bounds()


# ---- Shapes --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("lengths", LENGTHS, ids=lambda lengths: "of".join(map(str, lengths)))
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_shape(dtype: torch.dtype, head_dim: int, lengths: tuple[int, int], kernel: str) -> None:
    q_len, seq = lengths
    shape = dict(q_len=q_len, batch=2, kv_heads=3, group=max(GROUPS))
    for mix in MIXES:
        case = make_case(dtype, head_dim, seq, mix=mix, **shape)
        for group in GROUPS:
            check_case(case, kernel, group, message=f"mix {mix}, group {group}")


@pytest.mark.parametrize("mix", [(0.0, 0.0), (0.5, 0.5), (0.25, 0.4)], ids=str)
@pytest.mark.parametrize(
    ("batch", "kv_heads", "group", "q_len", "seq"),
    [
        (1, 2, 4, 4096, 4096),
        (2, 1, 3, 1000, 5003),
        (1, 8, 4, 1537, 1537),  # many more tiles than multiprocessors, the last of them partial
        (1, 1, 1, 3000, 7001),
        (1, 1, 16, 2, 20_000),
        (8, 8, 4, 65, 100),
        (300, 2, 2, 3, 64),
    ],
)
def test_every_way_to_cut_the_work(
    batch: int, kv_heads: int, group: int, q_len: int, seq: int, mix: tuple[float, float], kernel: str
) -> None:
    case = make_case(torch.float16, 128, seq, q_len=q_len, batch=batch, kv_heads=kv_heads, group=group, mix=mix)
    check_case(case, kernel)


@pytest.mark.parametrize("mix", [(0.0, 0.0), (0.5, 0.5), (0.25, 0.25)], ids=str)
def test_the_kernels_agree(mix: tuple[float, float]) -> None:
    """At 8k: with attention on sampled rows, and with each other on all; and the free choice is one of them."""
    q_len = seq = 8192
    generator = torch.Generator(DEVICE).manual_seed(0)
    q, k, v = (torch.randn(1, heads, seq, 128, generator=generator, device=DEVICE).half() for heads in (8, 2, 2))
    kv = hsbench.compress(k, v, key_sparsity=mix[0], value_sparsity=mix[1])
    rows = torch.randint(q_len, (64,), generator=generator, device=DEVICE)
    rows = torch.cat([rows, torch.tensor([0, 63, 64, q_len - 1], device=DEVICE)])
    grouped = q.unflatten(1, (2, 4))
    expected = attention(grouped, *kv.unpack(), rows=rows)
    results = {}
    for kernel in ("auto", *(kernel for kernel in KERNELS if calls.why_not_path(kernel) is None)):
        call = calls.prefill_call(q, kv, kernel)
        call.out.fill_(math.nan)
        call.lse.fill_(math.nan)
        call.run()
        out, lse = (x.unflatten(1, (2, 4)) for x in (call.out, call.lse))
        assert_close((out[:, :, :, rows], lse[:, :, :, rows]), *expected, message=kernel)
        results[kernel] = (out, lse)
    free = results.pop("auto")
    assert any(all(map(torch.equal, free, named)) for named in results.values())
    first = results["sm80"]
    for name, (out, lse) in results.items():
        error = (out.float() - first[0].float()).norm(dim=-1) / first[0].float().norm(dim=-1)
        assert (error <= 2 * TOLERANCE[out.dtype]).all(), name
        torch.testing.assert_close(lse, first[1], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5])
@pytest.mark.parametrize(("q_len", "seq"), [(128, 640), (333, 333)])
def test_pages_in_order(q_len: int, seq: int, sparsity: float, kernel: str) -> None:
    """As hsbench.compress packs them: pages of one kind have no map."""
    generator = torch.Generator(DEVICE).manual_seed(0)

    def normal(heads: int, tokens: int) -> Tensor:
        return torch.randn(2, heads, tokens, 64, generator=generator, device=DEVICE).half()

    q, k, v = normal(6, q_len), normal(2, seq), normal(2, seq)
    kv = hsbench.compress(k, v, sparsity)
    assert (kv.k.params().map is None) == (sparsity == 0 or (sparsity == 0.5 and seq % BLOCK == 0))
    call = calls.prefill_call(q, kv, kernel)
    call.run()
    got = (x.unflatten(1, (2, 3)) for x in (call.out, call.lse))
    assert_close(tuple(got), *attention(q.unflatten(1, (2, 3)), *kv.unpack()))


# ---- Scores that a running maximum must survive ----------------------------------------------------------------
LARGE = 60_000.0  # 65504, fp16's largest, would leave no room for the rounding of probabilities


def aligned(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Queries of random magnitudes along a direction of signs ``[batch, kv_heads, 1, head_dim]``, and that direction:
    a key that is x times it has a score of about 0.8 x sqrt(head_dim) with all queries of its head."""
    direction = torch.where(k[:, :, :1] < 0, -1, 1).to(q.dtype)
    return q.abs() * direction.unsqueeze(2), direction


def by_token(k: Tensor, height: Any) -> Tensor:
    """``height(token)`` as a column, to be multiplied by a direction; computed in fp32."""
    return height(torch.arange(k.shape[2], device=k.device, dtype=torch.float32)).view(1, 1, -1, 1)


def along(height: Any, noise: float = 0.25, query: float | None = None) -> Any:
    """Keys that are ``height(token)`` times a direction plus some noise; and queries along it, all alike, ``query``
    times it, or of random magnitudes."""

    def change(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        queries, direction = aligned(q, k)
        if query is not None:
            queries = torch.full_like(q, query) * direction.unsqueeze(2)
        return queries, (by_token(k, height) * direction.float() + noise * k.float()).to(k.dtype), v

    return change


def page(token: Tensor) -> Tensor:
    return torch.div(token, BLOCK, rounding_mode="floor")


def future_is_huge(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The last tokens beat all others, and their values are large: queries that do not see them must not notice."""
    first = k.shape[2] - 100
    q, k, _ = along(lambda token: 60.0 * (token >= first))(q, k, v)
    huge = (2e4 * v.float()).clamp(-LARGE, LARGE)
    return q, k, torch.where(by_token(k, lambda token: token) >= first, huge, v.float()).to(v.dtype)


HOSTILE = {
    "queries are zero": lambda q, k, v: (torch.zeros_like(q), k, v),
    "keys are zero": lambda q, k, v: (q, torch.zeros_like(k), v),
    "values are large and negative": lambda q, k, v: (q, k, torch.full_like(v, -LARGE)),
    "scores are huge, equal and negative": lambda q, k, v: (torch.full_like(q, LARGE), torch.full_like(k, -LARGE), v),
    "the maximum rises at every token": along(lambda token: token / 10),
    "the maximum rises at every page": along(lambda token: 2 * page(token)),
    "the maximum falls at every page": along(lambda token: -2 * page(token)),
    # Products of small whole numbers are exact in fp32, so that scores within a page tie; pages lie 10^5 apart.
    "the maximum rises by more than fp16 holds": along(lambda token: 24 * page(token), noise=0, query=304),
    "the maximum falls by more than fp16 holds": along(lambda token: -24 * page(token), noise=0, query=304),
    "all scores are far below zero": along(lambda token: -256 - 16 * (page(token) % 3), noise=0, query=256),
    "the maximum is in the first token": along(lambda token: 60.0 * (token == 0)),
    "the maximum is in the first page, by a little": along(lambda token: 0.8 * (token < BLOCK)),
    "the maximum is in the last tokens": along(lambda token: 60.0 * (token >= token.numel() - 3)),
    "the future is huge": future_is_huge,
}


@pytest.mark.parametrize("what", HOSTILE)
@pytest.mark.parametrize(("q_len", "seq"), [(700, 700), (150, 600), (320, 704)])  # the last has pages of one kind
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_hostile_scores(dtype: torch.dtype, q_len: int, seq: int, what: str, kernel: str) -> None:
    for head_dim, mix in itertools.product((64, 128), ((0.0, 0.0), (0.5, 0.5), (0.3, 0.3))):
        case = make_case(dtype, head_dim, seq, q_len=q_len, group=3, mix=mix, change=HOSTILE[what])
        check_case(case, kernel, message=f"head_dim {head_dim}, mix {mix}")


@pytest.mark.parametrize(("sparsity", "seq"), [(0.0, 700), (0.5, 700), (0.5, 704)])
def test_extreme_inputs_stay_finite(sparsity: float, seq: int, kernel: str) -> None:
    """Sums of signs tie in many tokens, and rounding tells such scores apart: only finiteness can be asked."""

    def extreme(*tensors: Tensor) -> list[Tensor]:
        return [x.sign() * LARGE for x in tensors]

    out, lse = prefill(make_case(torch.float16, 128, seq, q_len=300, mix=(sparsity,) * 2, change=extreme), kernel).run()
    assert torch.isfinite(out).all() and torch.isfinite(lse).all()


@pytest.mark.parametrize(("q_len", "seq"), [(1, 1), (65, 65), (130, 3000), (96, 3008)])  # the last: pages of one kind
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_near_the_largest(dtype: torch.dtype, q_len: int, seq: int, kernel: str) -> None:
    mixes = ((0.0, 0.0), (0.5, 0.5), (0.0, 0.5), (0.3, 0.3))
    for (what, change), head_dim, mix in itertools.product(near_the_largest(), (64, 128), mixes):
        case = make_case(dtype, head_dim, seq, q_len=q_len, kv_heads=1, group=2, mix=mix, change=change)
        check_case(case, kernel, message=f"{what}, head_dim {head_dim}, mix {mix}")


@pytest.mark.parametrize("mix", [(0.0, 0.0), (0.5, 0.5), (0.3, 0.3)], ids=str)
def test_small_values_keep_their_precision(mix: tuple[float, float], kernel: str) -> None:
    check_case(make_case(torch.bfloat16, 128, 3008, q_len=130, mix=mix, change=small_values), kernel)


@pytest.mark.parametrize("scale", [-0.2, 0.0, 1.5])
def test_any_scale(scale: float, kernel: str) -> None:
    for mix, seq in (((0.0, 0.0), 777), ((0.3, 0.5), 777), ((0.5, 0.5), 640)):
        case = make_case(torch.float16, 64, seq, q_len=300, mix=mix, scale=scale)
        check_case(case, kernel, scale=scale)


# ---- What every kernel promises --------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("batch", "kv_heads", "q_len", "seq"), [(1, 8, 1000, 3005), (64, 8, 3, 192)], ids=["long", "many"]
)
def test_runs_repeat_bit_for_bit(batch: int, kv_heads: int, q_len: int, seq: int, kernel: str) -> None:
    case = make_case(torch.float16, 128, seq, q_len=q_len, batch=batch, kv_heads=kv_heads, mix=(0.25, 0.4))
    assert_repeats(prefill(case, kernel))


@pytest.mark.parametrize("promise", [assert_replays, assert_keeps_to_its_stream])
def test_graphs_and_streams(promise: Any, kernel: str) -> None:
    case = make_case(torch.float16, 128, 1003, q_len=500, mix=(0.3, 0.5))
    promise(prefill(case, kernel), case.out, case.lse)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head_dim": 96}, "head_dim must be 64 or 128"),
        ({"q_heads": 3}, "q_heads must be"),
        ({"q_heads": 34}, "q_heads must be"),
        ({"batch": 0}, "must be positive"),
        ({"seq": 0}, "must be positive"),
        ({"q_len": 0}, "q_len must be"),
        ({"q_len": 65}, "q_len must be"),
        ({"dtype": 2}, "dtype must be"),
        ({"path": 9}, "path is not"),
    ],
)
def test_bad_shapes_are_refused(change: dict[str, int], message: str) -> None:
    case = make_case(torch.float16, 64, 64, q_len=64, kv_heads=2, group=1)
    call = prefill(case, "auto")
    for field, value in change.items():
        setattr(call.params, field, value)
    with pytest.raises(library.NativeError, match=message):
        library.load(DEVICE).number(f"hsb_{DEVICE}_prefill_workspace", call.params)
    with pytest.raises(library.NativeError, match=message):
        call.run()
    assert call.out.isnan().all(), "nothing runs"


@pytest.mark.parametrize(
    ("field", "value"), [("q", 0), ("out", 0), ("lse", 0), ("scale", math.nan), ("scale", math.inf)]
)
def test_bad_arguments_are_refused(field: str, value: float, kernel: str) -> None:
    call = prefill(make_case(torch.float16, 64, 64, q_len=64), kernel)
    setattr(call.params, field, value)
    with pytest.raises(library.NativeError):
        call.run()


def test_a_kernel_for_another_gpu_is_refused() -> None:
    if calls.why_not_path("sm90") is None:
        pytest.skip("this GPU runs both kernels")
    call = prefill(make_case(torch.float16, 64, 64, q_len=64), "sm90")
    with pytest.raises(library.NativeError, match="sm80"):
        call.run()
    assert call.out.isnan().all()
