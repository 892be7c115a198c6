"""What makes two rows comparable: a case, which holds everything that a number depends on.

A case holds what was *asked for*. The machine that it ran on, the drivers, the versions and the code are what two
runs of one case are compared *across*; a document's manifest tells of them. How long was sampled (``--time``, the
number of samples) is no part of it either: it moves the interval, not the number.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any

from hsbench.results.columns import columns_of
from hsbench.results.values import as_written


@dataclass(frozen=True, kw_only=True)
class Case(ABC):
    """The base of every kind of case; a subclass declares the columns.

    Values are held as a file holds them (`as_written`), so that a case that was written and read is equal to itself.
    Two cases are equal, and hash alike, where all their fields are; a field that only describes says ``compare=False``.
    None: it does not apply, or the file that it was read from does not tell.

    Raises:
        TypeError: a value of another type than the field's.
    """

    def __post_init__(self) -> None:
        for column in columns_of(type(self)):
            object.__setattr__(self, column.name, as_written(column.typed(getattr(self, column.name))))

    @property
    @abstractmethod
    def label(self) -> str:
        """The case on one line, for people: what is as usual is left out."""


def key(case: Case) -> tuple[tuple[str, Any], ...]:
    """The identity as (column, value) pairs, to join rows of two runs on: equal exactly for equal cases."""
    return tuple((one.name, getattr(case, one.name)) for one in fields(case) if one.compare)


def may_match(one: Case, other: Case) -> bool:
    """Whether two cases agree in all that both tell: for rows of an older schema, which leave some of it unknown."""
    if type(one) is not type(other):
        return False
    pairs = zip(key(one), key(other), strict=True)
    return all(here == there or here is None or there is None for (_, here), (_, there) in pairs)
