"""Options and words of the commands that read results, each declared once; as in ``options.py``, all are text."""

from __future__ import annotations

from typing import Annotated

import typer


def _word(metavar: str, help: str) -> typer.models.ArgumentInfo:
    word: typer.models.ArgumentInfo = typer.Argument(metavar=metavar, help=help, show_default=False)
    return word


ResultFile = Annotated[str, _word("FILE", "Results that --output wrote: CSV, JSON or Parquet.")]
