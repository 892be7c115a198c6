"""Order of the turns, the stop rule, errors and interruption, all on a clock that tells made-up times."""

from __future__ import annotations

import gc
import itertools
import random
import weakref
from collections.abc import Callable, Iterable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsbench.measure import ranges
from hsbench.measure.clock import ClockError, Retake
from hsbench.measure.sampling import StopRule, Subject, sample_in_turn


class Lab:
    """Subjects whose runs take scripted times on a clock that the runs themselves advance."""

    def __init__(self, **times: Iterable[float]) -> None:
        self.log: list[str] = []
        self.now = 0.0
        self.in_window = False
        self._times: dict[str, Iterator[float]] = {name: iter(t) for name, t in times.items()}
        self.subjects = [Subject(name, self._run(name)) for name in times]

    def _run(self, name: str) -> Callable[[], None]:
        def run() -> None:
            self.log.append(name)
            self.now += next(self._times[name])

        return run

    def time(self, run: Callable[[], None]) -> float:
        begin, self.in_window = self.now, True
        try:
            run()
        finally:
            self.in_window = False
        return self.now - begin

    def sample(self, rule: StopRule, **options: object):
        options = {"warmup": 0, **options}
        return sample_in_turn(self.subjects, self, rule, now=lambda: self.now, **options)


def alike(seconds: float) -> Iterator[float]:
    return itertools.repeat(seconds)


def noisy(seconds: float) -> Iterator[float]:
    return itertools.cycle([seconds, 2 * seconds])


def test_rounds_take_the_subjects_in_turn():
    lab = Lab(a=alike(1), b=alike(2), c=alike(3))
    result = lab.sample(StopRule(min_samples=3, budget_s=100))
    assert lab.log == ["a", "b", "c"] * 3
    assert [samples.name for samples in result] == ["a", "b", "c"]
    assert [samples.stop for samples in result] == ["converged"] * 3
    assert result["b"].times_s == [2, 2, 2]
    assert not result.interrupted


def test_rounds_in_random_order_take_everyone_once_and_nobody_has_a_fixed_neighbour():
    lab = Lab(a=alike(1), b=alike(2), c=alike(3))
    result = lab.sample(StopRule(min_samples=40, budget_s=1000), rng=random.Random(7))
    rounds = [lab.log[i : i + 3] for i in range(0, len(lab.log), 3)]
    assert len(rounds) == 40
    assert all(sorted(taken) == ["a", "b", "c"] for taken in rounds)
    assert len({tuple(taken) for taken in rounds}) == 6  # all orders there are
    assert set(itertools.pairwise(lab.log)) == set(itertools.product("abc", repeat=2))
    assert [(samples.name, set(samples.times_s)) for samples in result] == [("a", {1}), ("b", {2}), ("c", {3})]


def test_random_order_is_repeatable_and_who_left_stays_away():
    def taken(seed):
        lab = Lab(a=alike(1), b=alike(5), c=noisy(1))
        result = lab.sample(StopRule(min_samples=2, max_samples=9, budget_s=20), rng=random.Random(seed))
        assert [(samples.name, len(samples.times_s)) for samples in result] == [("a", 9), ("b", 4), ("c", 9)]
        return lab.log

    assert taken(1) == taken(1) != taken(2)
    assert "b" not in taken(1)[12:]


def test_nobody_converges_before_min_samples():
    lab = Lab(a=alike(1))
    assert len(lab.sample(StopRule(min_samples=7, budget_s=100))["a"].times_s) == 7


def test_who_is_done_stays_until_the_others_are():
    lab = Lab(quiet=alike(1), loud=[1, 2, 1, 2, 1, 2, *[1.5] * 60])
    result = lab.sample(StopRule(min_samples=3, target=0.01, budget_s=1000))
    assert [samples.stop for samples in result] == ["converged"] * 2
    assert len(result["quiet"].times_s) == len(result["loud"].times_s) > 6


