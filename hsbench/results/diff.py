"""Two files of results, row by row: what has changed by more than the measurements' own uncertainty and a threshold.

Rows are joined by their identity. Of a time, a row holds the median, the quartiles and how many samples there were;
they give an interval of the ratio of two runs, and it is a change only where the whole interval lies beyond the
threshold. The intervals hold for all rows together (Bonferroni), so that many rows raise no more alarms than one.

What moves between two runs, beside the code, is the machine: each cell of a run has a probe that was sampled in turn
with its methods, and a time is a change only if it is one against the probe, too; and one against the dense baseline,
which was sampled in the same rounds. The baseline itself has the probe alone, and where others used the machine
meanwhile nothing is said of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist, median
from typing import Any

from hsbench.errors import UsageError
from hsbench.results.attention import Record
from hsbench.results.generate import Generated
from hsbench.results.identity import key, may_match
from hsbench.results.quality import Quality
from hsbench.results.row import Row
from hsbench.results.stored import Stored, ceiling_of

CONFIDENCE = 0.95
_MEDIAN_OF_QUARTILES = math.sqrt(math.pi / 2) / (2 * NormalDist().inv_cdf(0.75))  # standard error over IQR / sqrt(n)
_OF_ROWS = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)  # standard errors in half of an interval that a row holds
_OTHER_CLOCK = 0.01  # share by which clocks differ that are named

AnyRow = Row[Any, Any]


@dataclass(frozen=True)
class Span:
    """new over base, with the ends of its interval; the ends are equal where a value is exact, None where unknown."""

    ratio: float
    lo: float | None
    hi: float | None


@dataclass(frozen=True)
class Metric:
    """What is compared.

    Attributes:
        name: as asked for.
        column: the measure of a row; a larger one is worse.
        unit: of it.
        kinds: of rows that have it.
        span: new over base, with an interval that is so many standard errors to either side.
    """

    name: str
    column: str
    unit: str
    kinds: tuple[type[AnyRow], ...]
    span: Callable[[AnyRow, AnyRow, float], Span]

    def of(self, row: AnyRow) -> float | None:
        """The measure; None where a row has none."""
        return getattr(row.measures, self.column) if isinstance(row, self.kinds) else None


@dataclass(frozen=True)
class Change:
    """A row that is in both files.

    Attributes:
        verdict: `regression`, `improvement`, `same` (within the threshold), `unclear` (the interval holds both), or
            `unknown` (there is nothing to compare).
        span: None where there is none.
        reason: why the verdict does not follow from the values; "" where it does.
    """

    base: AnyRow
    new: AnyRow
    metric: Metric
    verdict: str
    span: Span | None = None
    reason: str = ""

    @property
    def values(self) -> tuple[float | None, float | None]:
        """Base and new, in the metric's unit."""
        return self.metric.of(self.base), self.metric.of(self.new)


@dataclass(frozen=True)
class Diff:
    """Everything between two files.

    Attributes:
        fail_over: share by which a change must pass.
        circumstances: what else differs between the runs, in words.
        only_base, only_new: rows that one file has alone.
    """

    base: Stored
    new: Stored
    fail_over: float
    changes: list[Change] = field(default_factory=list)
    circumstances: list[str] = field(default_factory=list)
    only_base: list[AnyRow] = field(default_factory=list)
    only_new: list[AnyRow] = field(default_factory=list)

    def having(self, verdict: str) -> list[Change]:
        """The changes with a verdict, the largest first."""
        found = [one for one in self.changes if one.verdict == verdict]
        return sorted(found, key=lambda one: -abs(math.log(one.span.ratio)) if one.span and one.span.ratio > 0 else -9)


def compare_files(
    base: Stored, new: Stored, *, metric: str | None, fail_over: float, circumstances: Iterable[str] = ()
) -> Diff:
    """Compares the rows that two files have in common.

    Args:
        metric: one of `METRICS`; None for the time, of rows of ``quality`` the KL, of ``generate`` that of a token.
        fail_over: share by which a change must pass, 0.05 for 5 %.
        circumstances: what else differs between the runs, in words; clocks are added.

    Raises:
        UsageError: no row is in both.
    """
    pairs, only_base, only_new = _joined(base.rows, new.rows)
    if not pairs:
        raise UsageError("new", new.path, f"has no row in common with {base.path} ({_nearest(base.rows, new.rows)})")
    z = NormalDist().inv_cdf(1 - (1 - CONFIDENCE) / 2 / len(pairs))
    changes = [_change(one, other, _metric(metric, one), fail_over, z) for one, other in pairs]
    words = [*circumstances, *_clocks(pairs)]
    return Diff(base, new, fail_over, changes, words, only_base, only_new)


