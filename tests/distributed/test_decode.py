"""``hsbench.distributed.decode`` in a process group of the caller's: gloo, 4 ranks, and pairs of them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import hsbench
from decoding import PRUNER, part, problem
from hsbench.attention.combine import combine
from torchrun import found_by_ranks

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_torch_thread")]

RANKS = 4


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank got."""
    return found_by_ranks("decoding.py", RANKS, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("ranks", [4, 2, 1])
def test_all_ranks_have_the_same_bits(found: list[dict[str, Any]], ranks: int) -> None:
    out, lse = found[0][str(ranks)]
    assert out.dtype == torch.float16 and lse.dtype == torch.float32
    for other in found[1:]:
        assert torch.equal(out, other[str(ranks)][0]) and torch.equal(lse, other[str(ranks)][1])


@pytest.mark.parametrize("ranks", [4, 2])
def test_it_is_the_fp32_combination_of_what_the_ranks_give(found: list[dict[str, Any]], ranks: int) -> None:
    q, _, _ = problem()
    outs, lses = zip(*(hsbench.decode(q, part(rank, ranks)) for rank in range(ranks)), strict=True)
    right, right_lse = combine(torch.stack(outs), torch.stack(lses))
    out, lse = found[0][str(ranks)]
    assert torch.equal(out, right.half())
    assert (lse - right_lse).abs().max() <= 1e-6 * right_lse.abs().max()


@pytest.mark.parametrize("ranks", [4, 2])
def test_it_is_one_rank_s_but_for_rounding(found: list[dict[str, Any]], ranks: int) -> None:
    q, k, v = problem()
    right, right_lse = hsbench.decode(q, hsbench.compress(k, v, pruner=PRUNER))
    out, lse = found[0][str(ranks)]
    assert (out.float() - right.float()).norm() <= 2**-10 * right.float().norm()  # two roundings to fp16
    assert (lse - right_lse).abs().max() <= 1e-5


def test_a_rank_without_tokens_changes_nothing(found: list[dict[str, Any]]) -> None:
    q, k, v = problem()
    right, right_lse = hsbench.decode(q, hsbench.compress(k, v, pruner=PRUNER))
    out, lse = found[0]["1"]
    assert torch.equal(out, right) and torch.equal(lse, right_lse)


def test_no_tokens_anywhere_is_nothing(found: list[dict[str, Any]]) -> None:
    for rank in found:
        out, lse = rank["0"]
        assert not out.any() and (lse == -math.inf).all()


def test_it_repeats_itself(found: list[dict[str, Any]]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(found[0]["4"], found[0]["again"], strict=True))


def test_without_a_process_group_it_says_what_to_call(found: list[dict[str, Any]]) -> None:
    assert "torch.distributed.init_process_group()" in found[0]["without a group"]
