"""Reading results back: the rows of a CSV file or a JSON document, of this schema or the one before."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hsbench.errors import UsageError
from hsbench.problem.workload import PAPER_PRUNER
from hsbench.results.attention import Record, is_dense
from hsbench.results.quality import Quality
from hsbench.results.row import SCHEMA, Row

BENCHMARKS: dict[str, type[Row[Any, Any]]] = {rows.benchmark: rows for rows in (Record, Quality)}
"""The kinds of rows, by the name in their `benchmark` column."""

_NAME, _, _VERSION = SCHEMA.partition("/")
_OLDER = 3


def read_rows(path: Path, option: str = "FILE") -> list[Row[Any, Any]]:
    """The rows of a file that `--output` wrote, CSV or JSON, in order. Columns that no schema knows are passed over.

    Rows of schema 3 do not tell their sink, local, threads and isa, and where they did not run, neither cache nor
    sustain_s: these are None.

    Args:
        option: what the user gave the path to, for the messages.

    Raises:
        UsageError: no such file, no results, of a schema that is not read, or damaged.
    """
    try:
        text = path.read_text(encoding="utf-8")
        rows = _json(text) if text.lstrip().startswith("{") else _csv(text)
    except OSError as error:
        raise UsageError(
            option, path, f"cannot be read ({error.strerror or error}); give a CSV or JSON file"
        ) from error
    except (ValueError, csv.Error) as error:
        raise UsageError(option, path, "is neither whole CSV nor whole JSON; give what --output wrote") from error
    return [_row(row, at, path, option) for at, row in enumerate(rows, start=1)]


def _csv(text: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = list(csv.DictReader(io.StringIO(text), strict=True))
    # A line that was cut short would lose measures, or digits of one.
    if not text.endswith("\n") or any(None in row or None in row.values() for row in rows):
        raise ValueError("cut short")
    return rows


def _json(text: str) -> list[dict[str, Any]]:
    document = json.loads(text)
    if not isinstance(document.get("rows"), list) or not all(isinstance(row, dict) for row in document["rows"]):
        raise ValueError("no rows")
    rows: list[dict[str, Any]] = document["rows"]
    return rows


def _row(row: Mapping[str, Any], at: int, path: Path, option: str) -> Row[Any, Any]:
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
