"""The ranks' parts of a cache that grows, one beside the other in one process, on every device: together they store
what one cache does, and a CUDA graph of a step goes on from shard to shard."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import hsbench
from appending import BATCH, CAPACITY, HEAD_DIM, KV_HEADS, tokens
from growing_cases import DEVICES, that_grows
from hsbench.attention import growing
from hsbench.attention.combine import combine
from hsbench.distributed.shard_kv import ShardKV
from hsbench.distributed.shards import Shard, shards_of

pytestmark = pytest.mark.usefixtures("one_torch_thread")

RANKS = 3


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return that_grows(request.param)


class Part(growing.Cache):
    """One rank's, whose decode is of its own tokens."""

    def __init__(self, shard: Shard, *sizes: Any, **options: Any) -> None:
        self.shard = shard
        super().__init__(*sizes, **options)

    def _made(self, *sizes: Any, **how: Any) -> ShardKV:
        self.shard_kv = ShardKV(*sizes, shard=self.shard, group=None, **how)
        return self.shard_kv

    @property
    def lengths(self) -> torch.Tensor:
        return self.shard_kv.lengths_of_all


def make(device: str, **options: Any) -> tuple[list[Part], hsbench.Cache]:
    sizes = BATCH, KV_HEADS, HEAD_DIM, CAPACITY, torch.float16, device
    return [Part(shard, *sizes, **options) for shard in shards_of(CAPACITY, RANKS)], hsbench.Cache(*sizes, **options)


def assert_same(parts: list[Part], whole: hsbench.Cache, q: torch.Tensor) -> None:
    stored = [part.unpack() for part in parts]
    for sequence, length in enumerate(whole.lengths.tolist()):
        assert [int(part.lengths[sequence]) for part in parts] == [length] * RANKS
        kept = [int(part.shard_kv.lengths[sequence]) for part in parts]
        assert kept == [min(max(length - part.shard.first, 0), part.shard.tokens) for part in parts]
        for at, expected in enumerate(whole.unpack()):
            got = torch.cat([own[at][sequence, :, :n] for own, n in zip(stored, kept, strict=True)], 1)
            assert torch.equal(got, expected[sequence, :, :length])
    out, lse = combine(*(torch.stack(x) for x in zip(*(part.decode(q) for part in parts), strict=True)))
    right, right_lse = whole.decode(q)
    assert (out - right).norm() <= 1e-3 * right.float().norm()
    torch.testing.assert_close(lse, right_lse, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("elements", ["16bit", "fp8"])
def test_a_step_goes_on_from_shard_to_shard(device: str, elements: str) -> None:
    parts, whole = make(device, sparsity=0.5, local=0, elements=elements)
    q, k, v = (x.to(device) for x in tokens(0, 100))
    for cache in (*parts, whole):
        cache.append(k, v)
    k, v = k[:, :, :1].contiguous(), v[:, :, :1].contiguous()
    graph = None
    if device == "cuda":
        for part in parts:
            part.decode(q)  # workspaces are made outside
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for part in parts:
                part.append(k, v)
                part.decode(q)
    for at in range(1, 180):
        for to, x in zip((q, k, v), tokens(at, 1), strict=True):
            to.copy_(x)
        if graph is not None:
            graph.replay()
        else:
            for part in parts:
                part.append(k, v)
        whole.append(k, v)
        if at in (28, 29, 156, 157, 179):
            assert_same(parts, whole, q)


@pytest.mark.parametrize("key_sparsity", [0.0, 0.5])
def test_chunks_of_ragged_sequences_are_cut(device: str, key_sparsity: float) -> None:
    parts, whole = make(device, key_sparsity=key_sparsity, local=0)
    for at, (n, counts) in enumerate(
        [(140, (1, 140)), (200, (200, 5)), (100, (0, 100)), (60, (60, 55)), (39, (39, 0))]
    ):
        q, k, v = (x.to(device) for x in tokens(at, n))
        lengths = torch.tensor(counts, dtype=torch.int32, device=device)
        for cache in (*parts, whole):
            cache.append(k, v, lengths=lengths)
        assert_same(parts, whole, q)
    assert whole.lengths.tolist() == [300, 300]
