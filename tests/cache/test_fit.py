"""Fitted pruners, against what they say of themselves, by brute force on small cases."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hsbench.cache.basis import LayerBasis
from hsbench.cache.fit import (
    QUERIES,
    Fit,
    attention_of,
    channel_order,
    fit_key,
    fit_pruner,
    fit_value,
    pooled_attention,
    query_rms_of,
)
from hsbench.cache.fitted import compress_kv
from hsbench.cache.hierarchical import HierarchicalKV
from hsbench.cache.packing import PageCompressor, compress_tensor_torch
from hsbench.cache.paged import PagedTensor
from hsbench.cache.prune import choose_blocks, plan_blocks, prune_hierarchical
from hsbench.cache.pruner import (
    ATTENTIVE,
    BALANCED,
    CALIBRATED,
    CENTERED,
    MAGNITUDE,
    MIRROR,
    PRUNERS,
    Pruner,
    pruner_of,
)
from hsbench.errors import NonFiniteError, UsageError
from hsbench.kernels import library

DTYPES = [pytest.param(dtype, id=str(dtype)[6:]) for dtype in (torch.float16, torch.bfloat16)]
MISSING = library.why_missing("cpu")
needs_library = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
pytestmark = pytest.mark.usefixtures("one_torch_thread")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tensors(dtype: torch.dtype, seq: int = 333, head_dim: int = 64, kv_heads: int = 3) -> tuple[Tensor, Tensor]:
    """K and V with means, and norms that differ by token."""
    k = normal(2, kv_heads, seq, head_dim, seed=1) + 5 * normal(2, kv_heads, 1, head_dim, seed=2)
    v = (normal(2, kv_heads, seq, head_dim, seed=3) + normal(2, kv_heads, 1, head_dim, seed=4)) * (
        0.1 + normal(2, kv_heads, seq, 1, seed=5).abs()
    )
    return k.to(dtype), v.to(dtype)


def fitted(pruner: Pruner, k: Tensor, v: Tensor, share: float = 0.5, **plan: int) -> tuple[Fit, Fit]:
    q = normal(k.shape[0], 2 * k.shape[1], 40, k.shape[3], seed=6).to(k.dtype)
    rms = normal(k.shape[1], k.shape[3], seed=7).abs()
    plans = [plan_blocks(k.shape[2], share, **plan)] * 2
    return fit_pruner(pruner, k, v, plans, query_rms=rms, queries=q)


# ---- Order ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("head_dim", [4, 8, 64, 80, 128])
def test_mirror_is_a_permutation_of_both_halves(head_dim: int) -> None:
    order, half = channel_order("mirror", head_dim), head_dim // 2
    assert order.sort().values.tolist() == list(range(head_dim))
    for g, group in enumerate(order.view(-1, 4).tolist()):
        assert group == [g, half - 1 - g, half + g, head_dim - 1 - g]
        assert {channel % half for channel in group} == {g, half - 1 - g}  # RoPE turns channels c and c + h together
    assert channel_order("adjacent", head_dim).tolist() == list(range(head_dim))


# ---- What is stored, and the way back ------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", DTYPES)
def test_stored_by_hand(dtype: torch.dtype) -> None:
    k, _ = tensors(dtype, seq=5)
    shift = normal(2, 3, 64, seed=8)
    order = channel_order("mirror", 64)
    stored = Fit("k", "mirror", shift).stored(k)
    for b, h, t, place in itertools.product(range(2), range(3), range(5), range(64)):
        channel = int(order[place])
        expected = (k[b, h, t, channel].float() - shift[b, h, channel]).to(dtype)
        assert stored[b, h, t, place] == expected
    assert stored.dtype == dtype and Fit("k").stored(k) is k


@pytest.mark.parametrize("name", PRUNERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_stored_comes_back(dtype: torch.dtype, name: str) -> None:
    k, v = tensors(dtype)
    for x, fit in zip((k, v), fitted(PRUNERS[name], k, v), strict=True):
        stored = fit.stored(x)
        back = fit.restored(stored)
        assert stored.shape == back.shape == x.shape and stored.dtype == dtype
        if fit.shift is None:
            assert torch.equal(back, x) and back.dtype == dtype
        else:
            assert back.dtype == torch.float32
            moved = (x.float() - fit.shift.unsqueeze(2)).abs()
            assert ((back - x.float()).abs() <= torch.finfo(dtype).eps / 2 * moved + 1e-6).all()
        assert torch.isfinite(stored).all()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_a_shift_moves_out_of_range_saturates(dtype: torch.dtype, sign: int) -> None:
    largest = torch.finfo(dtype).max
    k = torch.full((1, 1, 4, 64), sign * largest, dtype=dtype)
    fit = Fit("k", shift=torch.full((1, 1, 64), -sign * largest / 2))
    stored = fit.stored(k)
    assert (stored == sign * largest).all()
    assert torch.isfinite(fit.restored(stored)).all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", [name for name in PRUNERS])
@needs_library
def test_what_is_not_finite_is_named_where_it_was(name: str, value: float) -> None:
    for operand, index in itertools.product(range(2), ((0, 0, 0, 0), (1, 2, 130, 63), (0, 1, 332, 17))):
        pair = tensors(torch.float16)
        pair[operand][index] = value
        q, rms = normal(2, 6, 8, 64).half(), torch.rand(3, 64)
        with pytest.raises(NonFiniteError) as caught:
            compress_kv(*pair, key_sparsity=0.5, value_sparsity=0.3, pruner=PRUNERS[name], queries=q, query_rms=rms)
        assert (caught.value.tensor, caught.value.index) == ("kv"[operand], index)


def test_a_nan_is_stored_as_one() -> None:
    k, _ = tensors(torch.float16, seq=4)
    for value in (math.nan, math.inf, -math.inf):
        k[0, 0, 1, 2] = value
        stored = Fit("k", "mirror", torch.ones(2, 3, 64)).stored(k)
        assert (~torch.isfinite(stored)).nonzero().tolist() == [[0, 0, 1, 4 * 2]]  # channel 2 leads group 2


def test_means_are_of_eligible_tokens() -> None:
    """Attention sinks, and what is dense anyway, would bend them; where nothing is eligible, all but the sinks."""
    k, v = tensors(torch.float16)
    plan = plan_blocks(333, 0.5, sink=70, local=100)
    assert (plan.first, plan.last) == (2, 3)
    for fit, x in ((fit_key(k, CENTERED, plan), k), (fit_value(v, CENTERED, plan), v)):
        assert fit.shift is not None and fit.shift.is_contiguous() and fit.nbytes == 4 * 2 * 3 * 64
        torch.testing.assert_close(fit.shift, x[:, :, 128:192].float().mean(2))
    none = fit_key(k, CENTERED, plan_blocks(333, 0.5, local=333))
    torch.testing.assert_close(none.shift, k.float().mean(2))
    none = fit_key(k, CENTERED, plan_blocks(333, 0.5, sink=64, local=333))
    torch.testing.assert_close(none.shift, k[:, :, 64:].float().mean(2))
    none = fit_key(k[:, :, :60], CENTERED, plan_blocks(60, 0.5, sink=64))
    torch.testing.assert_close(none.shift, k[:, :, :60].float().mean(2))


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_shift_of_what_is_dropped_by_brute_force(steps: int) -> None:
    """K under order and weights, V along head_dim under neither: eligible tokens alone, weighed by attention."""
    k, v = tensors(torch.float16, seq=140, head_dim=8, kv_heads=1)
    plan, tokens = plan_blocks(140, 0.5, sink=1), range(64, 128)
    attention, rms = normal(2, 1, 140, seed=6).softmax(-1), normal(1, 8, seed=7).abs()
    parts = {"key_shift": True, "key_shift_steps": steps, "value_shift": True, "value_shift_steps": steps}
    pruner = replace(pruner_of("calibrated:hd"), **parts)
    key = fit_key(k, pruner, plan, query_rms=rms, attention=attention)
    value = fit_value(v, pruner, plan, attention=attention)
    orders = ([0, 3, 4, 7, 1, 2, 5, 6], list(range(8)))
    for x, fit, order, weights in zip((k, v), (key, value), orders, (rms[0], torch.ones(8)), strict=True):
        for b in range(2):
            mean = [float(x[b, 0, 64:128, c].double().mean()) for c in range(8)]
            expected = [0.0] * 8
            for first in (0, 4):
                four, found = order[first : first + 4], []
                for start in ([0.0] * 8, mean):
                    shift = list(start)
                    for step in range(steps + 1):
                        sums, masses, lost = [0.0] * 8, [0.0] * 8, 0.0
                        for t in tokens:
                            far = {c: abs((float(x[b, 0, t, c]) - shift[c]) * float(weights[c])) for c in four}  # noqa: B023
                            for c in sorted(four, key=lambda c: far[c])[:2]:  # noqa: B023
                                mass = float(attention[b, 0, t]) + 1e-5
                                sums[c], masses[c] = sums[c] + mass * float(x[b, 0, t, c]), masses[c] + mass
                                lost += mass * far[c] ** 2
                        if step < steps:
                            moved = zip(sums, masses, shift, strict=True)
                            shift = [s / m if m else old for s, m, old in moved]
                    found.append((lost, shift))
                best = min(found, key=lambda one: one[0])[1]
                for c in four:
                    expected[c] = best[c]
            assert fit.shift is not None and fit.shift.is_contiguous()
            torch.testing.assert_close(fit.shift[b, 0], torch.tensor(expected), rtol=1e-5, atol=1e-5)


def test_a_shift_loses_less_by_each_step_and_nothing_on_the_mean() -> None:
    """Of what is looked at: tokens with a mean of their own, in a cache whose others have another."""
    seq, plan = 512, plan_blocks(512, 0.5)
    v = normal(1, 1, seq, 64, seed=1) + 2 * normal(64, seed=2)
    v[:, :, ::8] += 3 * normal(64, seed=3)
    attention = torch.full((1, 1, seq), 1e-4)
    attention[..., ::8] = 0.01

    def lost(pruner: Pruner) -> tuple[float, float]:
        fit = fit_value(v.half(), pruner, plan, attention=attention)
        stored = fit.stored(v.half())
        error = fit.restored(prune_hierarchical(stored, "k", choose_blocks(stored, "k", plan))).float() - v
        weighted = error * attention.unsqueeze(-1)
        return float((error * weighted).sum()), float(weighted.sum(2).norm())

    plain = replace(MAGNITUDE, value_axis="head_dim")
    squares, means = zip(
        lost(plain),
        *(lost(replace(plain, value_shift=True, value_shift_steps=steps)) for steps in (1, 3, 20)),
        strict=True,
    )
    assert squares[0] > squares[1] > squares[2] > squares[3] and squares[3] < 0.9 * squares[0]
    assert means[3] < 0.05 * means[0]
    of_all = lost(replace(plain, value_shift=True))
    assert squares[3] < of_all[0] and means[3] < of_all[1]


def test_a_shift_of_very_many_tokens_is_nearly_that_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks at some: at those that are looked at, and at others in the place of all of these."""
    seq, plan = 2048, plan_blocks(2048, 0.5)
    k = normal(1, 2, seq, 64, seed=1) + 2 * normal(64, seed=2)
    k[:, :, 5::64] += 3 * normal(64, seed=3)
    attention = torch.full((1, 2, seq), 1e-5)
    attention[..., 5::64] = 0.02
    pruner = replace(MAGNITUDE, key_shift=True, key_shift_steps=3)
    of_all = fit_key(k.half(), pruner, plan, attention=attention).shift
    monkeypatch.setattr("hsbench.cache.shift._MOST_TOKENS", 512)
    found = fit_key(k.half(), pruner, plan, attention=attention).shift
    mean = fit_key(k.half(), replace(MAGNITUDE, key_shift=True), plan).shift
    assert of_all is not None and found is not None and mean is not None
    assert not torch.equal(found, of_all) and (found - of_all).norm() < 0.03 * (mean - of_all).norm()


