"""Medians and their intervals: invariants by hypothesis, coverage by simulation, edge cases by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsbench.measure.statistics import Summary, _lower_rank, ratio_interval, relative_half_width, summarize

times = st.floats(min_value=1e-7, max_value=1e3, allow_nan=False)
some_times = st.lists(times, min_size=1, max_size=40)


@given(some_times)
def test_a_summary_is_ordered_and_lies_in_the_range(samples):
    summary = summarize(samples)
    assert min(samples) <= summary.p25 <= summary.median <= summary.p75 <= max(samples)
    assert summary.n == len(samples)


@given(some_times, st.randoms())
def test_a_summary_ignores_order(samples, random):
    shuffled = list(samples)
    random.shuffle(shuffled)
    assert summarize(shuffled) == summarize(samples)


def test_a_single_sample_is_its_own_summary():
    assert summarize([2.0]) == Summary(2.0, 2.0, 2.0, 1)


@pytest.mark.parametrize("samples", [[], [math.nan], [1.0, math.inf]])
@pytest.mark.parametrize("function", [summarize, relative_half_width, lambda x: ratio_interval(x, [1.0])])
def test_no_samples_and_infinite_ones_are_refused(function, samples):
    with pytest.raises(ValueError, match="sample|finite"):
        function(samples)


@pytest.mark.parametrize("confidence", [0.0, 1.0, -1.0, math.nan])
def test_a_confidence_outside_0_to_1_is_refused(confidence):
    with pytest.raises(ValueError, match="confidence"):
        relative_half_width([1.0, 2.0], confidence)
    with pytest.raises(ValueError, match="confidence"):
        ratio_interval([1.0], [2.0], confidence=confidence)


def test_times_of_zero_have_no_ratio():
    with pytest.raises(ValueError, match="above 0"):
        ratio_interval([1.0, 2.0], [0.0, 1.0])


@settings(max_examples=30, deadline=None)
@given(some_times, some_times)
def test_a_ratio_lies_in_its_interval_and_is_conclusive_only_away_from_1(baseline, candidate):
    result = ratio_interval(baseline, candidate)
    assert result.ratio == pytest.approx(np.median(baseline) / np.median(candidate))
    if min(len(baseline), len(candidate)) < 2:
        assert (result.lo, result.hi, result.conclusive) == (None, None, False)
    else:
        assert result.lo <= result.ratio <= result.hi
        assert result.conclusive == (not result.lo <= 1 <= result.hi)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(times, times), min_size=2, max_size=30))
def test_swapping_the_sides_of_a_paired_comparison_inverts_it(pairs):
    a, b = [x for x, _ in pairs], [y for _, y in pairs]
    there, back = ratio_interval(a, b), ratio_interval(b, a)
    assert there.lo == pytest.approx(1 / back.hi, rel=1e-9)
    assert there.hi == pytest.approx(1 / back.lo, rel=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.lists(times, min_size=2, max_size=20), st.lists(times, min_size=2, max_size=20), st.integers(-8, 8))
def test_the_unit_of_time_does_not_matter(baseline, candidate, exponent):
    scale = 2.0**exponent  # a power of two, so that scaling is exact
    plain = ratio_interval(baseline, candidate)
    scaled = ratio_interval([scale * x for x in baseline], [scale * x for x in candidate])
    assert scaled == plain


def test_the_interval_depends_on_the_seed_only():
    rng = np.random.default_rng(1)
    a, b = rng.lognormal(size=30), rng.lognormal(size=31)
    assert ratio_interval(a, b, seed=3) == ratio_interval(a, b, seed=3)
    assert ratio_interval(a, b, seed=3) != ratio_interval(a, b, seed=4)


def test_a_drift_that_hits_both_sides_of_a_round_cancels():
    drift = np.linspace(1.0, 3.0, 40)
    paired = ratio_interval(1.02 * drift, drift)
    assert paired.lo == pytest.approx(1.02) and paired.hi == pytest.approx(1.02)
    assert paired.conclusive
    apart = ratio_interval(1.02 * drift[:-1], drift)  # one sample short: nothing tells which rounds belong together
    assert apart.lo < 0.9 and apart.hi > 1.1 and not apart.conclusive


def test_equal_methods_are_inconclusive_and_different_ones_are_not():
    rng = np.random.default_rng(2)
    noise = lambda: rng.normal(1.0, 0.02, size=40)  # noqa: E731
    assert not ratio_interval(noise(), noise()).conclusive
    faster = ratio_interval(1.5 * noise(), noise())
    assert faster.conclusive and 1.45 < faster.lo < 1.5 < faster.hi < 1.55
    slower = ratio_interval(noise(), 1.5 * noise()[:-3])
    assert slower.conclusive and slower.hi < 1


def test_the_interval_holds_its_level_on_skewed_noise():
    rng = np.random.default_rng(3)
    hits = 0
    for trial in range(200):
        a, b = (1 + rng.exponential(0.1, size=25) for _ in range(2))
        result = ratio_interval(1.3 * a, b, seed=trial)
        hits += result.lo <= 1.3 <= result.hi
    assert hits >= 184  # 95% of 200 is 190; 184 is two standard deviations below


def test_many_samples_are_resampled_in_bounded_memory():
    rng = np.random.default_rng(4)
    result = ratio_interval(rng.normal(2, 0.1, 3000), rng.normal(1, 0.1, 2000))
    assert result.lo < 2 < result.hi


def test_one_sample_says_nothing_about_the_spread():
    assert relative_half_width([1.0]) == math.inf


def test_the_half_width_uses_order_statistics():
    assert relative_half_width([8.0, 10.0, 12.0, 11.0, 9.0]) == pytest.approx(0.2)  # 5 samples: the range
    assert relative_half_width([1.0, 9.0, 10.0, 10.0, 10.0, 10.0, 10.0, 11.0, 99.0]) == pytest.approx(0.1)
    assert relative_half_width([5.0] * 7) == 0
    assert relative_half_width([0.0, 0.0, 0.0]) == 0
    assert relative_half_width([-1.0, 0.0, 1.0]) == math.inf


@given(st.lists(times, min_size=2, max_size=300), st.floats(min_value=0.5, max_value=0.9))
def test_more_confidence_never_narrows_the_interval(samples, confidence):
    assert relative_half_width(samples, confidence) <= relative_half_width(samples, 0.99)


def test_the_two_ways_to_the_rank_meet():
    samples = np.arange(1, 201, dtype=float)
    exact = relative_half_width(samples)
    approximate = relative_half_width(np.append(samples, 201.0))
    assert approximate == pytest.approx(exact, rel=0.05)


def test_the_order_statistics_hold_their_level():
    rng = np.random.default_rng(5)
    for n in (6, 15, 60):
        samples = np.sort(rng.exponential(size=(400, n)), axis=1)
        rank = _lower_rank(n, 0.95)
        hits = ((samples[:, rank - 1] <= math.log(2)) & (math.log(2) <= samples[:, -rank])).sum()
        assert hits >= 368  # 95% of 400 is 380; 368 is nearly three standard deviations below
