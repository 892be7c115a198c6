"""CUDA's side of a cache that lives: graphs, streams, and batches of any lengths."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from growing_cases import APART, Grown, make_cache, prefill_kernels
from hsbench.attention import calls
from hsbench.attention.growing import Cache
from hsbench.kernels import library
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


def test_chunks_by_one_graph(kernel: str) -> None:
    """Append and prefill, of as many tokens as the device says."""
    eager, replayed, other = (started(batch=3, chunk=100) for _ in range(3))
    (k, v), q = eager.tokens(100), eager.queries(100)
    counts = torch.zeros(3, dtype=torch.int32, device=DEVICE)

    def step(grown: Grown) -> tuple[Tensor, Tensor]:
        grown.cache.append(k, v, lengths=counts)
        call = calls.growing_prefill_call(q, *grown.tensors, grown.cache.lengths, kernel)
        return call.anew(q, q_lengths=counts)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step(other)  # a capture loads no kernel
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        graphed = step(replayed)
    for mine in ([100, 0, 1], [1, 1, 1], [64, 100, 0], [0, 0, 0], [97, 96, 95], [100, 24, 100], [0, 100, 25]):
        counts.copy_(torch.tensor(mine, dtype=torch.int32))
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(graphed, step(eager), strict=True)), mine
        eager.lengths = [length + count for length, count in zip(eager.lengths, mine, strict=True)]
        eager.assert_attends(100, mine, kernel=kernel)
    assert_alike(eager.cache, replayed.cache)
    assert eager.cache.lengths.tolist() == eager.lengths == [562, 521, 422]


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
    grown.assert_attends(group=1)
    grown.cache.append(k[:, :, :9], v[:, :, :9], lengths=[9 if length else 0 for length in lengths])
    grown.lengths = [length + 9 if length else 0 for length in lengths]
    grown.assert_attends()
    grown.assert_attends(group=16)
    for kernel in prefill_kernels(DEVICE, elements, "magnitude"):
        grown.assert_attends(9, [9 if length else 0 for length in lengths], kernel=kernel)


@pytest.mark.parametrize("elements", [*STORED.values(), APART[3]], ids=str)
@pytest.mark.parametrize("head_dim", [64, 128])
def test_ragged_batches_that_are_said_to_be_alike(elements: CacheElements, head_dim: int) -> None:
    """A cluster has a head, or several have, however long it is."""
    lengths = [700, 0, 1, 64, 65, 1313, 640, 3]
    how = {"kv_heads": 8, "capacity": 1400, "head_dim": head_dim, "elements": elements, "pruner": "magnitude"}
    grown = Grown(make_cache(DEVICE, batch=len(lengths), **how, **WINDOW))
    assert grown.cache._kv.are_alike
    grown.append(max(lengths), lengths)
    assert not grown.cache._kv.are_alike
    for group in (1, 4, 16):
        grown.assert_attends(group=group, kernel="decode of alike")


def test_what_tells_that_sequences_are_alike() -> None:
    grown = started(batch=3)
    kv = grown.cache._kv
    assert kv.are_alike
    grown.append(1)
    grown.append(3, [3, 2, 1])  # 1 % apart
    assert kv.are_alike
    grown.append(9, [9, 0, 0])
    assert not kv.are_alike
    grown.append(9, [0, 8, 9])
    assert kv.are_alike
    counts = torch.ones(3, dtype=torch.int32, device=DEVICE)
    grown.cache.append(*grown.tokens(1), lengths=counts)
    assert not kv.are_alike, "the device alone knows"
    grown.cache.reset()
    assert kv.are_alike


@pytest.mark.parametrize("batch", [1, 3])
def test_no_tokens_at_all(batch: int) -> None:
    grown = Grown(make_cache(DEVICE, batch=batch))
    grown.assert_attends()


@pytest.mark.parametrize("length", [1, 64, 65, 640, 3000])
def test_one_sequence_far_below_its_capacity(length: int) -> None:
    """Whose clusters were made for the capacity: some of their CTAs have no block."""
    grown = Grown(make_cache(DEVICE, batch=1, kv_heads=8, head_dim=128, capacity=130_000, **WINDOW))
    grown.append(length)
    grown.assert_attends()


@pytest.mark.parametrize(("capacity", "faster"), [(1024, "sm80"), (32_768, "sm90")])
def test_few_queries_go_by_the_faster_kernel(capacity: int, faster: str) -> None:
    """By what the capacity says, for nobody asks how long sequences are."""
    if reason := calls.why_not_path("sm90"):
        pytest.skip(reason)
    grown = Grown(make_cache(DEVICE, batch=1, kv_heads=8, capacity=capacity, **WINDOW))
    grown.append(500)
    q = grown.queries(16)
    out = {kernel: grown.attend(q, None, kernel)[0] for kernel in library.PATHS}
    assert not torch.equal(out["sm80"], out["sm90"])
    assert torch.equal(out["auto"], out[faster])
