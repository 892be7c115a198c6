"""What a query may see, and what comes out of a window."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest
import torch

from hsbench.attention import calls
from hsbench.cache.prune import choose_blocks, plan_blocks, prune_hierarchical
from hsbench.errors import UsageError
from hsbench.problem.elements import STORED
from hsbench.run.quality import scoring, stores
from hsbench.run.quality.attending import Attending
from hsbench.run.quality.settings import BLOCK, Chunk, MethodKind, Setting, Task, all_settings

SMALL = Task(context=448, score=128, windows=1, sink=64, local=128)
HALF = Setting("hierarchical", 0.5, 0.5, "magnitude")
FP8_HALF = dataclasses.replace(HALF, elements="fp8")


def attending(of: Setting = HALF, task: Task = SMALL, **more: object) -> Attending:
    return Attending(stores.METHODS[of.method].store(of, 2, None, task, 1024), of, task, torch.float16, **more)


def ids(count: int) -> torch.Tensor:
    return torch.randint(0, 64, (count,), generator=torch.Generator().manual_seed(1))


def scores(model, task: Task = SMALL, of: Setting = HALF, tokens: torch.Tensor | None = None) -> scoring.Scores:
    tokens = ids(task.tokens) if tokens is None else tokens
    cache = model.new_cache(1, len(tokens))
    dense = scoring.dense_run(model, cache, tokens, task.context)
    known = dense.queries if task.keeps_prefix else None
    return scoring.scored_run(model, cache, tokens, task.context, task, attending(of, task, queries=known), dense)


def test_a_query_sees_2_4_only_what_left_the_window_before_it():
    rng = random.Random(0)
    for _ in range(200):
        task = Task(
            context=rng.randrange(1, 700), score=rng.randrange(1, 300), sink=0, local=rng.choice((0, 1, 100, 256))
        )
        end = task.context + task.score
        passes = task.passes(task.context, end)
        assert [chunk.first for chunk in passes[1:]] == [chunk.end for chunk in passes[:-1]]
        assert (passes[0].first, passes[-1].end) == (task.context, end)
        for chunk in passes:
            assert chunk.end - chunk.first <= BLOCK
            for at in range(chunk.first, chunk.end):
                assert plan_blocks(chunk.end, 0.5, local=chunk.local).last == max(0, (at + 1 - task.local) // BLOCK)


def test_a_chunk_sees_itself_and_the_window_before_it_dense():
    task = Task(context=500, score=100, when="chunked", chunk=256, local=64)
    assert task.passes(500, 600) == [Chunk(0, 256, 319), Chunk(256, 512, 319), Chunk(512, 600, 151)]
    assert plan_blocks(512, 0.5, local=319).last == (256 + 1 - 64) // BLOCK


def test_whole_is_one_pass():
    task = Task(context=500, score=100, when="whole", local=64)
    assert task.passes(500, 600) == [Chunk(0, 600, 64)]


def test_64_tokens_at_a_time_are_what_one_at_a_time_is(model):
    tokens = ids(SMALL.tokens)
    cache = model.new_cache(1, len(tokens))
    dense = scoring.dense_run(model, cache, tokens, SMALL.context)
    cache.rewind(SMALL.context)
    alone, rows = attending(), []
    for at in range(SMALL.context, len(tokens) - 1):
        alone.begin(Chunk(at, at + 1, SMALL.local), checked=False)
        rows.append(model.forward(tokens[None, at : at + 1], cache, alone)[0])
    log_probs = torch.cat(rows).log_softmax(-1)
    kl = (dense.log_probs.exp() * (dense.log_probs - log_probs)).sum(-1).double().numpy()
    together = scores(model, tokens=tokens)
    assert together.kl.mean() > 1e-3  # it does prune
    np.testing.assert_allclose(together.kl, kl, rtol=2e-2, atol=2e-5)


@pytest.mark.parametrize("elements", STORED)
@pytest.mark.parametrize("pruner", ["magnitude", "centered", "balanced", "attentive", "attentive:hd"])
@pytest.mark.parametrize("when", ["decode", "chunked"])
def test_no_query_sees_what_comes_after_it(model, when, pruner, elements):
    of = dataclasses.replace(HALF, pruner=pruner, elements=elements)
    task = dataclasses.replace(SMALL, when=when, chunk=192)
    tokens, other = ids(task.tokens), ids(task.tokens)
    cut = task.context + 70
    other[cut + 1 :] = (other[cut + 1 :] + 7) % 64
    # Up to the cut the tokens that go in are the same; so are those that are wanted, but for the last.
    one, two = (scores(model, task, of, tokens=x) for x in (tokens, other))
    np.testing.assert_allclose(one.kl[:70], two.kl[:70], rtol=1e-4, atol=1e-7)
    assert not np.allclose(one.kl[72:], two.kl[72:], rtol=1e-2)


@pytest.mark.parametrize("pruner", ["magnitude", "balanced", "attentive"])
@pytest.mark.parametrize("when", ["decode", "chunked", "whole"])
def test_at_sparsity_0_only_rounding_is_left(model, when, pruner):
    nothing = Setting("hierarchical", 0.0, 0.0, pruner)
    found = scores(model, dataclasses.replace(SMALL, when=when, chunk=192), nothing)
    assert 0 <= found.kl.mean() < 1e-5 and found.agree.mean() > 0.99


@pytest.mark.parametrize("when", ["decode", "chunked", "whole"])
def test_fewer_bits_alone_cost_little_and_add_little_to_2_4(model, when):
    task, tokens = dataclasses.replace(SMALL, when=when, chunk=192), ids(SMALL.tokens)
    kl = {
        setting: scores(model, task, setting, tokens=tokens).kl.mean()
        for elements in STORED
        for setting in (
            Setting("dense", 0.0, 0.0, elements=elements),
            Setting("hierarchical", 0.5, 0.5, "centered", elements=elements),
        )
    }
    exact, half, dense8, half8, dense4, half4 = kl.values()
    # The tiny model's attention is sharp, and its vocabulary small: a real one's figures are in docs/quality.md.
    assert exact < 1e-5 < dense8 < 0.02 and half > 3 * dense8
    assert abs(half8 - half) < 0.25 * half
    assert dense8 < dense4 < half and half4 < 1.6 * half


def test_what_8_bits_store_is_counted(model):
    k, v = torch.randn(2, 1, 2, 448, 64, dtype=torch.float16)
    for setting, least in ((Setting("dense", 0.0, 0.0, elements="fp8"), 1.9), (FP8_HALF, 3.0)):
        store = stores.METHODS[setting.method].store(setting, 2, None, dataclasses.replace(SMALL, when="whole"), 1024)
        stored = store.compress(0, k, v, k, held=448, sink=0, local=0)
        assert not stored.simulated and stored.dense_nbytes / stored.nbytes > least
        assert sum(stored.memory().values()) == stored.nbytes and stored.memory()["scale"] == 2 * 2 * 64 * 4


def test_whole_prunes_for_every_query(model):
    task = dataclasses.replace(SMALL, when="whole", sink=0, local=0)
    tokens = ids(task.tokens)

    def pruned(layer, q, k, v):
        keys, values = (
            prune_hierarchical(x, of, choose_blocks(x, of, plan_blocks(x.shape[2], 0.5)))
            for x, of in ((k.half(), "k"), (v.half(), "v"))
        )
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2])
        return torch.nn.functional.scaled_dot_product_attention(
            q, keys.float(), values.float(), attn_mask=mask, enable_gqa=True
        )

    cache = model.new_cache(1, len(tokens))
    right = model.forward(tokens[None, :-1], cache, pruned)[0, task.context :].log_softmax(-1)
    nll = -right.gather(-1, tokens[task.context + 1 :, None])[:, 0].numpy()
    np.testing.assert_allclose(scores(model, task, tokens=tokens).nll, nll, atol=2e-2)


def test_the_dense_run_is_the_model_in_one_go(model):
    tokens = ids(SMALL.tokens)
    dense = scoring.dense_run(model, model.new_cache(1, len(tokens)), tokens, SMALL.context)
    whole = model.forward(tokens[None, :-1], model.new_cache(1, len(tokens)))[0, SMALL.context :].log_softmax(-1)
    torch.testing.assert_close(dense.log_probs, whole, atol=1e-4, rtol=1e-4)


def test_the_first_scored_pass_and_another_are_checked(model):
    passes = SMALL.passes(SMALL.context, SMALL.context + SMALL.score)
    for seed in range(5):
        found = scoring.checked_passes(passes, SMALL.context, seed)
        assert 0 in found and len(found) == 2 and found <= {0, 1, 2}
    chunked = Task(context=500, score=300, when="chunked", chunk=200).passes(500, 800)
    picked = [scoring.checked_passes(chunked, 500, seed) for seed in range(20)]
    assert all(2 in one and one <= {2, 3} for one in picked)


@pytest.mark.parametrize("elements", STORED)
@pytest.mark.parametrize("pruner", ["magnitude", "mirror", "centered", "balanced", "attentive"])
def test_the_simulated_path_is_the_real_one(model, monkeypatch, pruner, elements):
    of = dataclasses.replace(HALF, pruner=pruner, elements=elements)
    real = scores(model, of=of)
    monkeypatch.setattr(stores, "why_simulated", lambda *of: "said so")
    ran = []
    monkeypatch.setattr(calls, "prefill_call", lambda *given: ran.append(given))
    simulated = scores(model, of=of)
    assert not ran
    np.testing.assert_allclose(real.nll, simulated.nll, atol=5e-2)
    np.testing.assert_allclose(real.kl.mean(), simulated.kl.mean(), rtol=2e-2)


def test_unstructured_prunes_the_same_blocks_and_costs_less(model):
    plain = dataclasses.replace(HALF, method="unstructured", pruner=None)
    assert 0 < scores(model, of=plain).kl.mean() < scores(model).kl.mean()
    k, v = torch.randn(2, 1, 2, 448, 64, dtype=torch.float16)
    stored = stores.Unstructured(plain, 2, None, SMALL, 1024).compress(0, k, v, k, held=448, sink=64, local=128)
    kept, _ = stored.unpack()
    assert torch.equal(kept[:, :, :64].half(), k[:, :, :64]) and torch.equal(kept[:, :, 320:].half(), k[:, :, 320:])
    assert ((kept[:, :, 64:320] != 0).sum(-1) == 32).all()
    assert stored.shares() == (0.5 * 2 * k[:, :, 64:320].numel(), 2 * k[:, :, 64:320].numel())
    assert stored.simulated and stored.nbytes < stored.dense_nbytes


def test_settings_are_a_cross_product_without_repeats():
    found = all_settings(
        [MethodKind("hierarchical", True), MethodKind("unstructured", False)],
        ["magnitude", "mirror"],
        [0.0, 0.5],
        None,
        None,
    )
    assert [(one.method, one.pruner, one.key_sparsity) for one in found] == [
        ("hierarchical", "magnitude", 0.0),
        ("hierarchical", "magnitude", 0.5),
        ("hierarchical", "mirror", 0.5),
        ("unstructured", None, 0.5),
    ]
    keys = all_settings([MethodKind("hierarchical", True)], ["magnitude"], [0.0, 0.5], [0.5], [0.0, 0.25])
    assert [(one.key_sparsity, one.value_sparsity) for one in keys] == [(0.5, 0.0), (0.5, 0.25)]


def test_settings_of_eviction():
    kinds, pruners, *_ = stores.check_settings(["hierarchical", "evict", "unstructured"], ["magnitude"], None, None)
    alone = all_settings(kinds, pruners, [0.0, 0.5], None, None, same_memory=lambda key, value: 0.4 * (key + value))
    assert [(one.method, one.key_sparsity, one.evict) for one in alone] == [
        ("hierarchical", 0.0, 0.0),
        ("hierarchical", 0.5, 0.0),
        ("evict", 0.0, 0.4),
        ("unstructured", 0.5, 0.0),
    ]
    asked = all_settings(kinds, pruners, [0.0, 0.5], None, None, evicts=[0.25, 0.5])
    assert [(one.method, one.key_sparsity, one.evict) for one in asked] == [
        ("hierarchical", 0.0, 0.25),
        ("hierarchical", 0.0, 0.5),
        ("hierarchical", 0.5, 0.25),
        ("hierarchical", 0.5, 0.5),
        ("evict", 0.0, 0.25),
        ("evict", 0.0, 0.5),
        ("unstructured", 0.0, 0.0),
        ("unstructured", 0.5, 0.0),
    ]


@pytest.mark.parametrize("elements", STORED)
@pytest.mark.parametrize("pruner", [None, "attentive", "mirror:hd"])
def test_what_is_evicted_stays_so_as_the_cache_grows(pruner, elements):
    torch.manual_seed(0)
    setting = Setting("hierarchical", 0.25, 0.25, pruner, evict=0.5, elements=elements)
    store = stores.Hierarchical(setting, 2, None, SMALL, 1024)
    k, v, q = torch.randn(1, 2, 704, 64).half(), torch.randn(1, 2, 704, 64).half(), torch.randn(1, 4, 64, 64).half()
    before = None
    for held in (448, 512, 576, 640):
        stored = store.compress(0, k[:, :, : held + 64], v[:, :, : held + 64], q, held=held, sink=64, local=128 + 64)
        left = [set((stored.tokens[0, head] // BLOCK).tolist()) for head in range(2)]
        gone = [set(range(held // BLOCK + 1)) - blocks for blocks in left]
        evicted, eligible = stored.evicted()
        assert eligible == (held - 128) // BLOCK - 1 and evicted == -(-eligible // 2)
        assert all(len(blocks) == evicted for blocks in gone)
        assert before is None or all(old <= new for old, new in zip(before, gone, strict=True))
        before = gone
        keys, _ = stored.unpack()
        assert keys.shape[2] == stored.tokens.shape[2] == held + 64 - 64 * evicted
        out = stored.attend(q[:, :, -1:])
        assert out.shape == (1, 4, 1, 64) and torch.isfinite(out).all()
        assert stored.simulated == (pruner == "mirror:hd") and stored.nbytes < stored.dense_nbytes


def test_settings_of_more_elements():
    kinds = [MethodKind("hierarchical", True, elements=True), MethodKind("dense", False, prunes=False, elements=True)]
    kinds.append(MethodKind("unstructured", False))
    found = all_settings(kinds, ["mirror"], [0.0, 0.5], None, None, elements=["16bit", "fp8"])
    assert [(one.method, one.elements, one.key_sparsity) for one in found] == [
        ("hierarchical", "16bit", 0.0),
        ("hierarchical", "16bit", 0.5),
        ("unstructured", "16bit", 0.5),
        ("hierarchical", "fp8", 0.0),
        ("hierarchical", "fp8", 0.5),
    ]
    (alone,) = all_settings(kinds[1:2], [], [0.5], None, None, elements=["fp8"])
    assert (alone.method, alone.key_sparsity, alone.label) == ("dense", 0.0, "dense fp8 0")


def test_settings_of_more_elements_and_eviction():
    """Of `dense` nothing is evicted, and `evict` has 16 bits only."""
    kinds, _, _, stored = stores.check_settings(
        ["hierarchical", "dense", "evict"], None, None, None, [0.5], (["16bit", "fp8"], None, None)
    )
    found = all_settings(kinds, ["mirror"], [0.5], None, None, evicts=[0.5], elements=stored)
    assert [one.label for one in found] == [
        "hierarchical mirror 0.5 evict 0.5",
        "dense 0",
        "evict 0 evict 0.5",
        "hierarchical fp8 mirror 0.5 evict 0.5",
        "dense fp8 0",
    ]
    with pytest.raises(UsageError, match="evict stores 16 bits only"):
        stores.check_settings(["hierarchical", "evict"], None, None, None, None, (["fp8"], None, None))
