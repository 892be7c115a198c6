"""Eviction: which blocks are dropped, what is left, and what a cache of it gives."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import hsbench
from hsbench.attention.reference import attention
from hsbench.cache.cpu_layout import PAGES
from hsbench.cache.evict import Eviction, evict_blocks, evicted_blocks, plan_eviction, same_memory
from hsbench.cache.fit import pooled_attention
from hsbench.cache.fitted import compress_kv
from hsbench.cache.paged import page_bytes
from hsbench.cache.prune import plan_blocks
from hsbench.cache.pruner import ATTENTIVE, MAGNITUDE, PRUNERS
from hsbench.errors import NonFiniteError, UsageError
from hsbench.kernels import library
from hsbench.problem.elements import FP16

needs_library = pytest.mark.skipif(library.why_missing("cpu") is not None, reason=str(library.why_missing("cpu")))


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float16) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def dropped(eviction: Eviction) -> list[list[int]]:
    return [row.nonzero().flatten().tolist() for row in eviction.dropped.flatten(0, 1)]


# ---- How many -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("share", "eligible", "evicted"), [(0, 9, 0), (1, 9, 9), (0.5, 9, 5), (0.2, 15, 3), (0.7, 0, 0)]
)
def test_a_part_of_a_block_counts_as_one(share: float, eligible: int, evicted: int) -> None:
    assert evicted_blocks(share, eligible) == evicted


@pytest.mark.parametrize(("seq", "sink", "local"), [(640, 0, 0), (641, 0, 0), (700, 64, 130), (700, 65, 0), (63, 0, 0)])
def test_sink_local_and_tail_stay(seq: int, sink: int, local: int) -> None:
    eviction = evict_blocks(normal(1, 2, seq, 64), 1.0, sink=sink, local=local)
    plan = plan_blocks(seq, 0.5, sink=sink, local=local)
    assert dropped(eviction) == 2 * [list(range(plan.first, plan.last))]
    assert eviction.evicted == eviction.eligible == plan_eviction(seq, 1.0, sink=sink, local=local)
    assert eviction.achieved == (1.0 if plan.eligible else 0.0)
    # What is left is planned as a tensor of its length is.
    left = plan_blocks(eviction.length, 0.5, sink=sink, local=local)
    assert (left.first, left.eligible, left.blocks) == (plan.first, 0, plan.blocks - plan.eligible)


# ---- Which ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_the_longest_keys_go(share: float) -> None:
    k = normal(2, 3, 700, 64)
    eviction = evict_blocks(k, share, sink=64)
    assert eviction.rule == "key norm"
    for head, gone in enumerate(dropped(eviction)):
        x = k.flatten(0, 1)[head].double()
        norms = {block: float(x[block * 64 : block * 64 + 64].norm(dim=-1).sum()) for block in range(1, 10)}
        assert gone == sorted(sorted(norms, key=lambda block: -norms[block])[: math.ceil(9 * share)])


@pytest.mark.parametrize("queries", [2, 64, 100])
def test_the_least_attended_go(queries: int) -> None:
    k, q = normal(2, 2, 700, 64), normal(2, 6, queries, 64, seed=1)
    eviction = evict_blocks(k, 0.5, queries=q)
    assert eviction.rule == "attention mass"
    mass = pooled_attention(q, k).flatten(0, 1)
    for head, gone in enumerate(dropped(eviction)):
        by_block = [float(mass[head, block * 64 : block * 64 + 64].sum()) for block in range(10)]
        assert gone == sorted(sorted(range(10), key=lambda block: by_block[block])[:5])


@pytest.mark.parametrize("queries", [None, 3])
def test_ties_take_the_lower_index(queries: int | None) -> None:
    q = None if queries is None else torch.zeros(1, 2, queries, 64, dtype=torch.float16)
    k = torch.ones(1, 2, 64 * 40, 64, dtype=torch.float16)
    # The last queries see the last block's last tokens less often: it is the least attended of all.
    found = dropped(evict_blocks(k, 0.4, local=64, queries=q))
    assert found == 2 * [list(range(evicted_blocks(0.4, 39)))]


def test_large_keys_are_told_apart() -> None:
    k = normal(1, 1, 192, 64, dtype=torch.bfloat16)
    k[:, :, 64:128] = 3e38
    assert dropped(evict_blocks(k, 0.3)) == [[1]]


def test_what_is_gone_stays_so() -> None:
    k, q = normal(1, 2, 1280, 64), normal(1, 4, 64, 64, seed=1)
    first = evict_blocks(k[:, :, :640], 0.5, queries=q)
    later = evict_blocks(k, 0.5, queries=normal(1, 4, 64, 64, seed=2), before=first.dropped)
    assert later.evicted == 10 and first.evicted == 5
    assert all(set(before) < set(after) for before, after in zip(dropped(first), dropped(later), strict=True))


def test_what_is_gone_draws_no_attention() -> None:
    q, k = normal(1, 2, 3, 64), normal(1, 2, 192, 64, seed=1)
    hidden = torch.zeros(1, 2, 192, dtype=torch.bool)
    hidden[..., 64:128] = True
    kept = torch.cat([k[:, :, :64], k[:, :, 128:]], 2)
    got = pooled_attention(q, k, hidden=hidden)
    assert not got[..., 64:128].any()
    torch.testing.assert_close(torch.cat([got[..., :64], got[..., 128:]], -1), pooled_attention(q, kept))


def test_only_held_tokens_are_attended() -> None:
    k, q = normal(1, 2, 704, 64), normal(1, 4, 64, 64, seed=1)
    held = evict_blocks(k, 0.5, local=64, queries=q, held=640)
    assert torch.equal(held.dropped[..., :10], evict_blocks(k[:, :, :640], 0.5, queries=q).dropped)


# ---- What is left ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seq", [640, 700])
def test_gathering(seq: int) -> None:
    x = normal(2, 3, seq, 64)
    eviction = evict_blocks(x, 0.4)
    left = eviction.gather(x)
    assert left.shape == (2, 3, seq - 64 * 4, 64) and left.is_contiguous()
    for b in range(2):
        for h in range(3):
            assert torch.equal(left[b, h], x[b, h][eviction.tokens[b, h]])
    assert torch.equal(eviction.gather(x, torch.full_like(left, math.nan)), left)


def test_same_memory() -> None:
    """Pages and map of one cache against the other's, to within a block and the list of what is left."""
    seq, dense, sparse = 64 * 1000, *page_bytes("cpu", 128, FP16)
    assert (dense, sparse) == tuple(page.nbytes(128, FP16) for page in PAGES.values())
    for key, value in ((0.5, 0.5), (0.5, 0.0), (0.25, 0.1), (0.0, 0.0)):
        left = 1000 - plan_eviction(seq, same_memory((2 * key, 2 * value), (dense, sparse)))
        pruned = [plan_blocks(seq, share) for share in (key, value)]
        other = sum(plan.dense * dense + plan.sparse * sparse for plan in pruned)
        assert 2 * left * dense <= other < 2 * (left + 1) * dense