def test_a_shift_takes_constant_channels_out() -> None:
    """Two of a group that are large and constant must not keep the two that vary from being stored."""
    k = normal(1, 1, 256, 8, seed=1)
    k[..., 0:8:4], k[..., 1:8:4] = 100 + 0.01 * k[..., 0:8:4], -100 + 0.01 * k[..., 1:8:4]
    pruner = replace(MAGNITUDE, key_shift=True, key_shift_steps=3)
    fit = fit_key(k.half(), pruner, plan_blocks(256, 0.5), attention=torch.full((1, 1, 256), 1 / 256))
    stored = fit.stored(k.half())
    back = fit.restored(prune_hierarchical(stored, "k", choose_blocks(stored, "k", plan_blocks(256, 0.5))))
    assert (back - k).abs().max() < 0.2


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_shift_of_the_largest_numbers_is_finite(dtype: torch.dtype) -> None:
    k = torch.full((1, 2, 64, 8), torch.finfo(dtype).max, dtype=dtype)
    k[:, 1] = 0
    fit = fit_key(k, ATTENTIVE, plan_blocks(64, 0.5), query_rms=torch.ones(2, 8), attention=torch.rand(1, 2, 64))
    assert fit.shift is not None and torch.isfinite(fit.shift).all() and (fit.shift[:, 1] == 0).all()


