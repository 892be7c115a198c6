"""What is different between two files of results: a table, Markdown, JSON, and JUnit for what reads test reports."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

from hsbench.report import text
from hsbench.results.diff import Change, Diff
from hsbench.results.identity import key
from hsbench.results.values import as_written, plain

SCHEMA = "hsbench-diff/1"
_SHOWN = ("regression", "improvement")
_MOST = 10  # rows that only one file has, which a table names
_HEAD = ["", "base", "new", "change", "95 %", "row"]


def as_table(diff: Diff) -> str:
    """Lines for people: what else differs, what has changed, what only one file has; "" where nothing has."""
    lines = [f"differs    {words}" for words in diff.circumstances]
    changed = [one for verdict in _SHOWN for one in diff.having(verdict)]
    if changed:
        rows = [_HEAD, *map(_cells, changed)]
        numbers = text.aligned([cells[:-1] for cells in rows], left=1)
        width = max(map(len, numbers))
        lines += [""] * bool(lines) + [f"{n.ljust(width)}  {cells[-1]}" for n, cells in zip(numbers, rows, strict=True)]
        lines += ["", summary(diff)]
    for where, alone in _alone(diff):
        lines += [f"only {where:<5} {row.case.label}" for row in alone[:_MOST]]
        lines += [f"only {where:<5} and {len(alone) - _MOST} more"] * (len(alone) > _MOST)
    return "".join(f"{line.rstrip()}\n" for line in lines)


def as_markdown(diff: Diff) -> str:
    """The same for a comment on a pull request: the verdict first."""
    from tabulate import tabulate

    changed = [one for verdict in _SHOWN for one in diff.having(verdict)]
    parts = [f"**hsbench diff**: {summary(diff)}"]
    if changed:
        cells = [[cell.replace("|", "\\|") for cell in _cells(one)] for one in changed]
        align = ["left", "right", "right", "right", "right", "left"]
        parts.append(tabulate(cells, headers=_HEAD, tablefmt="pipe", disable_numparse=True, colalign=align))
    lists = [("Not the same in both:", diff.circumstances)]
    lists += [(f"Only in {where}:", [row.case.label for row in rows]) for where, rows in _alone(diff)]
    parts += ["\n".join([title, "", *(f"- {line}" for line in lines)]) for title, lines in lists if lines]
    return "\n\n".join(parts) + "\n"


def as_json(diff: Diff) -> str:
    """One document with every row of both files."""

    def row(change: Change) -> dict[str, Any]:
        span, values = change.span, change.values
        ends = (None, None, None) if span is None else (span.ratio, span.lo, span.hi)
        numbers = [as_written(plain(one)) for one in (*values, *ends)]
        named = dict(zip(("base", "new", "ratio", "ratio_lo", "ratio_hi"), numbers, strict=True))
        about = {"metric": change.metric.name, "unit": change.metric.unit}
        return {
            "case": _case(change.base),
            "verdict": change.verdict,
            **about,
            **named,
            "reason": change.reason or None,
        }

    document = {
        "schema": SCHEMA,
        "base": str(diff.base.path),
        "new": str(diff.new.path),
        "fail_over": diff.fail_over,
        "regressions": len(diff.having("regression")),
        "circumstances": diff.circumstances,
        "rows": [row(change) for change in diff.changes],
        "only_base": [_case(one) for one in diff.only_base],
        "only_new": [_case(one) for one in diff.only_new],
    }
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def as_junit(diff: Diff) -> str:
    """A test per row: it fails on a regression, and is skipped where nothing can be told."""
    failures = len(diff.having("regression"))
    unknown = [one for one in diff.changes if one.verdict == "unknown"]
    skipped = len(unknown) + len(diff.only_base) + len(diff.only_new)
    count = len(diff.changes) + len(diff.only_base) + len(diff.only_new)
    totals = {"tests": str(count), "failures": str(failures), "errors": "0", "skipped": str(skipped)}
    suite = ElementTree.Element("testsuite", {"name": "hsbench diff", **totals})
    if diff.circumstances:
        properties = ElementTree.SubElement(suite, "properties")
        for at, words in enumerate(diff.circumstances):
            ElementTree.SubElement(properties, "property", {"name": f"differs.{at}", "value": words})
    for change in diff.changes:
        case = _test(suite, change.base)
        if change.verdict == "regression":
            ElementTree.SubElement(case, "failure", {"message": _words(change)})
        elif change.verdict == "unknown":
            ElementTree.SubElement(case, "skipped", {"message": change.reason})
        else:
            ElementTree.SubElement(case, "system-out").text = f"{change.verdict}: {_words(change)}"
    for where, rows in _alone(diff):
        for row in rows:
            ElementTree.SubElement(_test(suite, row), "skipped", {"message": f"only in {where}"})
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def summary(diff: Diff) -> str:
    """One line: how many rows were compared, and how they did."""
    names = text.unique(one.metric.name for one in diff.changes)
    rows = f"{len(diff.changes)} row{'s' if len(diff.changes) != 1 else ''} compared by {text.listed(names)}"
    over = f"more than {100 * diff.fail_over:.3g} %"
    counts = {verdict: len(diff.having(verdict)) for verdict in ("regression", "improvement", "unclear", "unknown")}
    parts = [f"{counts['regression']} worse by {over}" if counts["regression"] else f"none worse by {over}"]
    parts += [f"{counts['improvement']} better"] * bool(counts["improvement"])
    parts += [f"{counts['unclear']} not told apart, their intervals are too wide"] * bool(counts["unclear"])
    parts += [f"{counts['unknown']} without a figure in both"] * bool(counts["unknown"])
    alone = [f"{len(found)} only in {where}" for where, found in _alone(diff) if found]
    return f"{rows}: {', '.join([*parts, *alone])}"


WRITERS: dict[str, Callable[[Diff], str]] = {
    "table": as_table,
    "json": as_json,
    "markdown": as_markdown,
    "junit": as_junit,
}
"""By the name of a format."""


def _alone(diff: Diff) -> list[tuple[str, list[Any]]]:
    return [("base", diff.only_base), ("new", diff.only_new)]


def _cells(change: Change) -> list[str]:
    verdict = {"regression": "WORSE", "improvement": "better"}[change.verdict]
    label = change.base.case.label
    if change.reason:
        return [verdict, "", "", "", "", f"{label}: {change.reason}"]
    then, now = (text.known(value, lambda one: _value(change, one)) for value in change.values)
    return [verdict, then, now, *_span(change), label]


def _span(change: Change) -> tuple[str, str]:
    """The change and its interval, in percent."""
    span = change.span
    if span is None or math.isinf(span.ratio):
        return "", ""
    form = "{:+.1f} %".format
    ends = (span.lo, span.hi)
    both = (
        "" if None in ends or ends[0] == ends[1] else "[{:+.1f}, {:+.1f}]".format(*(100 * (e or 0) - 100 for e in ends))
    )
    return form(100 * span.ratio - 100), both


def _value(change: Change, value: float) -> str:
    if change.metric.unit == "us":
        return text.duration(value)
    if change.metric.unit == "bytes":
        name, length = text.byte_unit([int(value)])
        return f"{text.amount(int(value), length)} {name}"
    return text.error(value) if not change.metric.unit or value < 1e-4 else f"{value:.3g} {change.metric.unit}"


def _words(change: Change) -> str:
    if change.reason:
        return change.reason
    then, now = (text.known(value, lambda one: _value(change, one)) for value in change.values)
    percent, ends = _span(change)
    return " ".join(filter(None, [f"{change.metric.name} {then} to {now}, {percent}", ends]))


def _case(row: Any) -> dict[str, Any]:
    return {"benchmark": row.benchmark, **dict(key(row.case))}


def _test(suite: ElementTree.Element, row: Any) -> ElementTree.Element:
    return ElementTree.SubElement(suite, "testcase", {"classname": f"hsbench.{row.benchmark}", "name": row.case.label})
