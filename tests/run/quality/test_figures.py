"""Means, and intervals that hold what they say they do."""

from __future__ import annotations

import numpy as np
import pytest

from hsbench.run.quality import figures
from hsbench.run.quality.scoring import Scores


def draw(rng, windows: int, score: int = 1024) -> list[np.ndarray]:
    """A skewed number of each token, as KL is; windows differ, and stretches of a window more."""
    found = []
    for _ in range(windows):
        level = rng.gamma(16, 1 / 16) * rng.gamma(4, 1 / 4, size=score // 64).repeat(64)
        found.append(level * rng.gamma(0.5, 2, size=score))
    return found


def test_with_four_windows_the_interval_is_of_the_text():
    rng = np.random.default_rng(0)
    means = [figures.mean(draw(rng, 4)) for _ in range(300)]
    held = np.mean([one.lo <= 1 <= one.hi for one in means])
    assert 0.9 <= held <= 0.99


def test_with_fewer_it_is_of_these_windows():
    rng = np.random.default_rng(0)
    held = []
    for _ in range(200):
        level = rng.gamma(4, 1 / 4, size=32).repeat(64)
        one = figures.mean([level[:1024] * rng.gamma(0.5, 2, 1024), level[1024:] * rng.gamma(0.5, 2, 1024)])
        held.append(one.lo <= 1 <= one.hi)
    assert 0.86 <= np.mean(held) <= 0.99


@pytest.mark.parametrize(("windows", "score"), [(1, 448), (3, 128)])
def test_a_handful_of_stretches_has_no_interval(windows, score):
    one = figures.mean([np.ones(score)] * windows)
    assert (one.value, one.lo, one.hi) == (1, None, None)


def test_student():
    assert figures.student(3) == 3.182 and figures.student(11) == figures.student(10) and figures.student(500) == 2.0


def test_columns_are_paired():
    rng = np.random.default_rng(1)
    dense = [rng.gamma(2, 1, size=512) for _ in range(4)]
    scores = [Scores(one + 0.01 + rng.normal(0, 1e-4, 512), np.full(512, 0.25), np.ones(512)) for one in dense]
    found = figures.columns(dense, scores)
    assert found["perplexity_change"] == pytest.approx(1.005, abs=0.01)
    assert 0.99 < found["perplexity_change_lo"] < found["perplexity_change_hi"] < 1.02
    assert found["perplexity"] / found["dense_perplexity"] == pytest.approx(1.01005, abs=1e-4)
    assert (found["kl"], found["kl_lo"], found["kl_hi"], found["top1_hi"]) == (0.25, 0.25, 0.25, 1)
    assert (found["interval_over"], found["interval_n"], found["windows_done"]) == ("windows", 4, 4)
    one = figures.columns(dense[:1], scores[:1])
    assert (one["interval_over"], one["interval_n"]) == ("stretches", 8)


def test_ends_of_intervals_stay_where_figures_can_be():
    dense = [np.ones(64)] * 4
    scores = [Scores(np.ones(64), np.full(64, kl), np.full(64, top)) for kl, top in ((0, 1), (0, 1), (0, 1), (1, 0.5))]
    found = figures.columns(dense, scores)
    assert found["kl_lo"] == 0 and found["top1_hi"] == 1
