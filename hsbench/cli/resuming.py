"""``--resume``: from the file of a run that did not come to its end to the task of the rest."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from hsbench.cli.parse import flag, parse_choice
from hsbench.cli.places import FORMATS, check_writable, format_of
from hsbench.cli.progress import warn
from hsbench.cli.request import Request
from hsbench.cli.streams import say
from hsbench.cli.tasks import Task, sweep_task
from hsbench.cli.usage import COMMAND_LINE
from hsbench.errors import UsageError

if TYPE_CHECKING:
    from hsbench.results import Stored
    from hsbench.run.plan import Plan

#: What is said beside ``--resume`` and is no part of what runs.
_BESIDE = ("resume", "manifest", "format", "profile", "profiler", "profile_dir")


def resume_task(request: Request, file: str) -> Task:
    """The task of what is left of a run.

    What runs is the manifest's, which is in a JSON document or Parquet, and beside a CSV; options that are given must
    say the same. Where there is no manifest (a CSV from stdout), or no file yet, it is what the options say.

    Args:
        file: as typed.

    Raises:
        UsageError: an option that contradicts it; a file that is no result, is damaged elsewhere than at its end, or is
            of another run or another machine.
        UnavailableError: its device is not there, or the profiler that was asked for.
    """
    for name in ("output", "replay"):
        if (typed := getattr(request, name)) is not None:
            remedy = "--resume goes on in the file of the run; leave one of them out"
            raise UsageError(name, typed, remedy)
    path = Path(file)
    check_writable(path, "resume")

    from hsbench.results import read_stored

    asked = [name for name in request.given() if name not in _BESIDE]
    if not path.exists() and asked:  # killed before its first row: a script need not look
        warn(f"{flag('resume')} {path} is not there: the run begins")
        return sweep_task(dataclasses.replace(request, resume=None, output=file))
    stored = read_stored(path, "resume", None if request.manifest is None else Path(request.manifest))
    if not stored.results:
        stored = dataclasses.replace(stored, format=format_of(path, stored.format))
    if request.format is not None and parse_choice(request.format, "format", FORMATS) != stored.format:
        raise UsageError("format", request.format, f"the file of {flag('resume')} is {stored.format}; leave it out")
    # The rest of the options, checked as ever; the output is the file's.
    bare = dataclasses.replace(request, resume=None, manifest=None, format=stored.format, output=str(path))
    plan = None
    if stored.manifest is not None:
        plan = _recorded(stored)
        if asked:
            task = sweep_task(bare)
            from hsbench.run.resume import check_plan

            check_plan(stored, plan, task.plan)
        else:
            task = sweep_task(dataclasses.replace(bare, device=plan.device.kind))
    elif not asked:
        raise UsageError("resume", path, "has no manifest beside it; give `manifest` FILE, or the options of the run")
    else:
        task = sweep_task(bare)
    return _rest(stored, task, plan)


def _recorded(stored: Stored) -> Plan:
    """The plan of the manifest; refused where the machine is another, or in another state."""
    from hsbench.run.replay import plan_of, replay
    from hsbench.run.resume import check_machine

    assert stored.manifest is not None
    try:
        plan = plan_of(stored.path, stored.manifest, None)
        check_machine(stored, replay(plan, stored.manifest, COMMAND_LINE.get()).changed)
    except UsageError as error:
        raise UsageError("resume", error.value, error.remedy) from error
    return plan


def _rest(stored: Stored, task: Task, plan: Plan | None) -> Task:
    from hsbench.machine.hardware import surroundings
    from hsbench.run.resume import resume

    plan = plan or task.plan
    resumed = resume(plan, stored, surroundings(plan.device)["machine"])
    output = task.output
    output.manifest, output.kept = stored.manifest, resumed.reports
    output.manifest_path = None  # it is written, by the run that began
    kept, all_rows = resumed.counts
    say(f"hsbench: {stored.path}: {kept} of {all_rows} rows are done and kept, {all_rows - kept} are measured now")
    said = []
    if stored.torn:
        said.append(f"{stored.path}: its end is missing, as after a kill; a row that was cut short is left out")
    if stored.manifest is None:
        said.append(f"{stored.path}: without its manifest it cannot be told whether this is the machine that began it")
    return dataclasses.replace(task, plan=plan, resumed=resumed, warnings=(*task.warnings, *said))
