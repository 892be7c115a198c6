"""Carry out a plan: run its cells, send each row on its way, show the summary, choose the exit code."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from hsbench.cli.exit_codes import CANNOT_RUN, INCORRECT, INTERRUPTED, OK
from hsbench.cli.request import Cell, Plan
from hsbench.cli.signals import Interruptible
from hsbench.cli.streams import say, stderr
from hsbench.run.manifest import manifest_of

if TYPE_CHECKING:
    from rich.console import Console

    from hsbench.results import Record, Report

Summary = Callable[[list["Report"], "Console"], None]


def run(plan: Plan, summary: Summary) -> int:
    """Run every cell of a plan.

    Ctrl-C, SIGTERM or SIGHUP ends the run: rows that are done stay, the others are written as interrupted.

    Args:
        plan: from ``request.py``.
        summary: prints all reports for people; used where stdout does not hold tables already.

    Returns:
        The exit code, see :func:`exit_code`; of an interrupted run, the one of the signal.

    Raises:
        ProfilerError, UnavailableError: the results are out, but a profile that was asked for could not be made.
        KeyboardInterrupt: a signal came once all rows were out, or another while they were written.
    """
    with Interruptible() as signals:
        code = _run(plan, summary, signals)
    return signals.exit_code if code == INTERRUPTED else code


def _run(plan: Plan, summary: Summary, signals: Interruptible) -> int:
    from hsbench import measure
    from hsbench.cli.handoff import hand_off, run_profiled
    from hsbench.cli.progress import Progress, warn
    from hsbench.profiling.child import orders
    from hsbench.report import console_for
    from hsbench.run import experiment

    if (given := orders()) is not None:
        return run_profiled(plan, given)
    for warning in plan.warnings:
        warn(warning)
    if plan.sink.wants_manifest and plan.sink.manifest is None:  # a replay has made it already
        plan.sink.manifest = manifest_of(plan)
    reports: list[Report] = []
    with plan.sink as sink:
        try:
            with Progress(len(plan.cells), sink.row) as progress, measure.annotate("run"):
                for cell in plan.cells:
                    progress.cell(len(reports), cell.label)
                    report = experiment.run_workload(
                        cell.workload,
                        methods=plan.methods if cell.methods is None else list(cell.methods),
                        device=plan.device,
                        settings=plan.settings,
                        captured=cell.captured,
                        observer=progress,
                    )
                    reports.append(report)
                    with progress.aside():
                        sink.report(report)
                    if report.interrupted or signals.first is not None:
                        break
        except KeyboardInterrupt:  # between cells, where no experiment turns it into rows
            pass
        for cell in plan.cells[len(reports) :]:
            reports.append(_not_reached(cell, plan, reports))
            sink.report(reports[-1])
    # One table on stdout says it all; anything else gets its summary.
    if sink.format != "table" or sink.path is not None or len(plan.cells) > 1:
        summary(reports, console_for(stderr()))
    code = exit_code(reports, plan.methods)
    if plan.profiler is None or code == INTERRUPTED:
        return code
    try:
        hand_off(plan, plan.profiler, reports)
    except KeyboardInterrupt:
        say("hsbench: interrupted under the profiler; the results above are whole")
        return INTERRUPTED
    return code


def exit_code(reports: Sequence[Report], asked: Sequence[str] | None) -> int:
    """The exit code of a run.

    130 if it was interrupted; else 3 if a result failed its check; else 4 if nothing could run, or if a
    method asked for by name was unavailable in every cell; else 0.
    """
    records = [result.record for report in reports for result in report.results]
    statuses = {record.status for record in records}
    if any(report.interrupted for report in reports):
        return INTERRUPTED
    if "incorrect" in statuses:
        return INCORRECT
    if "ok" not in statuses or any(_unavailable(name, records) for name in asked or ()):
        return CANNOT_RUN
    return OK


def _unavailable(name: str, records: Iterable[Record]) -> bool:
    """Whether a family or family:variant could run nowhere, and in some cell for lack of something."""
    statuses = {record.status for record in records if name in (record.method, record.family)}
    return "unavailable" in statuses and not statuses & {"ok", "oom"}


def _not_reached(cell: Cell, plan: Plan, reports: Sequence[Report]) -> Report:
    """A report that has every row of a cell as interrupted, so that a sweep's output holds all its cells."""
    from hsbench.methods import default_families
    from hsbench.results import Record, Report, Result

    # Which rows a cell has is known only once it runs; a cell of the same phase that did is the best guess.
    alike = [report for report in reports if report.workload.phase == cell.workload.phase and report.results]
    seen = [result.record.method for report in alike[:1] for result in report.results]
    names = seen or cell.methods or plan.methods or default_families(cell.workload.phase)
    machine, ceilings = (reports[0].machine, reports[0].ceilings) if reports else ({}, {})
    rows = [
        Record.of(
            cell.workload,
            method=name,
            device=plan.device,
            cache=plan.settings.cache,
            sustain_s=plan.settings.sustain_s,
            status="interrupted",
            machine=machine,
        )
        for name in names
    ]
    return Report(cell.workload, [Result(row) for row in rows], machine, ceilings, interrupted=True)
