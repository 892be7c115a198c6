"""Memory in words and cells: what each method stores, and what it took while it was made and run."""

from __future__ import annotations

from collections import defaultdict

from hsbench.report import text
from hsbench.results import Record, Result


def stored(results: list[Result[Record]]) -> list[tuple[str, str]]:
    """Stored bytes in words, methods of equal storage on one line."""
    by_parts: dict[tuple[tuple[str, int], ...], list[Record]] = defaultdict(list)
    for result in results:
        if result.memory and result.record.status == "ok":
            by_parts[tuple(result.memory.items())].append(result.record)
    name, length = text.byte_unit([sum(count for _, count in parts) for parts in by_parts])
    lines = []
    for parts, records in by_parts.items():
        words = f"{text.amount(sum(count for _, count in parts), length)} {name}"
        smaller = records[0].measures.kv_ratio
        if smaller is not None and text.ratio(smaller) != "1.00x":
            words += f" ({text.ratio(smaller)} smaller)" if smaller > 1 else f" ({text.ratio(1 / smaller)} larger)"
        shown = [(part, count) for part, count in parts if count]
        if len(shown) > 1:
            words += " = " + " + ".join(f"{part} {text.amount(count, length)}" for part, count in shown)
        lines.append((_together(records), words))
    return lines


def _together(records: list[Record]) -> str:
    """A name for methods that store the same."""
    names = [record.method for record in records]
    if len(names) > 1 and all(record.case.dense for record in records):
        return "dense methods"
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def taken(ok: list[Record]) -> list[list[str]]:
    """What each method took of the memory, beside what had been estimated; empty where nothing is known."""
    columns = {"peak_bytes": "peak", "estimated_bytes": "estimated", "gpu_used_bytes": "GPU in use"}
    shown = {key: name for key, name in columns.items() if any(getattr(r.measures, key) is not None for r in ok)}
    if set(shown) <= {"estimated_bytes"}:
        return []
    # The methods' own sizes decide the unit; what is in use of a GPU may be another order of magnitude.
    name, length = text.byte_unit([record.measures.peak_bytes or record.measures.estimated_bytes or 0 for record in ok])

    def cell(count: int | None) -> str:
        return "" if count is None else text.amount(count, length)

    rows = [[record.method, *(cell(getattr(record.measures, key)) for key in shown)] for record in ok]
    return [[f"memory {name}", *shown.values()], *rows]
