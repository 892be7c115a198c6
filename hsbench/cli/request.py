"""From what was typed to a plan: everything is checked here, before any work."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hsbench.cli.output import Sink, make_sink
from hsbench.cli.places import check_creatable
from hsbench.errors import UsageError
from hsbench.kernels.device import Device
from hsbench.methods import check_methods, find_methods
from hsbench.problem.elements import INPUTS
from hsbench.problem.phase import PHASES, Phase
from hsbench.problem.workload import (
    TENSORS,
    Workload,
    find_profile,
    load_profiles,
    make_workload,
    parse_choice,
    parse_size,
)

if TYPE_CHECKING:
    from hsbench.problem.captured import Captured
    from hsbench.profiling import Profiler
    from hsbench.run.experiment import Settings

DEVICES = ("auto", "cuda", "cpu")
CACHES = ("cold", "warm")
DEFAULT_TIME_S = 4.0
MAX_SUSTAIN_S = 60.0
DEFAULT_PROFILE_DIR = "profiles/out"

#: What ``compare`` takes lists of, slowest-changing first. Sparsity changes fastest: cells that differ only
#: in it have the same tensors.
_SWEPT = ("workload", "dtype", "seq", "batch", "sparsity")


@dataclass(frozen=True)
class Request:
    """The options as typed; None where not given."""

    workload: str | None = None
    seq: str | None = None
    batch: str | None = None
    q_heads: str | None = None
    kv_heads: str | None = None
    head_dim: str | None = None
    dtype: str | None = None
    q_len: str | None = None
    sparsity: str | None = None
    key_sparsity: str | None = None
    value_sparsity: str | None = None
    sink: str | None = None
    local: str | None = None
    methods: str | None = None
    device: str | None = None
    kv: str | None = None
    layer: str | None = None
    tensors: str | None = None
    seed: str | None = None
    cache: str | None = None
    time: str | None = None
    sustain: str | None = None
    format: str | None = None
    output: str | None = None
    manifest: str | None = None
    phase: str | None = None
    replay: str | None = None
    profile: bool = False
    profiler: str | None = None
    profile_dir: str | None = None

    @property
    def profile_folder(self) -> Path:
        """Where a profiler's reports go."""
        return Path(DEFAULT_PROFILE_DIR if self.profile_dir is None else self.profile_dir)


@dataclass(frozen=True)
class Cell:
    """One workload of a plan, its tensors where they are captured, and its methods where they are not the plan's."""

    workload: Workload
    captured: Captured | None = None
    methods: tuple[str, ...] | None = None

    @property
    def label(self) -> str:
        """What tells a cell from its neighbours, for the progress bar."""
        w = self.workload
        sparsity = f"{w.key_sparsity:g}" if w.key_sparsity == w.value_sparsity else "mixed"
        return f"{w.phase} {w.name} seq {w.seq} batch {w.batch} {w.dtype} sparsity {sparsity}"


@dataclass(frozen=True)
class Plan:
    """What to run and where its results go; everything in it is checked.

    Attributes:
        cells: in the order they run, none twice.
        methods: names asked for; None for all.
        device: where they run.
        warnings: what the user should know before it starts.
        profiler: what to run every cell under once more; None for nothing.
        profile_dir: where its reports go.
    """

    cells: tuple[Cell, ...]
    methods: list[str] | None
    device: Device
    settings: Settings
    sink: Sink
    warnings: tuple[str, ...]
    profiler: Profiler | None = None
    profile_dir: Path = Path(DEFAULT_PROFILE_DIR)


def plan_one(phase: Phase, request: Request) -> Plan:
    """The plan of ``decode`` or ``prefill``: one cell.

    Raises:
        UsageError: names the option, the value and the remedy.
        UnavailableError: the device asked for is not there.
    """
    for name in _SWEPT:
        typed = getattr(request, name)
        if typed is not None and "," in typed:
            raise UsageError(flag(name), typed, "takes one value here; hsbench compare takes lists")
    return _plan(request, (phase,), {name: (getattr(request, name),) for name in _SWEPT}, "table")


