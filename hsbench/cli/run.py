"""Carry out a task: run its cells, send each row on its way, show the summary, choose the exit code."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from hsbench.cli.exit_codes import INTERRUPTED, code_of
from hsbench.cli.ranks import leading, leads, start
from hsbench.cli.signals import Interruptible, held
from hsbench.cli.streams import say, say_how_to_draw, stderr
from hsbench.cli.tasks import Task
from hsbench.cli.usage import COMMAND_LINE
from hsbench.run.manifest import manifest_of

if TYPE_CHECKING:
    from rich.console import Console

    from hsbench.results import Record, Report, Result
    from hsbench.run.leading import Leader

Summary = Callable[[list["Report"], "Console"], None]


def run(task: Task, summary: Summary) -> int:
    """Run every cell of a task.

    Ctrl-C, SIGTERM or SIGHUP ends the run: rows that are done stay, the others are written as interrupted.

    Args:
        task: from ``tasks.py``.
        summary: prints all reports for people; used where stdout does not hold tables already.

    Returns:
        The exit code, see :func:`exit_code`; of an interrupted run, the one of the signal.

    Raises:
        ProfilerError, UnavailableError: the results are out, but a profile that was asked for could not be made.
        KeyboardInterrupt: a signal came once all rows were out, or another while they were written.
        HsbenchError: over ranks, one of them is gone, or does not fit the others.
    """
    if task.plan.ranks > 1 and not leads():
        return start(task.plan.ranks, task.plan.device.kind)
    with Interruptible() as signals, leading(task.plan) as leader:
        code = _run(task, summary, signals, leader)
        if leader is not None:
            leader.end(code)
    return signals.exit_code if code == INTERRUPTED else code


def _run(task: Task, summary: Summary, signals: Interruptible, leader: Leader | None) -> int:
    from hsbench import measure
    from hsbench.cli.handoff import hand_off
    from hsbench.cli.progress import Progress, warn
    from hsbench.report import console_for
    from hsbench.run import measuring, resume

    plan = task.plan
    for warning in task.warnings:
        warn(warning)
    if task.output.wants_manifest and task.output.manifest is None:  # a replay has made it already
        task.output.manifest = manifest_of(plan, COMMAND_LINE.get())
    before = task.resumed or resume.nothing(plan)
    reports: list[Report] = []
    with task.output as output:

        def finished(result: Result[Record]) -> None:
            if not before.has(len(reports), result):
                output.row(result)

        def ended(report: Report) -> None:
            at = len(reports)
            reports.append(before.whole(at, report))
            output.report(before.new_of(at, report))

        try:
            with Progress(len(plan.cells), finished) as progress, measure.annotate("run"):
                for at, cell in enumerate(plan.cells):
                    if before.is_done(at):
                        reports.append(before.done(plan, at))
                        continue
                    progress.cell(at, cell.label)
                    if leader is None:
                        report = measuring.measure_cell(cell, plan.device, plan.settings, progress)
                    else:
                        report = leader.measure(at, progress)
                    with held(), progress.aside():  # its rows are written, and so it is not one that was not reached
                        ended(report)
                    if report.interrupted or signals.first is not None:
                        break
        except KeyboardInterrupt:  # between cells, where no run turns it into rows
            pass
        for at, cell in enumerate(plan.cells):
            if at < len(reports):
                continue
            if before.is_done(at):
                reports.append(before.done(plan, at))
            else:
                ended(measuring.not_reached(plan, cell, reports))
        if not before.is_whole:
            output.begin()  # what a kill left is closed, also where no row is missing
    # One table on stdout says it all; anything else gets its summary.
    if output.format != "table" or output.path is not None or len(plan.cells) > 1:
        summary(reports, console_for(stderr()))
    if len(plan.cells) > 1:
        say_how_to_draw(output.path, output.format)
    code = exit_code(reports, plan.methods)
    if task.profiling is None or code == INTERRUPTED:
        return code
    try:
        hand_off(plan, task.profiling, reports, signals.check)
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
    return code_of(
        {record.status for record in records},
        interrupted=any(report.interrupted for report in reports),
        lacks=any(_unavailable(name, records) for name in asked or ()),
    )


def _unavailable(name: str, records: Iterable[Record]) -> bool:
    """Whether a family or family:variant could run nowhere, and in some cell for lack of something."""
    statuses = {record.status for record in records if name in (record.method, record.family)}
    return "unavailable" in statuses and not statuses & {"ok", "oom"}
