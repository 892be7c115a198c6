"""Two files, row by row: what counts as a change, and what does not."""

from __future__ import annotations

import dataclasses
import math
import random
from pathlib import Path
from typing import Any

import pytest

from hsbench.errors import UsageError
from hsbench.measure.sampling import StopRule, Subject, sample_in_turn
from hsbench.results import Quality, QualityCase, QualityMeasures, Result, Row, Stored
from hsbench.results.diff import Diff, compare_files
from hsbench.run import accounting

METHODS = {"dense": 1000.0, "hierarchical": 600.0, "unstructured": 1100.0, "sdpa:math": 9000.0}


def stored(*rows: Row[Any, Any], name: str = "rows.csv") -> Stored:
    return Stored(Path(name), "csv", [Result(row) for row in rows])


def diff(base: list[Any], new: list[Any], **options: Any) -> Diff:
    return compare_files(stored(*base), stored(*new), **({"metric": None, "fail_over": 0.05} | options))


def verdicts(found: Diff) -> list[str]:
    return [one.verdict for one in found.changes]


def of_time(record: Any, time: float, spread: float = 0.01, **given: Any) -> Any:
    """A row whose baseline takes 200 us."""
    faster = {
        "speedup": 200 / time,
        "speedup_lo": 200 / time * (1 - spread / 4),
        "speedup_hi": 200 / time * (1 + spread / 4),
    }
    quartiles = {"time_us_p25": time * (1 - spread), "time_us_p75": time * (1 + spread)}
    return record(**{"time_us": time, **quartiles, **faster, **given})


# ---- The sampler, with a clock that makes the times up -------------------------------------------------------
class MadeUp:
    """A clock: each run says whose it is, and takes its time, times noise; and the machine drifts from run to run."""

    resolution_s = 1e-9

    def __init__(self, rng: random.Random, slower: str | None, drift: float) -> None:
        self.rng, self.slower, self.drift, self.name = rng, slower, drift, ""

    def time(self, run: Any, prepare: Any = None, **_: Any) -> float:
        if prepare is not None:
            prepare()
        run()
        seconds = METHODS.get(self.name, 500.0) * 1e-6 * self.drift * (1.1 if self.name == self.slower else 1.0)
        return seconds * math.exp(abs(self.rng.gauss(0, 0.03))) * (1.5 if self.rng.random() < 0.03 else 1.0)


def a_run(record: Any, workload: Any, seed: int, slower: str | None = None, drift: float = 0.01) -> list[Any]:
    """The rows of two cells, sampled in turn as a run does."""
    rng, rows = random.Random(seed), []
    for seq in (1024, 2048):
        clock = MadeUp(rng, slower, drift=math.exp(rng.gauss(0, drift)))

        def subject(name: str, clock: MadeUp = clock) -> Subject:
            return Subject(name, lambda: setattr(clock, "name", name))

        rule = StopRule(min_samples=5, max_samples=60, target=0.01, budget_s=60.0)
        sampling = sample_in_turn([*map(subject, METHODS), subject("probe")], clock, rule, rng=rng)
        probe = 1 / sorted(sampling["probe"].times_s)[len(sampling["probe"].times_s) // 2]
        for name in METHODS:
            times = accounting.times(sampling[name])
            rate = 1e6 / times["time_us"]
            reached = {"gb_per_s": rate, "percent_of_ceiling": 100 * rate / probe, "ceiling": "read"}
            faster = accounting.speedup(sampling[name].times_s, "dense", sampling["dense"].times_s)
            rows.append(record(workload(seq=seq), method=name, **times, **reached, **faster))
    return rows


def test_no_false_alarm_in_20_repeats(record, workload):
    for seed in range(20):
        found = diff(*(a_run(record, workload, start + seed, drift=0.05) for start in (0, 1000)))
        assert not found.having("regression") and not found.having("improvement"), seed


def test_a_slowdown_of_a_tenth_is_found_in_20_of_20(record, workload):
    alarms = 0
    for seed in range(20):
        then, now = a_run(record, workload, seed), a_run(record, workload, 1000 + seed, slower="hierarchical")
        found = diff(then, now)
        assert {one.new.method for one in found.having("regression")} == {"hierarchical"}, seed
        assert {one.base.method for one in diff(now, then).having("improvement")} == {"hierarchical"}, seed
        alarms += len(found.having("regression"))
    assert alarms >= 36, "nearly always in both cells"


# ---- One row -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("times", "spread", "verdict"),
    [
        ((100, 111), 0.01, "regression"),
        ((111, 100), 0.01, "improvement"),
        ((100, 100.5), 0.001, "same"),
        ((100, 104.9), 0.01, "unclear"),
        ((100, 105.2), 0.01, "unclear"),  # over the threshold, and so may be the truth not
        ((100, 120), 0.2, "unclear"),
        ((100, 104), 0.0001, "same"),
    ],
)
def test_the_whole_interval_must_lie_beyond_the_threshold(record, times, spread, verdict):
    base, new = (of_time(record, one, spread) for one in times)
    assert verdicts(diff([base], [new])) == [verdict]


