"""Attention over parts, combined, is attention over all of it."""

from __future__ import annotations

import math

import pytest
import torch

from hsbench.attention.combine import TorchCombination, combination, combine
from hsbench.attention.reference import attention

Tensor = torch.Tensor


def parts_of(q: Tensor, k: Tensor, v: Tensor, cuts: list[int]) -> tuple[Tensor, Tensor]:
    """Each part's fp32 out and log-sum-exp; an empty part has what a rank without tokens gives."""
    parts = []
    for first, last in zip(cuts, cuts[1:], strict=False):
        empty = torch.zeros_like(q), torch.full(q.shape[:-1], -math.inf)
        parts.append(empty if first == last else attention(q, k[:, :, first:last], v[:, :, first:last]))
    outs, lses = zip(*parts, strict=True)
    return torch.stack(outs), torch.stack(lses)


@pytest.mark.parametrize("cuts", [[0, 300], [0, 64, 300], [0, 64, 64, 128, 300], [0, 0, 100, 300], [0, 299, 300, 300]])
def test_parts_are_the_whole(cuts: list[int]) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 1, 64), torch.randn(2, 2, 300, 64), torch.randn(2, 2, 300, 64)
    out, lse = combine(*parts_of(q, k, v, cuts))
    right, right_lse = attention(q, k, v)
    assert (out - right).norm() <= 1e-6 * right.norm()
    assert (lse - right_lse).abs().max() <= 1e-6 * right_lse.abs().max()


def test_nothing_anywhere_is_nothing() -> None:
    out, lse = combine(torch.zeros(3, 1, 2, 1, 64), torch.full((3, 1, 2, 1), -math.inf), torch.float16)
    assert out.dtype == torch.float16 and not out.any() and (lse == -math.inf).all()


def test_scores_of_any_size_do_not_overflow() -> None:
    outs, lses = torch.ones(2, 1, 1, 1, 64), torch.tensor([3e4, -3e4]).view(2, 1, 1, 1)
    outs[1] = 5.0
    out, lse = combine(outs, lses)
    assert (out == 1).all() and float(lse) == 3e4


@pytest.mark.parametrize("name", ["out", "lse"])
def test_what_a_part_did_not_write_is_not_hidden(name: str) -> None:
    outs, lses = torch.zeros(2, 1, 1, 1, 64), torch.zeros(2, 1, 1, 1)
    (outs if name == "out" else lses)[1] = float("nan")
    out, lse = combine(outs, lses)
    assert out.isnan().any() and (name == "out" or lse.isnan().any())


@pytest.mark.parametrize("given", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_out_is_rounded_once_from_fp32(given: torch.dtype, parts: int) -> None:
    torch.manual_seed(1)
    outs, lses = torch.randn(parts, 2, 8, 3, 64).to(given), torch.randn(parts, 2, 8, 3)
    out, lse = combine(outs.float(), lses)
    rounded, same = combine(outs, lses, torch.bfloat16)
    assert torch.equal(rounded, out.bfloat16()) and torch.equal(same, lse)
    seeing = TorchCombination(outs, lses, torch.bfloat16, may_lack=False)
    seeing.run()
    assert torch.equal(seeing.out, rounded) and torch.equal(seeing.lse, same)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_renewed_results_leave_those_before(device: str) -> None:
    torch.manual_seed(2)
    outs, lses = torch.randn(2, 1, 4, 1, 64, device=device).half(), torch.zeros(2, 1, 4, 1, device=device)
    found = combination(outs, lses, torch.float16)
    found.run()
    before, kept = (found.out, found.lse), (found.out.clone(), found.lse.clone())
    outs.neg_()
    lses.add_(1.0)
    found.renew()
    found.run()
    assert all(torch.equal(a, b) for a, b in zip(before, kept, strict=True))
    assert torch.equal(found.out, -kept[0])
    torch.testing.assert_close(found.lse, kept[1] + 1.0)
