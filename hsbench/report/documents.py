"""Results for programs: CSV, one JSON document, and Parquet.

If the process is killed outright, nothing that finished is lost: CSV is flushed row by row. JSON is too, one
row per line, and where the stream is a file of its own (`--output`), the file is a complete, valid document
after every row: the closing brackets are written with each row and overwritten by the next. On a pipe or a
shared stdout, a kill leaves a document without its end, whose rows can still be read line by line.

docs/results.md describes both.
"""

from __future__ import annotations

import csv
import io
import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from hsbench.report.stream import Rows, RowStream, emit
from hsbench.results import SCHEMA, MeasuredCeiling, Record, Reported, Result, Row, parquet
from hsbench.results.values import as_written, plain


class CsvWriter(RowStream):
    """The columns of one kind of rows, header first, one line per row, flushed after each."""

    def __init__(self, stream: TextIO, rows: type[Row[Any, Any]] = Record) -> None:
        super().__init__(stream)
        self._rows = rows

    def _head(self) -> None:
        self._emit(_csv_line([column.name for column in self._rows.columns()]))

    def _row(self, result: Result[Any]) -> None:
        self._emit(_csv_line([_csv_cell(value) for value in result.record.to_row().values()]))


class _Document(Rows):
    """Rows, and what a document holds beside them: the manifest, the machine, the ceilings, the rows' memory."""

    def __init__(self, manifest: dict[str, Any] | None, rows: type[Row[Any, Any]]) -> None:
        super().__init__()
        self._rows = rows
        self._manifest = manifest
        self._memory: list[dict[str, Any]] = []
        self._machine: dict[str, Any] = {}
        self._ceilings: dict[MeasuredCeiling, None] = {}
        self._count = 0

    def report(self, report: Reported) -> None:
        self._machine = report.machine or self._machine
        self._ceilings |= dict.fromkeys(report.ceilings.values())
        super().report(report)

    def _row_of(self, result: Result[Any]) -> dict[str, Any]:
        """The row as it is written; its memory is noted."""
        if result.memory:
            self._memory.append({"row": self._count, **plain(result.memory)})
        self._count += 1
        return {name: as_written(value) for name, value in result.record.to_row().items()}

    def _after(self, *, complete: bool) -> dict[str, Any]:
        """What stands behind the rows."""
        ceilings = [
            {"name": one.name, "value": as_written(plain(float(one.value))), "unit": one.unit} for one in self._ceilings
        ]
        return {"memory": self._memory, "machine": plain(self._machine), "ceilings": ceilings, "complete": complete}


class ParquetWriter(_Document):
    """The rows as columns, and beside them what a JSON document holds; the file is whole after every row.

    Raises:
        UnavailableError: pyarrow is not there.
    """

    def __init__(self, path: Path, manifest: dict[str, Any] | None = None, rows: type[Row[Any, Any]] = Record) -> None:
        super().__init__(manifest, rows)
        parquet.require()
        self._path = path
        self._held: list[dict[str, Any]] = []
        self._keeping = False

    def report(self, report: Reported) -> None:
        super().report(report)
        self._write(complete=False)  # the machine

    def keep(self, reports: Sequence[Reported]) -> None:
        self._keeping = True  # a file with some of them would have lost the others
        for report in reports:
            self.report(report)
        self._keeping = False
        self._write(complete=False)

    def _row(self, result: Result[Any]) -> None:
        self._held.append(self._row_of(result))
        self._write(complete=False)

    def _tail(self) -> None:
        self._write(complete=True)

    def _write(self, *, complete: bool) -> None:
        if self._keeping:
            return
        manifest = {"manifest": plain(self._manifest)} if self._manifest else {}
        parquet.write(self._path, self._rows.columns(), self._held, manifest | self._after(complete=complete))


class JsonWriter(_Document):
    """One document::

        {"schema": "hsbench/4", "manifest": {what the run depends on},
         "columns": [{"name", "type", "unit", "hint"}, ...], "rows": [{every column}, ...],
         "memory": [{"row": 0, component: bytes, ...}, ...],
         "machine": {...}, "ceilings": [{"name", "value", "unit"}, ...], "complete": true}

    `memory` refers to `rows` by index. `complete` is false in a file whose process was killed before `close`.
    """

    def __init__(
        self, stream: TextIO, manifest: dict[str, Any] | None = None, rows: type[Row[Any, Any]] = Record
    ) -> None:
        super().__init__(manifest, rows)
        self.stream = stream
        self._end = 0  # where the next row goes, in a file that can be rewound
        self._rewinds = _is_own_file(stream)

    def _head(self) -> None:
        if self._rewinds:
            self._end = self.stream.tell()
        manifest = f'\n"manifest": {json.dumps(plain(self._manifest))},' if self._manifest else ""
        columns = json.dumps(
            [
                {"name": one.name, "type": one.type.__name__, "unit": one.unit, "hint": one.hint}
                for one in self._rows.columns()
            ]
        )
        self._add(f'{{"schema": {json.dumps(SCHEMA)},{manifest}\n"columns": {columns},\n"rows": [')

    def _row(self, result: Result[Any]) -> None:
        between = ",\n" if self._count else "\n"
        self._add(between + json.dumps(self._row_of(result), allow_nan=False))

    def _tail(self) -> None:
        if self._rewinds:
            self.stream.seek(self._end)
        self._emit(self._ending(complete=True))
        if self._rewinds:
            self.stream.truncate()

    def _emit(self, text: str) -> None:
        emit(text, self.stream)

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
        after = self._after(complete=complete)
        memory = ",\n".join(json.dumps(item) for item in after.pop("memory"))
        rest = ",\n".join(f"{json.dumps(name)}: {json.dumps(held, allow_nan=False)}" for name, held in after.items())
        return f'\n],\n"memory": [{memory}],\n{rest}}}\n'


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
        return repr(as_written(value))  # with a point or an exponent: a typed reader takes every row for a float
    return str(value)


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