def test_the_threshold_is_the_user_s(record):
    base, new = of_time(record, 100), of_time(record, 111)
    assert verdicts(diff([base], [new], fail_over=0.2)) == ["same"]
    assert verdicts(diff([base], [new], fail_over=0.0)) == ["regression"]


def test_a_machine_that_became_slower_is_no_regression(record):
    """The probe of the cell says so; a method that became slower than it is one all the same."""
    base = of_time(record, 100, gb_per_s=80.0, percent_of_ceiling=80.0)
    slow = of_time(record, 115, gb_per_s=80 / 1.15, percent_of_ceiling=80.0)
    assert verdicts(diff([base], [slow])) == ["unclear"]
    slower = of_time(record, 115 * 1.15, gb_per_s=80 / 1.15**2, percent_of_ceiling=80 / 1.15)
    assert verdicts(diff([base], [slower])) == ["regression"]


def test_a_change_is_one_against_the_baseline_too(record):
    """What moved all methods of the rounds moved the machine; the baseline's own row says if it was the code."""
    still = {"speedup": 2.0, "speedup_lo": 1.98, "speedup_hi": 2.02}
    base = of_time(record, 100)
    assert verdicts(diff([base], [of_time(record, 130)])) == ["regression"]
    assert verdicts(diff([base], [of_time(record, 130, **still)])) == ["unclear"]
    assert verdicts(diff([base], [of_time(record, 130, **still, baseline="sdpa")])) == ["regression"]
    assert verdicts(diff([base], [of_time(record, 130, **still, baseline="sdpa", shared=True)])) == ["unclear"]
    one = {"method": "dense", "speedup": 1.0, "speedup_lo": 1.0, "speedup_hi": 1.0}
    for company, verdict in ((False, "regression"), (True, "unclear")):
        pair = [of_time(record, time, **one, shared=company) for time in (100, 130)]
        assert verdicts(diff(pair[:1], pair[1:])) == [verdict]


def test_a_single_sample_tells_nothing(record):
    (change,) = diff([of_time(record, 100)], [of_time(record, 200, samples=1)]).changes
    assert (change.verdict, change.reason) == ("unknown", "a single sample has no interval")


def test_few_samples_have_wide_intervals(record):
    for samples in (2, 3, 4):
        assert verdicts(diff([of_time(record, 100, samples=samples)], [of_time(record, 107, samples=samples)])) == [
            "unclear"
        ]


@pytest.mark.parametrize(
    ("then", "now", "verdict", "reason"),
    [
        ("ok", "incorrect", "regression", "was ok, is incorrect: why"),
        ("ok", "oom", "regression", "was ok, is oom: why"),
        ("oom", "ok", "improvement", "was oom, is ok"),
        ("oom", "oom", "same", "oom in both"),
        ("oom", "unsupported", "unknown", "was oom, is unsupported: why"),
        ("ok", "interrupted", "unknown", "one of them was interrupted"),
    ],
)
def test_how_a_row_ended(record, then, now, verdict, reason):
    base, new = (record(status=status, reason=None if status == "ok" else "why") for status in (then, now))
    (change,) = diff([base], [new]).changes
    assert (change.verdict, change.reason) == (verdict, reason)