# ---- A cache of it ------------------------------------------------------------------------------------------------
@needs_library
@pytest.mark.parametrize("pruner", [p for p in PRUNERS.values() if not p.needs_calibration], ids=str)
@pytest.mark.parametrize("evict", [0.3, 1.0])
def test_a_cache_is_of_what_is_left(evict: float, pruner: object) -> None:
    """Under every pruner: fitted to all, it prunes what is left."""
    seq = 700
    k, v, q = normal(1, 2, seq, 64) + 1, normal(1, 2, seq, 64, seed=1) - 1, normal(1, 4, 300, 64, seed=2)
    kv = hsbench.compress(k, v, 0.25, sink=64, local=100, evict=evict, pruner=pruner, queries=q)
    assert kv.eviction.rule == "attention mass" and kv.shape == (1, 2, seq, 64) and kv.length == seq
    assert kv.achieved_evict == kv.eviction.evicted / 8 and kv.memory()["position"] == kv.eviction.nbytes
    assert kv.nbytes == sum(kv.memory().values())
    left = seq - 64 * kv.eviction.evicted
    for x, got in zip((k, v), kv.unpack(), strict=True):
        assert got.shape == (1, 2, left, 64)
        sink = got[:, :, :64].float() - x[:, :, :64].float()
        assert sink.abs().max() < 2e-3, "dense blocks are as they were"
    for h in range(2):
        assert torch.equal(kv.unpack_head(0, h)[0], kv.unpack()[0][0, h])
        assert torch.equal(kv.tokens_of(0, h), kv.tokens[0, h])
    out, lse = hsbench.prefill(q, kv)
    right = attention(q, *kv.unpack(), tokens=kv.tokens, seq=seq)
    assert (out.float() - right[0]).norm() < 1e-3 * right[0].norm()
    torch.testing.assert_close(lse, right[1], rtol=1e-5, atol=1e-4)
    out, lse = hsbench.decode(q[:, :, -1:], kv)
    assert (out.float() - right[0][:, :, -1:]).norm() < 1e-3 * right[0][:, :, -1:].norm()