def plan_sweep(request: Request) -> Plan:
    """The plan of ``compare``: the cross product of its lists, each cell once.

    Raises:
        UsageError, UnavailableError: as :func:`plan_one`.
    """
    names = _items("phase", request.phase or next(iter(PHASES)))
    phases = tuple(PHASES[parse_choice(name, "--phase", tuple(PHASES))] for name in names)
    if request.q_len is not None and not any(phase.causal for phase in phases):
        raise UsageError("--q-len", request.q_len, "only prefill has it; add --phase decode,prefill or leave it out")
    lists = {}
    for name in _SWEPT:
        typed = getattr(request, name)
        lists[name] = (None,) if typed is None else tuple(_items(name, typed))
    return _plan(request, phases, lists, "csv")


def _plan(
    request: Request, phases: tuple[Phase, ...], lists: dict[str, tuple[str | None, ...]], default_format: str
) -> Plan:
    # The cheap checks first: a typing error is answered at once, before torch is imported.
    asked = "auto" if request.device is None else parse_choice(request.device, "--device", DEVICES)
    cache = CACHES[0] if request.cache is None else parse_choice(request.cache, "--cache", CACHES)
    budget = DEFAULT_TIME_S if request.time is None else _time(request.time)
    sustain_s = 0.0 if request.sustain is None else _sustain(request.sustain)
    methods = None if request.methods is None else check_methods(_items("methods", request.methods))
    captured = _captured(request)
    cells = tuple(dict.fromkeys(_cells(request, phases, lists, captured)))
    inputs = [] if captured is None else [("--kv", captured.path)]
    sink = make_sink(request.output, request.format, request.manifest, default_format, inputs)
    wanted = wanted_profiler(request)

    from hsbench.run import experiment

    device = experiment.resolve_device(asked)
    profiler, said = choose_profiler(wanted, device)
    for phase in phases if methods else ():
        # Which variants a family has depends on phase and device; a sweep must not find out in its last cell.
        find_methods(methods, phase, device)
    return Plan(
        cells=cells,
        methods=methods,
        device=device,
        settings=experiment.Settings(budget_s=budget, cache=cache, sustain_s=sustain_s),
        sink=sink,
        warnings=tuple(dict.fromkeys([*_warnings(cells), *said])),
        profiler=profiler,
        profile_dir=request.profile_folder,
    )


def wanted_profiler(request: Request) -> str | None:
    """The profiler's name, ``auto`` for the best one here, None for none.

    Raises:
        UsageError: an unknown one, or a folder that its reports cannot be put into.
    """
    if request.profiler is not None:
        from hsbench.profiling import PROFILERS

        wanted = parse_choice(request.profiler, "--profiler", tuple(PROFILERS))
    elif request.profile or request.profile_dir is not None:  # to say where reports go is to ask for them
        wanted = "auto"
    else:
        return None
    check_creatable(request.profile_folder, "--profile-dir")
    return wanted


def choose_profiler(wanted: str | None, device: Device) -> tuple[Profiler | None, tuple[str, ...]]:
    """The profiler that :func:`wanted_profiler` means on a device, and warnings that go with it.

    Raises:
        UnavailableError: it was asked for by name and cannot be had.
    """
    if wanted is None:
        return None, ()
    from hsbench.profiling import choose

    profiler, said = choose(None if wanted == "auto" else wanted, device)
    return profiler, () if said is None else (said,)


def _cells(
    request: Request,
    phases: tuple[Phase, ...],
    lists: dict[str, tuple[str | None, ...]],
    captured: Captured | None,
) -> Iterator[Cell]:
    fixed = {
        name: getattr(request, name)
        for name in (
            "q_heads",
            "kv_heads",
            "head_dim",
            "key_sparsity",
            "value_sparsity",
            "sink",
            "local",
            "seed",
        )
    }
    for phase, *values in itertools.product(phases, *lists.values()):
        options = fixed | dict(zip(lists, values, strict=True))
        options["q_len"] = request.q_len if phase.causal else None
        if captured is None:
            tensors = None if request.tensors is None else parse_choice(request.tensors, "--tensors", TENSORS)
            yield Cell(make_workload(phase.name, **options, tensors=tensors))
        else:
            yield _captured_cell(phase, options, captured)


