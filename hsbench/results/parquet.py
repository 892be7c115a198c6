"""Parquet, for what reads columns: a row group of all rows, and beside them what a JSON document has beside its rows.

A Parquet file ends in the index of all that is before it, so there is none that grows. It is made anew with each row,
beside its place, and put there once it is whole: a kill finds the one before. pyarrow is asked for only here.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hsbench.errors import UnavailableError
from hsbench.results.columns import Column

MAGIC = b"PAR1"
_KEY = b"hsbench"


def require() -> None:
    """Make sure that pyarrow is there, without importing it.

    Raises:
        UnavailableError: it is not; says how to get it.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise UnavailableError("pyarrow is missing, which Parquet needs: pip install pyarrow, or give a .csv or .json")


def write(path: Path, columns: Sequence[Column], rows: Sequence[dict[str, Any]], document: dict[str, Any]) -> None:
    """Put a file in place, whole.

    Args:
        rows: plain values of their columns' types.
        document: what is beside the rows, as JSON can hold it.

    Raises:
        OSError: it cannot be written.
        UnavailableError: pyarrow is not there.
    """
    require()
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}
    fields = [
        pa.field(one.name, types[one.type], one.optional, {"unit": one.unit, "hint": one.hint}) for one in columns
    ]
    schema = pa.schema(fields, metadata={_KEY: json.dumps(document, allow_nan=False)})
    unfinished = path.with_name(f".{path.name}.unfinished")
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), unfinished)
    os.replace(unfinished, path)


def read(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows of a file, and what is beside them.

    Raises:
        ValueError: not whole.
        UnavailableError: pyarrow is not there.
    """
    require()
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    document = json.loads((table.schema.metadata or {}).get(_KEY, b"{}"))
    return table.to_pylist(), document if isinstance(document, dict) else {}
