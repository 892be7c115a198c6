"""Runs on the CPU: what is generated, what is told of it, and how rows end that do not end well."""

from __future__ import annotations

from collections.abc import Callable

import pytest

pytest.importorskip("transformers", reason="needs pip install 'hsbench[models]'")

import torch

from cache_standin import StandIn
from hsbench.attention.growing import Cache
from hsbench.errors import UnavailableError, UnsupportedError
from hsbench.kernels import library
from hsbench.measure import FreeMemory
from hsbench.models.living import HierarchicalCache
from hsbench.models.model import Model
from hsbench.results import Generated
from hsbench.run.generate import measuring
from hsbench.run.generate.measuring import Measured
from hsbench.run.generate.plan import drawn_prompts
from hsbench.run.generate.rows import Done, baseline_of, compared_to
from hsbench.run.generate.running import GenerateRun
from hsbench.run.generate.settings import EXTRA_STEPS, Generation, MethodSetting
from hsbench.run.generate.stepping import Decoding
from hsbench.run.quality.watcher import Watcher

RunOf = Callable[..., GenerateRun]
PARTS = ("attention", "append", "projection", "mlp", "norm", "head", "other")


def test_all_methods_say_what_the_model_says(run_of: RunOf, model: Model, greedy) -> None:
    run = run_of(told=True, batch=2)
    report = run.run()
    right = greedy(drawn_prompts(256, (40,), 2, 0)[0], 10)
    rows = [result.record for result in report.results]
    assert [(row.case.method, row.status) for row in rows] == [
        ("sdpa", "ok"),
        ("dense", "ok"),
        ("hierarchical", "ok"),
    ]
    for row in rows:
        m = row.measures
        assert m.completion.encode().decode("unicode_escape") == model.text(right[0])
        assert m.tokens_equal == 1.0 and m.tokens_until_other == 10
        assert m.stepping == "eager" and m.samples == 9 and m.first_token_ms > m.fill_ms > 0
        assert 0 < m.token_ms_p25 <= m.token_ms <= m.token_ms_p75 <= m.token_ms_p95
        shares = [getattr(m, f"{part}_share") for part in PARTS]
        assert all(share > 0 for share in shares) and sum(shares) == pytest.approx(1.0)
        assert m.baseline in ("sdpa", "dense") and m.speedup > 0
    assert all(row.measures.rel_error is not None for row in rows[1:]) and rows[0].measures.rel_error is None
    assert {row.case.dtype for row in rows} == {"fp32", "fp16"} and rows[2].case.pruner == "attentive:hd"
    # 2 tensors of 3 layers, 2 sequences, 2 heads x 64; fp16. The last token's K and V are never asked for.
    token = 2 * 3 * 2 * 2 * 64 * 2
    dense = rows[1].measures
    assert dense.kv_reserved_bytes == token * (40 + 10 + EXTRA_STEPS) and dense.kv_bytes == token * 49
    assert dense.kv_ratio == 1.0 and rows[0].measures.kv_ratio == 0.5
    assert report.results[1].memory == {"dense": token * 49}


def test_contexts_have_rows_and_baselines_of_their_own(run_of: RunOf) -> None:
    told: list[tuple[int, str]] = []

    class Listening(Watcher):
        def finished(self, result) -> None:
            told.append((result.record.case.context, result.record.case.method))

    report = run_of("hierarchical", "dense", contexts=(20, 30), watcher=Listening()).run()
    expected = [(20, "dense"), (20, "hierarchical"), (30, "dense"), (30, "hierarchical")]
    assert told == expected and [(r.record.case.context, r.record.case.method) for r in report.results] == expected
    assert {result.record.measures.baseline for result in report.results} == {"dense"}


def test_sampling_draws_the_same_for_all_and_another_for_another_seed(run_of: RunOf) -> None:
    def said(**task) -> list[str]:
        report = run_of("dense", "sdpa", told=True, temperature=1.0, **task).run()
        return [result.record.measures.completion for result in report.results]

    first, again, other = said(), said(), said(seed=1)
    assert first[0] == first[1] and again == first and other[0] != first[0]


def test_what_is_drawn_is_what_the_distribution_says(model: Model) -> None:
    task = Generation(new_tokens=4000, temperature=2.0)
    decoding = Decoding(model, None, task, 1, torch.zeros(1, 3))
    logits = torch.tensor([[0.0, 2 * torch.log(torch.tensor(2.0)), -torch.inf]])
    for _ in range(3999):
        decoding._pick(logits)
    counts = decoding.tokens[0, 1:4000].bincount(minlength=3) / 3999
    torch.testing.assert_close(counts, torch.tensor([1 / 3, 2 / 3, 0]), atol=0.03, rtol=0)
    assert counts[2] == 0


