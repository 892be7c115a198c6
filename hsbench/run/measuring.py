"""One cell from tensors to report: prepare, check, sample in turn, check again, account."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

from hsbench import measure
from hsbench.kernels import library
from hsbench.kernels.device import Device
from hsbench.machine import ceilings, conditions
from hsbench.measure.out_of_memory import is_out_of_memory
from hsbench.problem.captured import Captured
from hsbench.problem.workload import Workload
from hsbench.results import MeasuredCeiling, Report, Result
from hsbench.run import accounting
from hsbench.run.cell_run import CellRun, cache_policy, subject, sustaining
from hsbench.run.observer import Observer
from hsbench.run.plan import Cell, Plan, make_plan
from hsbench.run.settings import Settings
from hsbench.run.stages import Ready, Sampled

_PROBE = "probe"  # the ceiling's name among the methods in the rounds
_SHARED_MACHINE = 0.1  # share of the cores that others may take before a report says so


def run_workload(
    workload: Workload,
    *,
    methods: Sequence[str] | None = None,
    device: Device | None = None,
    settings: Settings | None = None,
    captured: Captured | None = None,
    observer: Observer | None = None,
) -> Report:
    """Plans and measures one workload.

    Args:
        workload: what to run.
        methods: ``family`` or ``family:variant`` names; None for all that suit the phase.
        device: where; None takes the GPU where there is one.
        settings: how to measure.
        captured: tensors to use in place of synthetic ones; the workload has their geometry.
        observer: told of progress, warnings and finished rows.

    Returns:
        The report: a row per method.

    Raises:
        UsageError: an unknown method.
        NonFiniteError: the tensors hold a NaN or an infinity.
    """
    plan = make_plan([(workload, captured)], methods, device, settings)
    return measure_cell(plan.cells[0], plan.device, plan.settings, observer or Observer())


def measure_cell(cell: Cell, device: Device, settings: Settings, observer: Observer) -> Report:
    """Measures one cell of a plan.

    Returns:
        The report. Ctrl-C ends the run: rows that are done stay, the others are ``interrupted``.

    Raises:
        NonFiniteError: the tensors hold a NaN or an infinity.
    """
    measure.release_memory(device)  # what runs must not depend on what ran before
    return Measuring(cell, device, settings, observer).run()


def not_reached(plan: Plan, cell: Cell, reports: Sequence[Report]) -> Report:
    """A report that has every row of a cell as interrupted, so that a sweep's output holds all its cells.

    Args:
        plan: of the sweep.
        cell: the one that was not run.
        reports: of those that were; they have seen the same machine.
    """
    machine, ceilings = (reports[0].machine, reports[0].ceilings) if reports else ({}, {})
    rows = [
        accounting.record(
            cell.workload, name, plan.device, plan.settings, "interrupted", None, machine, {}, ranks=plan.ranks
        )
        for name in cell.methods
    ]
    return Report(cell.workload, [Result(row) for row in rows], machine, ceilings, interrupted=True)


class Measuring(CellRun):
    """The run whose numbers are reported.

    Attributes:
        now: seconds of a monotonic clock, by which it is decided when enough was sampled; None for this process's own.
    """

    now: Callable[[], float] | None = None

    with_ceiling = True

    def __init__(self, cell: Cell, device: Device, settings: Settings, observer: Observer) -> None:
        super().__init__(cell, device, settings, observer)
        self.quota = measure.QuotaWatch()
        self.shared: bool | None = None  # whether others used the device while it sampled
        self.cold_by: str | None = None

    def clock(self) -> measure.Clock:
        """What times a run."""
        return measure.clock_for(self.device)

    def others(self) -> measure.OtherLoad:
        """Counts, from now on, what others than this run take of the cores."""
        return measure.OtherLoad()

    def after_sample(self, method: str) -> None:
        """A sample of a method was taken."""

    def of_all(self, ceiling: MeasuredCeiling) -> MeasuredCeiling:
        """The ceiling of all devices that the run is on, of one's."""
        return ceiling

    def cache(self, rows: list[Ready]) -> measure.CachePolicy:
        """What puts the caches in order."""
        return cache_policy(rows, self.settings, self.device)

    def sample(self, rows: list[Ready]) -> measure.Sampling:
        settings, device = self.settings, self.device
        self.begin("making the buffers that measuring takes")
        cache = self.cache(rows)
        self.cold_by = cache.cold_by
        spent: dict[str, float] = {}

        def last() -> None:
            if not device.is_cuda:
                self.quota.before()

        sustain = sustaining(settings.sustain_s, device, self.now)
        subjects = [subject(row, cache, settings.sustain_s, device, last, self.now) for row in rows]
        # The ceiling takes its turn with the methods: what a shared machine's memory gives moves from minute to minute.
        ceiling = ceilings.ceiling_of(self.workload.phase, device)

        def before_ceiling() -> None:
            sustain(ceiling.run)
            measure.settle()

        subjects.append(measure.Subject(_PROBE, ceiling.run, before_ceiling))

        def on_sample(name: str, done: int, seconds: float) -> None:
            if name == _PROBE:
                return
            self.telemetry.read(name)
            self.quota.after(name)
            self.after_sample(name)
            spent[name] = spent.get(name, 0.0) + seconds
            self.observer.sampled(name, done, settings.max_samples, spent[name])

        self.begin("sampling in turn")
        load = self.others()
        sampling = measure.sample_in_turn(
            subjects,
            self.clock(),
            settings.stop_rule(),
            rng=random.Random(self.workload.seed),
            on_sample=on_sample,
            now=self.now or time.monotonic,
        )
        if times := sampling[_PROBE].times_s:
            found = self.of_all(MeasuredCeiling(ceiling.name, ceiling.rate(times), ceiling.unit))
            self.ceilings[found.name] = found
        self.shared, warning = company(device, load, self.quota, self.telemetry)
        if warning is not None:
            self.machine["warnings"].append(warning)
            self.observer.warning(warning)
        return sampling

    def account(self, rows: list[Sampled]) -> None:
        good = [row for row in rows if row.verdict.reason is None]
        medians = {row.method.name: measure.summarize(row.samples.times_s).median for row in rows}
        dense = [row for row in good if row.method.dense]
        baseline = min(dense, key=lambda row: medians[row.method.name], default=None)
        for row in rows:
            columns, gain_s = self._columns(row, medians[row.method.name]), 0.0
            if baseline is not None and row in good:
                name, against = baseline.method.name, baseline.samples.times_s
                columns |= accounting.speedup(row.samples.times_s, name, against)
                if not self.workload.phase.causal:  # a step of many over the same K and V
                    gain_s = medians[name] - medians[row.method.name]
            status = "ok" if row in good else "incorrect"
            self.close(row, status, row.verdict.reason, self._compress_note(row, gain_s), **columns)

    def _columns(self, row: Sampled, median_s: float) -> dict[str, object]:
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

    def _compress_note(self, row: Sampled, gain_s: float) -> str:
        compress = row.prepared.compress
        if compress is None:
            return ""
        with measure.annotate(row.method.name), measure.annotate("prune"), measure.annotate("compress"):
            try:
                clock = measure.clock_for(self.device)
                return accounting.compress_note(self.workload, row.prepared.kv_bytes, compress, clock, gain_s)
            except Exception as error:  # the row's own result is whole
                if not is_out_of_memory(error):
                    raise
                return "pruning and packing once more, to time it, ran out of memory"


def company(
    device: Device, load: measure.OtherLoad, quota: measure.QuotaWatch, telemetry: measure.Telemetry
) -> tuple[bool | None, str | None]:
    """What the machine did to the samples, others' work on it and clocks or threads held back: whether others used
    the device, None where that cannot be told, and a warning with a remedy."""
    if device.is_cuda:
        return telemetry.shared, conditions.gpu_warning(telemetry)
    share = load.share()
    if quota.summary().throttled and quota.cores is not None:
        # Where a quota stopped our threads, the cores that others used are not what the samples waited for.
        return None, conditions.quota_warning(quota.cores, library.threads())
    if share is None or share <= _SHARED_MACHINE:
        return (None if share is None else False), None
    return True, conditions.cpu_warning(share)
