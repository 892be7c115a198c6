"""Tables for people: a group per workload, readable at 100 columns, whole at any width, in any encoding.

Lines are laid out here rather than by rich's Table, because a row that could not run spans all number columns
with its reason. Rich brings colour, the terminal's width, and NO_COLOR.
"""

from __future__ import annotations

from typing import Any

from rich.console import Console

from hsbench.report import text
from hsbench.report.machine import machine_facts
from hsbench.report.page import Page
from hsbench.report.view import GROUPS, TableRow, View, view
from hsbench.results import Report

VERDICT_STYLES = {"faster": "green", "slower": "yellow", "inconclusive": "dim", "baseline": "bold"}


def render(reports: list[Report], console: Console, *, machine: bool | dict[str, Any] = True) -> None:
    """Print a table per report, then the machine.

    Args:
        machine: True prints the facts of the last report; a dict prints those; False none (for a caller that
            prints reports one at a time, and the machine once, at the end).
    """
    page = Page(console)
    for report in reports:
        _group(page, view(report))
        page.line()
    if machine is True:
        machine = reports[-1].machine if reports else {}
    page.facts(machine_facts(machine or {}))


def _group(page: Page, shown: View) -> None:
    for piece in text.joined(shown.heading, page.width):
        page.line((piece, "bold"))
    _rows(page, shown)
    for alarm in shown.alarms:
        for piece in text.wrapped(f"!! {alarm}", page.width):
            page.line((piece, "bold red"))
    if shown.memory:
        page.line()
        indent = max(len(name) for name, _ in shown.memory) + 2
        page.line(("KV memory", "dim"))
        for name, words in shown.memory:
            page.labelled(name, words, style="", indent=indent)
    for table in shown.tables:
        page.line()
        for at, line in enumerate(text.aligned(table)):
            page.line((line, "" if at else "dim"))
    if shown.facts:
        page.line()
        page.facts(shown.facts)


def _widths(shown: View) -> dict[str, list[int]]:
    """Of each column, the widths of its sub-columns; a header over the whole column is fitted in the last."""
    widths = {"method": [max([len("method"), *(len(_name(row)) for row in shown.rows)])]}
    for group, keys in GROUPS.items():
        own = []
        for key in keys:
            # What starts in the speedup's place and may run over into the interval's does not widen it.
            alone = "" if group == "speedup" else shown.headers[key]
            cells = [row.cells.get(key, "") for row in shown.rows if row.verdict != "baseline" or group != "speedup"]
            own.append(max([len(alone), *map(len, cells)]))
        if group == "speedup":
            own[-1] += max(0, len("baseline") - sum(own) - 1)
        widths[group] = own
    return widths


def _total(widths: dict[str, list[int]], gap: int) -> int:
    return sum(sum(own) + len(own) - 1 for own in widths.values()) + gap * (len(widths) - 1)


def _rows(page: Page, shown: View) -> None:
    widths, wide = _widths(shown), 2
    if _total(widths, wide) > page.width:
        wide = 1
    if _total(widths, wide) > page.width:
        del widths["kv"]  # the KV lines below the table hold it too
    gap, span = " " * wide, widths["method"][0]
    groups = [group for group in widths if group != "method"]
    page.line((gap.join(["method".ljust(span), *(_cell(shown.headers, group, widths) for group in groups)]), "dim"))
    page.line(("─" * _total(widths, wide), "dim"))
    for row in shown.rows:
        name = _name(row).ljust(span)
        if row.instead:
            style = "bold red" if row.status == "incorrect" else "dim"
            for piece in text.wrapped(row.instead, page.width - span - wide):
                page.line((name, style), gap, (piece, style))
                name = " " * span
            continue
        parts: list[str | tuple[str, str]] = [(name, "bold" if row.verdict == "baseline" else "")]
        for group in groups:
            style = VERDICT_STYLES.get(row.verdict, "") if group == "speedup" else ""
            parts += [gap, (_cell(row.cells, group, widths), style)]
        page.line(*parts)


def _cell(cells: dict[str, str], group: str, widths: dict[str, list[int]]) -> str:
    """The sub-columns of one column: numbers on the right, what explains a number on the left beside it."""
    own = widths[group]
    words = [cells.get(key, "") for key in GROUPS[group]]
    if group == "speedup" and not words[-1]:
        return words[0].ljust(sum(own) + 1)
    return " ".join(
        word.ljust(width) if at and group in ("time", "speedup") else word.rjust(width)
        for at, (word, width) in enumerate(zip(words, own, strict=True))
    )


def _name(row: TableRow) -> str:
    return row.method + row.marks