# ---- Weights -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("pruner", [BALANCED, ATTENTIVE], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_of_v_are_finite_whatever_the_norms(dtype: torch.dtype, pruner: Pruner) -> None:
    """Tokens of zeros, of the smallest numbers and of the largest."""
    largest, smallest = torch.finfo(dtype).max, torch.finfo(dtype).smallest_normal
    k, v = tensors(dtype, seq=256)
    v[:, :, 3], v[:, :, 5], v[:, :, 9] = 0, largest, smallest
    v[0, 1], v[1, 0], v[1, 1] = 0, largest, smallest
    fit = fitted(pruner, k, v)[1]
    stored = fit.stored(v)
    scores = fit.scores(stored)
    assert torch.isfinite(scores).all() and scores.dtype == dtype
    weights = fit.weights(stored)
    assert torch.isfinite(weights).all() and (weights >= 0).all() and weights.max() <= 2.0**8
    assert (scores[(stored == 0)] == 0).all() and (scores.sign() * stored.sign() >= 0).all()


def test_weights_of_v_by_hand() -> None:
    _, v = tensors(torch.float16, seq=100, kv_heads=1)
    fit = fit_value(v, replace(BALANCED, value_shift=False), plan_blocks(100, 0.5))
    norms = v[0, 0].float().norm(dim=-1)
    weights = (norms.median() / norms) ** 1.25
    weights = weights.clamp(2.0**-8, 2.0**8).half().float()
    assert torch.equal(fit.scores(v)[0, 0], (v[0, 0].float() * weights[:, None]).half())


