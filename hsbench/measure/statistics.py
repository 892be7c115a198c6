"""Medians, their intervals, and intervals of a ratio of medians.

Run times are skewed (nothing runs faster than the machine allows, anything can run slower), so the median and
the quartiles are reported and no interval assumes a normal distribution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np

_RESAMPLES = 4000  # the ends of a 95% interval then rest on 100 resamples each
_CHUNK_ELEMENTS = 1 << 21  # resamples are drawn in blocks of this many values: 16 MB for any sample count


@dataclass(frozen=True)
class Summary:
    """Median and quartiles of n samples, in the unit of the samples."""

    median: float
    p25: float
    p75: float
    n: int


@dataclass(frozen=True)
class Ratio:
    """A ratio of two medians with its confidence interval.

    ``lo`` and ``hi`` are None when either side has a single sample: nothing is then known about the spread.
    ``conclusive`` is True when there is an interval and 1 lies outside it.
    """

    ratio: float
    lo: float | None
    hi: float | None
    conclusive: bool


def summarize(samples: Sequence[float]) -> Summary:
    """Median and quartiles (linear interpolation between order statistics).

    Raises:
        ValueError: no samples, or one that is not finite.
    """
    values = _checked(samples)
    p25, median, p75 = (float(x) for x in np.quantile(values, (0.25, 0.5, 0.75)))
    return Summary(median=median, p25=p25, p75=p75, n=len(values))


def ratio_interval(
    baseline: Sequence[float], candidate: Sequence[float], *, confidence: float = 0.95, seed: int = 0
) -> Ratio:
    """The candidate's speedup, median(baseline) / median(candidate), with a confidence interval.

    The interval is a percentile bootstrap, the same for the same seed. With equally many samples on both
    sides the samples of one round are drawn together, so that what hit both (a slower clock, another process)
    cancels; otherwise the sides are drawn independently, which can only widen the interval under a shared
    drift. Quantiles are taken of the logarithm: swapping the sides of a paired comparison inverts the
    interval exactly.

    With few samples no interval can hold its level: below 6 per side it is nearly the range of what was seen
    (that of 5 samples holds the median with 94% at best, that of 3 with 75%).

    Args:
        baseline: times in round order, each above 0.
        candidate: times in round order, each above 0, the same unit.
        confidence: level of the interval, between 0 and 1.
        seed: seed of the resampling.

    Raises:
        ValueError: no samples, a time that is not finite or not above 0, or a confidence outside (0, 1).
    """
    tail = _tail(confidence)
    base, cand = _checked(baseline), _checked(candidate)
    if base.min() <= 0 or cand.min() <= 0:
        raise ValueError("a ratio needs times above 0")
    ratio = float(np.median(base) / np.median(cand))
    if min(len(base), len(cand)) < 2:
        return Ratio(ratio, None, None, conclusive=False)
    logs = np.log(_resampled_ratios(base, cand, np.random.default_rng(seed)))
    lo, hi = (float(x) for x in np.exp(np.quantile(logs, (tail, 1 - tail))))
    lo, hi = min(lo, ratio), max(hi, ratio)
    return Ratio(ratio, lo, hi, conclusive=not lo <= 1 <= hi)


def relative_half_width(samples: Sequence[float], confidence: float = 0.95) -> float:
    """Half the width of the median's confidence interval, over the median; the stop rule watches it.

    The interval lies between two order statistics (no distribution assumed, no resampling, so asking after
    every round costs microseconds). Where even the whole range falls short of the confidence (below 6 samples
    at 95%) it is the whole range. Infinite for a single sample.

    Raises:
        ValueError: no samples, one that is not finite, or a confidence outside (0, 1).
    """
    _tail(confidence)
    values = np.sort(_checked(samples))
    if len(values) == 1:
        return math.inf
    rank = _lower_rank(len(values), confidence)
    half = float(values[-rank] - values[rank - 1]) / 2
    median = float(np.median(values))
    if half == 0:
        return 0.0
    return half / abs(median) if median else math.inf


@lru_cache(maxsize=512)
def _lower_rank(n: int, confidence: float) -> int:
    """The largest k >= 1 such that k-th smallest to k-th largest of n hold the median at that confidence.

    The number of samples below the median is Binomial(n, 1/2): the interval misses on one side when fewer
    than k samples lie there.
    """
    tail = _tail(confidence)
    if n > 200:  # the normal approximation is exact to a rank here, and the binomial sum would be slow
        return max(1, math.floor((n - NormalDist().inv_cdf(1 - tail) * math.sqrt(n)) / 2))
    below, k = 0.0, 0
    while k < n // 2:
        below += math.comb(n, k) / 2**n
        if below > tail:
            break
        k += 1
    return max(1, k)


def _resampled_ratios(base: np.ndarray, cand: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    paired = len(base) == len(cand)
    step = max(1, _CHUNK_ELEMENTS // max(len(base), len(cand)))
    chunks = []
    for first in range(0, _RESAMPLES, step):
        count = min(step, _RESAMPLES - first)
        rows = rng.integers(len(base), size=(count, len(base)))
        other = rows if paired else rng.integers(len(cand), size=(count, len(cand)))
        chunks.append(np.median(base[rows], axis=1) / np.median(cand[other], axis=1))
    return np.concatenate(chunks)


def _checked(samples: Sequence[float]) -> np.ndarray:
    values = np.asarray(samples, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError("a summary needs at least one sample, in one dimension")
    if not np.isfinite(values).all():
        raise ValueError("samples must be finite")
    return values


def _tail(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence} must lie between 0 and 1")
    return (1 - confidence) / 2
