"""The kernel that combines what ranks computed, against torch's operations in fp32."""

from __future__ import annotations

import math

import pytest
import torch

from hsbench.attention.combine import KernelCombination, combination, combine
from hsbench.distributed.gathered import Message

pytestmark = pytest.mark.gpu

Tensor = torch.Tensor


def parts(ranks: int, heads: int, queries: int, head_dim: int, dtype: torch.dtype) -> Message:
    """Of ranks, with some that have no tokens for some query, and NaN in no place."""
    like = torch.empty(1, heads, queries, head_dim, dtype=dtype, device="cuda")
    message = Message(like, ranks)
    message.outs.normal_()
    message.lses.normal_(std=20.0)
    lacking = torch.rand_like(message.lses) < 0.3
    message.lses[lacking] = -math.inf
    message.outs[lacking] = 0.0
    return message


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("ranks", [1, 2, 3, 8, 9, 17])
def test_as_torch_combines(ranks: int, head_dim: int, dtype: torch.dtype) -> None:
    torch.manual_seed(ranks)
    message = parts(ranks, heads=7, queries=3, head_dim=head_dim, dtype=dtype)
    found = combination(message.outs, message.lses, dtype)
    assert isinstance(found, KernelCombination)
    found.out.fill_(math.nan)
    found.lse.fill_(math.nan)
    found.run()
    out, lse = combine(message.outs.float(), message.lses)
    torch.testing.assert_close(found.lse, lse, rtol=1e-6, atol=1e-6)
    assert (found.out.float() - out).abs().max() <= torch.finfo(dtype).eps * out.abs().max()
    assert not found.out[lse == -math.inf].any()


@pytest.mark.parametrize("name", ["outs", "lses"])
def test_what_a_rank_did_not_write_is_not_hidden(name: str) -> None:
    message = parts(3, heads=2, queries=1, head_dim=64, dtype=torch.float16)
    getattr(message, name)[1] = math.nan
    message.lses[0] = 0.0
    if name == "outs":
        message.lses[1] = 0.0
    out, _ = combine(message.outs, message.lses, torch.float16)
    assert out.isnan().all()


def test_other_types_are_combined_by_torch() -> None:
    message = parts(2, heads=2, queries=1, head_dim=64, dtype=torch.float16)
    assert not isinstance(combination(message.outs, message.lses, torch.float32), KernelCombination)
