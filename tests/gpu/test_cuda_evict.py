"""CUDA prefill, each of its kernels, and decode, where blocks are evicted, against attention in fp64 on the others."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import pytest
import torch

import evict_cases
import hsbench
from cuda_calls import DEVICE, Call, assert_repeats
from evict_cases import DROPS
from hsbench.attention import calls
from hsbench.attention.reference import attention
from hsbench.cache.evict import evict_blocks
from hsbench.cache.fitted import compress_kv
from hsbench.cache.pruner import CENTERED
from hsbench.kernels import library
from kernel_cases import assert_close
from test_cuda_prefill import DTYPES, HOSTILE

pytestmark = pytest.mark.gpu

LENGTHS = ((1, 300), (65, 1088), (700, 700))  # q_len, seq
MIXES = itertools.cycle(((0.0, 0.0), (0.5, 0.5), (0.3, 0.15)))
"""Key and value sparsity, the next for each test: an odd number, so that no kernel meets but some of them."""

evict_case = partial(evict_cases.evict_case, device=DEVICE)


def check(case: Any, kernel: str, group: int | None = None, message: str = "") -> None:
    call = Call("prefill", case.q[:, :, :group], case.operands, path=library.PATHS[kernel], **case.fields)
    case.assert_close(call.run(), message=f"{kernel}, {message}")
    call.check_bounds()


@pytest.mark.parametrize("drop", DROPS)
@pytest.mark.parametrize(("q_len", "seq"), LENGTHS)
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_evicted_takes_no_part(
    dtype: torch.dtype, head_dim: int, q_len: int, seq: int, drop: str, kernel: str
) -> None:
    mix = next(MIXES)
    case = evict_case(dtype, head_dim, seq, drop, q_len=q_len, batch=1, group=3, mix=mix)
    if case is None:
        pytest.skip("nothing would be left")
    check(case, kernel, message=f"mix {mix}")
    if q_len == 1:
        call = Call("decode", case.q, case.operands)
        assert_close(call.run(), case.out, case.lse)


@pytest.mark.parametrize("what", HOSTILE)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_hostile_scores(dtype: torch.dtype, what: str, kernel: str) -> None:
    """Beside queries that see nothing, which share tiles with those that do."""
    mix = next(MIXES)
    for drop, head_dim in (("the first", 128), ("half, at random", 64)):
        case = evict_case(dtype, head_dim, 400, drop, q_len=400, batch=1, group=2, mix=mix, change=HOSTILE[what])
        assert case is not None
        check(case, kernel, message=f"head_dim {head_dim}, mix {mix}, {drop}")


def test_runs_repeat_bit_for_bit(kernel: str) -> None:
    case = evict_case(torch.float16, 128, 1005, "half, at random", q_len=1005, kv_heads=4, mix=(0.25, 0.4))
    assert case is not None
    assert_repeats(Call("prefill", case.q, case.operands, path=library.PATHS[kernel], **case.fields), times=20)


@pytest.mark.parametrize("evict", [0.3, 1.0])
def test_long_caches(evict: float, kernel: str, seq: int = 20_000) -> None:
    """As hsbench.compress packs them, and as many pages as take two rounds to search."""
    torch.manual_seed(0)
    k, v = (torch.randn(1, 2, seq, 64, device=DEVICE).half() + 1 for _ in "kv")
    q = torch.randn(1, 4, 500, 64, device=DEVICE).half()
    kv = compress_kv(k, v, key_sparsity=0.2, value_sparsity=0.3, sink=100, local=200, pruner=CENTERED, evict=evict)
    call = calls.prefill_call(q, kv, kernel)
    call.run()
    right = attention(q, *kv.unpack(), tokens=kv.tokens, seq=seq)
    assert_close((call.out, call.lse), *(x.double() for x in right))
    out, lse = hsbench.decode(q[:, :, -1:], kv)
    assert_close((out, lse), *(x[:, :, -1:].double() for x in right))


def test_nothing_left_gives_zero() -> None:
    k, v = (torch.randn(1, 2, 256, 64, device=DEVICE).half() for _ in "kv")
    kv = hsbench.compress(k, v, evict=1.0)
    for out, lse in (hsbench.decode(k[:, :, :1], kv), hsbench.prefill(k, kv)):
        assert not out.any() and (lse == float("-inf")).all()


@pytest.mark.parametrize("queries", [None, 70])
def test_the_same_blocks_as_on_the_cpu(queries: int | None) -> None:
    torch.manual_seed(0)
    k = torch.randn(2, 3, 4000, 64).bfloat16()
    q = None if queries is None else torch.randn(2, 6, queries, 64).bfloat16()
    there = evict_blocks(k.cuda(), 0.4, sink=64, queries=None if q is None else q.cuda())
    assert torch.equal(there.position.cpu(), evict_blocks(k, 0.4, sink=64, queries=q).position)
