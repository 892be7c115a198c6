"""Reading results back: the rows of a CSV, JSON or Parquet file, of this schema or the one before."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hsbench.errors import UsageError
from hsbench.problem.workload import PAPER_PRUNER
from hsbench.results import parquet
from hsbench.results.attention import Record, is_dense
from hsbench.results.generate import Generated
from hsbench.results.quality import Quality
from hsbench.results.row import SCHEMA, Row

BENCHMARKS: dict[str, type[Row[Any, Any]]] = {rows.benchmark: rows for rows in (Record, Quality, Generated)}
"""The kinds of rows, by the name in their `benchmark` column."""

_NAME, _, _VERSION = SCHEMA.partition("/")
_OLDER = 3
_BEGINS = f'{{"schema": "{_NAME}/'  # every JSON document of ours


def read_rows(path: Path, option: str = "FILE") -> list[Row[Any, Any]]:
    """The rows of a whole file that `--output` wrote, CSV, JSON or Parquet, in order. Columns that no schema knows are
    passed over.

    Rows of schema 3 do not tell their sink, local, threads and isa, and where they did not run, neither cache nor
    sustain_s: these are None.

    Args:
        option: what the user gave the path to, for the messages.

    Raises:
        UsageError: no such file, no results, of a schema that is not read, or damaged.
        UnavailableError: it is Parquet, and pyarrow is not there.
    """
    content = read_content(path, option)
    if content.torn:
        raise _damaged(path, option)
    return [parse_row(row, at, path, option) for at, row in enumerate(content.rows, start=1)]


@dataclass(frozen=True)
class Content:
    """A file as it was read, its rows not yet looked at.

    Attributes:
        format: `csv`, `json` or `parquet`.
        rows: cells, or values of JSON, by column.
        document: what is beside the rows: of a JSON document, everything else; of Parquet, the same; of CSV nothing.
        torn: whether its end is missing, as a kill leaves it; what was cut short is not among the rows.
    """

    format: str
    rows: list[dict[str, Any]]
    document: dict[str, Any]
    torn: bool


def read_content(path: Path, option: str = "FILE") -> Content:
    """What a file holds, as far as it was written.

    Raises:
        UsageError: no such file, or neither CSV nor JSON nor Parquet of ours, or damaged elsewhere than at its end.
        UnavailableError: it is Parquet, and pyarrow is not there.
    """
    try:
        content = path.read_bytes()
        if content.startswith(parquet.MAGIC):
            return Content("parquet", *parquet.read(path), torn=False)
        text = content.decode("utf-8")
        return _json(text) if text.lstrip().startswith("{") else _csv(text)
    except OSError as error:
        remedy = f"cannot be read ({error.strerror or error}); give a CSV, JSON or Parquet file"
        raise UsageError(option, path, remedy) from error
    except (ValueError, csv.Error) as error:
        raise _damaged(path, option) from error


def _damaged(path: Path, option: str) -> UsageError:
    return UsageError(option, path, "is neither whole CSV nor whole JSON; give what --output wrote")


def _csv(text: str) -> Content:
    torn = not text.endswith("\n")
    if torn:  # a line that was cut short would lose measures, or digits of one
        text = text[: text.rfind("\n") + 1]
    rows: list[dict[str, Any]] = list(csv.DictReader(io.StringIO(text), strict=True))
    if any(None in row or None in row.values() for row in rows):
        raise ValueError("cut short")
    return Content("csv", rows, {}, torn)


def _json(text: str) -> Content:
    try:
        document, torn = json.loads(text), False
    except ValueError:
        document, torn = _cut_short(text), True
    rows = document.pop("rows", None)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("no rows")
    return Content("json", rows, document, torn)


def _cut_short(text: str) -> dict[str, Any]:
    """The document whose end is missing: rows stand one on a line, and the manifest before them."""
    head, begin, rest = text.partition('\n"rows": [')
    if not begin and not _BEGINS.startswith(text[: len(_BEGINS)]):
        raise ValueError("no rows")
    if not begin:
        return {"rows": []}
    document: dict[str, Any] = json.loads(f"{head.rstrip().rstrip(',')}}}")
    document["rows"] = []
    for line in rest.split("\n")[1:]:
        try:
            document["rows"].append(json.loads(line.rstrip(",")))
        except ValueError:  # where the rows end, or were cut
            break
    return document


def parse_row(row: Mapping[str, Any], at: int, path: Path, option: str) -> Row[Any, Any]:
    """A row of cells, or values of JSON, as what it is.

    Args:
        at: its number in the file, from 1.

    Raises:
        UsageError: not a row of ours, of a schema that is not read, or damaged.
    """
    name, _, version = str(row.get("schema")).partition("/")
    if name != _NAME or not version.isdecimal():
        raise UsageError(option, path, f"row {at} is no result of hsbench; give what --output wrote")
    if not _OLDER <= int(version) <= int(_VERSION):
        what = "update hsbench" if int(version) > _OLDER else "measure again"
        remedy = f"row {at} is of schema {version}, and {_OLDER} to {_VERSION} are read; {what}"
        raise UsageError(option, path, remedy)
    older = int(version) == _OLDER
    kind = Record if older else BENCHMARKS.get(str(row.get("benchmark")))
    if kind is None:
        raise UsageError(option, path, f"row {at} is of a benchmark {row.get('benchmark')} that is not known; update")
    parse = {column.name: _parser(column.type) for column in kind.columns()}
    try:
        if older:
            row = _of_schema_3(row)
        row = {"ranks": "1", **row}  # not told by rows of before there were several
        return kind.from_row({name: parse[name](cell) for name, cell in row.items() if name in parse})
    except (KeyError, TypeError, ValueError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise UsageError(option, path, f"row {at} is damaged ({what}); measure again") from error


def _of_schema_3(row: Mapping[str, Any]) -> dict[str, Any]:
    """The same with the columns of 4."""
    label = row["cache"] or ""  # "warm", "cold (flushed)"; what was asked for and what was done in one
    cache, _, how = label.partition(" (")
    return {
        **row,
        "dense": is_dense(row["method"]),
        "pruner": PAPER_PRUNER,  # there was no other
        "evict": 0.0,
        **dict.fromkeys(("sink", "local", "threads", "isa")),
        "cache": cache,
        "cold_by": how.rstrip(")"),
        "ceiling": row["peak"],
        "percent_of_ceiling": row["percent_of_peak"],
    }


def _parser(kind: type) -> Callable[[Any], Any]:
    """From a cell, or a value of JSON, to a value of a column: in a CSV all are words, and None is an empty one."""
    words = {"true": True, "false": False}

    def parse(cell: Any) -> Any:
        if cell is None or cell == "":
            return None
        if not isinstance(cell, str) or kind is str:
            return cell
        return words[cell] if kind is bool else kind(cell)

    return parse
