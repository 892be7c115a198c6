"""Sampling in turn: rounds of one sample each, so that a slow drift of the machine hits all alike.

The order of a round
    Where an `rng` is given, each round has an order of its own. In a fixed one a subject always meets what its
    neighbours leave behind: an H200 at its power limit sets its clocks about 25 ms late, so that of two kernels
    of 13 ms in the order A B A B or A B B A each ran at the clocks that the other's power had set.

Who stays in the rounds
    The results are compared pairwise, and a pair of samples from one round shares the machine's state of that
    round. So nobody leaves merely because its own interval is narrow: all go on, round by round, until at the
    end of a round *everyone still in* has an interval narrower than the target, and then all end together.
    Whoever runs over its budget (or into `max_samples`) leaves alone; the others go on and no longer wait for
    it. A subject that leaves never comes back, so the i-th sample of any two subjects comes from the same
    round.

What "converged" claims
    A rule that looks after every round and stops at the first narrow interval stops too early now and then,
    more often the more often it looks. Asking everyone in the same round makes such luck rarer, `min_samples`
    keeps it from the first rounds, and the label is given by the interval that a subject ends with, not by
    one that it had on the way.

Time
    A subject's budget pays for its whole turns: preparation as well as the timed run, which is what a user
    waits for. The warm-up is free, because what it pays for (loading code, choosing algorithms) is not the
    subject's speed.
"""

from __future__ import annotations

import random
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Literal

from .clock import Annotate, Clock, take_sample
from .ranges import annotate
from .statistics import relative_half_width

Stop = Literal["converged", "budget", "max_samples", "error", "interrupted"]

_FEWEST_OF_LONG_RUNS = 3  # the fewest samples that still have a median with something on both sides of it


@dataclass(frozen=True)
class Subject:
    """Something to time.

    Attributes:
        name: unique among the subjects, fixed words (it names a range).
        run: the work, once.
        before: untimed, right before each run, after what is common to all (`between`): a flush, poisoning an
            output.
    """

    name: str
    run: Callable[[], None]
    before: Callable[[], None] | None = None


@dataclass(frozen=True)
class StopRule:
    """When a subject has been sampled enough.

    Attributes:
        min_samples: never converged, and not out of budget, with fewer (but see `budget_s`).
        max_samples: never more.
        target: half width of the median's interval, relative to the median, that is narrow enough.
        budget_s: seconds per subject for its turns. Where a single turn takes longer than that, 3 samples
            suffice.
        confidence: level of the interval.
    """

    min_samples: int = 5
    max_samples: int = 200
    target: float = 0.01
    budget_s: float = 4.0
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if not 1 <= self.min_samples <= self.max_samples:
            raise ValueError(f"min_samples {self.min_samples} must be from 1 to max_samples {self.max_samples}")
        if not (self.target >= 0 and self.budget_s >= 0):
            raise ValueError(f"target {self.target} and budget_s {self.budget_s} must not be negative")
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence {self.confidence} must lie between 0 and 1")


@dataclass
class Samples:
    """What was measured of one subject.

    Attributes:
        name: the subject's.
        times_s: seconds, in round order; those taken before an error or an interruption are kept.
        stop: why the sampling ended. "converged" goes to whoever ended with a narrow enough interval.
        error: what `run` or `before` raised. Its frames are cleared, so that it keeps no tensors alive.
    """

    name: str
    times_s: list[float] = field(default_factory=list)
    stop: Stop = "interrupted"
    error: Exception | None = None


@dataclass(frozen=True)
class Sampling:
    """All subjects' samples, in the order of the subjects; `interrupted` when Ctrl-C ended the rounds."""

    subjects: tuple[Samples, ...]
    interrupted: bool

    def __iter__(self) -> Iterator[Samples]:
        return iter(self.subjects)

    def __len__(self) -> int:
        return len(self.subjects)

    def __getitem__(self, name: str) -> Samples:
        """The samples of the subject of that name; KeyError if there is none."""
        for samples in self.subjects:
            if samples.name == name:
                return samples
        raise KeyError(name)


