"""How a sequence is dealt over ranks, and that a shard's cache holds the very blocks of the whole one's."""

from __future__ import annotations

import pytest
import torch

from hsbench import compress
from hsbench.cache.prune import BLOCK, plan_blocks
from hsbench.distributed.shards import shards_of
from hsbench.errors import UsageError
from hsbench.problem.synthetic import STRETCH, make_inputs
from hsbench.problem.workload import make_workload


@pytest.mark.parametrize("seq", [64, 65, 300, 1024, 4 << 20])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7])
def test_shards_are_runs_of_whole_blocks(seq: int, ranks: int) -> None:
    blocks = -(-seq // BLOCK)
    if ranks > blocks:
        with pytest.raises(UsageError, match=f"give at most {blocks}"):
            shards_of(seq, ranks)
        return
    shards = shards_of(seq, ranks)
    assert [shard.first for shard in shards] == [0, *(shard.last for shard in shards[:-1])]
    assert shards[-1].last == seq and all(shard.first % BLOCK == 0 for shard in shards)
    held = [-(-shard.tokens // BLOCK) for shard in shards]
    assert sum(held) == blocks and max(held) - min(held) <= 1
    assert [shard.ahead for shard in shards] == [seq - shard.last for shard in shards]


@pytest.mark.parametrize(("sink", "local"), [(0, 0), (1, 1), (64, 64), (500, 300), (0, 2000), (2000, 0)])
def test_the_same_blocks_are_eligible_as_in_one_cache(sink: int, local: int) -> None:
    seq = 1500
    whole = plan_blocks(seq, 0.5, sink=sink, local=local)
    eligible = [whole.first <= block < whole.last for block in range(whole.blocks)]
    for ranks in (2, 3, 5):
        found: list[bool] = []
        for shard in shards_of(seq, ranks):
            plan = plan_blocks(shard.tokens, 0.5, sink=shard.sink(sink), local=shard.local(local))
            found += [plan.first <= block < plan.last for block in range(plan.blocks)]
        assert found == eligible


@pytest.mark.parametrize("pruner", ["magnitude", "mirror"])
@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_what_is_stored_is_what_one_cache_stores(sparsity: float, pruner: str) -> None:
    torch.manual_seed(0)
    k, v = (torch.randn(1, 2, 700, 64).half() for _ in range(2))
    sink, local = 100, 130
    whole = compress(k, v, sparsity, sink=sink, local=local, pruner=pruner).unpack()
    parts = []
    for shard in shards_of(700, 3):
        own = slice(shard.first, shard.last)
        kv = compress(
            k[:, :, own], v[:, :, own], sparsity, sink=shard.sink(sink), local=shard.local(local), pruner=pruner
        )
        parts.append(kv.unpack())
    for name, whole_one, of_parts in zip("kv", whole, zip(*parts, strict=True), strict=True):
        assert torch.equal(torch.cat(of_parts, 2), whole_one), name


def test_between_a_head_has_less_than_ranks_blocks_more() -> None:
    for seq in (640, 1000, 5000):
        for sparsity in (0.01, 0.125, 0.25, 0.49):
            whole = plan_blocks(seq, sparsity).sparse
            for ranks in (2, 3, 4):
                parts = sum(plan_blocks(shard.tokens, sparsity).sparse for shard in shards_of(seq, ranks))
                assert whole <= parts <= whole + ranks - 1


@pytest.mark.parametrize(
    "tokens", [slice(0, 64), slice(64, 5000), slice(STRETCH - 64, STRETCH + 128), slice(20032, None)]
)
@pytest.mark.parametrize("tensors", ["gaussian", "outliers"])
def test_a_rank_makes_its_own_tokens_alone(tokens: slice, tensors: str) -> None:
    workload = make_workload("decode", q_heads=2, kv_heads=1, head_dim=64, seq=20100, tensors=tensors, seed=3)
    whole, part = make_inputs(workload, "cpu"), make_inputs(workload, "cpu", tokens)
    assert torch.equal(part.q, whole.q)
    assert torch.equal(part.k, whole.k[:, :, tokens]) and torch.equal(part.v, whole.v[:, :, tokens])
    assert part.ahead == workload.seq - tokens.indices(workload.seq)[1]