@needs_library
def test_no_share_is_no_eviction() -> None:
    k, v = normal(1, 1, 200, 64), normal(1, 1, 200, 64, seed=1)
    for kv in (hsbench.compress(k, v, evict=0.0), hsbench.compress(k, v, evict=0.5, sink=128, local=64)):
        assert kv.eviction is None and kv.tokens is None and kv.achieved_evict == 0 and "position" not in kv.memory()


@needs_library
def test_nothing_left_gives_zero() -> None:
    k = normal(1, 2, 256, 64)
    kv = hsbench.compress(k, k, evict=1.0)
    assert kv.k.shape[2] == 0 and [x.shape[2] for x in kv.unpack()] == [0, 0]
    for out, lse in (hsbench.decode(k[:, :, :1], kv), hsbench.prefill(k, kv)):
        assert not out.any() and (lse == -math.inf).all()


@needs_library
def test_queries_before_what_is_left_see_nothing() -> None:
    k = torch.ones(1, 1, 256, 64, dtype=torch.float16)  # ties: the first blocks go
    kv = hsbench.compress(k, k, 0.0, evict=0.5, pruner="magnitude")
    out, lse = hsbench.prefill(normal(1, 2, 256, 64), kv)
    assert not out[:, :, :128].any() and (lse[:, :, :128] == -math.inf).all()
    assert (out[:, :, 128:] == 1).all() and torch.isfinite(lse[:, :, 128:]).all()


@needs_library
def test_non_finite_is_refused_wherever_it_is() -> None:
    k, v = normal(1, 1, 256, 64), normal(1, 1, 256, 64, seed=1)
    k[0, 0, 70, 3] = 1000.0  # the block that goes
    v[0, 0, 70, 3] = math.nan
    assert dropped(evict_blocks(k, 0.25)) == [[1]]
    with pytest.raises(NonFiniteError, match=r"v is not finite at index \[0, 0, 70, 3\]"):
        hsbench.compress(k, v, evict=0.25)


@needs_library
def test_runs_repeat_and_follow_their_tensors() -> None:
    from hsbench.cache.fitted import KVCompressor

    k, v = normal(1, 2, 640, 64), normal(1, 2, 640, 64, seed=1)
    compressor = KVCompressor(k, v, key_sparsity=0.25, value_sparsity=0.25, evict=0.5)
    compressor.run()
    first = [x.clone() for x in compressor.kv.unpack()]
    k.copy_(k.flip(2)), v.copy_(v.flip(2))
    compressor.run()
    again = compress_kv(k, v, key_sparsity=0.25, value_sparsity=0.25, evict=0.5, pruner=MAGNITUDE)
    assert all(torch.equal(a, b) for a, b in zip(compressor.kv.unpack(), again.unpack(), strict=True))
    assert not torch.equal(compressor.kv.unpack()[0], first[0])


@needs_library
def test_weights_go_with_their_tokens() -> None:
    """What `attentive` weighs V by is of the tokens that are left."""
    k, v, q = normal(1, 2, 640, 64), normal(1, 2, 640, 64, seed=1), normal(1, 4, 64, 64, seed=2)
    kv = hsbench.compress(k, v, evict=0.5, pruner=ATTENTIVE, queries=q)
    whole = hsbench.compress(k, v, pruner=ATTENTIVE, queries=q)
    assert torch.equal(kv.value_fit.token_weights, whole.value_fit.token_weights.gather(-1, kv.tokens))


@pytest.mark.parametrize("evict", [-0.1, 1.1, math.nan, True, "half", None])
def test_a_share_is_checked(evict: object) -> None:
    k = normal(1, 1, 64, 64)
    with pytest.raises(UsageError, match="evict"):
        hsbench.compress(k, k, evict=evict)