@dataclass
class _Turns:
    """A subject in the rounds."""

    subject: Subject
    samples: Samples
    spent_s: float = 0.0
    longest_s: float = 0.0

    def within_target(self, rule: StopRule) -> bool:
        times = self.samples.times_s
        return len(times) >= rule.min_samples and relative_half_width(times, rule.confidence) <= rule.target

    def exhausted(self, rule: StopRule) -> Stop | None:
        count = len(self.samples.times_s)
        if count >= rule.max_samples:
            return "max_samples"
        enough = rule.min_samples
        if self.longest_s > rule.budget_s:
            enough = min(enough, _FEWEST_OF_LONG_RUNS)
        return "budget" if self.spent_s >= rule.budget_s and count >= enough else None

    def end(self, rule: StopRule, why: Stop) -> None:
        self.samples.stop = "converged" if self.within_target(rule) else why


def sample_in_turn(
    subjects: Sequence[Subject],
    clock: Clock,
    rule: StopRule,
    *,
    warmup: int = 1,
    rng: random.Random | None = None,
    between: Callable[[], None] | None = None,
    on_sample: Callable[[str, int, float], None] | None = None,
    ranges: Annotate = annotate,
    now: Callable[[], float] = time.monotonic,
    capture: AbstractContextManager[object] | None = None,
) -> Sampling:
    """Time the subjects in turn until the rule ends it; see the module's text for who leaves when.

    One turn: `between`, the subject's `before`, then the timed run, then `on_sample`; only the run is inside
    the timed window. An exception of a `run` or `before` ends that subject alone. Ctrl-C ends all and is
    returned, not raised.

    Args:
        subjects: in the order of their turns, where there is no `rng`.
        clock: times one run; it may ask for a void sample to be taken again.
        rule: when to stop.
        warmup: untimed turns of each subject before the rounds, in the range "warm-up".
        rng: draws the order of each round.
        between: common to all turns: settling, reading telemetry. What it raises is raised.
        on_sample: told the subject's name, how many samples it has, and the seconds of the last.
        ranges: opens a range by name and payload.
        now: seconds of a monotonic clock, for the budgets.
        capture: entered after the warm-up and left after the last round: a profiler's recording.

    Raises:
        ValueError: two subjects share a name.
    """
    turns = [_Turns(subject, Samples(subject.name)) for subject in subjects]
    if len({turn.subject.name for turn in turns}) < len(turns):
        raise ValueError("subjects need different names")

    def take(turn: _Turns, kind: str, number: int) -> float | None:
        """Seconds of one turn's run, or None when it failed."""
        begin = now()
        failure: Exception | None = None
        seconds = 0.0

        def prepare() -> None:
            if between is not None:
                try:
                    between()
                except Exception as error:  # the room's own steps failed, not this subject
                    raise _BetweenFailed from error
            if turn.subject.before is not None:
                turn.subject.before()

        with ranges(turn.subject.name, number):
            try:
                seconds = take_sample(clock, turn.subject.run, prepare, name=kind, payload=number, ranges=ranges)
            except _BetweenFailed as error:
                assert error.__cause__ is not None
                raise error.__cause__ from None
            except Exception as error:
                failure = error
        if failure is not None:
            _release_frames(failure)
            turn.samples.stop, turn.samples.error = "error", failure
            return None
        spent = max(now() - begin, seconds)
        if kind == "sample":
            turn.spent_s += spent
            turn.longest_s = max(turn.longest_s, spent)
        return seconds

    active = list(turns)
    try:
        for number in range(warmup):
            active = [turn for turn in active if take(turn, "warm-up", number) is not None]
        number = 0
        with capture or nullcontext():
            while active:
                staying = []
                if rng is not None:
                    rng.shuffle(active)
                for turn in active:
                    seconds = take(turn, "sample", number)
                    if seconds is None:
                        continue
                    turn.samples.times_s.append(seconds)
                    if on_sample is not None:
                        on_sample(turn.subject.name, len(turn.samples.times_s), seconds)
                    why = turn.exhausted(rule)
                    if why is None:
                        staying.append(turn)
                    else:
                        turn.end(rule, why)
                active = staying
                number += 1
                if all(turn.within_target(rule) for turn in active):
                    for turn in active:
                        turn.end(rule, "converged")
                    active = []
    except KeyboardInterrupt:
        for turn in turns:
            if turn.samples.stop == "interrupted":
                turn.end(rule, "interrupted")
        return Sampling(tuple(turn.samples for turn in turns), interrupted=True)
    return Sampling(tuple(turn.samples for turn in turns), interrupted=False)


class _BetweenFailed(Exception):
    """Carries an exception of `between` past the handler of the subject's own."""


def _release_frames(error: BaseException) -> None:
    """Clear the locals of the frames that raised: an out-of-memory error would keep their tensors alive."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        traceback.clear_frames(link.__traceback__)
        link = link.__cause__ or link.__context__