# ---- Rows of two files ---------------------------------------------------------------------------------------
def _joined(
    base: Sequence[AnyRow], new: Sequence[AnyRow]
) -> tuple[list[tuple[AnyRow, AnyRow]], list[AnyRow], list[AnyRow]]:
    """Rows of one case, the first with the first where a file has it more than once; and what is left of both."""
    waiting: dict[Any, list[AnyRow]] = {}
    for row in new:
        waiting.setdefault(key(row.case), []).append(row)
    partner: dict[int, AnyRow] = {}
    for row in base:
        if found := waiting.get(key(row.case)):
            partner[id(row)] = found.pop(0)
    left = [row for rows in waiting.values() for row in rows]
    for row in base:
        # Rows of an older schema leave some of their case unknown: theirs is the one that it may be, where that is one.
        if id(row) not in partner and len(alike := [one for one in left if may_match(row.case, one.case)]) == 1:
            partner[id(row)] = alike[0]
            left = [row for row in left if row is not alike[0]]
    pairs = [(row, partner[id(row)]) for row in base if id(row) in partner]
    return pairs, [row for row in base if id(row) not in partner], left


def _nearest(base: Sequence[AnyRow], new: Sequence[AnyRow]) -> str:
    def differing(one: AnyRow, other: AnyRow) -> list[str]:
        if type(one.case) is not type(other.case):
            return ["the benchmark"]
        pairs = zip(key(one.case), key(other.case), strict=True)
        return [f"{name} {here} and {there}" for (name, here), (_, there) in pairs if here != there]

    return "; ".join(min((differing(one, other) for one in base for other in new[:50]), key=len)[:6])


def _clocks(pairs: Sequence[tuple[AnyRow, AnyRow]]) -> Iterator[str]:
    for column, name in (("sm_clock_mhz", "SM clock"), ("memory_clock_mhz", "memory clock")):
        told = [(getattr(a.measures, column, None), getattr(b.measures, column, None)) for a, b in pairs]
        both = [(one, other) for one, other in told if one and other]
        if both:
            then, now = median(one for one, _ in both), median(other for _, other in both)
            if abs(now / then - 1) > _OTHER_CLOCK:
                yield f"{name} was {then:.0f} MHz, is {now:.0f} MHz (medians of the rows)"


# ---- One row -------------------------------------------------------------------------------------------------
def _change(base: AnyRow, new: AnyRow, metric: Metric, fail_over: float, z: float) -> Change:
    ended = (base.status, new.status)
    if "interrupted" in ended:
        return Change(base, new, metric, "unknown", reason="one of them was interrupted")
    if ended != ("ok", "ok"):
        if ended[0] == ended[1]:
            return Change(base, new, metric, "same", reason=f"{base.status} in both")
        words = f"was {base.status}, is {new.status}" + f": {new.reason}" * bool(new.reason)
        verdict = "regression" if ended[0] == "ok" else "improvement" if ended[1] == "ok" else "unknown"
        return Change(base, new, metric, verdict, reason=words)
    values = metric.of(base), metric.of(new)
    if None in values:
        return Change(base, new, metric, "unknown", reason=f"no {metric.column}")
    if base.measures == new.measures:
        return Change(base, new, metric, "same", Span(1.0, 1.0, 1.0))
    span = metric.span(base, new, z)
    if span.lo is None or span.hi is None:
        return Change(base, new, metric, "unknown", span, reason="a single sample has no interval")
    if span.lo > 1 + fail_over:
        verdict = "regression"
    elif span.hi < 1 / (1 + fail_over):
        verdict = "improvement"
    else:
        within = span.lo >= 1 / (1 + fail_over) and span.hi <= 1 + fail_over
        verdict = "same" if within else "unclear"
    return Change(base, new, metric, verdict, span)


