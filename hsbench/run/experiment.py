"""One workload from tensors to report: prepare, check, sample in turn, check again, account.

    inputs -> each method: prepare (prune, compress) -> check -> [rounds: A B C, C A B ..] -> check -> records

A row that cannot run is a row with a status and a reason; the others go on.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from hsbench import measure
from hsbench.errors import NonFiniteError, UnavailableError, UnsupportedError
from hsbench.kernels import library
from hsbench.kernels.device import Device
from hsbench.machine import ceilings, conditions, hardware
from hsbench.machine.hardware import resolve_device, surroundings
from hsbench.measure.out_of_memory import REMEDY, is_out_of_memory, let_go
from hsbench.methods import check_methods, find_methods
from hsbench.methods.base import Method, Prepared
from hsbench.problem.captured import Captured
from hsbench.problem.inputs import Inputs
from hsbench.problem.synthetic import make_inputs
from hsbench.problem.workload import Workload
from hsbench.results import MeasuredCeiling, Record, Report, Result
from hsbench.run import accounting, check
from hsbench.run.diagnosis import diagnose
from hsbench.run.fit import Fit

__all__ = ["Observer", "Settings", "check_methods", "diagnose", "resolve_device", "run_workload", "surroundings"]

_PROBE = "probe"  # the ceiling's name among the methods in the rounds
_SHARED_MACHINE = 0.1  # share of the cores that others may take before a report says so


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        budget_s: sampling time per method, seconds.
        min_samples: samples per method before its interval counts.
        max_samples: samples per method at most.
        target: half width of the median's interval, relative, that is narrow enough to stop.
        cache: ``cold`` or ``warm``.
        sustain_s: seconds for which a method's own run is repeated, untimed, before each of its samples, so that the
            clocks are those of its own load. ``budget_s`` pays for it: with more of this, give more of that.
    """

    budget_s: float = 4.0
    min_samples: int = 5
    max_samples: int = 200
    target: float = 0.01
    cache: str = "cold"
    sustain_s: float = 0.0


class Observer:
    """Told what goes on, between samples only; does nothing."""

    def stage(self, text: str) -> None:
        """A stage begins."""

    def sampled(self, method: str, done: int, total_hint: int | None, elapsed_s: float) -> None:
        """A sample of ``method`` was taken; ``elapsed_s`` is what its samples took so far."""

    def warning(self, text: str) -> None:
        """Something that the user should know, with a remedy."""

    def finished(self, result: Result) -> None:
        """A row is done."""


@dataclass
class _Row:
    """A method on its way through the stages; ``result`` is set when the row is done."""

    method: Method
    prepared: Prepared | None = None
    footprint: measure.Footprint | None = None
    expected: check.Expected | None = None
    verdict: check.Verdict | None = None
    samples: measure.Samples | None = None
    result: Result | None = None


def run_workload(
    workload: Workload,
    *,
    methods: Sequence[str] | None = None,
    device: Device | None = None,
    settings: Settings | None = None,
    captured: Captured | None = None,
    observer: Observer | None = None,
    capture: AbstractContextManager[object] | None = None,
) -> Report:
    """Runs one workload and reports a row per method.

    Args:
        workload: what to run.
        methods: ``family`` or ``family:variant`` names; None for all that suit the phase.
        device: where; None takes the GPU where there is one.
        settings: how to measure.
        captured: tensors to use in place of synthetic ones; the workload has their geometry.
        observer: told of progress, warnings and finished rows.
        capture: a profiler's recording, entered around the rounds of samples. With it the methods are alone in the
            rounds, nothing is timed, and the rows of the report say so.

    Returns:
        The report. Ctrl-C ends the run: rows that are done stay, the others are ``interrupted``.

    Raises:
        UsageError: an unknown method.
        NonFiniteError: the tensors hold a NaN or an infinity.
    """
    device = resolve_device("auto") if device is None else device
    measure.release_memory(device)  # what runs must not depend on what ran before
    run = _Run(workload, device, settings or Settings(), captured, observer or Observer(), capture)
    rows = [_Row(method) for method in find_methods(methods, workload.phase, device)]
    with measure.annotate("workload"):
        try:
            interrupted = run.all(rows)
        except KeyboardInterrupt:
            interrupted = True
        except Exception as error:
            run.ran_out(rows, error)
            interrupted = False
    for row in rows:
        if row.result is None:
            run.finish(row, "interrupted")
    return Report(workload, [row.result for row in rows], run.machine, run.ceilings, interrupted)


