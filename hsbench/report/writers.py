"""Result streams: CSV, JSON, Markdown and tables behind one protocol.

    with writer_for("csv", stream) as writer:
        ...
        writer.row(result)      # as each row finishes; optional
        writer.report(report)   # once its workload is done or interrupted

`report` writes the rows that `row` has not, so every row appears once whichever way it came. CSV and JSON
show rows at once; Markdown and tables are laid out per workload, so theirs appear with `report`. Leaving the
`with` block closes the document, also on an exception, Ctrl-C included; the stream itself stays open.

If the process is killed outright, nothing that finished is lost: CSV is flushed row by row. JSON is too, one
row per line, and where the stream is a file of its own (`--output`), the file is a complete, valid document
after every row: the closing brackets are written with each row and overwritten by the next. On a pipe or a
shared stdout, a kill leaves a document without its end, whose rows can still be read line by line.
"""

from __future__ import annotations

import csv
import io
import json
import os
import stat
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol, TextIO

from hsbench.errors import UsageError
from hsbench.report.markdown import machine_markdown, report_markdown
from hsbench.report.table import console_for, render
from hsbench.report.text import encodable
from hsbench.results.record import COLUMNS, SCHEMA, Peak, Report, Result, plain


class Writer(Protocol):
    """Where results go. `open` and `close` may be called twice; `row` and `report` open if need be."""

    def open(self) -> None: ...
    def row(self, result: Result) -> None: ...
    def report(self, report: Report) -> None: ...
    def close(self) -> None: ...
    def __enter__(self) -> Writer: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class _Stream:
    """The part the writers share: opening once, closing once, each row once."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self._opened = self._closed = False
        self._written: set[tuple[Any, ...]] = set()

    def open(self) -> None:
        if not self._opened:
            self._opened = True
            self._head()

    def row(self, result: Result) -> None:
        identity = result.record.identity()
        if identity not in self._written:
            self.open()
            self._row(result)
            self._written.add(identity)

    def report(self, report: Report) -> None:
        self.open()
        for result in report.results:
            self.row(result)

    def close(self) -> None:
        if self._opened and not self._closed:
            self._closed = True
            self._tail()

    def __enter__(self) -> _Stream:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _head(self) -> None: ...
    def _row(self, result: Result) -> None: ...
    def _tail(self) -> None: ...

    def _emit(self, text: str) -> None:
        self.stream.write(encodable(text, getattr(self.stream, "encoding", None)))
        self.stream.flush()


class CsvWriter(_Stream):
    """The columns of `Record`, header first, one line per row, flushed after each."""

    def _head(self) -> None:
        self._emit(_csv_line(list(COLUMNS)))

    def _row(self, result: Result) -> None:
        self._emit(_csv_line([_csv_cell(value) for value in result.record.to_row().values()]))


class JsonWriter(_Stream):
    """One document::

        {"schema": "hsbench/3", "manifest": {what the run depends on}, "rows": [{every column}, ...],
         "memory": [{"row": 0, component: bytes, ...}, ...],
         "machine": {...}, "peaks": [{"name", "value", "unit"}, ...], "complete": true}

    `memory` refers to `rows` by index. `complete` is false in a file whose process was killed before `close`.
    """

    def __init__(self, stream: TextIO, manifest: dict[str, Any] | None = None) -> None:
        super().__init__(stream)
        self._manifest = manifest
        self._memory: list[dict[str, Any]] = []
        self._machine: dict[str, Any] = {}
        self._peaks: dict[Peak, None] = {}
        self._count = 0
        self._end = 0  # where the next row goes, in a file that can be rewound
        self._rewinds = _is_own_file(stream)

    def report(self, report: Report) -> None:
        self._machine = report.machine or self._machine
        self._peaks |= dict.fromkeys(report.peaks.values())
        super().report(report)

    def _head(self) -> None:
        if self._rewinds:
            self._end = self.stream.tell()
        manifest = f'\n"manifest": {json.dumps(plain(self._manifest))},' if self._manifest else ""
        self._add(f'{{"schema": {json.dumps(SCHEMA)},{manifest}\n"rows": [')

    def _row(self, result: Result) -> None:
        if result.memory:
            self._memory.append({"row": self._count, **plain(result.memory)})
        row = {name: _rounded(value) for name, value in result.record.to_row().items()}
        self._add((",\n" if self._count else "\n") + json.dumps(row, allow_nan=False))
        self._count += 1

    def _tail(self) -> None:
        if self._rewinds:
            self.stream.seek(self._end)
        self._emit(self._ending(complete=True))
        if self._rewinds:
            self.stream.truncate()

    def _add(self, text: str) -> None:
        if not self._rewinds:
            self._emit(text)
            return
        # Text and ending go out in one write, so that a kill finds a whole document. All of it is ASCII: a
        # character is a byte. The ending only grows; truncate covers machine facts that shrink.
        self.stream.seek(self._end)
        self._emit(text + self._ending(complete=False))
        self._end += len(text)
        self.stream.truncate()

    def _ending(self, *, complete: bool) -> str:
        memory = ",\n".join(json.dumps(item) for item in self._memory)
        peaks = [
            {"name": peak.name, "value": _rounded(plain(float(peak.value))), "unit": peak.unit} for peak in self._peaks
        ]
        return (
            f'\n],\n"memory": [{memory}],\n"machine": {json.dumps(plain(self._machine), allow_nan=False)},\n'
            f'"peaks": {json.dumps(peaks, allow_nan=False)},\n"complete": {json.dumps(complete)}}}\n'
        )


class MarkdownWriter(_Stream):
    """A heading, a pipe table and its facts per workload; the machine at the end."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._machine: dict[str, Any] = {}

    def report(self, report: Report) -> None:
        super().report(report)
        self._machine = report.machine or self._machine
        self._emit(report_markdown(report) + "\n\n")

    def _tail(self) -> None:
        text = machine_markdown(self._machine)
        if text:
            self._emit(text + "\n")