def _time(base: AnyRow, new: AnyRow, z: float) -> Span:
    """The ratio of two medians; its interval reaches over what it is against the probe and the baseline, too."""
    ratio = new.measures.time_us / base.measures.time_us
    halves = [_half(row, z) for row in (base, new)]
    drift = 1.0
    assert isinstance(base, Record) and isinstance(new, Record)
    then, now = ceiling_of(base), ceiling_of(new)
    if then is not None and now is not None and (then.name, then.unit) == (now.name, now.unit):
        drift = then.value / now.value  # above 1 where the machine has become slower
    if None in halves:
        return Span(ratio, None, None)
    half = math.hypot(*(one for one in halves if one is not None))
    low, high = ratio * min(1.0, 1 / drift) / math.exp(half), ratio * max(1.0, 1 / drift) * math.exp(half)
    company = bool(base.measures.shared or new.measures.shared)
    if (against := _against_baseline(base, new, company)) is not None:
        low, high = min(low, against[0]), max(high, against[1])
    return Span(ratio, low, high)


def _against_baseline(base: Record, new: Record, company: bool) -> tuple[float, float] | None:
    """The interval of the change that their speedups show; where they show none, everything in company, else None."""
    then, now = base.measures, new.measures
    ends = [then.speedup_lo, then.speedup_hi, now.speedup_lo, now.speedup_hi]
    if then.baseline != now.baseline or not all(ends):
        return (0.0, math.inf) if company else None
    if base.method == then.baseline and not company:
        return None
    return then.speedup_lo / now.speedup_hi, then.speedup_hi / now.speedup_lo  # type: ignore[operator]


def _token_time(base: AnyRow, new: AnyRow, z: float) -> Span:
    """The ratio of the medians of two rows' steps; their quartiles tell its interval."""
    ratio = new.measures.token_ms / base.measures.token_ms
    halves = [_half(row, z, "token_ms") for row in (base, new)]
    if None in halves:
        return Span(ratio, None, None)
    width = math.exp(math.hypot(*(one for one in halves if one is not None)))
    return Span(ratio, ratio / width, ratio * width)


def _half(row: AnyRow, z: float, column: str = "time_us") -> float | None:
    """Half the width of the median's interval, of the time's logarithm; None where a row does not tell."""
    low, high, samples = (getattr(row.measures, name) for name in (f"{column}_p25", f"{column}_p75", "samples"))
    if samples is None or samples < 2 or not low or not high:
        return None
    return _t(z, samples - 1) * _MEDIAN_OF_QUARTILES * math.log(high / low) / math.sqrt(samples)


def _t(z: float, freedom: int) -> float:
    """Student's quantile for a normal one, by Cornish and Fisher's expansion; exact where it is not good: few samples
    know little of their own spread."""
    tail, v = 1 - NormalDist().cdf(z), freedom
    if v == 1:
        return 1 / math.tan(math.pi * tail)
    if v == 2:
        return (1 - 2 * tail) / math.sqrt(2 * tail * (1 - tail))
    return z + (z**3 + z) / (4 * v) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)


def _exact(column: str) -> Callable[[AnyRow, AnyRow, float], Span]:
    def span(base: AnyRow, new: AnyRow, z: float) -> Span:
        then, now = getattr(base.measures, column), getattr(new.measures, column)
        ratio = now / then if then else (1.0 if now == then else math.inf)
        return Span(ratio, ratio, ratio)

    return span


def _kl(base: AnyRow, new: AnyRow, z: float) -> Span:
    """The ratio of two means, with the interval of their difference: the runs' intervals, as if they had nothing in
    common. They have the text, so that it is wider than need be."""
    then, now = base.measures, new.measures
    if not then.kl or then.kl < 0 or None in (then.kl_lo, then.kl_hi, now.kl_lo, now.kl_hi):
        exact = _exact("kl")(base, new, z)
        return exact if then.kl == now.kl else Span(exact.ratio, None, None)
    half = z / _OF_ROWS * math.hypot((then.kl_hi - then.kl_lo) / 2, (now.kl_hi - now.kl_lo) / 2)
    return Span(now.kl / then.kl, (now.kl - half) / then.kl, (now.kl + half) / then.kl)


METRICS = {
    one.name: one
    for one in (
        Metric("time", "time_us", "us", (Record,), _time),
        Metric("token_time", "token_ms", "ms", (Generated,), _token_time),
        Metric("kv_bytes", "kv_bytes", "bytes", (Record, Quality, Generated), _exact("kv_bytes")),
        Metric("error", "rel_error", "", (Record, Quality, Generated), _exact("rel_error")),
        Metric("quality", "kl", "nats", (Quality,), _kl),
    )
}
"""By the name that is asked for."""


_USUAL = {Record: "time", Quality: "quality", Generated: "token_time"}


def _metric(name: str | None, row: AnyRow) -> Metric:
    return METRICS[name or _USUAL[type(row)]]
