"""Result streams: CSV, JSON, Markdown and tables behind one protocol.

    with writer_for("csv", stream) as writer:
        ...
        writer.row(result)      # as each row finishes; optional
        writer.report(report)   # once its workload is done or interrupted

`report` writes the rows that `row` has not, so every row appears once whichever way it came. CSV and JSON
show rows at once; Markdown and tables are laid out per workload, so theirs appear with `report`. Leaving the
`with` block closes the document, also on an exception, Ctrl-C included; the stream itself stays open.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TextIO

from rich.console import Console

from hsbench.errors import UsageError
from hsbench.report.documents import CsvWriter, JsonWriter, ParquetWriter
from hsbench.report.generate import generate_markdown, render_generate
from hsbench.report.markdown import machine_markdown, report_markdown
from hsbench.report.page import console_for
from hsbench.report.quality import quality_markdown, render_quality
from hsbench.report.stream import RowStream, Writer
from hsbench.report.table import render
from hsbench.results import Generated, Quality, Record, Report, Reported, Row


class Layout(Protocol):
    """How a report is laid out for people, without the machine."""

    def render(self, report: Any, console: Console) -> None: ...
    def markdown(self, report: Any) -> str: ...


class _Attention:
    def render(self, report: Report, console: Console) -> None:
        render([report], console, machine=False)

    def markdown(self, report: Report) -> str:
        return report_markdown(report)


class _Quality:
    def render(self, report: Any, console: Console) -> None:
        render_quality(report, console, machine=False)

    def markdown(self, report: Any) -> str:
        return quality_markdown(report)


class _Generate:
    def render(self, report: Any, console: Console) -> None:
        render_generate(report, console, machine=False)

    def markdown(self, report: Any) -> str:
        return generate_markdown(report)


LAYOUTS: dict[type[Row[Any, Any]], Layout] = {Record: _Attention(), Quality: _Quality(), Generated: _Generate()}
"""By the kind of rows."""


class MarkdownWriter(RowStream):
    """A heading, a pipe table and its facts per report; the machine at the end."""

    def __init__(self, stream: TextIO, rows: type[Row[Any, Any]] = Record) -> None:
        super().__init__(stream)
        self._layout = LAYOUTS[rows]
        self._machine: dict[str, Any] = {}

    def report(self, report: Reported) -> None:
        super().report(report)
        self._machine = report.machine or self._machine
        self._emit(self._layout.markdown(report) + "\n\n")

    def _tail(self) -> None:
        text = machine_markdown(self._machine)
        if text:
            self._emit(text + "\n")


class TableWriter(RowStream):
    """Tables for people, as wide as the terminal, or as wide as they need where there is none."""

    def __init__(self, stream: TextIO, rows: type[Row[Any, Any]] = Record) -> None:
        super().__init__(stream)
        self._layout = LAYOUTS[rows]
        self._console = console_for(stream)
        self._last: Reported | None = None

    def report(self, report: Reported) -> None:
        super().report(report)
        self._layout.render(report, self._console)
        self._last = report

    def _tail(self) -> None:
        if self._last is not None:
            render([], self._console, machine=self._last.machine)


WRITERS: dict[str, Callable[[TextIO, type[Row[Any, Any]]], Writer]] = {
    "table": TableWriter,
    "csv": CsvWriter,
    "json": lambda stream, rows: JsonWriter(stream, None, rows),
    "markdown": MarkdownWriter,
}
FORMATS = tuple(WRITERS)


def parquet_writer(path: Path, manifest: dict[str, Any] | None, rows: type[Row[Any, Any]]) -> Writer:
    """The writer of Parquet, which is put in its place as a file, and is no stream.

    Raises:
        UnavailableError: pyarrow is not there.
    """
    return ParquetWriter(path, manifest, rows)


def writer_for(
    format: str, stream: TextIO, manifest: dict[str, Any] | None = None, rows: type[Row[Any, Any]] = Record
) -> Writer:
    """The writer of a `--format`.

    Args:
        manifest: what the run depends on; only a JSON document has a place for it.
        rows: the kind of rows, which decides the columns of CSV and JSON, and the tables.

    Raises:
        UsageError: a format that is not one of `FORMATS`.
    """
    if format not in WRITERS:
        raise UsageError("--format", format, f"must be one of {', '.join(FORMATS)}")
    if format == "json":
        return JsonWriter(stream, manifest, rows)
    return WRITERS[format](stream, rows)