class TableWriter(_Stream):
    """Tables for people, as wide as the terminal, or as wide as they need where there is none."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._console = console_for(stream)
        self._last: Report | None = None

    def report(self, report: Report) -> None:
        super().report(report)
        render([report], self._console, machine=False)
        self._last = report

    def _tail(self) -> None:
        if self._last is not None:
            render([], self._console, machine=self._last.machine)


WRITERS: dict[str, Callable[[TextIO], Writer]] = {
    "table": TableWriter,
    "csv": CsvWriter,
    "json": JsonWriter,
    "markdown": MarkdownWriter,
}
FORMATS = tuple(WRITERS)


def writer_for(format: str, stream: TextIO, manifest: dict[str, Any] | None = None) -> Writer:
    """The writer of a `--format`.

    Args:
        manifest: what the run depends on; only a JSON document has a place for it.

    Raises:
        UsageError: a format that is not one of `FORMATS`.
    """
    if format not in WRITERS:
        raise UsageError("--format", format, f"must be one of {', '.join(FORMATS)}")
    return JsonWriter(stream, manifest) if format == "json" else WRITERS[format](stream)


def _csv_line(cells: list[str]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue()


def _csv_cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(_rounded(value))  # with a point or an exponent: a typed reader takes every row for a float
    return str(value)


def _rounded(value: Any) -> Any:
    """Six significant digits, more than a timing holds, and the same in every format; all of a whole part."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.6g}") if abs(value) < 1e6 else float(round(value))


def _is_own_file(stream: TextIO) -> bool:
    """Whether rewinding is safe: a regular file, not appended to, not stdout or stderr (both are shared)."""
    if "a" in str(getattr(stream, "mode", "")):
        return False
    try:
        if not stream.seekable():
            return False
    except (AttributeError, ValueError):
        return False
    try:
        return stream.fileno() > 2 and stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
    except (OSError, AttributeError):  # in memory
        return True