def test_who_is_over_budget_leaves_alone_and_the_others_no_longer_wait():
    lab = Lab(quiet=alike(1), loud=noisy(1), other=alike(1))
    result = lab.sample(StopRule(min_samples=3, budget_s=9))
    assert result["loud"].stop == "budget"
    assert len(result["loud"].times_s) == 6  # 1 + 2 + 1 + 2 + 1 + 2 = 9
    assert result["quiet"].stop == result["other"].stop == "converged"
    assert len(result["quiet"].times_s) == 6
    assert result["quiet"].times_s == result["other"].times_s


def test_the_slow_one_does_not_hold_the_noisy_ones():
    lab = Lab(slow=noisy(10), loud=noisy(1))
    result = lab.sample(StopRule(min_samples=3, max_samples=20, budget_s=24))
    assert len(result["slow"].times_s) == 3 and result["slow"].stop == "budget"
    assert len(result["loud"].times_s) == 16 and result["loud"].stop == "budget"
    assert lab.log[:6] == ["slow", "loud"] * 3 and set(lab.log[6:]) == {"loud"}


def test_budget_ends_no_one_before_min_samples():
    lab = Lab(a=noisy(1))
    result = lab.sample(StopRule(min_samples=5, budget_s=2.5))
    assert len(result["a"].times_s) == 5 and result["a"].stop == "budget"


def test_three_samples_do_where_one_alone_exceeds_the_budget():
    lab = Lab(a=noisy(10), b=noisy(0.5))
    result = lab.sample(StopRule(min_samples=5, budget_s=4))
    assert len(result["a"].times_s) == 3 and result["a"].stop == "budget"
    assert len(result["b"].times_s) == 6


def test_min_samples_below_three_is_not_raised_to_three():
    lab = Lab(a=noisy(10))
    assert len(lab.sample(StopRule(min_samples=1, budget_s=4))["a"].times_s) == 1


def test_max_samples_ends_it_and_the_label_tells_how_it_ended():
    lab = Lab(quiet=alike(1), loud=noisy(1))
    result = lab.sample(StopRule(max_samples=8, budget_s=1000))
    assert result["loud"].stop == "max_samples"
    assert result["quiet"].stop == "converged"  # it ends with a narrow interval
    assert len(result["quiet"].times_s) == len(result["loud"].times_s) == 8


def test_preparation_counts_toward_the_budget_and_stays_out_of_the_window():
    lab = Lab(a=noisy(1))

    def between() -> None:
        assert not lab.in_window
        lab.now += 9

    result = lab.sample(StopRule(min_samples=2, budget_s=40), between=between)
    assert result["a"].times_s == [1, 2, 1, 2]  # 10 + 11 + 10 + 11 > 40


def test_a_clock_of_its_own_time_counts_too():
    class Told:
        def time(self, run: Callable[[], None]) -> float:
            run()
            return next(self.times)

        times = noisy(1.0)

    result = sample_in_turn([Subject("a", lambda: None)], Told(), StopRule(budget_s=12), warmup=0)
    assert len(result["a"].times_s) == 8


def test_a_turn_is_between_then_before_then_run_then_told():
    log: list[object] = []
    lab = Lab(a=alike(1))
    subject = Subject("a", lambda: log.append("run"), before=lambda: log.append("before"))
    sample_in_turn(
        [subject],
        lab,
        StopRule(min_samples=2, max_samples=2),
        warmup=1,
        between=lambda: log.append("between"),
        on_sample=lambda name, done, seconds: log.append((name, done, seconds)),
    )
    turn = ["between", "before", "run"]
    assert log == [*turn, *turn, ("a", 1, 0.0), *turn, ("a", 2, 0.0)]


def test_warm_up_is_in_turn_too_and_is_not_sampled():
    lab = Lab(a=[100, 100, *[1] * 9], b=alike(2))
    result = lab.sample(StopRule(min_samples=3, budget_s=50), warmup=2)
    assert lab.log[:4] == ["a", "b", "a", "b"]
    assert result["a"].times_s == [1, 1, 1]  # nor paid for: 200 s would be over budget


class Broken(Exception):
    pass


