"""Options and words of the commands that read results, each declared once; as in ``options.py``, all are text."""

from __future__ import annotations

from typing import Annotated

import typer


def _word(metavar: str, help: str) -> typer.models.ArgumentInfo:
    word: typer.models.ArgumentInfo = typer.Argument(metavar=metavar, help=help, show_default=False)
    return word


def _option(name: str, metavar: str, help: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(name, metavar=metavar, help=help, show_default=False)
    return option


ResultFile = Annotated[str, _word("FILE", "Results that --output wrote: CSV, JSON or Parquet.")]
BaseFile = Annotated[str, _word("BASE", "Results of before: CSV, JSON or Parquet.")]
NewFile = Annotated[str, _word("NEW", "Results of now.")]

DIFF_METRICS = ("time", "token_time", "kv_bytes", "error", "quality")
DIFF_FORMATS = ("table", "json", "markdown", "junit")

FailOver = Annotated[str | None, _option("--fail-over", "SHARE", "A change must be larger, such as 5% or 0.05 (5%).")]
DiffMetric = Annotated[
    str | None,
    _option(
        "--metric",
        "METRIC",
        "time, kv_bytes, error, quality, which is the KL, or token_time (time; quality and token_time where they are).",
    ),
]
AcrossMachines = Annotated[
    bool,
    typer.Option("--across-machines", help="Compare times also where the GPU or CPU is another.", show_default=False),
]
DiffFormat = Annotated[
    str | None,
    _option("--format", "FORMAT", "table, json, markdown or junit; else by --output: .txt, .json, .md or .xml."),
]

PLOT_KINDS = ("auto", "scaling", "sparsity", "roofline", "quality", "layers", "step")
PLOT_METRICS = ("kl", "perplexity")

ResultFiles = Annotated[
    list[str], _word("FILE", "Results that --output wrote; for quality, those of compare beside those of quality.")
]
PlotKind = Annotated[
    str | None,
    _option("--kind", "KIND", "scaling, sparsity, roofline, quality, layers or step (what suits the rows)."),
]
PlotMethods = Annotated[str | None, _option("--methods", "NAME,...", "Families or family:variant to show (all).")]
PlotMetric = Annotated[
    str | None, _option("--metric", "METRIC", "kl, or perplexity, whose change is shown; of quality (kl).")
]
PlotTheme = Annotated[
    str | None, _option("--theme", "THEME", "light or dark; a page follows its reader's choice (light).")
]
PlotOutput = Annotated[
    str | None, _option("--output", "FILE", "Picture to write: .svg, .png, .html or .json, its specification (.svg).")
]
