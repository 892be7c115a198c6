"""Options of the commands that run a model, each declared once; as in ``options.py``, all are text."""

from __future__ import annotations

from typing import Annotated

import typer

from hsbench.problem.elements import INPUTS

DEFAULT_SEQ = "8k"
DEFAULT_QUERIES = "64"

_MODEL, _OUTPUT = "Model and text", "Output"


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