def test_bytes_and_errors_are_exact(record):
    base, more, wrong = record(), record(kv_bytes=1 << 29), record(rel_error=4e-4)
    assert verdicts(diff([base], [more], metric="kv_bytes")) == ["regression"]
    assert verdicts(diff([more], [base], metric="kv_bytes")) == ["improvement"]
    assert verdicts(diff([base], [wrong], metric="kv_bytes")) == ["same"]
    assert verdicts(diff([base], [wrong], metric="error")) == ["regression"]
    assert verdicts(diff([base], [wrong])) == ["unclear"], "by their time; its interval is wider than the threshold"
    assert verdicts(diff([base], [record(kv_bytes=None)], metric="kv_bytes")) == ["unknown"]


def quality(kl: float | None, half: float = 0.001, **case: Any) -> Quality:
    given = {column: 0 for column in ("sink", "local", "seed", "context", "score", "windows")}
    names = ("model", "model_hash", "text", "text_hash", "device", "weights", "dtype", "when", "method", "elements")
    given |= dict.fromkeys(names, "x") | {"key_sparsity": 0.5, "value_sparsity": 0.5, "evict": 0.0}
    empty = ("chunk", "pruner", "basis", "plan", "layer", "head", "depths", "threads", "isa")
    ends = {} if kl is None else {"kl_lo": kl - half, "kl_hi": kl + half}
    return Quality(QualityCase(**given, **(dict.fromkeys(empty) | case)), QualityMeasures(kl=kl, **ends), "ok")


def test_the_kl_and_its_intervals():
    assert verdicts(diff([quality(0.02)], [quality(0.03)])) == ["regression"]
    assert verdicts(diff([quality(0.03)], [quality(0.02)])) == ["improvement"]
    assert verdicts(diff([quality(0.02, 0.01)], [quality(0.03, 0.01)])) == ["unclear"]
    assert verdicts(diff([quality(0.02)], [quality(0.02)])) == ["same"]
    assert verdicts(diff([quality(None, head=1)], [quality(None, head=1)])) == ["unknown"]
    assert verdicts(diff([quality(0.0)], [quality(0.0, 0.002)])) == ["same"]


# ---- Rows of two files ---------------------------------------------------------------------------------------
def test_rows_that_only_one_has(record, workload):
    a, b, c = (record(workload(seq=seq)) for seq in (1024, 2048, 4096))
    found = diff([a, b], [c, b])
    assert (verdicts(found), found.only_base, found.only_new) == (["same"], [a], [c])


def test_equal_rows_are_taken_in_their_order(record):
    first, second, third = (of_time(record, time) for time in (100, 200, 100))
    found = diff([first, second], [first, second, third])
    assert verdicts(found) == ["same", "same"] and found.only_new == [third]


def test_a_row_of_an_older_schema_finds_its_own(record):
    case = dataclasses.replace(record().case, sink=None, local=None, threads=None, isa=None)
    old = dataclasses.replace(record(), case=case)
    assert verdicts(diff([old], [record()])) == ["same"]
    other = [record(machine={"cpu": {"threads": n, "isa": "avx2"}}) for n in (1, 2)]
    with pytest.raises(UsageError, match="has no row in common"):
        diff([old], other)


def test_no_row_in_common(record, workload):
    with pytest.raises(UsageError, match=r"no row in common with rows.csv \(seq 1024 and 2048\)"):
        diff([record(workload(seq=1024))], [record(workload(seq=2048))])


def test_clocks_that_differ_are_named(record):
    found = diff([record(sm_clock_mhz=1980)], [record(sm_clock_mhz=1500)], circumstances=["driver was 1, is 2"])
    assert found.circumstances == ["driver was 1, is 2", "SM clock was 1980 MHz, is 1500 MHz (medians of the rows)"]