def test_weights_of_k_by_hand() -> None:
    k, _ = tensors(torch.float16, seq=70)
    rms = normal(3, 64, seed=9).abs()
    fit = fit_key(k, CALIBRATED, plan_blocks(70, 0.5), query_rms=rms)
    stored, order = fit.stored(k), channel_order("mirror", 64)
    for h in range(3):
        weights = (rms[h] / rms[h].max())[order].half().float()
        assert torch.equal(fit.scores(stored)[:, h], (stored[:, h].float() * weights).half())


def test_a_head_that_no_query_reads() -> None:
    k, _ = tensors(torch.float16, seq=70)
    fit = fit_key(k, CALIBRATED, plan_blocks(70, 0.5), query_rms=torch.zeros(3, 64))
    assert torch.isfinite(fit.scores(fit.stored(k))).all()


def test_pooled_attention_by_hand() -> None:
    q, k = normal(2, 4, 5, 64), normal(2, 2, 9, 64, seed=1)
    mass = pooled_attention(q, k)
    expected = torch.zeros(2, 2, 9)
    for b, h, i in itertools.product(range(2), range(4), range(5)):
        seen = 9 - 5 + i + 1
        scores = q[b, h, i] @ k[b, h // 2, :seen].T / 8
        expected[b, h // 2, :seen] += scores.softmax(-1) / 10
    torch.testing.assert_close(mass, expected)
    torch.testing.assert_close(mass.sum(-1), torch.ones(2, 2))
    many, cache = normal(1, 2, 100, 64), normal(1, 1, 200, 64, seed=1)
    torch.testing.assert_close(pooled_attention(many, cache), pooled_attention(many[:, :, -QUERIES:], cache))


def test_sizes_of_queries_by_hand() -> None:
    """Each as much as it looks at eligible tokens, and both channels that RoPE turns together alike."""
    q, k = 3 * normal(2, 4, 5, 8), 3 * normal(2, 2, 200, 8, seed=1)
    plan = plan_blocks(200, 0.5, sink=64, local=70)
    assert (plan.first, plan.last) == (1, 2)
    got = query_rms_of(q, attention_of(q, k), plan)
    for b, h in itertools.product(range(2), range(2)):
        sums, count = torch.zeros(8), 0.0
        for head, i in itertools.product((2 * h, 2 * h + 1), range(5)):
            paid = (q[b, head, i] @ k[b, h, : 196 + i].T / math.sqrt(8)).softmax(-1)
            weight = float(paid[64:128].sum()) + 1e-4
            sums, count = sums + weight * q[b, head, i].square(), count + weight
        both = (sums[:4] + sums[4:]) / (2 * count)
        torch.testing.assert_close(got[b, h], torch.cat([both, both]).sqrt())
    # Where nothing is eligible every query counts alike.
    none = query_rms_of(q, attention_of(q, k), plan_blocks(200, 0.5, local=200))
    alike = q.unflatten(1, (2, 2)).square().mean((2, 3))
    torch.testing.assert_close(none.square()[..., :4], (alike[..., :4] + alike[..., 4:]) / 2)


def test_what_the_queries_look_at_stays() -> None:
    """Two tokens of a group that differ in nothing but that."""
    v = normal(1, 1, 64, 64, seed=2).half()
    v[:, :, 1::4] = v[:, :, 0::4]
    v[:, :, 2::4], v[:, :, 3::4] = v[:, :, 0::4], v[:, :, 0::4]
    attention = torch.full((1, 1, 64), 1e-6)
    attention[..., 2::4], attention[..., 3::4] = 0.01, 0.02
    plan = plan_blocks(64, 0.5)
    plain = replace(ATTENTIVE, fold=0.0, value_shift=False)
    fit = fit_value(v, plain, plan, attention=attention)
    pruned = prune_hierarchical(v, "v", choose_blocks(fit.scores(v), "v", plan), scores=fit.scores(v))
    assert (pruned[:, :, 0::4] == 0).all() and (pruned[:, :, 1::4] == 0).all() and (pruned[:, :, 2::4] != 0).any()


# ---- Fold ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", DTYPES)
def test_folding_all_keeps_a_groups_sum(dtype: torch.dtype) -> None:
    _, v = tensors(dtype, seq=256)
    plan = plan_blocks(256, 0.5)
    chosen = choose_blocks(v, "v", plan)
    pruned = prune_hierarchical(v, "v", chosen, fold=1.0)
    groups, kept = (x.float().unflatten(2, (-1, 4)) for x in (v, pruned))
    assert ((kept != 0).sum(3) <= 2).all()
    room = 2 * torch.finfo(dtype).eps * groups.abs().sum(3)
    assert ((kept.sum(3) - groups.sum(3)).abs() <= room).all()


@pytest.mark.parametrize("fold", [0.25, 0.5])
def test_a_share_of_what_goes_is_dealt_to_what_stays(fold: float) -> None:
    _, v = tensors(torch.float16, seq=64, kv_heads=1)
    pruned = prune_hierarchical(v, "v", choose_blocks(v, "v", plan_blocks(64, 0.5)), fold=fold)
    for b, group, channel in itertools.product(range(2), range(16), range(64)):
        four = v[b, 0, 4 * group : 4 * group + 4, channel].tolist()
        kept = sorted(sorted(range(4), key=lambda i: (-abs(four[i]), i))[:2])  # noqa: B023
        lost = sum(four[i] for i in range(4) if i not in kept)
        for i in range(4):
            got = float(pruned[b, 0, 4 * group + i, channel])
            expected = four[i] + fold / 2 * lost if i in kept else 0.0
            assert got == pytest.approx(expected, rel=2e-3, abs=1e-4)


def test_folding_saturates() -> None:
    v = torch.full((1, 1, 64, 64), 65504.0).half()
    pruned = prune_hierarchical(v, "v", choose_blocks(v, "v", plan_blocks(64, 0.5)), fold=1.0)
    assert pruned.max() == 65504 and torch.isfinite(pruned).all()


# ---- Choices -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", PRUNERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_choices_by_brute_force(dtype: torch.dtype, name: str) -> None:
    """Blocks of least loss by what scores say, and of each four of these the two largest."""
    pruner = PRUNERS[name]
    k, v = tensors(dtype, seq=64 * 4 + 9, kv_heads=1)
    plan = plan_blocks(64 * 4 + 9, 0.25, sink=1)
    fits = fitted(pruner, k, v, 0.25, sink=1)
    for operand, x, fit in zip(("k", "v"), (k, v), fits, strict=True):
        stored = fit.stored(x)
        scores = fit.scores(stored)
        for b in range(2):
            rows = scores[b, 0].double() if operand == "k" else scores[b, 0].double().T
            keep = torch.zeros_like(rows, dtype=torch.bool)
            whole = rows.shape[1] // 4 * 4
            for row, first in itertools.product(range(rows.shape[0]), range(0, whole, 4)):
                four = rows[row, first : first + 4].abs().tolist()
                for i in sorted(range(4), key=lambda i: (-four[i], i))[:2]:  # noqa: B023
                    keep[row, first + i] = True
            dropped = torch.where(keep, 0.0, rows.abs())
            by_token = dropped if operand == "k" else dropped.T
            kept = keep if operand == "k" else keep.T
            losses = {block: float(by_token[64 * block : 64 * block + 64].sum()) for block in range(1, 4)}
            chosen = sorted(losses, key=lambda block: (losses[block], block))[: plan.sparse]  # noqa: B023
            got = choose_blocks(scores[b : b + 1], operand, plan)[0, 0].nonzero().flatten().tolist()
            assert got == sorted(chosen)
            pruned = prune_hierarchical(
                stored[b : b + 1], operand, choose_blocks(scores[b : b + 1], operand, plan), scores=scores[b : b + 1]
            )[0, 0]
            for block in range(5):
                rows_of = slice(64 * block, 64 * block + 64)
                expected = stored[b, 0, rows_of]
                if block in chosen:
                    expected = torch.where(kept[rows_of], expected, 0)
                assert torch.equal(pruned[rows_of], expected)


# ---- A head, a longer cache, bytes ---------------------------------------------------------------------------
@pytest.mark.parametrize("name", PRUNERS)
def test_a_head_by_itself_is_the_same(name: str) -> None:
    k, v = tensors(torch.float16)
    for x, fit in zip((k, v), fitted(PRUNERS[name], k, v), strict=True):
        stored = fit.stored(x)
        scores = fit.scores(stored)
        for b, h in itertools.product(range(2), range(3)):
            own, one = fit.head(b, h), x[b : b + 1, h : h + 1]
            assert torch.equal(own.stored(one)[0, 0], stored[b, h])
            assert torch.equal(own.scores(own.stored(one))[0, 0], scores[b, h])
            assert torch.equal(own.restored(own.stored(one))[0, 0], fit.restored(stored)[b, h])


@pytest.mark.parametrize("name", PRUNERS)
@needs_library
def test_a_frozen_fit_of_a_longer_cache(name: str) -> None:
    """What is fitted to the first tokens holds for those that come: order and shifts, and so what is stored of each."""
    k, v = tensors(torch.float16)
    fits = fitted(PRUNERS[name], k[:, :, :256], v[:, :, :256])
    for x, fit in zip((k, v), fits, strict=True):
        assert torch.equal(fit.stored(x)[:, :, :256], fit.stored(x[:, :, :256]))
        assert torch.isfinite(fit.scores(fit.stored(x))).all()
    kv = compress_kv(k, v, key_sparsity=0.5, value_sparsity=0.5, pruner=PRUNERS[name], fits=fits, local=64)
    assert (kv.key_fit, kv.value_fit) == fits
    tail = kv.unpack()
    for x, got, fit in zip((k, v), tail, fits, strict=True):  # dense blocks hold what was stored
        assert torch.equal(got[:, :, 320:], fit.restored(fit.stored(x))[:, :, 320:])


def definition(x: Tensor, fit: Fit, share: float, **plan: int) -> PagedTensor:
    """The pages of a fitted tensor, in torch, of the whole tensor at once."""
    return compress_tensor_torch(x, fit.operand, plan_blocks(x.shape[2], share, **plan), fit)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5])
