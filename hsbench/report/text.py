"""Numbers, sizes and wrapped lines as people read them; plain strings, no styling."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest
from typing import TypeVar

T = TypeVar("T")

#: One character for one character, so that columns stay aligned where the output cannot hold the first.
_PLAIN = str.maketrans({"·": "-", "×": "x", "─": "-", "–": "-", "—": "-", "…": ".", "≥": ">", "≤": "<", "±": "~"})

_SIZES = (("m", 1024**2), ("k", 1024))
_BYTES = (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024), ("B", 1))
_TIMES = (("s", 1e6), ("ms", 1e3), ("us", 1.0))


def piped(table: Sequence[Sequence[str]]) -> str:
    """A header and its lines as a table of Markdown, whose first column names what the others are of."""
    from tabulate import tabulate

    right = ["left", *["right"] * (len(table[0]) - 1)]
    return str(tabulate(table[1:], headers=table[0], tablefmt="pipe", disable_numparse=True, colalign=right))


def instead(status: str, reason: str | None) -> str:
    """What a row that is not ok says."""
    shown = status.upper() if status == "incorrect" else status
    return f"{shown}: {reason}" if reason else shown


def encodable(text: str, encoding: str | None) -> str:
    """`text` with what `encoding` cannot hold replaced: our own signs by look-alikes, others escaped."""
    if encoding is None or encoding.lower().replace("-", "").startswith("utf"):
        return text
    try:
        text.encode(encoding)
        return text
    except UnicodeEncodeError:
        return text.translate(_PLAIN).encode(encoding, "backslashreplace").decode(encoding)


def aligned(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Lines of cells in columns: the first `left` flush left, the others right; a row may end early."""
    widths = [max(map(len, column)) for column in zip_longest(*rows, fillvalue="")]
    return [
        "  ".join(
            cell.ljust(width) if at < left else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=False))
        ).rstrip()
        for row in rows
    ]


def size(tokens: int) -> str:
    """131072 -> "128k"; sizes that are no whole multiple of 1024 in full."""
    for suffix, unit in _SIZES:
        if tokens and tokens % unit == 0:
            return f"{tokens // unit}{suffix}"
    return f"{tokens:,}"


def digits(value: float) -> str:
    """Four digits at most, never more than two decimals above 1: 2034, 103.2, 12.41, 7.12, 0.950."""
    decimals = 3 if value < 1 else 2 if value < 100 else 1 if value < 1000 else 0
    return f"{value:.{decimals}f}"


def time_unit(times_us: list[float]) -> tuple[str, float]:
    """The unit that suits a table's times: its name and its length in microseconds. The median decides."""
    if not times_us:
        return "ms", 1e3
    middle = sorted(times_us)[len(times_us) // 2]
    return next(((name, length) for name, length in _TIMES if middle >= length), _TIMES[-1])


def duration(time_us: float) -> str:
    """One time with its own unit: "7.12 ms"."""
    name, length = time_unit([time_us])
    return f"{digits(time_us / length)} {name}"


def byte_unit(sizes: list[int]) -> tuple[str, int]:
    """The unit that suits a table's bytes; GiB only from 10 GiB on, so that differences stay visible."""
    largest = max(sizes, default=0)
    for name, length in _BYTES:
        if largest >= length * (10 if name == "GiB" else 1):
            return name, length
    return _BYTES[-1][0], _BYTES[-1][1]


def amount(count: int, length: int) -> str:
    """Bytes in a unit of `length` bytes; what is there but too small to show is "<0.1"."""
    value = count / length
    if length == 1:
        return f"{count}"
    return "<0.1" if 0 < value < 0.05 else f"{value:.1f}" if value < 10_000 else f"{value:.0f}"


def ratio(value: float) -> str:
    """1.62x, with the digits of `ratio_digits`."""
    return f"{ratio_digits(value)}x"


def ratio_digits(value: float) -> str:
    """1.62, 12.3, 123; below 0.01 a third decimal, so that it does not read as nothing."""
    decimals = 3 if value < 0.01 else 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{decimals}f}"


def rate(value: float) -> str:
    """Three digits are enough beside a percentage: 4180, 139, 72.6, 5.07, 0.310."""
    decimals = 3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{decimals}f}"


def error(value: float) -> str:
    """2.1e-4: the exponent without its zeros."""
    mantissa, mark, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa}e{int(exponent)}" if mark else mantissa


def on_point(cells: list[str]) -> list[str]:
    """The cells padded to one width with their decimal points below each other; empty cells stay empty."""
    whole = max((len(cell.partition(".")[0]) for cell in cells), default=0)
    part = max((len(cell) - len(cell.partition(".")[0]) for cell in cells), default=0)
    return [cell and cell.rjust(whole + len(cell) - len(cell.partition(".")[0])).ljust(whole + part) for cell in cells]


def wrapped(text: str, width: int) -> list[str]:
    """Lines of at most `width`; a word longer than a line is broken, never dropped."""
    return textwrap.wrap(text, max(width, 8), break_on_hyphens=False) or [""]


def joined(segments: list[str], width: int, separator: str = " · ") -> list[str]:
    """Segments on as few lines as fit, broken between segments where possible."""
    lines = [""]
    for segment in segments:
        candidate = f"{lines[-1]}{separator}{segment}" if lines[-1] else segment
        if len(candidate) <= width or not lines[-1]:
            lines[-1] = candidate
        else:
            lines.append(segment)
    return [line for long in lines for line in wrapped(long, width)]


def listed(names: list[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def unique(items: Iterable[T | None]) -> list[T]:
    """The items that are something, each once, in order."""
    return list(dict.fromkeys(item for item in items if item is not None and item != ""))


def known(value: T | None, form: Callable[[T], str]) -> str:
    """A value in words; "" where it is not known."""
    return "" if value is None else form(value)
