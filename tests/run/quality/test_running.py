"""A run from windows to rows: figures, failures, interruption, passkeys, layers, plans."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from hsbench.attention import calls
from hsbench.errors import UsageError
from hsbench.models.dense import dense_attend
from hsbench.results import QualityMeasures
from hsbench.results.columns import columns_of
from hsbench.results.quality import KEPT
from hsbench.run.quality import layers, needle
from hsbench.run.quality.layer_plan import read_layer_plan
from hsbench.run.quality.settings import Setting
from hsbench.run.quality.watcher import Watcher

HALF = Setting("hierarchical", 0.5, 0.5, "magnitude")
NONE = Setting("hierarchical", 0.0, 0.0, "magnitude")


def test_a_run(model, run_of):
    report = run_of(model, NONE, HALF, windows=4).run()
    nothing, half = (result.record for result in report.results)
    assert nothing.status == half.status == "ok" and not report.interrupted
    assert nothing.measures.kl < 1e-5 < half.measures.kl_lo < half.measures.kl < half.measures.kl_hi
    assert half.measures.perplexity == pytest.approx(
        half.measures.dense_perplexity * (1 + half.measures.perplexity_change / 100)
    )
    assert (half.measures.interval_over, half.measures.interval_n, half.measures.windows_done) == ("windows", 4, 4)
    assert half.measures.top1 < nothing.measures.top1
    assert nothing.measures.kv_ratio == pytest.approx(1, abs=2e-3) and half.measures.kv_ratio > 1.2
    assert (half.measures.achieved_sparsity, half.measures.simulated) == (0.5, 0)
    assert 0 < half.measures.rel_error < 1e-3
    assert sum(report.results[1].memory.values()) == half.measures.kv_bytes


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("growing_prefill_call", "layer 0, tokens 448 to 511"),
        ("growing_decode_call", "layer 0, the last alone of tokens 448 to 511"),
    ],
)
def test_a_wrong_kernel_is_found_and_makes_no_figure(model, run_of, monkeypatch, name, where):
    right = getattr(calls, name)

    def wrong(*given):
        call = right(*given)
        inner = call.run

        def run():
            inner()
            call.out[:, 1] *= 1.01

        call.run = run
        return call

    monkeypatch.setattr(calls, name, wrong)
    (result,) = run_of(model, HALF).run().results
    row = result.record.to_row()
    assert row["status"] == "incorrect" and where in row["reason"]
    assert row["rel_error"] > 1e-3
    for column in columns_of(QualityMeasures):
        assert column.name in KEPT or row[column.name] is None


def test_a_wrong_kernel_ends_its_row_alone(model, run_of, monkeypatch):
    from hsbench.run.quality import living

    inner = living._Alive.attend

    def wrong_at_a_half(self, q):
        return inner(self, q) * (1.01 if self.cache.achieved_sparsity == 0.5 else 1)

    monkeypatch.setattr(living._Alive, "attend", wrong_at_a_half)
    quarter = dataclasses.replace(HALF, key_sparsity=0.25, value_sparsity=0.25)
    report = run_of(model, HALF, NONE, quarter, windows=2).run()
    assert {result.record.case.key_sparsity: result.record.status for result in report.results} == {
        0.0: "ok",
        0.25: "ok",
        0.5: "incorrect",
    }
    assert [result.record.measures.windows_done for result in report.results[1:]] == [2, 2]


def test_k_that_fp16_cannot_hold(model, run_of):
    model.weights[1][1] *= 1e6
    (result,) = run_of(model, HALF).run().results
    assert result.record.status == "unsupported"
    assert "layer 1: k is not finite in torch.float16: give another --dtype" in result.record.reason


def test_an_interrupted_run_keeps_the_windows_that_were_done(model, run_of):
    class Impatient(Watcher):
        def stage(self, text: str) -> None:
            if text.startswith("window 2: hierarchical"):
                raise KeyboardInterrupt

    report = run_of(model, HALF, windows=3, watcher=Impatient()).run()
    (result,) = report.results
    assert report.interrupted and result.record.status == "interrupted"
    assert result.record.reason == "1 of 3 windows were done"
    assert result.record.measures.windows_done == 1 and result.record.measures.kl > 0


def test_progress_ends_where_it_was_said_to(model, run_of):
    class Counting(Watcher):
        asked = done = 0

        def begin(self, tokens: int) -> None:
            self.asked += tokens

        def through(self, tokens: int) -> None:
            self.done += tokens

    for when in ("decode", "chunked", "whole"):
        watcher = Counting()
        run_of(model, NONE, HALF, windows=2, when=when, watcher=watcher).run()
        assert watcher.done == watcher.asked > 0


def test_passkeys(model, run_of):
    report = run_of(model, NONE, HALF, plan={"depths": (0.0, 0.5, 1.0)}).run()
    nothing, half = (result.record for result in report.results)
    assert half.case.depths == "0,0.5,1" and half.measures.needles == 3
    assert nothing.measures.needle_nll == pytest.approx(nothing.measures.needle_dense_nll, abs=1e-2)
    assert half.measures.needle_nll != pytest.approx(half.measures.needle_dense_nll, abs=1e-3)


def test_a_passkey_is_where_it_was_asked_for(model):
    text = model.tokens("x" * 3000)
    made = needle.needles_of(model.tokens, text, 600, (0.0, 0.5, 1.0), 1, 4096)
    for one, depth in zip(made, (0.0, 0.5, 1.0), strict=True):
        assert len(one.ids) > 600 and one.context == 600 and one.depth == depth
        key = one.ids[-one.answer :]
        hay = one.ids[:600].unfold(0, len(key), 1)
        first = int((hay == key).all(1).nonzero()[0])
        assert first / 600 == pytest.approx(0.15 + 0.7 * depth, abs=0.13)
    assert len({tuple(one.ids[-5:].tolist()) for one in made}) == 3


def test_a_model_for_conversations_is_asked_in_one(model):
    frame = ("<user>", "<end><assistant>")
    (one,) = needle.needles_of(model.tokens, model.tokens("x" * 900), 500, (0.5,), 0, 4096, frame)
    begun, asked = model.tokens("<user>There is"), model.tokens("What is the pass key?<end><assistant>The pass key is ")
    assert torch.equal(one.ids[: len(begun)], begun)
    assert torch.equal(one.ids[-one.answer - len(asked) : -one.answer], asked)


def test_what_an_answer_says():
    ids = torch.tensor([9, 9, 9, 9, 3, 4])
    one = needle.Needle(0.5, ids, 2, 2)
    logits = torch.zeros(3, 8)  # of positions 2, 3 and 4, which predict 9, 3 and 4
    logits[1, 3] = logits[2, 4] = 50.0
    found = needle.answers(one, 2, [logits[:1], logits[1:]])
    assert found.found and found.nll.max() < 1e-6
    logits[2, 4], logits[2, 5] = 0.0, 50.0
    assert not needle.answers(one, 2, [logits]).found


@pytest.mark.parametrize(
    ("context", "text", "said"),
    [
        (60, 3000, "too short to hide"),
        (600, 100, "more than the text's 100"),
        (4090, 9000, "no room to ask"),
    ],
)
def test_a_haystack_that_cannot_be(model, context, text, said):
    with pytest.raises(UsageError, match=said):
        needle.needles_of(model.tokens, model.tokens("x" * text), context, (0.5,), 0, 4096)


def test_layers_by_themselves(model, run_of):
    report = run_of(model, HALF, plan={"per_layer": True}).run()
    rows = [result.record for result in report.results]
    alone = {row.case.layer: row for row in rows if row.case.layer is not None and row.case.head is None}
    heads = [row for row in rows if row.case.head is not None]
    assert list(alone) == [0, 1] and len(heads) == 2 * 4
    (all_of_them,) = (row for row in rows if row.case.layer is None)
    assert alone[1].measures.kl > 0 and alone[0].measures.kl < all_of_them.measures.kl * 2
    for layer, row in alone.items():
        own = [one.measures.output_error for one in heads if one.case.layer == layer]
        assert 0 < min(own) <= row.measures.output_error <= max(own) < 1
    assert all(one.measures.kl is None for one in heads)


def test_output_errors_are_of_the_layer_and_its_heads():
    q, k, v = torch.randn(1, 4, 8, 64), torch.randn(1, 2, 20, 64), torch.randn(1, 2, 20, 64)
    errors = layers.OutputErrors()
    out = dense_attend(q, k, v)
    out[:, 2] *= 1.5
    errors.see(3, q, k, v, out)
    whole, heads = errors.of(3)
    assert heads == pytest.approx([0, 0, 0.5, 0], abs=1e-6) and 0 < whole < 0.5


def test_the_cheapest_go_first():
    costs = {(0, 0): 0.01, (0, 1): 0.02, (1, 0): 0.5, (1, 1): 0.0}
    assert layers.cheapest(costs, (0.5, 0.25), 2, 0.035) == ((0.5, 0.25), (0.0, 0.25))
    assert layers.cheapest(costs, (0.5, 0.25), 2, 0.015) == ((0.5, 0.0), (0.0, 0.25))
    assert layers.cheapest(costs, (0.5, 0.25), 2, -1.0) == ((0.0, 0.0), (0.0, 0.0))


def test_a_plan_meets_what_was_asked_for_and_is_taken_again(model, run_of, tmp_path):
    (whole,) = run_of(model, HALF).run().results
    asked = whole.record.measures.kl / 2
    run = run_of(model, HALF, plan={"plan_for": asked})
    report = run.run()
    made = run.made
    assert made is not None and any(map(any, made.layers)) and not all(map(all, made.layers))
    planned = report.results[-1].record
    assert planned.case.plan == f"for KL {asked:g}" and planned.measures.kl <= asked
    assert planned.measures.kv_ratio > 1
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(made.to_dict()))
    again = read_layer_plan(path)
    assert again.layers == made.layers and again.pruner == "magnitude"
    assert dict(again.made)["kl"] == dict(made.made)["kl"]
    (second,) = run_of(model, dataclasses.replace(HALF, plan=again)).run().results
    assert second.record.measures.kl == pytest.approx(planned.measures.kl, rel=1e-6)
    assert second.record.case.plan == "plan.json"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not whole JSON"),
        ("[]", "no plan of layers"),
        ('{"schema": "hsbench-layers/9"}', "newer hsbench"),
        ('{"schema": "hsbench-layers/1", "layers": []}', "damaged"),
        ('{"schema": "hsbench-layers/1", "layers": [{"key_sparsity": 2, "value_sparsity": 0}]}', "sparsity of 2"),
    ],
)
def test_a_file_that_is_no_plan(tmp_path, text, said):
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=said):
        read_layer_plan(path)


def test_a_head_dim_that_no_kernel_takes_is_simulated(model, run_of):
    (result,) = run_of(type(model)(head_dim=80), HALF).run().results
    assert result.record.status == "ok" and result.record.measures.simulated == 1
    assert np.isfinite(result.record.measures.kl)
