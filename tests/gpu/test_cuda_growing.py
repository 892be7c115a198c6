"""CUDA's side of a cache that lives: graphs, streams, and batches of any lengths."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from growing_cases import APART, Grown, make_cache
from hsbench.attention.growing import Cache
from hsbench.problem.elements import STORED, CacheElements

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("one_torch_thread")]

DEVICE = "cuda"
WINDOW = {"sink": 64, "local": 70}


def started(seed: int = 0, first: int = 200, **options: Any) -> Grown:
    grown = Grown(make_cache(DEVICE, **{**WINDOW, "capacity": 1400, **options}), seed=seed)
    grown.append(first)
    return grown


def contents(cache: Cache) -> list[Tensor]:
    """Of what there is, and the state."""
    kv = cache._kv
    return [cache.lengths, *cache.unpack(), kv.k.state, kv.v.state, kv.k.map, kv.v.map]


def assert_alike(one: Cache, other: Cache) -> None:
    for a, b in zip(contents(one), contents(other), strict=True):
        assert torch.equal(a, b)


# ---- Graphs and streams --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("elements", [*STORED.values(), APART[3]], ids=str)
def test_a_thousand_steps_of_one_graph(elements: CacheElements, batch: int) -> None:
    """Append and decode: both read the lengths as they run."""
    eager, replayed = (started(elements=elements, batch=batch).cache for _ in range(2))
    grown = Grown(make_cache(DEVICE, batch=batch), seed=5)
    k, v = grown.tokens(1000)
    q = grown.queries(1)
    now = [torch.empty_like(x[:, :, :1]) for x in (k, v)]

    def step(cache: Cache) -> tuple[Tensor, Tensor]:
        cache.append(*now)
        return cache.decode(q)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for x in now:
            x.zero_()
        step(started(elements=elements, batch=batch).cache)  # a capture loads no kernel
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        graphed = step(replayed)
    for at in range(1000):
        for x, of in zip(now, (k, v), strict=True):
            x.copy_(of[:, :, at : at + 1])
        graph.replay()
        expected = step(eager)
        if at % 50 == 0 or at > 990:
            assert all(torch.equal(a, b) for a, b in zip(graphed, expected, strict=True)), at
    assert_alike(eager, replayed)
    assert eager.lengths.tolist() == [1200] * batch


def test_two_streams() -> None:
    """Each has a cache of its own, and neither waits for the other."""
    caches = [started(seed=seed).cache for seed in (1, 2)]
    alone = [started(seed=seed).cache for seed in (1, 2)]
    grown = Grown(make_cache(DEVICE))
    tokens, q = [grown.tokens(1) for _ in range(150)], grown.queries(1)
    streams = [torch.cuda.Stream() for _ in caches]
    torch.cuda.synchronize()
    results: list[list[Tensor]] = [[], []]
    for k, v in tokens:
        for which, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                caches[which].append(k, v)
                results[which].append(caches[which].decode(q)[0])
    torch.cuda.synchronize()
    for which, cache in enumerate(alone):
        for (k, v), result in zip(tokens, results[which], strict=True):
            cache.append(k, v)
            assert torch.equal(cache.decode(q)[0], result)
        assert_alike(cache, caches[which])


# ---- Batches of any lengths ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("elements", [*STORED.values(), APART[3]], ids=str)
def test_ragged_batches(elements: CacheElements) -> None:
    """More sequences than a warp has lanes, some of no tokens, some of one block, next to long ones."""
    cache = make_cache(DEVICE, batch=70, kv_heads=2, capacity=1400, elements=elements, pruner="magnitude", **WINDOW)
    grown = Grown(cache)
    short = [0, 0, 0, 0, 130, 0] * 9
    lengths = [0, 1, 63, 64, 65, 1313, *short, *[0] * 8, 700, 0]
    k, v = grown.tokens(max(lengths))
    grown.cache.append(k, v, lengths=lengths)
    grown.lengths = lengths
    assert_decodes(grown, 1)
    grown.cache.append(k[:, :, :9], v[:, :, :9], lengths=[9 if length else 0 for length in lengths])
    grown.lengths = [length + 9 if length else 0 for length in lengths]
    assert_decodes(grown, 4)
    assert_decodes(grown, 16)


@pytest.mark.parametrize("batch", [1, 3])
def test_no_tokens_at_all(batch: int) -> None:
    grown = Grown(make_cache(DEVICE, batch=batch))
    assert_decodes(grown, 4)


@pytest.mark.parametrize("length", [1, 64, 65, 640, 3000])
def test_one_sequence_far_below_its_capacity(length: int) -> None:
    """Whose clusters were made for the capacity: some of their CTAs have no block."""
    grown = Grown(make_cache(DEVICE, batch=1, kv_heads=8, head_dim=128, capacity=130_000, **WINDOW))
    grown.append(length)
    grown.assert_attends()


def assert_decodes(grown: Grown, group: int) -> None:
    """Against each sequence by itself."""
    q = grown.queries(1, group)
    out, lse = grown.cache.decode(q)
    if not any(grown.lengths):
        assert not out.any() and bool((lse == -torch.inf).all())
        return
    k, v = grown.cache.unpack()
    heads = [x.float().repeat_interleave(group, 1) for x in (k, v)]
    scores = torch.einsum("bhqd,bhtd->bhqt", q.float(), heads[0]) / q.shape[-1] ** 0.5
    there = torch.arange(k.shape[2], device=DEVICE) < torch.tensor(grown.lengths, device=DEVICE).unsqueeze(1)
    scores = scores.masked_fill(~there[:, None, None, :], -torch.inf)
    right = torch.softmax(scores, -1).nan_to_num(0.0) @ heads[1]
    torch.testing.assert_close(lse, scores.logsumexp(-1), rtol=1e-3, atol=1e-3)
    for sequence, length in enumerate(grown.lengths):
        if not length:
            assert not out[sequence].any()
            continue
        error = (out[sequence].float() - right[sequence]).norm() / right[sequence].norm()
        assert error < 2e-3, f"sequence {sequence} of {length}: {error:.2e}"