def _captured(request: Request) -> Captured | None:
    if request.kv is None:
        if request.layer is not None:
            raise UsageError("--layer", request.layer, "only a file of captured tensors has layers; give --kv FILE")
        return None
    if request.tensors is not None:
        raise UsageError("--tensors", request.tensors, "--kv brings the tensors; leave one of them out")
    from hsbench.problem.captured import open_captured

    layer = None if request.layer is None else parse_size(request.layer, "--layer", minimum=0)
    return open_captured(request.kv, layer)


def _captured_cell(phase: Phase, options: dict[str, Any], captured: Captured) -> Cell:
    """A cell whose shape is the file's; what was typed may repeat it but not contradict it."""
    name = options["workload"]
    if name is not None:
        profile = find_profile(name)
        for key in ("q_heads", "kv_heads", "head_dim"):
            if getattr(profile, key) != getattr(captured, key):
                _contradiction("--workload", name, f"{key} {getattr(captured, key)}", captured)
    for key in ("batch", "q_heads", "kv_heads", "head_dim", "seq"):
        typed = options[key]
        if typed is not None and parse_size(typed, flag(key)) != getattr(captured, key):
            _contradiction(flag(key), typed, f"{key} {getattr(captured, key)}", captured)
        options[key] = getattr(captured, key)
    if options["dtype"] is not None and parse_choice(options["dtype"], "--dtype", tuple(INPUTS)) != captured.dtype:
        _contradiction("--dtype", options["dtype"], captured.dtype, captured)
    options["dtype"] = captured.dtype
    if not phase.causal:
        used = captured.last(1)
    elif options["q_len"] is not None:
        used = captured.last(parse_size(options["q_len"], "--q-len"))
    else:
        used = captured
    options["q_len"] = used.q_len
    workload = make_workload(phase.name, **options, tensors=captured.source)
    return Cell(workload if name is not None else replace(workload, name="captured"), used)


def _contradiction(option: str, typed: object, held: str, captured: Captured) -> None:
    raise UsageError(option, typed, f"contradicts --kv {captured.path}, which has {held}; leave {option} out")


def _warnings(cells: tuple[Cell, ...]) -> Iterator[str]:
    profiles = load_profiles()
    for cell in cells:
        if cell.captured is not None and cell.captured.warning is not None:
            yield cell.captured.warning
        profile = profiles.get(cell.workload.name)
        if profile is not None and cell.workload.seq > profile.max_seq:
            yield f"--seq {cell.workload.seq} is beyond the {profile.max_seq} tokens of {profile.name}"


def _items(name: str, typed: str) -> list[str]:
    items = [item.strip() for item in typed.split(",")]
    if not all(items):
        raise UsageError(flag(name), typed or '""', "has an empty item; give values with one comma between them")
    return items


def _time(typed: str) -> float:
    value = _number(typed)
    if not (math.isfinite(value) and value > 0):
        raise UsageError("--time", typed or '""', "must be a number of seconds above 0, such as 4")
    return value


def _sustain(typed: str) -> float:
    value = _number(typed)
    if not 0 <= value <= MAX_SUSTAIN_S:
        remedy = f"must be a number of seconds from 0 to {MAX_SUSTAIN_S:g}, such as 0.3"
        raise UsageError("--sustain", typed or '""', remedy)
    return abs(value)  # "-0" is 0


def _number(typed: str) -> float:
    """What was typed as a number; NaN, which no range holds, where it is none."""
    try:
        return float(typed)
    except ValueError:
        return math.nan


def flag(name: str) -> str:
    """The option that fills a field of a `Request`."""
    return "--" + name.replace("_", "-")
