"""A report as text cells: what to show, in which unit, in which words. Layout is the tables' business."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from hsbench.report import memory, ranks, text
from hsbench.report.compared import alarms, instead, interval, verdict
from hsbench.report.footer import facts
from hsbench.report.heading import heading
from hsbench.report.text import known
from hsbench.results import AttentionMeasures, Record, Report

#: Columns after the method, each with its sub-columns; cells and headers use the keys of the sub-columns.
GROUPS: dict[str, tuple[str, ...]] = {
    "time": ("time", "spread"),
    "speedup": ("speedup", "interval"),
    "rate": ("rate", "percent"),
    "kv": ("kv", "kv_ratio"),
    "error": ("error",),
}


@dataclass
class TableRow:
    """One method.

    Args:
        cells: by the keys of `GROUPS`; empty for a row without numbers.
        instead: status and reason, for a row without numbers.
        verdict: see `compared.verdict`.
        marks: behind the method's name, see `Record.marks`.
    """

    method: str
    status: str
    cells: dict[str, str] = field(default_factory=dict)
    instead: str = ""
    verdict: str = ""
    marks: str = ""


@dataclass
class View:
    """One workload, ready to lay out.

    Args:
        heading: segments of the one heading line.
        headers: by the keys of the sub-columns, units included; a sub-column without one stands under the
            header to its left.
        memory: methods, and their stored bytes by component, in words.
        tables: each a header, and a line per method, cells of equal count: the memory that it took, what ranks do.
        alarms: what must not be missed (failed checks).
        facts: label and text, in the order to show.
    """

    heading: list[str]
    headers: dict[str, str]
    rows: list[TableRow]
    memory: list[tuple[str, str]]
    tables: list[list[list[str]]]
    alarms: list[str]
    facts: list[tuple[str, str]]


def view(report: Report) -> View:
    """Everything that a table of `report` says."""
    records = [result.record for result in report.results]
    ok = [record for record in records if record.status == "ok"]
    headers, rows = _rows(report, records, ok)
    return View(
        heading=heading(report),
        headers=headers,
        rows=rows,
        memory=memory.stored(report.results),
        tables=[table for table in (memory.taken(ok), ranks.parts(ok)) if table],
        alarms=alarms(records),
        facts=facts(report, records, ok),
    )


def _rows(report: Report, records: list[Record], ok: list[Record]) -> tuple[dict[str, str], list[TableRow]]:
    """The headers by key, and a row per record; numbers of a column share their unit and stand on their points."""
    measures = [record.measures for record in ok]
    unit, length = text.time_unit([m.time_us for m in measures if m.time_us is not None])
    byte_name, byte_length = text.byte_unit([m.kv_bytes for m in measures if m.kv_bytes is not None])
    rate = report.workload.phase.rate
    headers = {
        "time": f"time {unit}",
        "spread": "p25-p75",
        "speedup": "speedup",
        "rate": rate.unit,
        "percent": "peak",
        "kv": f"KV {byte_name}",
        "kv_ratio": "ratio",
        "error": "error",
    }

    def us(value: float) -> str:
        return text.digits(value / length)

    of_measures: dict[str, Callable[[AttentionMeasures], str]] = {
        "time": lambda m: known(m.time_us, us),
        "spread": lambda m: known(m.time_us_p25, lambda low: f"{us(low)}-{known(m.time_us_p75, us)}"),
        "rate": lambda m: known(getattr(m, rate.column), text.rate),
        "percent": lambda m: known(m.percent_of_ceiling, "{:.0f}%".format),
        "kv": lambda m: known(m.kv_bytes, lambda count: text.amount(count, byte_length)),
        "kv_ratio": lambda m: known(m.kv_ratio, text.ratio),
        "error": lambda m: known(m.rel_error, text.error),
    }
    texts = {key: [cell(m) for m in measures] for key, cell in of_measures.items()}
    for key in ("time", "rate", "kv"):
        texts[key] = text.on_point(texts[key])
    texts["speedup"] = [_speedup(record) for record in ok]
    texts["interval"] = [interval(record) for record in ok]
    cells = {id(record): {key: column[at] for key, column in texts.items()} for at, record in enumerate(ok)}
    return headers, [
        TableRow(
            record.method,
            record.status,
            cells.get(id(record), {}),
            instead(record) if record.status != "ok" else "",
            verdict(record),
            record.marks,
        )
        for record in records
    ]


def _speedup(record: Record) -> str:
    return "baseline" if verdict(record) == "baseline" else known(record.measures.speedup, text.ratio)