@pytest.mark.parametrize("name", PRUNERS)
@pytest.mark.parametrize("dtype", DTYPES)
@needs_library
def test_bytes_are_the_definitions(dtype: torch.dtype, name: str, share: float) -> None:
    for head_dim, seq in ((64, 333), (128, 128), (64, 63)):
        k, v = tensors(dtype, seq, head_dim)
        for x, fit in zip((k, v), fitted(PRUNERS[name], k, v, share, sink=1), strict=True):
            compressor = PageCompressor(x, fit.operand, plan_blocks(seq, share, sink=1), fit)
            for _ in range(2):  # as often as it is called
                compressor.run()
            compressor.check()
            expected = definition(x, fit, share, sink=1)
            assert torch.equal(compressor.pages.map, expected.map)
            for kind, pool in expected.pools.items():
                assert torch.equal(compressor.pages.pools[kind], pool), f"{fit.operand}, {kind}"


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that torch makes meanwhile."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else (made,):
            self.elements = max(self.elements, one.numel() if isinstance(one, Tensor) else 0)
        return made


@pytest.mark.parametrize("share", [0.3, 0.5])
@pytest.mark.parametrize("name", PRUNERS)
@needs_library
def test_what_is_done_per_element_is_done_by_native_code(name: str, share: float) -> None:
    k, v = tensors(torch.float16)
    for x, fit in zip((k, v), fitted(PRUNERS[name], k, v, share), strict=True):
        compressor = PageCompressor(x, fit.operand, plan_blocks(333, share), fit)
        with Largest() as made:
            compressor.run()
        assert made.elements <= x.numel() // x.shape[-1]  # at most a number a token
        with Largest() as made:
            fit.stored(x + 0)
        assert made.elements == x.numel()


