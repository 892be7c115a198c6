"""From what was typed behind ``hsbench quality`` to a plan, a model, rows and an exit code; checked before any work."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hsbench.cache.pruner import AUTO_PRUNER, auto_pruner
from hsbench.cli.exit_codes import INTERRUPTED, code_of
from hsbench.cli.model_input import default_weights, dtype_of, held_by, source_for, weights_of
from hsbench.cli.output import Output, make_output, writing
from hsbench.cli.parse import parse_choice, parse_evict, parse_list, parse_number, parse_size, parse_sparsity
from hsbench.cli.places import check_writable, same
from hsbench.cli.progress import QualityProgress
from hsbench.cli.request import DEVICES, Typed
from hsbench.cli.signals import Interruptible
from hsbench.cli.streams import say, say_how_to_draw, stderr
from hsbench.cli.usage import COMMAND_LINE
from hsbench.errors import UsageError
from hsbench.problem.elements import Element
from hsbench.run.quality.settings import DEPTHS, WHENS, MethodKind, Setting, Task, all_settings

if TYPE_CHECKING:
    from hsbench.models.text import Text
    from hsbench.run.quality.layer_plan import LayerPlan
    from hsbench.run.quality.plan import QualityPlan

_DEFAULT_SPARSITIES = (0.0, 0.5)


@dataclass(frozen=True, kw_only=True)
class QualityRequest(Typed):
    """The options as typed; None where not given."""

    model: str
    text: str | None = None
    context: str | None = None
    score: str | None = None
    windows: str | None = None
    when: str | None = None
    chunk: str | None = None
    sparsity: str | None = None
    key_sparsity: str | None = None
    value_sparsity: str | None = None
    pruner: str | None = None
    evict: str | None = None
    basis: str | None = None
    plan: str | None = None
    sink: str | None = None
    local: str | None = None
    methods: str | None = None
    elements: str | None = None
    key_elements: str | None = None
    value_elements: str | None = None
    weights: str | None = None
    dtype: str | None = None
    device: str | None = None
    seed: str | None = None
    needle: bool = False
    depths: str | None = None
    per_layer: bool = False
    plan_for: str | None = None
    plan_output: str | None = None
    format: str | None = None
    output: str | None = None
    manifest: str | None = None


@dataclass(frozen=True)
class _Asked:
    """What was typed, parsed: all that can be told without torch and without the model."""

    task: Task
    text: Path
    sparsities: tuple[list[float], list[float] | None, list[float] | None]
    evicts: list[float] | None
    methods: list[str] | None
    elements: tuple[list[str] | None, ...]
    pruners: list[str] | None
    basis: Path | None
    layers: LayerPlan | None
    weights: str | None
    dtype: Element | None
    device: str
    depths: tuple[float, ...] | None
    per_layer: bool
    plan_for: float | None
    plan_output: Path | None


def run_quality(request: QualityRequest) -> int:
    """Carries out a request.

    Returns:
        0; 3 where a kernel failed its check; 4 where nothing could run, or no plan was found; that of a signal.

    Raises:
        UsageError, UnavailableError: what is wrong, before any work.
    """
    asked = _asked(request)
    inputs = [("text", asked.text)]
    inputs += [(name, Path(typed)) for name in ("plan", "basis") if (typed := getattr(request, name)) is not None]
    output = make_output(request.output, request.format, request.manifest, "table", inputs)
    if asked.plan_output is not None:
        _check_plan_output(asked.plan_output, output, inputs)
    with Interruptible() as signals:
        code = _run(request, asked, output)
    return signals.exit_code if code == INTERRUPTED else code


def _pruners(typed: str, task: Task) -> list[str]:
    """Names, ``auto`` by what will read the cache: one query at a time, or many at once."""
    automatic = auto_pruner(decode_alone=task.keeps_prefix)
    return [automatic if name.lower() == AUTO_PRUNER else name for name in parse_list(typed, "pruner")]


def _asked(request: QualityRequest) -> _Asked:
    from hsbench.run.quality.layer_plan import read_layer_plan

    if request.text is None:
        raise UsageError("text", "is missing", "give the file of a text to score")
    if request.chunk is not None and (request.when or "").strip().lower() != "chunked":
        raise UsageError("chunk", request.chunk, "only --when chunked has chunks; add it or leave this out")
    names = ("context", "score", "windows", "chunk", "sink", "local", "seed")
    sizes = {
        name: parse_size(typed, name, minimum=0 if name in ("sink", "local", "seed") else 1)
        for name in names
        if (typed := getattr(request, name)) is not None
    }
    when = Task.when if request.when is None else parse_choice(request.when, "when", tuple(WHENS))
    layers = None if request.plan is None else read_layer_plan(Path(request.plan))
    default = _DEFAULT_SPARSITIES if layers is None else (0.0,)
    both = _shares(request.sparsity, "sparsity") or list(default)
    key, value = (_shares(getattr(request, name), name) for name in ("key_sparsity", "value_sparsity"))
    depths = _depths(request)
    plan_for = _plan_for(request, [*(key or both), *(value or both)])
    task = Task(when=when, **sizes)
    return _Asked(
        task=task,
        text=Path(request.text),
        sparsities=(both, key, value),
        evicts=None if request.evict is None else [parse_evict(one) for one in parse_list(request.evict, "evict")],
        methods=None if request.methods is None else parse_list(request.methods, "methods"),
        elements=tuple(
            None if (typed := getattr(request, name)) is None else parse_list(typed, name)
            for name in ("elements", "key_elements", "value_elements")
        ),
        pruners=None if request.pruner is None else _pruners(request.pruner, task),
        basis=None if request.basis is None else Path(request.basis),
        layers=layers,
        weights=weights_of(request.weights),
        dtype=dtype_of(request.dtype),
        device="auto" if request.device is None else parse_choice(request.device, "device", DEVICES),
        depths=depths,
        per_layer=request.per_layer,
        plan_for=plan_for,
        plan_output=None if request.plan_output is None else Path(request.plan_output),
    )


def _run(request: QualityRequest, asked: _Asked, output: Output) -> int:
    # Until here, a typing error is answered at once: now torch is imported.
    import torch

    from hsbench.machine.hardware import resolve_device
    from hsbench.models.loading import open_model
    from hsbench.models.text import read_text
    from hsbench.report import console_for, render_quality
    from hsbench.results import Quality
    from hsbench.run.manifest import manifest_of
    from hsbench.run.quality.estimate import check_memory, estimate_s
    from hsbench.run.quality.material import material_of
    from hsbench.run.quality.running import QualityRun
    from hsbench.run.quality.stores import check_settings

    text, device = read_text(asked.text), resolve_device(asked.device)
    methods, pruners, basis, elements = check_settings(
        asked.methods, asked.pruners, asked.layers, asked.basis, asked.evicts, asked.elements
    )
    weights = asked.weights or default_weights(device)
    try:
        with QualityProgress(output.row) as progress:
            progress.stage(f"opening {Path(request.model).name}")
            source = source_for(request.model, asked.layers, basis)
            material = material_of(
                lambda words: torch.tensor(source.tokenizer.encode(words), dtype=torch.int64, device="cpu"),
                text, asked.task, asked.depths, source.max_positions, source.tokenizer.frame(),
            )  # fmt: skip
            seen = asked.task.context + asked.task.score
            model = open_model(source, device=str(device), dtype=weights, context=seen)
            held, dtype = held_by(model, asked.dtype)
            settings = _settings(asked, methods, pruners, elements, device, model.geometry.head_dim, dtype)
            plan = _plan(request, asked, text, settings, device, held, dtype, model, basis)
            check_memory(plan, model, held.nbytes(1))
            run = QualityRun(plan, model, material, progress)
            progress.stage("estimating how long it takes")
            estimate = _told(plan, estimate_s(plan, model, run.count), run.count)
            with progress.aside():
                say(f"hsbench: {estimate}")
            if output.wants_manifest:
                output.manifest = manifest_of(plan, COMMAND_LINE.get())
            output.rows = Quality
            with output:
                report = run.run()
                with progress.aside():
                    output.report(report)
    except UsageError as error:
        raise request.as_typed(error) from error
    if run.made is not None and asked.plan_output is not None:
        with writing(asked.plan_output, "--plan-output"):
            asked.plan_output.write_text(json.dumps(run.made.to_dict(), indent=1) + "\n", encoding="utf-8")
        say(f"hsbench: the plan is in {asked.plan_output}; take it with --plan")
    if output.format != "table" or output.path is not None:
        render_quality(report, console_for(stderr()))
    say_how_to_draw(output.path, output.format)
    return code_of(
        {result.record.status for result in report.results},
        interrupted=report.interrupted,
        lacks=asked.plan_for is not None and run.made is None,
    )


def _settings(
    asked: _Asked, methods: list[MethodKind], pruners: list[str], elements: list[str], device: Any, head_dim: int,
    dtype: Element,
) -> list[Setting]:  # fmt: skip
    from hsbench.run.quality.stores import same_memory_of

    same_memory = partial(same_memory_of, device, head_dim, dtype)
    return all_settings(methods, pruners, *asked.sparsities, asked.layers, asked.evicts, same_memory, elements=elements)


def _plan(
    request: QualityRequest, asked: _Asked, text: Text, settings: list[Setting], device: Any, held: Element,
    dtype: Element, model: Any, basis: Any,
) -> QualityPlan:  # fmt: skip
    from hsbench.run.quality.plan import QualityPlan

    if basis is not None:
        basis.check_heads(model.geometry.kv_heads, model.geometry.head_dim)
    return QualityPlan(
        model=request.model,
        text=text,
        task=asked.task,
        settings=tuple(settings),
        device=device,
        weights=held.name,
        dtype=dtype,
        depths=asked.depths,
        per_layer=asked.per_layer,
        plan_for=asked.plan_for,
        layers=asked.layers,
        basis=None if asked.basis is None else (asked.basis, basis),
    )


def _told(plan: QualityPlan, seconds: float, rows: int) -> str:
    minutes = f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{max(seconds, 1):.0f} seconds"
    task = plan.task
    count = f"{rows} row" if rows == 1 else f"{rows} rows"
    return f"about {minutes}: {count} of {task.windows} x {task.context} + {task.score} tokens on {plan.device}"


def _shares(typed: str | None, field: str) -> list[float] | None:
    return None if typed is None else [parse_sparsity(item, field) for item in parse_list(typed, field)]


def _depths(request: QualityRequest) -> tuple[float, ...] | None:
    if request.depths is None:
        return DEPTHS if request.needle else None
    found = tuple(parse_number(item) for item in parse_list(request.depths, "depths"))
    if not all(0 <= depth <= 1 for depth in found):
        raise UsageError("depths", request.depths, "give shares of the context, 0 to 1, such as 0.1,0.5,0.9")
    return found


def _plan_for(request: QualityRequest, sparsities: list[float]) -> float | None:
    if request.plan_for is None:
        if request.plan_output is not None:
            raise UsageError("plan_output", request.plan_output, "there is no plan without --plan-for KL")
        return None
    wanted = parse_number(request.plan_for)
    if not 0 < wanted < math.inf:
        raise UsageError("plan_for", request.plan_for, "give a KL in nats above 0, such as 0.01")
    if request.plan_output is None:
        raise UsageError("plan_for", request.plan_for, "give --plan-output FILE, too, for the plan to go to")
    if not any(sparsities):
        raise UsageError("plan_for", request.plan_for, "prunes nothing; give --sparsity above 0")
    return wanted


def _check_plan_output(path: Path, output: Output, inputs: list[tuple[str, Path]]) -> None:
    check_writable(path, "plan_output")
    others = [*inputs, ("output", output.path), ("manifest", output.manifest_path)]
    for field, other in others:
        if other is not None and same(path, other):
            raise UsageError("plan_output", path, f"is the file of `{field}`; give another")
