"""The check of an output: what must fail it, what must pass, and which query rows it looks at."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hsbench.errors import UnsupportedError
from hsbench.problem.inputs import Inputs
from hsbench.run.check import (
    LSE_TOLERANCE,
    SAMPLED_ROWS,
    TOLERANCE,
    Expected,
    compare,
    expect,
    refuse_overflow,
    sample_rows,
)

EVERY_DTYPE = [pytest.param(dtype, id=str(dtype)[6:]) for dtype in TOLERANCE]


def make_expected(q_len: int = 8, rows: list[int] | None = None) -> Expected:
    random = torch.Generator().manual_seed(0)
    at = torch.tensor(list(range(q_len)) if rows is None else rows)
    return Expected(
        at, torch.randn(2, 3, len(at), 64, generator=random), 5 * torch.randn(2, 3, len(at), generator=random)
    )


def output(expected: Expected, q_len: int, dtype: torch.dtype = torch.float16) -> tuple[Tensor, Tensor]:
    """What was expected, rounded, with arbitrary finite numbers in the rows that are not checked."""
    out = torch.full((2, 3, q_len, 64), 123.0)
    lse = torch.full((2, 3, q_len), 123.0)
    out[:, :, expected.rows] = expected.out
    lse[:, :, expected.rows] = expected.lse
    return out.to(dtype), lse


# ---- queries that see nothing -------------------------------------------------------------------------------
def blinded() -> tuple[Expected, Tensor, Tensor]:
    """An expectation of 8 queries, whose first three see nothing in one head; and an output that fulfils it."""
    expected = make_expected(8, rows=[0, 1, 5, 7])
    blind = torch.zeros(2, 3, 8, dtype=torch.bool)
    blind[1, 2, :3] = True
    expected.out[1, 2, :2], expected.lse[1, 2, :2] = 0.0, -math.inf
    expected = Expected(expected.rows, expected.out, expected.lse, blind)
    out, lse = output(expected, 8)
    out[blind], lse[blind] = 0.0, -math.inf
    return expected, out, lse


def test_zero_and_minus_infinity_pass_where_nothing_is_seen() -> None:
    expected, out, lse = blinded()
    assert compare(expected, out, lse).reason is None and compare(expected, out, None).reason is None


@pytest.mark.parametrize("row", [0, 2])  # one that is held against the reference, and one that is not
@pytest.mark.parametrize("what", ["out", "lse"])
def test_anything_else_fails_there(what: str, row: int) -> None:
    expected, out, lse = blinded()
    if what == "out":
        out[1, 2, row, 5] = 0.5 if row == 2 else 1e-3
    else:
        lse[1, 2, row] = 0.0
    reason = compare(expected, out, lse).reason
    assert reason is not None and "a query that sees no token must give 0 and a log-sum-exp of -infinity" in reason


def test_minus_infinity_fails_elsewhere() -> None:
    expected, out, lse = blinded()
    lse[1, 2, 3] = -math.inf
    assert "log-sum-exp is not finite" in str(compare(expected, out, lse).reason)


def test_a_reference_with_blind_queries_is_no_overflow() -> None:
    q, k = torch.randn(1, 2, 128, 64).half(), torch.randn(1, 1, 64, 64).half()
    inputs = Inputs(q, torch.cat([k, k], 2), torch.cat([k, k], 2), "gaussian")
    left = torch.arange(64, 128)
    expected = expect(inputs, lambda b, h: (k[0, 0], k[0, 0]), 0, lambda b, h: left)
    assert expected.blind is not None and expected.blind[:, :, :64].all() and not expected.blind[:, :, 64:].any()
    out, lse = torch.full_like(q, 0.5), torch.zeros(1, 2, 128)
    refuse_overflow(inputs, lambda b, h: (k[0, 0], k[0, 0]), expected, out, lse, lambda b, h: left)


# ---- compare -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", EVERY_DTYPE)
def test_the_rounded_reference_passes(dtype: torch.dtype) -> None:
    expected = make_expected(20, rows=[0, 7, 19])
    out, lse = output(expected, 20, dtype)
    verdict = compare(expected, out, lse)
    assert verdict.reason is None and 0 < verdict.rel_error < TOLERANCE[dtype]
    assert compare(expected, out, None) == verdict


@pytest.mark.parametrize("dtype", EVERY_DTYPE)
@pytest.mark.parametrize(("share", "passes"), [(0.5, True), (0.9, True), (1.1, False), (2.0, False), (100.0, False)])
def test_the_tolerance(dtype: torch.dtype, share: float, passes: bool) -> None:
    """An error of a known size: the expected values are exact in the dtype, so scaling them is the whole error."""
    expected = make_expected()
    exact = Expected(expected.rows, expected.out.to(dtype).float(), expected.lse)
    off = Expected(exact.rows, exact.out * (1 + share * TOLERANCE[dtype]), exact.lse)
    verdict = compare(off, exact.out.to(dtype), exact.lse)
    relative = share * TOLERANCE[dtype]
    assert verdict.rel_error == pytest.approx(relative / (1 + relative), rel=1e-3)
    assert (verdict.reason is None) == passes
    if not passes:
        assert f"{verdict.rel_error:.2g}" in verdict.reason and f"{TOLERANCE[dtype]:g}" in verdict.reason


def test_tolerances_are_those_that_are_published() -> None:
    assert TOLERANCE[torch.float16] == 1e-3 and TOLERANCE[torch.bfloat16] == 8e-3 and len(TOLERANCE) == 2


def test_one_wrong_head_fails() -> None:
    expected = make_expected()
    out, lse = output(expected, 8)
    out[1, 2] = out[1, 1]
    assert "relative error" in compare(expected, out, lse).reason


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("row", [0, 3, 7])  # 3 is not checked against the reference
def test_an_output_left_unwritten_fails_in_any_row(row: int, bad: float) -> None:
    expected = make_expected(8, rows=[0, 7])
    out, lse = output(expected, 8)
    assert compare(expected, out, lse).reason is None
    out[1, 2, row, 63] = bad
    assert "not finite everywhere" in compare(expected, out, lse).reason


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("row", [0, 3, 7])
def test_a_log_sum_exp_left_unwritten_fails_in_any_row(row: int, bad: float) -> None:
    expected = make_expected(8, rows=[0, 7])
    out, lse = output(expected, 8)
    lse[0, 1, row] = bad
    verdict = compare(expected, out, lse)
    assert "log-sum-exp is not finite" in verdict.reason
    assert verdict.rel_error < 1e-3  # the output's own error stays what it is


@pytest.mark.parametrize("at", [0.0, 0.5, -0.9, 11.0, -300.0])
@pytest.mark.parametrize(("share", "passes"), [(0.9, True), (-0.9, True), (1.1, False), (-1.1, False)])
def test_a_wrong_log_sum_exp_fails(at: float, share: float, passes: bool) -> None:
    """Absolute below 1, relative above."""
    expected = make_expected()
    expected.lse[:] = at
    out, lse = output(expected, 8)
    lse[1, 0, 7] += share * LSE_TOLERANCE * max(1.0, abs(at))
    verdict = compare(expected, out, lse)
    assert (verdict.reason is None) == passes
    assert passes or "log-sum-exp off by" in verdict.reason


def test_a_log_sum_exp_in_base_2_fails() -> None:
    expected = make_expected()
    out, lse = output(expected, 8)
    assert compare(expected, out, lse / math.log(2)).reason is not None


def test_zeros_in_place_of_an_output_fail() -> None:
    expected = make_expected()
    out, lse = output(expected, 8)
    verdict = compare(expected, torch.zeros_like(out), lse)
    assert verdict.rel_error == pytest.approx(1.0) and verdict.reason is not None


def test_an_expected_output_of_zeros() -> None:
    expected = make_expected()
    zeros = Expected(expected.rows, torch.zeros_like(expected.out), expected.lse)
    out, lse = output(zeros, 8)
    assert compare(zeros, out, lse).reason is None
    out[0, 0, 0, 0] = 1e-3
    assert compare(zeros, out, lse).reason is not None


@pytest.mark.parametrize("size", [1e18, 1e22, 3e38])
def test_values_whose_squares_overflow_are_compared_all_the_same(size: float) -> None:
    expected = make_expected()
    large = Expected(expected.rows, expected.out / expected.out.abs().max() * size, expected.lse)
    out, lse = output(large, 8, torch.bfloat16)
    verdict = compare(large, out, lse)
    assert verdict.reason is None and 0 < verdict.rel_error < TOLERANCE[torch.bfloat16]
    assert compare(large, 1.1 * out, lse).rel_error == pytest.approx(0.1, rel=0.1)


# ---- sample_rows -------------------------------------------------------------------------------------------
@settings(max_examples=200, deadline=None)
@given(q_len=st.integers(1, 300) | st.integers(1, 1 << 20), seed=st.integers(0, 999))
def test_sampled_rows(q_len: int, seed: int) -> None:
    rows = sample_rows(q_len, seed).tolist()
    assert rows == sorted(set(rows)) and all(0 <= row < q_len for row in rows)
    assert rows[0] == 0 and rows[-1] == q_len - 1
    assert len(rows) <= SAMPLED_ROWS
    if q_len <= SAMPLED_ROWS:
        assert rows == list(range(q_len))
    assert sample_rows(q_len, seed).tolist() == rows


def test_long_prefills_are_checked_on_both_sides_of_block_edges() -> None:
    rows = set(sample_rows(8192, 0).tolist())
    assert len(rows) > SAMPLED_ROWS // 2
    assert sum(row % 64 == 0 and row - 1 in rows for row in rows) >= SAMPLED_ROWS // 8
    assert rows != set(sample_rows(8192, 1).tolist())


# ---- expect ------------------------------------------------------------------------------------------------
def make_inputs(q_len: int, seq: int = 90) -> Inputs:
    random = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random).half()

    return Inputs(normal(2, 6, q_len, 64), normal(2, 2, seq, 64), normal(2, 2, seq, 64), "gaussian")


def attend(q: Tensor, k: Tensor, v: Tensor, seen: int) -> tuple[Tensor, float]:
    """One query over the first tokens, in fp64."""
    scores = k[:seen].double() @ q.double() / math.sqrt(len(q))
    weights = scores.exp()
    return weights @ v[:seen].double() / weights.sum(), float(weights.sum().log())


@pytest.mark.parametrize("q_len", [1, 5, 80])
def test_expected_of_pruned_heads(q_len: int) -> None:
    """Each (batch, kv head) is asked for once, and every query head of its group sees what came back."""
    inputs = make_inputs(q_len)
    asked: list[tuple[int, int]] = []

    def pruned(batch: int, kv_head: int) -> tuple[Tensor, Tensor]:
        asked.append((batch, kv_head))
        scale = 1 + batch + 2 * kv_head
        return inputs.k[batch, kv_head] / scale, inputs.v[batch, kv_head] * scale

    expected = expect(inputs, pruned, seed=3)
    assert asked == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert expected.rows.tolist() == sample_rows(q_len, 3).tolist()
    assert expected.out.dtype == expected.lse.dtype == torch.float32
    for b in range(2):
        for h in range(6):
            scale = 1 + b + 2 * (h // 3)
            k, v = inputs.k[b, h // 3] / scale, inputs.v[b, h // 3] * scale
            for at, row in enumerate(expected.rows.tolist()):
                out, lse = attend(inputs.q[b, h, row], k, v, 90 - q_len + row + 1)
                assert torch.allclose(expected.out[b, h, at].double(), out, rtol=1e-4, atol=1e-5)
                assert float(expected.lse[b, h, at]) == pytest.approx(lse, rel=1e-5, abs=1e-5)


def test_expected_of_the_inputs_themselves() -> None:
    inputs = make_inputs(4)
    same = expect(inputs, lambda batch, head: None, seed=0)
    given_back = expect(inputs, lambda batch, head: (inputs.k[batch, head], inputs.v[batch, head]), seed=0)
    assert torch.equal(same.out, given_back.out) and torch.equal(same.lse, given_back.lse)
    halved = expect(inputs, lambda batch, head: (inputs.k[batch, head], inputs.v[batch, head] / 2), seed=0)
    assert torch.allclose(halved.out, same.out / 2, rtol=1e-3)


# ---- refuse_overflow ---------------------------------------------------------------------------------------
def large_inputs(q_len: int, scale: float, row: int | None = None) -> Inputs:
    """bf16 inputs with q and k ``scale`` times as large, q in one row only if it is given."""
    inputs = make_inputs(q_len)
    q, k, v = inputs.q.bfloat16(), inputs.k.bfloat16() * scale, inputs.v.bfloat16()
    q[:, :, slice(None) if row is None else slice(row, row + 1)] *= scale
    return Inputs(q, k, v, "gaussian")


def poisoned(inputs: Inputs, row: int | None = None) -> tuple[Tensor, Tensor]:
    out, lse = torch.zeros_like(inputs.q), torch.zeros(inputs.q.shape[:3])
    out[:, :, slice(None) if row is None else row] = math.nan
    return out, lse


@pytest.mark.parametrize("of_inputs", [True, False])
def test_tensors_that_overflow_are_to_blame(of_inputs: bool) -> None:
    inputs = large_inputs(4, 1e20)
    pruned = (lambda b, h: None) if of_inputs else (lambda b, h: (inputs.k[b, h], inputs.v[b, h]))
    expected = expect(inputs, pruned, seed=0)
    out, lse = poisoned(inputs)
    assert compare(expected, out, lse).reason is not None
    said = r"^q k\^T overflows fp32 \(\|q\| up to \S+e\+20, \|k\| up to \S+e\+20\), so that no .*: scale q or k down"
    with pytest.raises(UnsupportedError, match=said):
        refuse_overflow(inputs, pruned, expected, out, lse)
    # Nor can a method that gives finite numbers there be right.
    with pytest.raises(UnsupportedError, match="overflows fp32"):
        refuse_overflow(inputs, pruned, expected, torch.zeros_like(out), lse)


def test_an_overflow_in_a_row_that_is_not_checked() -> None:
    q_len = 80
    rows = sample_rows(q_len, 0).tolist()
    row = next(row for row in range(q_len) if row not in rows)
    inputs = large_inputs(q_len, 1e20, row)
    inputs.k[:] /= 1e20 / 3e18  # so that only this row's scores overflow
    expected = expect(inputs, lambda b, h: None, seed=0)
    assert torch.isfinite(expected.out).all()
    with pytest.raises(UnsupportedError, match="overflows fp32"):
        refuse_overflow(inputs, lambda b, h: None, expected, *poisoned(inputs, row))


@pytest.mark.parametrize("row", [0, 1, None])
def test_a_method_that_is_to_blame_is_not_excused(row: int | None) -> None:
    inputs = large_inputs(80, 1e9)
    expected = expect(inputs, lambda b, h: None, seed=0)
    out, lse = poisoned(inputs, row)
    refuse_overflow(inputs, lambda b, h: None, expected, out, lse)
    refuse_overflow(inputs, lambda b, h: None, expected, out, None)
    refuse_overflow(inputs, lambda b, h: None, expected, torch.zeros_like(out), lse)
