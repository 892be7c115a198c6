"""From what was typed behind ``hsbench generate`` to a plan, a model, rows and an exit code; checked before work."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hsbench.cache.pruner import AUTO_PRUNER, pruner_of
from hsbench.cli.exit_codes import INTERRUPTED, code_of
from hsbench.cli.model_input import default_weights, dtype_of, held_by, source_for, weights_of
from hsbench.cli.model_options import GROWING_PRUNERS
from hsbench.cli.output import Output, make_output
from hsbench.cli.parse import parse_choice, parse_list, parse_number, parse_size, parse_sparsity
from hsbench.cli.progress import QualityProgress
from hsbench.cli.request import DEVICES, Typed
from hsbench.cli.signals import Interruptible
from hsbench.cli.streams import say_how_to_draw, stderr
from hsbench.cli.usage import COMMAND_LINE
from hsbench.errors import UsageError
from hsbench.problem.elements import SIXTEEN_BIT, Element
from hsbench.run.generate.settings import METHODS, Generation, check_elements

if TYPE_CHECKING:
    from torch import Tensor

    from hsbench.models.sources import Source
    from hsbench.models.text import Text
    from hsbench.run.generate.plan import Prompt
    from hsbench.run.quality.layer_plan import LayerPlan

_DEFAULT_SPARSITY = "0.5"


@dataclass(frozen=True, kw_only=True)
class GenerateRequest(Typed):
    """The options as typed; None where not given."""

    model: str
    prompt: str | None = None
    text: str | None = None
    context: str | None = None
    new_tokens: str | None = None
    batch: str | None = None
    temperature: str | None = None
    methods: str | None = None
    elements: str | None = None
    sparsity: str | None = None
    key_sparsity: str | None = None
    value_sparsity: str | None = None
    pruner: str | None = None
    basis: str | None = None
    plan: str | None = None
    sink: str | None = None
    local: str | None = None
    weights: str | None = None
    dtype: str | None = None
    device: str | None = None
    seed: str | None = None
    eager: bool = False
    show_text: bool = False
    format: str | None = None
    output: str | None = None
    manifest: str | None = None


@dataclass(frozen=True)
class _Asked:
    """What was typed, parsed: all that can be told without torch and without the model."""

    task: Generation
    text: Path | None
    methods: list[str]
    elements: list[str]
    shares: tuple[float, float]
    pruner: str
    basis: Path | None
    layers: LayerPlan | None
    weights: str | None
    dtype: Element | None
    device: str


def run_generate(request: GenerateRequest, *, default_format: str = "table") -> int:
    """Carries out a request.

    Args:
        default_format: of results, where none is asked for.

    Returns:
        0; 3 where a kernel failed its check; 4 where nothing could run; that of a signal.

    Raises:
        UsageError, UnavailableError: what is wrong, before any work.
    """
    asked = _asked(request)
    inputs = [
        (name, Path(typed)) for name in ("text", "plan", "basis") if (typed := getattr(request, name)) is not None
    ]
    output = make_output(request.output, request.format, request.manifest, default_format, inputs)
    with Interruptible() as signals:
        code = _run(request, asked, output)
    return signals.exit_code if code == INTERRUPTED else code


def _asked(request: GenerateRequest) -> _Asked:
    from hsbench.run.quality.layer_plan import read_layer_plan

    if request.prompt is not None and request.text is not None:
        raise UsageError("prompt", request.prompt, "there is --text, too; give one of them")
    if request.prompt is not None and request.context is not None:
        raise UsageError("context", request.context, "is of --text; with --prompt leave it out")
    minimum = {"sink": 0, "local": 0, "seed": 0, "new_tokens": 2}
    sizes: dict[str, Any] = {
        name: parse_size(typed, name, minimum=minimum.get(name, 1))
        for name in ("new_tokens", "batch", "sink", "local", "seed")
        if (typed := getattr(request, name)) is not None
    }
    if request.context is not None:
        sizes["contexts"] = tuple(
            dict.fromkeys(parse_size(x, "context") for x in parse_list(request.context, "context"))
        )
    if request.temperature is not None:
        sizes["temperature"] = parse_number(request.temperature)
    both = parse_sparsity(request.sparsity or _DEFAULT_SPARSITY)
    key, value = (
        both if (typed := getattr(request, name)) is None else parse_sparsity(typed, name)
        for name in ("key_sparsity", "value_sparsity")
    )
    layers = None if request.plan is None else read_layer_plan(Path(request.plan))
    return _Asked(
        task=_task(request, sizes),
        text=None if request.text is None else Path(request.text),
        methods=parse_list(request.methods or ",".join(METHODS), "methods"),
        elements=check_elements(parse_list(request.elements or SIXTEEN_BIT.name, "elements")),
        shares=(key, value),
        pruner=_pruner(request, layers),
        basis=None if request.basis is None else Path(request.basis),
        layers=layers,
        weights=weights_of(request.weights),
        dtype=dtype_of(request.dtype),
        device=DEVICES[0] if request.device is None else parse_choice(request.device, "device", DEVICES),
    )


def _task(request: GenerateRequest, sizes: dict[str, Any]) -> Generation:
    try:
        return Generation(eager=request.eager, **sizes)
    except UsageError as error:
        raise request.as_typed(error) from None


def _pruner(request: GenerateRequest, layers: LayerPlan | None) -> str:
    if request.pruner is None:
        planned = None if layers is None else layers.pruner
        return planned if planned in GROWING_PRUNERS and not pruner_of(planned).needs_calibration else AUTO_PRUNER
    name = request.pruner.strip().lower()
    if name == AUTO_PRUNER:
        return name
    found = pruner_of(name)
    if found.value_weights != "none":
        remedy = "weighs V's tokens against each other, which a cache that grows cannot"
        raise UsageError("pruner", name, f"{remedy}; give one of {', '.join(GROWING_PRUNERS)}")
    if found.needs_calibration and request.basis is None:
        raise UsageError("pruner", name, "needs a calibration; make one with `hsbench calibrate`, give it as `basis`")
    return name


def _run(request: GenerateRequest, asked: _Asked, output: Output) -> int:
    # Until here, a typing error is answered at once: now torch is imported.
    from hsbench.machine.hardware import resolve_device
    from hsbench.models.loading import open_model
    from hsbench.report import console_for, render_generate
    from hsbench.results import Generated
    from hsbench.run.generate.plan import GeneratePlan
    from hsbench.run.manifest import manifest_of

    device = resolve_device(asked.device)
    basis = _read_basis(asked)
    try:
        with QualityProgress(output.row) as progress:
            progress.stage(f"opening {Path(request.model).name}")
            source = source_for(request.model, asked.layers, basis)
            settings = _settings(asked)
            task, prompt, prompts = _prompts(request, asked, source)
            longest = max(task.capacity(context) for context in task.contexts)
            weights = asked.weights or default_weights(device)
            model = open_model(source, device=str(device), dtype=weights, context=longest, for_speed=True)
            if basis is not None:
                basis.check_heads(model.geometry.kv_heads, model.geometry.head_dim)
            held, dtype = held_by(model, asked.dtype)
            plan = GeneratePlan(
                model=request.model, prompt=prompt, task=task, settings=tuple(settings), device=device,
                weights=held.name, dtype=dtype,
                basis=None if asked.basis is None else (asked.basis, basis), told=request.show_text,
            )  # fmt: skip
            from hsbench.run.generate.running import GenerateRun

            run = GenerateRun(plan, model, prompts, progress)
            if output.wants_manifest:
                output.manifest = manifest_of(plan, COMMAND_LINE.get())
            output.rows = Generated
            with output:
                report = run.run()
                with progress.aside():
                    output.report(report)
    except UsageError as error:
        raise request.as_typed(error) from error
    if output.format != "table" or output.path is not None:
        render_generate(report, console_for(stderr()))
    say_how_to_draw(output.path, output.format)
    return code_of({result.record.status for result in report.results}, interrupted=report.interrupted)


def _read_basis(asked: _Asked) -> Any:
    if asked.basis is None:
        return None
    from hsbench.cache.basis import Basis

    return Basis.load(asked.basis)


def _settings(asked: _Asked) -> list[Any]:
    from hsbench.models.extra import require

    require("transformers")
    from hsbench.run.generate.methods import SDPA_BACKENDS
    from hsbench.run.generate.settings import all_settings

    return all_settings(asked.methods, asked.elements, asked.pruner, asked.shares, asked.layers, SDPA_BACKENDS)


def _prompts(request: GenerateRequest, asked: _Asked, source: Source) -> tuple[Generation, Prompt, list[Tensor]]:
    """What is continued: the task with its contexts, and token numbers for each."""
    from hsbench.models.text import read_text
    from hsbench.run.generate import plan as planning

    task = asked.task
    if request.context is None:  # what is usual, or what the model can
        task = dataclasses.replace(task, contexts=tuple(min(one, source.max_positions) for one in task.contexts))
    if request.prompt is not None:
        ids = planning.prompts_of_words(request.prompt, source.tokenizer.encode, task.batch)
        task = dataclasses.replace(task, contexts=(ids.shape[1],))
        planning.check_length(task, source.max_positions)
        return task, planning.Prompt.of_words(request.prompt), [ids]
    planning.check_length(task, source.max_positions)
    if asked.text is not None:
        text: Text = read_text(asked.text)
        encode = source.tokenizer.encode
        prompts = [planning.prompts_of_text(text, encode, context, task.batch) for context in task.contexts]
        return task, planning.Prompt.of_text(text), prompts
    if source.shape is None:
        raise UsageError("text", "FILE", "missing; give the file of a text to continue, or --prompt TEXT")
    drawn = planning.drawn_prompts(256, task.contexts, task.batch, task.seed)
    return task, planning.Prompt.drawn(task.seed), drawn
