"""``--replay``: from a manifest back to a plan."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Any

from hsbench.cli.output import make_sink
from hsbench.cli.request import (
    CACHES,
    DEVICES,
    MAX_SUSTAIN_S,
    Cell,
    Plan,
    Request,
    choose_profiler,
    flag,
    wanted_profiler,
)
from hsbench.errors import UsageError
from hsbench.kernels.device import Device
from hsbench.methods import check_methods, find_methods
from hsbench.problem.workload import Workload, make_workload, parse_choice
from hsbench.run.manifest import differences, manifest_of, read_manifest

#: What may be asked for beside ``--replay``; everything else is the manifest's.
_BESIDE = ("replay", "output", "format", "manifest", "device", "profile", "profiler", "profile_dir")

#: What reading a field of the wrong kind or value ends in.
_DAMAGE = (KeyError, TypeError, ValueError, AttributeError, UsageError)


def plan_replay(request: Request) -> Plan:
    """The plan of the run that a manifest tells of: its cells, methods, tensors and settings.

    Where ``--device`` moves it to another device, the methods are those that were asked for then, on that device.

    Raises:
        UsageError: an option that contradicts it; a file that is no manifest, is damaged, or names captured tensors
            that are not there any more.
        UnavailableError: its device is not there, or the profiler that was asked for.
    """
    for name, typed in vars(request).items():
        if name not in _BESIDE and typed not in (None, False):
            beside = ", ".join(map(flag, _BESIDE[1:]))
            remedy = f"--replay repeats a run as it was; leave one of them out (beside it: {beside})"
            raise UsageError(flag(name), typed, remedy)
    path = Path(request.replay)
    then = read_manifest(path)
    try:
        run = then["run"]
        entries = run["cells"]
        workloads = [_workload(entry["workload"]) for entry in entries]
        asked = None if run["methods"] is None else check_methods(run["methods"])
        device = parse_choice(run["device"], "--device", DEVICES)
        if not workloads:
            raise ValueError("no cells")
    except _DAMAGE as error:
        raise _damaged(path, error) from error
    device_asked = device if request.device is None else parse_choice(request.device, "--device", DEVICES)
    cells = [_cell(path, entry, workload) for entry, workload in zip(entries, workloads, strict=True)]
    inputs = [("--replay", path), *(("--kv", cell.captured.path) for cell in cells if cell.captured)]
    sink = make_sink(request.output, request.format, request.manifest, "csv", inputs)
    profiler_asked = wanted_profiler(request)

    from hsbench.run import experiment

    now_on = experiment.resolve_device(device_asked)
    profiler, said = choose_profiler(profiler_asked, now_on)
    try:
        settings = experiment.Settings(**run["settings"])  # one that an older hsbench did not have: its default
        _check_settings(settings)
        if now_on.kind == device:
            cells = [_with_methods(cell, entry["methods"], now_on) for cell, entry in zip(cells, entries, strict=True)]
    except _DAMAGE as error:
        raise _damaged(path, error) from error
    for cell in cells if now_on.kind != device else ():
        try:
            find_methods(asked, cell.workload.phase, now_on)
        except UsageError as error:
            remedy = f"the run of --replay {path} asked for methods that are not there ({error})"
            raise UsageError("--device", device_asked, remedy) from error
    plan = Plan(tuple(cells), asked, now_on, settings, sink, (), profiler, request.profile_folder)
    now = sink.manifest = manifest_of(plan)
    changed = differences(then, now)
    changed += [
        f"{cell.workload.tensors} holds other tensors"
        for cell, entry, found in zip(cells, entries, now["run"]["cells"], strict=True)
        if cell.captured and found["captured"]["sha256"] != entry["captured"].get("sha256")
    ]
    warnings = [f"--replay {path}: not all is as it was: {'; '.join(dict.fromkeys(changed))}"] if changed else []
    return replace(plan, warnings=(*warnings, *said))


def _workload(fields: dict[str, Any]) -> Workload:
    """A workload whose every field is checked as if it had been typed."""
    workload = Workload.from_dict(fields)
    typed = {name: value for name, value in fields.items() if name not in ("phase", "name")}
    if replace(make_workload(fields["phase"], **typed), name=str(fields["name"])) != workload:
        raise ValueError(f"workload {fields}")
    return workload


def _cell(path: Path, entry: dict[str, Any], workload: Workload) -> Cell:
    """The cell, with the captured tensors that it had."""
    source = entry.get("captured")
    if source is None:
        if "#" in workload.tensors:
            raise _damaged(path, ValueError(f"no file for {workload.tensors}"))
        return Cell(workload)
    from hsbench.problem.captured import open_captured

    try:
        file, layer = Path(source["path"]), source["layer"]
    except _DAMAGE as error:
        raise _damaged(path, error) from error
    try:
        captured = open_captured(file, layer).last(workload.q_len)
    except UsageError as error:
        raise UsageError("--replay", path, f"its captured tensors cannot be had ({error}); put them back") from error
    shape = ("batch", "q_heads", "kv_heads", "head_dim", "dtype", "seq")
    other = [name for name in shape if getattr(captured, name) != getattr(workload, name)]
    if other:
        raise UsageError("--replay", path, f"{file} has another {', '.join(other)} than then; put the old file back")
    return Cell(workload, captured)


def _with_methods(cell: Cell, methods: list[str], device: Device) -> Cell:
    """The cell with the methods that it had then, all of which are still known."""
    names = check_methods(methods)
    find_methods(names, cell.workload.phase, device)
    return replace(cell, methods=tuple(names))


def _check_settings(settings: Any) -> None:
    from hsbench import measure

    measure.StopRule(settings.min_samples, settings.max_samples, settings.target, settings.budget_s)
    parse_choice(settings.cache, "--cache", CACHES)
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, bool) or not isinstance(value, type(field.default) | int):
            raise TypeError(f"{field.name} {value!r}")
    if not 0 <= settings.sustain_s <= MAX_SUSTAIN_S:
        raise ValueError(f"sustain_s {settings.sustain_s}")


def _damaged(path: Path, error: Exception) -> UsageError:
    words = " ".join(str(error).split()) or type(error).__name__
    what = f"lacks {words}" if isinstance(error, KeyError) else words
    return UsageError("--replay", path, f"is damaged, or another version's ({what[:200]}); run the command anew")
