"""The same cells once more, under a profiler: each in a process of its own that is given the very same plan."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hsbench import measure
from hsbench.cli.streams import say
from hsbench.cli.tasks import Profiling
from hsbench.errors import UsageError
from hsbench.run.plan import Cell, Plan

if TYPE_CHECKING:
    from hsbench.results import Report


def hand_off(plan: Plan, profiling: Profiling, reports: Sequence[Report], still_wanted: Callable[[], None]) -> None:
    """Make a report of every cell, of the rows that ran ok; all that is said of them goes to stderr.

    Args:
        still_wanted: raises if the run was interrupted; called while a profiler runs.

    Raises:
        UsageError: the folder of the reports cannot be made after all.
        ProfilerError, UnavailableError: the profiler failed; reports made until then stay.
    """
    if not any(_ran_ok(report) for report in reports):
        say("hsbench: nothing to profile: no row ran ok")
        return
    try:
        profiling.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        remedy = f"cannot be made ({error.strerror or error}); give another folder"
        raise UsageError("profile_dir", profiling.folder, remedy) from error
    measure.release_memory(plan.device)  # what torch keeps for this process's next tensors: the profiled run needs it
    for cell, report in zip(plan.cells, reports, strict=True):
        for rows in _groups(profiling, _ran_ok(report)):
            _make(plan, cell, rows, profiling, still_wanted)


def _make(plan: Plan, cell: Cell, rows: Sequence[str], profiling: Profiling, still_wanted: Callable[[], None]) -> None:
    """Makes one report and says what is in it."""
    from hsbench.profiling import Job, Orders, report_stem, summary_lines, unused_stem
    from hsbench.profiling.base import ProfilerError
    from hsbench.run import child

    profiler = profiling.profiler
    part = f" (the first of {plan.ranks} ranks' part, without its collective)" if plan.ranks > 1 else ""
    say(f"hsbench: profiling {cell.label}{part} with {profiler.name}: {', '.join(rows)}")
    name = report_stem(cell.workload, rows[0] if profiler.one_report_per_method else None)
    stem = profiling.folder / unused_stem(profiling.folder, name)
    report = stem.parent / (stem.name + profiler.suffix)
    plan_file = stem.parent / f"{stem.name}.plan.json"
    command = child.command(plan_file, Orders(profiler.name, profiler.rounds, report))
    job = Job(command=command, stem=stem, suffix=profiler.suffix, methods=tuple(rows), device=plan.device)
    try:
        _write(plan_file, plan.of(cell, rows))
        lines = profiler.make(job, still_wanted)
    except ProfilerError as error:
        say(*(f"  | {line}" for line in error.output.splitlines()))
        raise
    finally:
        plan_file.unlink(missing_ok=True)
    say(f"profile    {job.report}", *(f"           {line}" for line in summary_lines(lines, profiler.work(job.device))))
    say(f"           profiled run, no timing: shares are of a method's time under {profiler.name}")
    say(f"open       {profiler.how_to_open(job.report)}")


def _write(path: Path, plan: Plan) -> None:
    try:
        path.write_text(json.dumps(plan.to_dict(), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError("profile_dir", path.parent, f"cannot be written ({error.strerror or error})") from error


def _groups(profiling: Profiling, rows: list[str]) -> Iterator[list[str]]:
    """The rows of each report."""
    if profiling.profiler.one_report_per_method:
        yield from ([row] for row in rows)
    elif rows:
        yield rows


def _ran_ok(report: Report) -> list[str]:
    return [result.record.method for result in report.results if result.record.status == "ok"]