def test_ctrl_c_keeps_what_is_done(run_of: RunOf, monkeypatch: pytest.MonkeyPatch) -> None:
    right, calls = measuring._steps, []

    def steps(*args) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        right(*args)

    monkeypatch.setattr(measuring, "_steps", steps)
    report = run_of(contexts=(20, 30)).run()
    assert report.interrupted and len(report.results) == 6
    assert [result.record.status for result in report.results] == ["ok"] + ["interrupted"] * 5
    assert report.results[0].record.measures.token_ms is not None


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (UnsupportedError("no kernel"), "unsupported", "no kernel"),
        (UnavailableError("no library"), "unavailable", "no library"),
        (torch.OutOfMemoryError("CUDA out of memory"), "oom", "give less of --context"),
    ],
)
def test_a_method_that_cannot_run_is_a_row(run_of: RunOf, monkeypatch, error, status, words) -> None:
    def refuse(self, *args, **how) -> None:
        raise error

    monkeypatch.setattr(HierarchicalCache, "__init__", refuse)
    rows = [result.record for result in run_of().run().results]
    assert [row.status for row in rows] == ["ok", status, status] and words in rows[1].reason
    assert rows[0].measures.baseline == "sdpa" and rows[0].measures.tokens_equal is None


def test_what_would_not_fit_is_not_tried(run_of: RunOf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hsbench.measure.free_memory", lambda device: FreeMemory(1000, "ulimit -v"))
    rows = [result.record for result in run_of().run().results]
    assert {row.status for row in rows} == {"oom"}
    assert "estimated not to fit" in rows[0].reason and "under ulimit -v" in rows[0].reason


def test_a_wrong_kernel_has_no_figures(run_of: RunOf, monkeypatch: pytest.MonkeyPatch) -> None:
    right = StandIn.decode
    monkeypatch.setattr(StandIn, "decode", lambda self, q: tuple(x.roll(1, 1) for x in right(self, q)))
    row = run_of("hierarchical").run().results[0].record
    assert row.status == "incorrect" and "disagrees with its own cache" in row.reason
    assert Generated.from_row(row.to_row()).measures.token_ms is None


def of(family: str, steps: list[float], fill_s: float = 0.0, status: str = "ok", **setting) -> Done:
    found = Measured("eager", 1.0, fill_s, steps, torch.zeros(1, 4, dtype=torch.int64))
    return Done(MethodSetting(family, **setting), 40, status, None, found)


def test_baseline_and_break_even(run_of: RunOf) -> None:
    torchs, ours = of("sdpa", [4.0] * 6, fill_s=1.0), of("dense", [3.0] * 6, fill_s=2.0)
    narrow, pruned = of("dense", [1.0] * 6, elements="fp8"), of("hierarchical", [2.0] * 6, fill_s=12.0)
    failed, slow = of("dense", [0.1] * 6, status="incorrect"), of("hierarchical", [3.5] * 6, fill_s=12.0)
    assert baseline_of([torchs, failed, ours, narrow, pruned]) is ours and baseline_of([pruned, failed]) is None
    assert compared_to([torchs, narrow, ours]) is ours.found.tokens and compared_to([torchs]) is None
    rows = run_of()._rows
    found = rows.result(pruned, ours, None).record.measures
    assert found.baseline == "dense" and found.speedup == 1.5 and found.break_even_tokens == 10.0
    assert rows.result(slow, ours, None).record.measures.break_even_tokens is None
    assert rows.result(torchs, ours, None).record.measures.break_even_tokens is None
    assert rows.result(ours, ours, None).record.measures.speedup == 1.0
    other = of("hierarchical", [2.0] * 6)
    other.found.tokens = torch.tensor([[0, 0, 1, 0]])
    measures = rows.result(other, None, ours.found.tokens).record.measures
    assert (measures.tokens_equal, measures.tokens_until_other) == (0.75, 2)


@pytest.mark.skipif(library.why_missing("cpu") is not None, reason="needs the compiled CPU library")
def test_the_real_cache(run_of: RunOf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hsbench.models.living.GrowingCache", Cache)
    methods = "sdpa", "dense", "hierarchical", "hierarchical:fp8", "hierarchical:int4/fp8"
    report = run_of(*methods, contexts=(450,), new_tokens=40, batch=2, local=64, seed=1).run()
    rows = [result.record for result in report.results]
    assert [(row.case.method, row.status) for row in rows] == [(method, "ok") for method in methods], rows
    ratios = [row.measures.kv_ratio for row in rows[1:]]
    assert ratios == sorted(ratios) and 0.9 < ratios[0] < 1.0 < ratios[1]  # pages begun, and what is kept to grow
    assert all(row.measures.kv_bytes <= row.measures.kv_reserved_bytes for row in rows)
    assert all(row.measures.rel_error < 1e-3 for row in rows[1:])
    assert rows[0].measures.tokens_equal > 0.9 and rows[2].measures.tokens_equal < 1.0
    assert [row.case.pruner for row in rows[1:]] == [None, *["attentive:hd"] * 3]
