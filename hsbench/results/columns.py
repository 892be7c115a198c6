"""Columns, declared once: a dataclass field whose metadata says what it means, in which unit, and what it is for.

A field's type is the type of its column in every row, and the order of the fields is the order of the columns;
nothing else defines either. A field that may be None may be unknown or not apply: an empty cell in CSV, null in JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any, Literal, get_args, get_type_hints

from hsbench.results.values import plain

Hint = Literal["name", "shape", "setting", "count", "time", "rate", "ratio", "quality", "memory", "state"]
"""What a column is for, so that a plot or a reader can choose without knowing it by name. Of a case: a ``name``, a
``shape`` or a ``setting``. Of measures: a ``time``, a ``rate`` (work over time, or its share of a ceiling), a
``ratio``, a ``quality``, ``memory``, a ``count``, or the ``state`` that something was in."""


@dataclass(frozen=True)
class Column:
    """One column of a row.

    Attributes:
        name: of the field and the column.
        type: bool, int, float or str.
        optional: whether it may be None.
        unit: "" where it has none.
        hint: what it is for.
        meaning: one line.
        ok_only: whether only a row that is ok may show it.
    """

    name: str
    type: type
    optional: bool
    unit: str
    hint: Hint
    meaning: str
    ok_only: bool = False

    def typed(self, value: Any) -> Any:
        """`value` as a plain Python value of the column's type, so that a column of floats holds no int, whatever was
        put in. NaN and infinities become None (JSON has neither).

        Raises:
            TypeError: a value that the type cannot hold, such as 1.5 where a count belongs.
        """
        value = plain(value)
        if type(value) is self.type or (value is None and self.optional):
            return value
        if type(value) in (int, float) and self.type in (int, float) and self.type(value) == value:
            return self.type(value)
        raise TypeError(f"{self.name} {value!r}: the column holds {self.type.__name__}")


def about(meaning: str, hint: Hint, unit: str = "", *, ok_only: bool = False) -> Mapping[str, Any]:
    """The metadata of a field that is a column."""
    return {"meaning": meaning, "hint": hint, "unit": unit, "ok_only": ok_only}


def measure(meaning: str, hint: Hint, unit: str = "", *, ok_only: bool = False) -> Any:
    """A field for what was measured: None until it is."""
    return field(default=None, metadata=about(meaning, hint, unit, ok_only=ok_only))


_FOUND: dict[type, tuple[Column, ...]] = {}


def columns_of(declared: type) -> tuple[Column, ...]:
    """The columns that a dataclass declares, in order."""
    if declared not in _FOUND:
        hints = get_type_hints(declared)
        _FOUND[declared] = tuple(_column(one, hints[one.name]) for one in fields(declared))
    return _FOUND[declared]


def _column(one: Field[Any], hint: Any) -> Column:
    parts = get_args(hint) or (hint,)
    (kind,) = (part for part in parts if part is not type(None))
    return Column(one.name, kind, type(None) in parts, **one.metadata)
