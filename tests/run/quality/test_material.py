"""Windows of a text, and what a run of them takes: memory, time."""

from __future__ import annotations

import pytest
import torch

from hsbench.errors import UnavailableError, UsageError
from hsbench.kernels.device import CPU
from hsbench.measure import FreeMemory
from hsbench.models.text import Text, read_text
from hsbench.problem.elements import INPUTS
from hsbench.run.quality import estimate
from hsbench.run.quality.material import material_of, windows_of
from hsbench.run.quality.plan import QualityPlan
from hsbench.run.quality.settings import Setting, Task
from two_layers import TinyModel

TASK = Task(context=100, score=50, windows=3)


def text(words: str, tmp_path) -> Text:
    (tmp_path / "text.txt").write_text(words)
    return read_text(tmp_path / "text.txt")


def test_windows_are_apart_and_reach_both_ends(tmp_path):
    ids = torch.arange(1000)
    cut = windows_of(text("x", tmp_path), ids[:0], ids, TASK)
    assert [len(one) for one in cut] == [151] * 3
    assert [int(one[0]) for one in cut] == [0, 424, 849] and int(cut[-1][-1]) == 999
    together = torch.cat(windows_of(text("x", tmp_path), ids[:0], ids[:453], TASK))
    assert len(together.unique()) == 453


def test_every_window_begins_as_the_model_wants_it(tmp_path):
    model = TinyModel(start=2)
    for one in material_of(model.tokens, text("hello" * 200, tmp_path), TASK, None, 4096).windows:
        assert one[:2].tolist() == [1, 1] and 1 not in one[2:] and len(one) == 151


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (
            452,
            r"has 452 tokens, and 3 windows of 100 \+ 50 tokens and one more need 453; .*, or `windows` 2",
        ),
        (100, r"has 100 tokens, .* need 453; give a longer text, or a smaller `context` or `score`"),
    ],
)
def test_a_text_that_is_too_short(tmp_path, tokens, said):
    with pytest.raises(UsageError, match=said):
        windows_of(text("x", tmp_path), torch.arange(0), torch.arange(tokens), TASK)


def test_a_context_beyond_the_positions(tmp_path):
    book, model = text("x" * 9000, tmp_path), TinyModel()
    with pytest.raises(UsageError, match="context 4000: with `score` 97 .* more than the model's 4,096 positions"):
        material_of(model.tokens, book, Task(context=4000, score=97, windows=1), None, 4096)
    made = material_of(model.tokens, book, Task(context=4000, score=96, windows=2), (0.5,), 4096)
    assert len(made.windows) == 2 and len(made.needles) == 1


def plan_of(tmp_path, **task: object) -> QualityPlan:
    asked = Task(**{"context": 200, "score": 128, "windows": 1, **task})
    half = Setting("hierarchical", 0.5, 0.5, "magnitude")
    return QualityPlan("tiny", text("x", tmp_path), asked, (half,), CPU, "fp32", INPUTS["fp16"])


def test_what_does_not_fit_is_said_before(tmp_path, monkeypatch):
    monkeypatch.setattr("hsbench.measure.free_memory", lambda device: FreeMemory(1 << 20, "ulimit -v"))
    said = r"--context 200 --score 128 needs about .* under ulimit -v: give less of them"
    with pytest.raises(UnavailableError, match=said):
        estimate.check_memory(plan_of(tmp_path), TinyModel(), 4)


def test_more_takes_more_memory(tmp_path):
    least = estimate.needed_bytes(plan_of(tmp_path), TinyModel(), 4)
    assert least > 128 * 64 * 4
    for more in ({"context": 400}, {"score": 256}, {"when": "whole"}):
        assert estimate.needed_bytes(plan_of(tmp_path, **more), TinyModel(), 4) > least


def test_an_estimate_grows_with_what_is_asked(tmp_path):
    one = estimate.estimate_s(plan_of(tmp_path), TinyModel(), rows=1)
    many = estimate.estimate_s(plan_of(tmp_path, windows=8), TinyModel(), rows=20)
    assert 0 < one < many < 60