@needs_library
def test_a_cache_unpacks_to_what_the_definition_leaves() -> None:
    k, v = tensors(torch.float16)
    for name in PRUNERS:
        fits = fitted(PRUNERS[name], k, v)
        kv = compress_kv(k, v, key_sparsity=0.5, value_sparsity=0.3, pruner=PRUNERS[name], fits=fits)
        for got, x, fit, share in zip(kv.unpack(), (k, v), fits, (0.5, 0.3), strict=True):
            assert torch.equal(got, fit.restored(definition(x, fit, share).unpack()))
        for b, h in itertools.product(range(2), range(3)):
            for whole, head in zip(kv.unpack(), kv.unpack_head(b, h), strict=True):
                assert torch.equal(head, whole[b, h])
        shifts = sum(
            4 * x.shape[0] * x.shape[1] * x.shape[3] for x, fit in zip((k, v), fits, strict=True) if fit.nbytes
        )
        assert kv.memory().get("shift", 0) == shifts == fits[0].nbytes + fits[1].nbytes
        assert isinstance(kv, HierarchicalKV) and kv.pruner is PRUNERS[name]


@needs_library
def test_what_no_kernel_reads_and_what_lacks_its_sources() -> None:
    k, v = tensors(torch.float16)
    how = dict(key_sparsity=0.5, value_sparsity=0.5)
    for pruner in (ATTENTIVE, CALIBRATED):
        with pytest.raises(UsageError, match=f"pruner {pruner}: needs"):
            compress_kv(k, v, pruner=pruner, **how)


