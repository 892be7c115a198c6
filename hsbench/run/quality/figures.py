"""From what each token says to figures of a row, with their intervals.

The unit is a window where there are at least :data:`FEW` of them: windows are far apart in the text, so that their
means are as good as independent, and Student's t over them tells what other windows of such a text would show. With
fewer it is a stretch of 64 tokens of the windows that there are (a percentile bootstrap): tokens near each other go
wrong together, stretches hardly. Such an interval tells of these windows, and says nothing of others.

Everything is paired: a change is a mean of differences on the same tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hsbench.run.quality.scoring import Scores
from hsbench.run.quality.settings import BLOCK

FEW = 4
ENOUGH = 8
"""Stretches that an interval needs."""
_RESAMPLES = 4000
_T = {3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228, 12: 2.179, 15: 2.131, 20: 2.086,
      30: 2.042, 60: 2.000}  # fmt: skip
"""The 97.5 % quantile of Student's t, by degrees of freedom; between them the next lower one's, which is wider."""


@dataclass(frozen=True)
class Mean:
    """A mean with its 95 % interval; no interval where there is one unit only."""

    value: float
    lo: float | None
    hi: float | None


@dataclass(frozen=True)
class Units:
    """What an interval is over: ``windows`` or ``stretches``, and how many."""

    kind: str
    count: int


def units_of(windows: int, score: int) -> Units:
    """The units of so many windows."""
    return Units("windows", windows) if windows >= FEW else Units("stretches", windows * max(1, score // BLOCK))


def mean(of: Sequence[np.ndarray], seed: int = 0) -> Mean:
    """The mean over tokens of a number that each has, by window; all windows are of one length."""
    value = float(np.mean([window.mean() for window in of]))
    if len(of) >= FEW:
        means = np.array([window.mean() for window in of])
        half = student(len(of) - 1) * float(means.std(ddof=1)) / math.sqrt(len(of))
        return Mean(value, value - half, value + half)
    units = [part.mean() for window in of for part in np.array_split(window, max(1, len(window) // BLOCK))]
    if len(units) < ENOUGH:
        return Mean(value, None, None)
    rows = np.random.default_rng(seed).integers(len(units), size=(_RESAMPLES, len(units)))
    lo, hi = np.quantile(np.array(units)[rows].mean(1), (0.025, 0.975))
    return Mean(value, min(float(lo), value), max(float(hi), value))


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t."""
    return _T[max(known for known in _T if known <= freedom)]


def columns(dense: Sequence[np.ndarray], setting: Sequence[Scores], seed: int = 0) -> dict[str, object]:
    """The figures of a setting.

    Args:
        dense: -log p of each scored token in the dense run, by window.
        setting: of the same tokens.
    """
    change = mean([scores.nll - plain for scores, plain in zip(setting, dense, strict=True)], seed)
    kl, agree = mean([scores.kl for scores in setting], seed), mean([scores.agree for scores in setting], seed)
    units = units_of(len(setting), len(dense[0]))
    return {
        "windows_done": len(setting),
        "dense_perplexity": math.exp(float(np.mean(dense))),
        "perplexity": math.exp(float(np.mean([scores.nll for scores in setting]))),
        "perplexity_change": _percent(change.value),
        "perplexity_change_lo": _percent(change.lo),
        "perplexity_change_hi": _percent(change.hi),
        "kl": kl.value,
        "kl_lo": None if kl.lo is None else max(kl.lo, 0.0),
        "kl_hi": kl.hi,
        "top1": agree.value,
        "top1_lo": None if agree.lo is None else max(agree.lo, 0.0),
        "top1_hi": None if agree.hi is None else min(agree.hi, 1.0),
        "interval_over": units.kind if kl.lo is not None else None,
        "interval_n": units.count if kl.lo is not None else None,
    }


def _percent(log_ratio: float | None) -> float | None:
    return None if log_ratio is None else 100 * math.expm1(min(log_ratio, 700.0))
