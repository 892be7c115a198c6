"""Rows for notebooks: a pandas frame, where pandas is there."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hsbench.errors import UnavailableError, UsageError
from hsbench.results.stored import read_stored

if TYPE_CHECKING:
    import pandas


def load(path: str | os.PathLike[str]) -> pandas.DataFrame:
    """The rows of a file that ``--output`` wrote, CSV, JSON or Parquet, a row each, in order.

    Columns are those of the schema, in its order, with its units in their names: floats are float64, unknown ones NaN;
    counts are Int64 and booleans boolean, unknown ones NA; words are None where unknown. What the file knows beside its
    rows is in ``frame.attrs``: ``machine``, ``manifest``, ``ceilings``, and ``complete``, which is False where the run
    was killed. A row that was cut short is left out.

    Args:
        path: the file.

    Raises:
        UnavailableError: pandas is not there, or the file is Parquet and pyarrow is not.
        UsageError: no such file, no results, rows of two benchmarks, of a schema that is not read, or damaged.
    """
    if importlib.util.find_spec("pandas") is None:
        raise UnavailableError("pandas is missing, which a frame needs: pip install pandas")
    import pandas as pd

    stored = read_stored(Path(path), "path")
    kinds = list(dict.fromkeys(type(row) for row in stored.rows))
    if len(kinds) != 1:
        what = "holds rows of two benchmarks; split it" if kinds else "holds no rows; give what --output wrote"
        raise UsageError("path", path, what)
    rows = [row.to_row() for row in stored.rows]
    types = {bool: "boolean", int: "Int64", float: "float64", str: "object"}
    columns: dict[str, Any] = {
        one.name: pd.Series([row[one.name] for row in rows], dtype=types[one.type])  # type: ignore[call-overload, unused-ignore]
        for one in kinds[0].columns()
    }
    frame = pd.DataFrame(columns)
    ceilings = [{"name": one.name, "value": one.value, "unit": one.unit} for one in stored.ceilings]
    complete = stored.complete and not stored.torn
    frame.attrs = {"machine": stored.machine, "manifest": stored.manifest, "ceilings": ceilings, "complete": complete}
    return frame