@pytest.mark.parametrize("raised", [Broken("no"), MemoryError("no memory"), ClockError("waits")])
@pytest.mark.parametrize("warmup", [0, 1])
def test_an_error_ends_only_its_subject_and_is_kept(raised, warmup):
    lab = Lab(a=alike(1), bad=[1] * 2, c=alike(1))
    good = lab.subjects[1].run

    def bad() -> None:
        if lab.log.count("bad") >= 2:
            raise raised
        good()

    lab.subjects[1] = Subject("bad", bad)
    result = lab.sample(StopRule(min_samples=5, budget_s=100), warmup=warmup)
    assert result["bad"].error is raised and result["bad"].stop == "error"
    assert result["bad"].times_s == [1] * (2 - warmup)
    assert result["a"].error is None
    assert [result[name].stop for name in "ac"] == ["converged"] * 2
    assert not result.interrupted


def test_an_error_of_before_is_the_subjects_own():
    lab = Lab(a=alike(1))

    def fails() -> None:
        raise Broken

    lab.subjects.append(Subject("b", lambda: None, before=fails))
    result = lab.sample(StopRule(budget_s=100))
    assert isinstance(result["b"].error, Broken) and result["a"].stop == "converged"


def test_an_error_of_between_is_nobodys_and_is_raised():
    def fails() -> None:
        raise Broken

    with pytest.raises(Broken):
        Lab(a=alike(1)).sample(StopRule(), between=fails)


def test_all_failing_ends_it():
    def fails() -> None:
        raise Broken

    result = sample_in_turn([Subject("a", fails)], Lab(), StopRule(), warmup=0)
    assert result["a"].stop == "error" and result["a"].times_s == []


def test_a_kept_error_keeps_no_tensors_alive():
    class Tensor:
        pass

    alive: list[weakref.ref[Tensor]] = []

    def inner() -> None:
        tensor = Tensor()
        alive.append(weakref.ref(tensor))
        raise MemoryError

    def run() -> None:
        tensor = Tensor()
        alive.append(weakref.ref(tensor))
        try:
            inner()
        except MemoryError as error:
            raise Broken from error

    result = sample_in_turn([Subject("a", run)], Lab(), StopRule(), warmup=0)
    gc.collect()
    assert isinstance(result["a"].error, Broken) and isinstance(result["a"].error.__cause__, MemoryError)
    assert [ref() for ref in alive] == [None, None]


def test_ctrl_c_is_returned_with_what_is_done():
    lab = Lab(quick=noisy(50), a=noisy(1), b=alike(1), c=alike(1))

    def interrupt() -> None:
        if len(lab.log) == 25:
            raise KeyboardInterrupt

    result = lab.sample(StopRule(min_samples=5, budget_s=100), between=interrupt)
    assert result.interrupted
    assert result["quick"].stop == "budget"  # it had left before
    assert result["a"].stop == "interrupted" and len(result["a"].times_s) > 5
    assert result["b"].stop == result["c"].stop == "converged"  # as narrow as asked for, when it was pressed
    assert sum(len(samples.times_s) for samples in result) == 25


def test_ctrl_c_in_the_warm_up_leaves_all_interrupted():
    def stop() -> None:
        raise KeyboardInterrupt

    result = sample_in_turn([Subject("a", stop), Subject("b", stop)], Lab(), StopRule())
    assert result.interrupted
    assert [(samples.stop, samples.times_s) for samples in result] == [("interrupted", [])] * 2


def test_a_void_sample_is_prepared_and_taken_again():
    class Fussy(Lab):
        voided = 0

        def time(self, run: Callable[[], None]) -> float:
            seconds = super().time(run)
            if len(self.log) == 2:
                self.voided += 1
                raise Retake
            return seconds

    lab = Fussy(a=alike(1))
    prepared: list[int] = []
    result = lab.sample(StopRule(min_samples=3, budget_s=100), between=lambda: prepared.append(len(lab.log)))
    assert result["a"].times_s == [1, 1, 1] and lab.voided == 1
    assert prepared == [0, 1, 2, 3]


def test_a_clock_that_never_accepts_is_an_error_of_the_subject():
    class Never:
        def time(self, run: Callable[[], None]) -> float:
            raise Retake("never")

    result = sample_in_turn([Subject("a", lambda: None)], Never(), StopRule())
    assert isinstance(result["a"].error, Retake)


