"""Options of the commands that run a model, each declared once; as in ``options.py``, all are text."""

from __future__ import annotations

from typing import Annotated

import typer

from hsbench.cache.pruner import ALONG_HEAD_DIM, AUTO_PRUNER, PRUNERS
from hsbench.problem.elements import INPUTS, STORED
from hsbench.run.generate.settings import METHODS, Generation

DEFAULT_SEQ = "8k"
DEFAULT_QUERIES = "64"

_MODEL, _OUTPUT = "Model and text", "Output"

GROWING_PRUNERS = [name for name, pruner in PRUNERS.items() if pruner.value_weights == "none"] + [
    f"{name}{ALONG_HEAD_DIM}" for name, pruner in PRUNERS.items() if pruner.value_weights != "none"
]
"""Those of a cache that grows: tokens of V that are still to come cannot be weighed against those that are there."""


def _option(name: str, metavar: str, help: str, panel: str = _MODEL) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(
        name, metavar=metavar, help=help, rich_help_panel=panel, show_default=False
    )
    return option


ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A HuggingFace folder, a .gguf file, a name in the local HuggingFace cache or on the hub, "
        "or random:PROFILE.",
        show_default=False,
    ),
]
TextFile = Annotated[str | None, _option("--text", "FILE", "Text that the model reads, UTF-8.")]
ModelSeq = Annotated[
    str | None,
    _option("--seq", "SIZE", f"Tokens of the text to take, from its start ({DEFAULT_SEQ}, or what the model can)."),
]
Layers = Annotated[str | None, _option("--layers", "N,...", "Layers to capture, or all (all).")]
Queries = Annotated[str | None, _option("--queries", "N", f"Last queries to keep, or all ({DEFAULT_QUERIES}).")]
CaptureDtype = Annotated[
    str | None,
    _option("--dtype", "DTYPE", f"{' or '.join(INPUTS)} to write (what the weights are in; fp16 if in neither)."),
]
TensorOutput = Annotated[str | None, _option("--output", "FILE", "File to write, safetensors.", _OUTPUT)]

# ---- compare --phase generate ----------------------------------------------------------------------------------
_SWEPT = "Phase generate"
SweptModel = Annotated[str | None, _option("--model", "MODEL", "What generate runs; --seq are its contexts.", _SWEPT)]
SweptText = Annotated[str | None, _option("--text", "FILE", "Text that the model reads, UTF-8.", _SWEPT)]
SweptTokens = Annotated[
    str | None,
    _option("--new-tokens", "N", f"Tokens to generate, of each sequence ({Generation.new_tokens}).", _SWEPT),
]

# ---- generate --------------------------------------------------------------------------------------------------
_KEPT, _RUN = "How K and V are kept", "What runs"

PromptWords = Annotated[str | None, _option("--prompt", "TEXT", "Words to continue, in place of --text.")]
Contexts = Annotated[
    str | None,
    _option(
        "--context",
        "SIZE,...",
        f"Tokens of the prompt, from --text; a list runs each ({Generation.contexts[0] >> 10}k).",
    ),
]
NewTokens = Annotated[
    str | None, _option("--new-tokens", "N", f"Tokens to generate, of each sequence ({Generation.new_tokens}).")
]
GenerateBatch = Annotated[
    str | None, _option("--batch", "N", f"Sequences at a time, each of a stretch of the text ({Generation.batch}).")
]
Temperature = Annotated[
    str | None, _option("--temperature", "T", f"Of sampling; 0 takes the likeliest token ({Generation.temperature:g}).")
]
GenerateMethods = Annotated[
    str | None,
    _option(
        "--methods", "NAME,...",
        f"sdpa, sdpa:BACKEND, dense, hierarchical; the last two with :ELEMENTS, too ({','.join(METHODS)}).", _KEPT,
    ),
]  # fmt: skip
GenerateElements = Annotated[
    str | None,
    _option("--elements", "NAME,...", f"What values of hierarchical are: {', '.join(STORED)} (16bit).", _KEPT),
]
GeneratePruner = Annotated[
    str | None,
    _option(
        "--pruner",
        "NAME",
        f"What stays of K and V: {', '.join(GROWING_PRUNERS)}, or {AUTO_PRUNER} ({AUTO_PRUNER}).",
        _KEPT,
    ),
]
GenerateSink = Annotated[
    str | None, _option("--sink", "SIZE", f"First tokens, whose blocks stay dense ({Generation.sink}).", _KEPT)
]
GenerateLocal = Annotated[
    str | None, _option("--local", "SIZE", f"Last tokens whose blocks stay dense ({Generation.local}).", _KEPT)
]
GenerateSeed = Annotated[
    str | None, _option("--seed", "N", "Of sampling, and of the prompts of random:PROFILE (0).", _RUN)
]
Eager = Annotated[
    bool,
    typer.Option(
        "--eager", help="Launch a step's kernels one by one, not as a captured CUDA graph.", rich_help_panel=_RUN,
        show_default=False,
    ),
]  # fmt: skip
ShowText = Annotated[
    bool,
    typer.Option(
        "--show-text", help="Show what the first sequence said, by each method.", rich_help_panel=_OUTPUT,
        show_default=False,
    ),
]  # fmt: skip