class _Run:
    """The stages of one workload's run."""

    def __init__(
        self,
        workload: Workload,
        device: Device,
        settings: Settings,
        captured: Captured | None,
        observer: Observer,
        capture: AbstractContextManager[object] | None = None,
    ) -> None:
        self.workload, self.device, self.settings = workload, device, settings
        self.captured, self.observer, self.capture = captured, observer, capture
        self.telemetry = measure.Telemetry(device)
        self.machine = hardware.facts(device, self.telemetry)
        self.ceilings: dict[str, MeasuredCeiling] = {}
        self.quota = measure.QuotaWatch()
        self.shared: bool | None = None  # whether others used the device while it sampled
        self.doing = ""

    def all(self, rows: list[_Row]) -> bool:
        """Runs all stages; returns whether the user interrupted the sampling."""
        fit = Fit(self.workload, self.device, cold=self.settings.cache == "cold", ceiling=self.capture is None)
        for row in rows:
            self._can_run(row, fit)
        if all(row.result for row in rows):
            return False
        inputs = self._inputs()
        for row in rows:
            if row.result is None:
                self._prepare(row, inputs)
        self._check_first([row for row in rows if row.result is None], inputs)
        ready = [row for row in rows if row.result is None]
        if not ready:
            return False
        interrupted = self._sample(ready)
        self._check_after(ready, again=interrupted)
        self._account(ready)
        return interrupted

    def finish(self, row: _Row, status: str, reason: str | None = None, note: str = "", **columns: object) -> None:
        """Closes a row and tells the observer."""
        prepared = row.prepared
        if prepared is not None:
            columns |= accounting.storage(self.workload, prepared)
        if row.footprint is not None:
            columns |= row.footprint.columns()
        record = Record.of(
            self.workload,
            method=row.method.name,
            device=self.device,
            cache=self.settings.cache,
            sustain_s=self.settings.sustain_s,
            status=status,
            reason=reason,
            machine=self.machine,
            **columns,
        )
        row.result = Result(record, dict(prepared.memory) if prepared else {}, note)
        self.observer.finished(row.result)

    def ran_out(self, rows: list[_Row], error: Exception) -> None:
        """Closes the rows that are not done where memory ran out for what they share; raises any other error again."""
        if not is_out_of_memory(error):
            raise error
        let_go(error)
        open_rows = [row for row in rows if row.result is None]
        for row in open_rows:
            row.prepared = row.expected = None
        for row in open_rows:
            self.finish(row, "oom", f"ran out of memory while {self.doing}: {REMEDY}")

    def _can_run(self, row: _Row, fit: Fit) -> None:
        if reason := row.method.unsupported(self.workload, self.device):
            self.finish(row, "unsupported", reason)
        elif reason := row.method.unavailable(self.device):
            self.finish(row, "unavailable", reason)
        else:
            row.footprint = measure.Footprint(self.device, row.method.estimate_bytes(self.workload))
            if reason := fit.refusal(row.method):
                self.finish(row, "oom", reason)

    def _stage(self, doing: str) -> None:
        self.doing = doing
        self.observer.stage(doing)

    def _inputs(self) -> Inputs:
        self._stage("generating q, k, v" if self.captured is None else "loading q, k, v")
        with measure.annotate("generate"):
            if self.captured is not None:
                return self.captured.load(str(self.device))
            return make_inputs(self.workload, str(self.device))

    def _prepare(self, row: _Row, inputs: Inputs) -> None:
        self._stage(f"{row.method.name}: preparing")
        with measure.annotate(row.method.name):
            try:
                with row.footprint.preparing():
                    row.prepared = row.method.prepare(self.workload, inputs)
            except NonFiniteError:
                raise
            except Exception as error:
                self._failed(row, error)

    def _check_first(self, rows: list[_Row], inputs: Inputs) -> None:
        # All methods that attend to the inputs themselves share one reference.
        shared: check.Expected | None = None
        for row in rows:
            self._stage(f"{row.method.name}: checking against fp32")
            with measure.annotate(row.method.name), measure.annotate("check"):
                try:
                    pruned = row.prepared.pruned
                    if pruned(0, 0) is None:
                        shared = shared or check.expect(inputs, pruned, self.workload.seed)
                        row.expected = shared
                    else:
                        row.expected = check.expect(inputs, pruned, self.workload.seed)
                    with row.footprint.running():
                        row.prepared.poison()
                        row.prepared.run()
                    row.footprint.gpu_used_bytes = self.telemetry.memory_used_bytes()
                    out, lse = row.prepared.out, row.prepared.lse
                    row.verdict = check.compare(row.expected, out, lse)
                    if row.verdict.reason is not None:
                        check.refuse_overflow(inputs, pruned, row.expected, out, lse)
                except Exception as error:
                    self._failed(row, error)

    def _sample(self, rows: list[_Row]) -> bool:
        settings = self.settings
        self._stage("making the buffers that measuring takes")
        least = min(row.prepared.kv_bytes for row in rows)
        cache = measure.policy(least, self.device, settings.cache)
        self.cold_by = cache.cold_by
        spent: dict[str, float] = {}

        def subject(row: _Row) -> measure.Subject:
            order_caches = cache.before(row.prepared.run)

            def before() -> None:
                measure.sustain(row.prepared.run, settings.sustain_s, self.device)  # first: it fills output and caches
                row.prepared.poison()
                if order_caches is not None:
                    order_caches()
                if not self.device.is_cuda:
                    self.quota.before()
                measure.settle()  # last: torch poisons a large output with all its threads, which spin afterwards

            return measure.Subject(row.method.name, row.prepared.run, before)

        subjects = [subject(row) for row in rows]
        ceiling = None
        if self.capture is None:
            # The ceiling takes its turn with the methods: what a shared machine's memory gives moves from minute to
            # minute. A profile is of the methods alone.
            ceiling = ceilings.ceiling_of(self.workload.phase, self.device)

            def before_ceiling() -> None:
                measure.sustain(ceiling.run, settings.sustain_s, self.device)
                measure.settle()

            subjects.append(measure.Subject(_PROBE, ceiling.run, before_ceiling))

        def on_sample(name: str, done: int, seconds: float) -> None:
            if name == _PROBE:
                return
            self.telemetry.read(name)
            self.quota.after(name)
            spent[name] = spent.get(name, 0.0) + seconds
            self.observer.sampled(name, done, settings.max_samples, spent[name])

        self._stage("sampling in turn")
        load = measure.OtherLoad()
        sampling = measure.sample_in_turn(
            subjects,
            measure.clock_for(self.device) if self.capture is None else measure.ProfiledClock(self.device),
            measure.StopRule(settings.min_samples, settings.max_samples, settings.target, settings.budget_s),
            rng=random.Random(self.workload.seed),
            on_sample=on_sample,
            capture=self.capture,
        )
        for row in rows:
            row.samples = sampling[row.method.name]
        if ceiling is not None and (times := sampling[_PROBE].times_s):
            self.ceilings[ceiling.name] = MeasuredCeiling(ceiling.name, ceiling.rate(times), ceiling.unit)
        self._conditions(load)
        return sampling.interrupted

    def _conditions(self, load: measure.OtherLoad) -> None:
        """Says once what the machine did to the samples: others' work on it, clocks or threads held back."""
        if not self.device.is_cuda:
            share = load.share()
            quota = self.quota.summary().throttled
            # Where a quota stopped our threads, the cores that others used are not what the samples waited for.
            self.shared = None if share is None or quota else share > _SHARED_MACHINE
            text = conditions.cpu_warning(share) if self.shared else None
            if quota:
                text = conditions.quota_warning(self.quota.cores, library.threads())
        else:
            self.shared = self.telemetry.shared
            text = conditions.gpu_warning(self.telemetry)
        if text is not None:
            self.machine["warnings"].append(text)
            self.observer.warning(text)

    def _check_after(self, rows: list[_Row], *, again: bool) -> None:
        """Holds the last outputs against the reference; ``again``: of one more run, for Ctrl-C may have cut a turn
        short and left an output poisoned."""
        for row in rows:
            if row.samples.error is not None:
                self._failed(row, row.samples.error)
            elif row.verdict.reason is None and row.samples.times_s:
                with measure.annotate(row.method.name), measure.annotate("check"):
                    try:
                        if again:
                            row.prepared.poison()
                            row.prepared.run()
                        after = check.compare(row.expected, row.prepared.out, row.prepared.lse)
                    except Exception as error:
                        self._failed(row, error)
                        continue
                if after.reason is not None:
                    row.verdict = check.Verdict(after.rel_error, f"after the timed runs: {after.reason}")

    def _account(self, rows: list[_Row]) -> None:
        done = [row for row in rows if row.result is None and row.samples.times_s]
        good = [row for row in done if row.verdict.reason is None]
        if self.capture is not None:  # no number of a profiled run gets any further
            for row in done:
                self.finish(row, "ok" if row in good else "incorrect", row.verdict.reason, "profiled run, no timing")
            return
        dense = [row for row in good if row.method.dense]
        medians = {row.method.name: measure.summarize(row.samples.times_s).median for row in done}
        baseline = min(dense, key=lambda row: medians[row.method.name], default=None)
        for row in done:
            columns = self._columns(row, medians[row.method.name])
            if baseline is not None and row in good:
                name, against = baseline.method.name, baseline.samples.times_s
                columns |= accounting.speedup(row.samples.times_s, name, against)
            note = "" if row.prepared.compress is None else self._compress_note(row)
            self.finish(row, "ok" if row in good else "incorrect", row.verdict.reason, note, **columns)

    def _columns(self, row: _Row, median_s: float) -> dict[str, object]:
        meanwhile = self.quota.summary(row.method.name)
        if meanwhile.throttled is None:  # no quota to tell of
            meanwhile = self.telemetry.summary(row.method.name)
        return {
            **accounting.times(row.samples),
            **accounting.rates(self.workload, row.prepared, median_s, self.ceilings.values()),
            **accounting.device_state(meanwhile, self.shared),
            "rel_error": row.verdict.rel_error,
            "cold_by": self.cold_by,
        }

    def _compress_note(self, row: _Row) -> str:
        with measure.annotate(row.method.name), measure.annotate("prune"), measure.annotate("compress"):
            try:
                return accounting.compress_note(self.workload, row.prepared, measure.clock_for(self.device))
            except Exception as error:  # the row's own result is whole
                if not is_out_of_memory(error):
                    raise
                return "pruning and packing once more, to time it, ran out of memory"

    def _failed(self, row: _Row, error: Exception) -> None:
        """Closes the row of a method that raised; what is not a known kind of failure is raised again."""
        if isinstance(error, UnsupportedError):
            status, reason = "unsupported", str(error)
        elif isinstance(error, UnavailableError):
            status, reason = "unavailable", str(error)
        elif isinstance(error, measure.ClockError):
            status, reason = "unsupported", f"cannot be timed on {self.device}: {error}"
        elif is_out_of_memory(error):
            status, reason = "oom", f"ran out of memory: {REMEDY}"
        else:
            raise error
        row.prepared = row.expected = None
        let_go(error)
        self.finish(row, status, reason)
