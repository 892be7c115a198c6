"""From a request to a task: a plan, and where its results go. Everything is checked here, before any work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hsbench.cli.output import Output, make_output
from hsbench.cli.parse import flag, parse_choice, parse_list, parse_number
from hsbench.cli.places import check_creatable
from hsbench.cli.problems import all_problems, one_problem, open_basis, open_tensors, warnings_of, with_plan
from hsbench.cli.ranks import ranks_of
from hsbench.cli.request import DEVICES, Request
from hsbench.cli.usage import COMMAND_LINE
from hsbench.errors import UsageError
from hsbench.kernels.device import Device
from hsbench.methods import check_methods
from hsbench.problem.phase import Phase
from hsbench.run.manifest import read_manifest
from hsbench.run.settings import CACHES, Settings

if TYPE_CHECKING:
    from hsbench.problem.captured import Captured
    from hsbench.profiling import Profiler
    from hsbench.run.plan import Plan, Problem
    from hsbench.run.resume import Resumed

#: What may be asked for beside ``--replay``; everything else is the manifest's.
_BESIDE = ("replay", "output", "format", "manifest", "device", "profile", "profiler", "profile_dir")


@dataclass(frozen=True)
class Profiling:
    """What to run every cell under once more, and the folder of its reports."""

    profiler: Profiler
    folder: Path


@dataclass(frozen=True)
class Task:
    """What to run and where its results go.

    Attributes:
        plan: what to run.
        output: where its results go.
        warnings: what the user should know before it starts.
        profiling: None for nothing.
        resumed: what is done already; None for nothing.
    """

    plan: Plan
    output: Output
    warnings: tuple[str, ...]
    profiling: Profiling | None
    resumed: Resumed | None = None


def one_task(phase: Phase, request: Request) -> Task:
    """The task of ``decode`` or ``prefill``: one cell.

    Raises:
        UsageError: names the option or field, the value and the remedy.
        UnavailableError: the device asked for is not there.
    """
    settings, methods, captured = _settings(request), _methods(request), open_tensors(request)
    problems = one_problem(phase, with_plan(request, captured), captured)
    return _task(request, problems, captured, settings, methods, "table")


def sweep_task(request: Request) -> Task:
    """The task of ``compare``: the cross product of its lists, each cell once.

    Raises:
        UsageError, UnavailableError: as :func:`one_task`.
    """
    settings, methods, captured = _settings(request), _methods(request), open_tensors(request)
    problems = all_problems(with_plan(request, captured), captured)
    return _task(request, problems, captured, settings, methods, "csv")


def replay_task(request: Request, manifest: str) -> Task:
    """The task of the run that a manifest tells of: its cells, methods, tensors and settings.

    Where ``--device`` moves it to another device, the methods are those that were asked for then, on that device.

    Args:
        manifest: the file, as typed.

    Raises:
        UsageError: an option that contradicts it; a file that is no manifest, is damaged, or names captured tensors
            that are not there any more.
        UnavailableError: its device is not there, or the profiler that was asked for.
    """
    for name, typed in request.given().items():
        if name not in _BESIDE:
            beside = ", ".join(map(flag, _BESIDE[1:]))
            remedy = f"--replay repeats a run as it was; leave one of them out (beside it: {beside})"
            raise UsageError(name, typed, remedy)
    path = Path(manifest)
    then = read_manifest(path)
    device = None if request.device is None else parse_choice(request.device, "device", DEVICES)
    profiler = _wanted_profiler(request)

    from hsbench.run.replay import plan_of, replay

    plan = plan_of(path, then, device)
    inputs = [("replay", path), *(("kv", cell.captured.path) for cell in plan.cells if cell.captured)]
    inputs += [("basis", cell.basis.path) for cell in plan.cells if cell.basis]
    output = make_output(request.output, request.format, request.manifest, "csv", inputs)
    _check_profiling(plan, profiler)
    profiling, said = _profiling(request, profiler, plan.device)
    again = replay(plan, then, COMMAND_LINE.get())
    output.manifest = again.manifest
    changed = "; ".join(again.changed)
    warnings = [f"{flag('replay')} {path}: not all is as it was: {changed}"] if changed else []
    return Task(plan, output, (*warnings, *said), profiling)


def _task(
    request: Request,
    problems: Sequence[Problem],
    captured: Captured | None,
    settings: Settings,
    methods: Sequence[str] | None,
    default_format: str,
) -> Task:
    device = "auto" if request.device is None else parse_choice(request.device, "device", DEVICES)
    inputs = [] if captured is None else [("kv", captured.path)]
    inputs += [(name, Path(typed)) for name in ("basis", "plan") if (typed := getattr(request, name)) is not None]
    output = make_output(request.output, request.format, request.manifest, default_format, inputs)
    profiler = _wanted_profiler(request)
    # Until here, a typing error is answered at once: now torch is imported.
    from hsbench.machine.hardware import resolve_device
    from hsbench.run.plan import make_plan

    ranks = ranks_of(request)
    plan = make_plan(problems, methods, resolve_device(device), settings, open_basis(request, captured), ranks)
    _check_profiling(plan, profiler)
    profiling, said = _profiling(request, profiler, plan.device)
    return Task(plan, output, tuple(dict.fromkeys([*warnings_of(problems), *said])), profiling)


def _settings(request: Request) -> Settings:
    cache = CACHES[0] if request.cache is None else parse_choice(request.cache, "cache", CACHES)
    budget_s = Settings.budget_s if request.time is None else parse_number(request.time)
    sustain_s = Settings.sustain_s if request.sustain is None else parse_number(request.sustain)
    try:
        return Settings(budget_s=budget_s, cache=cache, sustain_s=sustain_s)
    except UsageError as error:
        raise request.as_typed(error) from error


def _methods(request: Request) -> list[str] | None:
    return None if request.methods is None else check_methods(parse_list(request.methods, "methods"))


def _wanted_profiler(request: Request) -> str | None:
    """The profiler's name, ``auto`` for the best one here, None for none.

    Raises:
        UsageError: an unknown one, or a folder that its reports cannot be put into.
    """
    if request.profiler is not None:
        from hsbench.profiling import PROFILERS

        wanted = parse_choice(request.profiler, "profiler", tuple(PROFILERS))
    elif request.profile or request.profile_dir is not None:  # to say where reports go is to ask for them
        wanted = "auto"
    else:
        return None
    check_creatable(request.profile_folder, "profile_dir")
    return wanted


def _check_profiling(plan: Plan, wanted: str | None) -> None:
    """Refuses a profiler, which looks at one process, for a run over several whose parts are no problems of their own:
    queries of a last chunk see all keys of a part, and captured tensors are those of the whole sequence.

    Raises:
        UsageError: it is one.
    """
    if wanted is None or plan.ranks == 1:
        return
    if any(cell.captured is not None or cell.workload.phase.causal for cell in plan.cells):
        remedy = "profile one rank's part of decode, of synthetic tensors; else leave `profile` out"
        raise UsageError("ranks", plan.ranks, remedy)


def _profiling(request: Request, wanted: str | None, device: Device) -> tuple[Profiling | None, tuple[str, ...]]:
    """The profiler that is meant on a device, and warnings that go with it.

    Raises:
        UnavailableError: it was asked for by name and cannot be had.
    """
    if wanted is None:
        return None, ()
    from hsbench.profiling import choose

    profiler, said = choose(None if wanted == "auto" else wanted, device)
    return Profiling(profiler, request.profile_folder), () if said is None else (said,)
