"""The same tables as Markdown, for an issue or a README."""

from __future__ import annotations

from typing import Any

from hsbench.report import text
from hsbench.report.machine import machine_facts
from hsbench.report.view import GROUPS, TableRow, view
from hsbench.results import Report


def markdown(reports: list[Report]) -> str:
    """A heading, a pipe table and the facts per report, then the machine."""
    parts = [report_markdown(report) for report in reports]
    machine = machine_markdown(reports[-1].machine) if reports else ""
    return "\n\n".join([*parts, machine] if machine else parts) + "\n"


def report_markdown(report: Report) -> str:
    """One report, without the machine and without a final newline."""
    from tabulate import tabulate

    shown = view(report)
    headers = ["method", *(_header(shown.headers, keys) for keys in GROUPS.values())]
    table = tabulate(
        [[_escape(cell) for cell in _cells(row)] for row in shown.rows],
        headers=headers,
        tablefmt="pipe",
        disable_numparse=True,
        colalign=["left", *["right"] * len(GROUPS)] if shown.rows else None,
    )
    parts = [f"### {_escape(' · '.join(shown.heading))}", table]
    parts += [f"**{_escape(alarm)}**" for alarm in shown.alarms]
    # A line between two lists, or Markdown makes them one.
    reasons = [(row.method, row.instead) for row in shown.rows if row.instead]
    titles = {"Without numbers:": reasons, "KV memory:": shown.memory, "How it was measured:": shown.facts}
    for head, *rows in shown.tables:
        parts.append(text.piped([head, *rows]))
    parts += [f"{title}\n\n{_bullets(items)}" for title, items in titles.items() if items]
    return "\n\n".join(parts)


def machine_markdown(machine: dict[str, Any]) -> str:
    """The machine as a list, "" where nothing is known."""
    facts = machine_facts(machine)
    return f"Machine:\n\n{_bullets(facts)}" if facts else ""


def _cells(row: TableRow) -> list[str]:
    name = row.method + row.marks
    if row.instead:
        # The reason is below: in a cell it would stretch the whole column.
        words = "**INCORRECT**" if row.status == "incorrect" else row.status
        return [name, words, *[""] * (len(GROUPS) - 1)]
    return [name, *(" ".join(row.cells[key].strip() for key in keys).strip() for keys in GROUPS.values())]


def _header(headers: dict[str, str], keys: tuple[str, ...]) -> str:
    return ", ".join(headers[key] for key in keys if key in headers)


def _bullets(items: list[tuple[str, str]]) -> str:
    return "\n".join(f"- {_escape(label)}: {_escape(words)}" for label, words in items)


def _escape(words: str) -> str:
    """A pipe would end the cell, an asterisk would start emphasis."""
    return words.replace("|", "\\|").replace("*", "\\*") if not words.startswith("**") else words.replace("|", "\\|")
