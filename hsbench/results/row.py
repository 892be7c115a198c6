"""A row of results: a case, how it ended, and what was measured. What is measured is open: see `Row`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Self, TypeVar

from hsbench.results.columns import Column, columns_of
from hsbench.results.identity import Case

#: 4: rows hold their whole identity. docs/results.md tells what changed.
SCHEMA = "hsbench/4"

#: ok: checked and timed. incorrect: the output failed its check. oom: did not fit, or was estimated not to.
#: unsupported: the method cannot do this shape, or no method can do these tensors. unavailable: it could, with
#: something this machine lacks. interrupted: the user stopped the run before the row was done.
STATUSES = ("ok", "incorrect", "oom", "unsupported", "unavailable", "interrupted")

_HEAD = (
    Column("schema", str, False, "", "name", "`hsbench/4`"),
    Column("benchmark", str, False, "", "name", "what is measured, and so which columns a row has"),
)
_END = (
    Column("status", str, False, "", "state", "how the row ended, see above"),
    Column("reason", str, True, "", "state", "one line: why it is not ok"),
)

C = TypeVar("C", bound=Case)
M = TypeVar("M")


@dataclass
class Row(Generic[C, M]):
    """One row: of a kind of benchmark, with that kind's case and measures.

    A new kind is a file like ``attention.py``: a `Case`, a dataclass of `measure` fields, and a subclass of this that
    names both; and its name in ``reading.py``. Writers, documents and readers need nothing else.

    Raises:
        ValueError: a status outside `STATUSES`, or a row that is not ok and does not say why (an interrupted
            row needs no reason).
    """

    benchmark: ClassVar[str]
    case_type: ClassVar[type[Any]]
    measures_type: ClassVar[type[Any]]

    case: C
    measures: M
    status: str
    reason: str | None = None

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"status {self.status!r}: must be one of {', '.join(STATUSES)}")
        # One line, so that a CSV row is a line too: torch's messages span several.
        self.reason = " ".join(self.reason.split()) or None if self.reason is not None else None
        if self.reason is None and self.status not in ("ok", "interrupted"):
            raise ValueError(f"status {self.status!r} needs a reason: {self.case.label}")

    @classmethod
    def columns(cls) -> tuple[Column, ...]:
        """All columns of a row, in order."""
        return (*_HEAD, *columns_of(cls.case_type), *_END, *columns_of(cls.measures_type))

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """The row of plain values by column, the reverse of `to_row`; measures may be missing.

        Raises:
            KeyError: a column of the case, or the status, is missing.
            TypeError, ValueError: a value that its column cannot hold.
        """
        case = cls.case_type(**{column.name: row[column.name] for column in columns_of(cls.case_type)})
        measures = {column.name: column.typed(row.get(column.name)) for column in columns_of(cls.measures_type)}
        return cls(case, cls.measures_type(**measures), row["status"], row["reason"])

    def to_row(self) -> dict[str, Any]:
        """The columns in order, as plain values of their types, see `Column.typed`.

        A row that is not ok never carries a speedup, whoever filled it in: a result that failed its check must not be
        quoted.
        """
        held = {"schema": SCHEMA, "benchmark": self.benchmark, "status": self.status, "reason": self.reason}
        held |= vars(self.case) | vars(self.measures)
        ok = self.status == "ok"
        return {one.name: one.typed(held[one.name]) if ok or not one.ok_only else None for one in self.columns()}