def test_a_plain_fit() -> None:
    k, v = tensors(torch.float16)
    for fit in fitted(MAGNITUDE, k, v):
        assert fit.is_plain and fit.stores_plain and not fit.weighs and fit.nbytes == 0
        assert fit.stored(k) is k and fit.scores(k) is k and fit.restored(k) is k
    key, value = fitted(CENTERED, k, v)
    assert not key.is_plain and not value.is_plain and not value.stores_plain


# ---- What they are for ---------------------------------------------------------------------------------------
def test_each_part_leaves_scores_closer_where_it_should() -> None:
    """K as RoPE leaves it: strong channels side by side, a constant mean; queries that are strong where K is weak."""
    d, seq, h = 64, 512, 32
    strength = torch.logspace(1, -1, h).repeat(2)
    k = (normal(1, 1, seq, d, seed=1) * strength + 3 * strength * normal(d, seed=2)).half()
    q = normal(64, d, seed=3) / strength
    rms = q.square().mean(0).sqrt()[None]
    plan = plan_blocks(seq, 0.5)
    lost = {}
    for pruner in (MAGNITUDE, MIRROR, replace(MIRROR, key_shift=True), replace(CALIBRATED)):
        fit = fit_key(k, pruner, plan, query_rms=rms)
        stored = fit.stored(k)
        scores = fit.scores(stored)
        back = fit.restored(prune_hierarchical(stored, "k", choose_blocks(scores, "k", plan), scores=scores)).float()
        off = q @ (back - k.float())[0, 0].T
        lost[pruner] = float((off - off.mean(-1, keepdim=True)).norm())
    magnitude, mirror, shifted, calibrated = lost.values()
    assert calibrated < shifted < magnitude and calibrated < mirror, lost


def test_a_layers_basis_is_what_calibrated_takes() -> None:
    layer = LayerBasis(torch.zeros(3, 64), torch.zeros(3, 64), torch.rand(3, 64))
    k, _ = tensors(torch.float16)
    fit = fit_key(k, CALIBRATED, plan_blocks(333, 0.5), query_rms=layer.query_rms)
    assert fit.channel_weights is not None and fit.channel_weights.shape == (2, 3, 64)
    assert float(fit.channel_weights.max()) == 1.0 and fit.order == "mirror" and fit.shift is not None