def test_ranges_nest_and_carry_numbers_as_payload():
    lab = Lab(a=alike(1), b=alike(1))
    with ranges.recorder() as recorder:
        lab.sample(StopRule(min_samples=2, budget_s=100), warmup=1, between=lambda: None)
    turn = ["{0}", "{0}/prepare", "{0}/{1}"]
    expected = [line.format(name, "warm-up") for name in "ab" for line in turn]
    for _ in range(2):
        expected += [line.format(name, "sample") for name in "ab" for line in turn]
    assert recorder.opened() == expected
    payloads = [event.payload for event in recorder.events if event.kind == "open" and event.name == "sample"]
    assert payloads == [0, 0, 1, 1], "the round"
    assert not any(character.isdigit() for event in recorder.events for character in event.name)
    assert recorder.stack == []


def test_other_ranges_can_be_given():
    opened: list[str] = []

    def own(name: str, payload: object) -> ranges.annotate:
        opened.append(name)
        return ranges.annotate(name)

    Lab(a=alike(1)).sample(StopRule(min_samples=1, max_samples=1), ranges=own)
    assert opened == ["a", "prepare", "sample"]


def test_a_capture_holds_the_rounds_and_no_warm_up():
    lab = Lab(a=alike(1))
    with ranges.recorder() as recorder:
        lab.sample(StopRule(min_samples=2, max_samples=2), warmup=1, capture=ranges.annotate("capture"))
    turn = ["{0}a", "{0}a/prepare", "{0}a/{1}"]
    warm_up = [line.format("", "warm-up") for line in turn]
    assert recorder.opened() == [*warm_up, "capture", *(2 * [line.format("capture/", "sample") for line in turn])]


def test_a_capture_ends_on_ctrl_c():
    def interrupt() -> None:
        raise KeyboardInterrupt

    with ranges.recorder() as recorder:
        rule = StopRule(min_samples=2)
        result = sample_in_turn([Subject("a", interrupt)], Lab(), rule, warmup=0, capture=ranges.annotate("capture"))
    assert result.interrupted and recorder.events[-1].kind == "close" and recorder.events[-1].name == "capture"


def test_names_must_differ():
    with pytest.raises(ValueError, match="names"):
        sample_in_turn([Subject("a", print), Subject("a", print)], Lab(), StopRule())


def test_one_sample_never_converges():
    result = Lab(a=alike(1)).sample(StopRule(min_samples=1, budget_s=100))
    assert len(result["a"].times_s) == 2  # of a single one nothing tells how far it is from the median


def test_no_subjects_no_rounds():
    assert len(sample_in_turn([], Lab(), StopRule())) == 0


def test_an_unknown_name_is_a_key_error():
    with pytest.raises(KeyError):
        sample_in_turn([], Lab(), StopRule())["a"]


@pytest.mark.parametrize(
    "fields",
    [
        {"min_samples": 0},
        {"min_samples": 9, "max_samples": 8},
        {"target": -1},
        {"budget_s": -1},
        {"confidence": 1},
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(fields):
    with pytest.raises(ValueError):
        StopRule(**fields)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.floats(0.01, 10), min_size=1, max_size=8), min_size=1, max_size=4),
    st.integers(1, 6),
    st.integers(0, 30),
    st.floats(0.0, 30.0),
)
def test_whatever_the_times_the_rule_holds(cycles, fewest, more, budget):
    lab = Lab(**{chr(97 + i): itertools.cycle(times) for i, times in enumerate(cycles)})
    rule = StopRule(min_samples=fewest, max_samples=fewest + more, budget_s=budget)
    result = lab.sample(rule)
    counts = [len(samples.times_s) for samples in result]
    assert all(min(fewest, 3) <= count <= fewest + more for count in counts)
    for samples, count in zip(result, counts, strict=True):
        longest = max(samples.times_s)
        assert samples.stop in ("converged", "budget", "max_samples")
        if longest <= budget:
            assert count >= fewest
        spent_before_last = sum(samples.times_s[:-1])
        assert count <= max(fewest, 1) or spent_before_last < budget  # never a turn after the budget is gone
    # rounds: the order of turns is the given one, and who left does not come back
    turns = iter(lab.log)
    for number in range(max(counts)):
        for samples, count in zip(result, counts, strict=True):
            if count > number:
                assert next(turns) == samples.name
    assert next(turns, None) is None
