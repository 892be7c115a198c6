"""From words to values: sizes, shares, choices, seconds, lists; and what an option is called.

Here alone is known that ``128k`` is a number and that the field ``kv_heads`` is typed as ``--kv-heads``. Whether a
value makes sense is for what takes it to say, by a :class:`UsageError` that names a field; :func:`as_option` makes one
of the command line from it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeVar

from hsbench.errors import UsageError, unknown
from hsbench.problem.workload import check_evict, check_size, check_sparsity

_SIZE = re.compile(r"(\d+)(?:\.(\d+))?([kKmM]?)", re.ASCII)
_UNITS = {"": 1, "k": 1024, "m": 1024**2}
_FIELD = re.compile(r"`(\w+)`")

#: Settings that are typed under another name.
_TYPED_AS = {"budget_s": "time", "sustain_s": "sustain"}

#: What is typed without an option.
_WORDS = {"model": "MODEL", "file": "FILE", "base": "BASE", "new": "NEW"}

Choice = TypeVar("Choice", bound=str)


def typed_as(field: str) -> str:
    """The field of a request that fills a field."""
    return _TYPED_AS.get(field, field)


def flag(field: str) -> str:
    """The option that fills a field, or the word as the help names it."""
    return _WORDS.get(field) or "--" + typed_as(field).replace("_", "-")


def as_option(error: UsageError) -> UsageError:
    """The same error, in the words of the command line: options in place of fields, in its remedy, too."""
    option = error.option if error.option.startswith("-") or error.option in _WORDS.values() else flag(error.option)
    return UsageError(option, error.value, _FIELD.sub(lambda found: flag(found[1]), error.remedy))


def parse_size(text: str, field: str, *, minimum: int = 1) -> int:
    """Read a size: ``4096``, ``128k`` (1024 each), ``2m`` (1024² each), ``0.5k`` where it comes out whole.

    Args:
        text: as typed.
        field: named in the error.
        minimum: the least size allowed.

    Raises:
        UsageError: not a size, not a whole number, below ``minimum``, or 2³¹ and more.
    """
    shown = text.strip()
    match = _SIZE.fullmatch(shown.removeprefix("-"))
    if match is None:
        raise UsageError(field, shown or '""', "not a size; give a whole number, such as 4096 or 128k")
    whole, fraction, unit = match.groups(default="")
    # Whole-number arithmetic: a float would lose digits long before MAX_SIZE is refused.
    scaled, rest = divmod(int(whole + fraction) * _UNITS[unit.lower()], 10 ** len(fraction))
    if rest:
        raise UsageError(field, shown, "not a whole number; give a size such as 4096 or 128k")
    value: int = -scaled if shown.startswith("-") else scaled
    try:
        check_size(field, value, minimum)
    except UsageError as error:
        raise UsageError(field, shown, error.remedy) from None
    return value


def parse_sparsity(text: str, field: str = "sparsity") -> float:
    """Read a sparsity, 0 to 0.5.

    Raises:
        UsageError: not a number, NaN, or outside the range.
    """
    return _parse_checked(text, field, check_sparsity)


def parse_evict(text: str, field: str = "evict") -> float:
    """Read a share of evicted blocks, 0 to 1.

    Raises:
        UsageError: not a number, NaN, or outside the range.
    """
    return _parse_checked(text, field, check_evict)


def _parse_checked(text: str, field: str, check: Callable[[str, float], float]) -> float:
    shown = text.strip()
    try:
        return check(field, parse_number(shown))
    except UsageError as error:
        raise UsageError(field, shown or '""', error.remedy) from None


def parse_number(text: str) -> float:
    """What was typed as a number; NaN, which no range holds, where it is none."""
    try:
        return float(text)
    except ValueError:
        return float("nan")


def parse_choice(text: str, field: str, choices: Sequence[Choice]) -> Choice:
    """Read one of ``choices``, in any case.

    Raises:
        UsageError: none of them; the message lists them and names the closest.
    """
    for choice in choices:
        if text.strip().lower() == choice.lower():
            return choice
    raise unknown(field, text, choices)


def parse_list(text: str, field: str) -> list[str]:
    """The items between commas.

    Raises:
        UsageError: one of them is empty.
    """
    items = [item.strip() for item in text.split(",")]
    if not all(items):
        raise UsageError(field, text or '""', "has an empty item; give values with one comma between them")
    return items
