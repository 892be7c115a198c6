"""What pruning costs a model, for people: a line per setting, below it layers by themselves, and what to know."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from rich.console import Console

from hsbench.problem.elements import SIXTEEN_BIT
from hsbench.report import text
from hsbench.report.machine import machine_facts
from hsbench.report.page import Page
from hsbench.report.text import known
from hsbench.results import Quality, QualityCase, QualityReport

Cells = list[str]


def render_quality(report: QualityReport, console: Console, *, machine: bool = True) -> None:
    """Print the tables of a report, its facts, and the machine's."""
    page = Page(console)
    rows = [result.record for result in report.results]
    if rows:
        for piece in text.joined(heading(rows[0].case), page.width):
            page.line((piece, "bold"))
        page.table(table := settings_table(rows), [_intervals(table)])
        _reasons(page, rows)
        for title, table in layer_tables(rows):
            page.line()
            page.line((title, "bold"))
            page.table(table, [_intervals(table)])
        page.line()
    page.facts(facts(report))
    if machine:
        page.facts(machine_facts(report.machine))


def quality_markdown(report: QualityReport) -> str:
    """The same as Markdown, without the machine and without a final newline."""
    rows = [result.record for result in report.results]
    parts: list[str] = []
    if rows:
        parts += [f"### {' · '.join(heading(rows[0].case))}", text.piped(settings_table(rows))]
        parts += [
            f"- {label(row.case)}: {text.instead(row.status, row.reason)}"
            for row in rows
            if row.status != "ok" and row.case.head is None
        ]
        for title, table in layer_tables(rows):
            parts += [f"#### {title}", text.piped(table)]
    told = "\n".join(f"- {name}: {words}" for name, words in facts(report))
    return "\n\n".join([*parts, told] if told else parts)


def heading(case: QualityCase) -> list[str]:
    """What all rows have in common."""
    windows = f"{case.windows} window{'s' if case.windows != 1 else ''}"
    return [
        f"quality {case.model}",
        case.text,
        f"{windows} of {text.size(case.context)} + {text.size(case.score)} tokens",
        case.when if case.chunk is None else f"{case.when}, {text.size(case.chunk)} a chunk",
        f"{case.dtype} cache, {case.weights} weights",
        f"sink {case.sink}",
        f"local {case.local}",
        case.device,
    ]


def label(case: QualityCase) -> str:
    """A row's setting, without its sparsity."""
    elements = f":{case.elements}" * (case.elements != SIXTEEN_BIT.name)
    parts = [case.method, elements, case.pruner and f":{case.pruner}", case.plan and f", {case.plan}"]
    if case.evict:  # beside pruning it is said what it is
        parts.append(f", evict {case.evict:.3g}" if case.pruner else f" {case.evict:.3g}")
    return "".join(filter(None, parts)) + ("" if case.layer is None else f", layer {case.layer}")


def settings_table(rows: Sequence[Quality]) -> list[Cells]:
    """A header, the dense model, and a line per setting of all layers."""
    shown = [row for row in rows if row.case.layer is None]
    asked = any(row.measures.needles for row in shown)
    head = ["setting", "K", "V", "KL nats", "95 %", "perplexity", "change", "95 %", "top-1", "95 %", "KV"]
    table = [[*head, *(["passkey nats", "found"] if asked else []), "time"]]
    if (scored := next((row.measures for row in shown if row.measures.dense_perplexity is not None), None)) is not None:
        dense = ["dense", "", "", "", "", known(scored.dense_perplexity, text.digits), "", "", "", "", ""]
        if asked:
            first = next(row.measures for row in shown if row.measures.needles)
            dense += [known(first.needle_dense_nll, "{:.2f}".format), known(first.needle_dense_found, "{:.0%}".format)]
        table.append([*dense, ""])
    return table + [_cells(row, asked) for row in shown]


def _cells(row: Quality, asked: bool) -> Cells:
    case, m = row.case, row.measures
    name = label(case) + "~" * bool(m.simulated) + ("" if row.status == "ok" else f" ({row.status})")
    cells = [name, f"{case.key_sparsity:.3g}", f"{case.value_sparsity:.3g}"]
    if row.status == "incorrect":
        return [*cells, "INCORRECT"]
    cells += [
        known(m.kl, nats),
        between(m.kl_lo, m.kl_hi, nats),
        known(m.perplexity, text.digits),
        known(m.perplexity_change, "{:+.2f}%".format),
        between(m.perplexity_change_lo, m.perplexity_change_hi, "{:+.2f}".format),
        known(m.top1, "{:.2%}".format),
        between(m.top1_lo, m.top1_hi, lambda share: f"{100 * share:.1f}"),
        known(m.kv_ratio, text.ratio),
    ]
    if asked:
        cells += [known(m.needle_nll, "{:.2f}".format), known(m.needle_found, "{:.0%}".format)]
    return [*cells, known(m.seconds, lambda seconds: text.duration(seconds * 1e6))]


def layer_tables(rows: Sequence[Quality]) -> list[tuple[str, list[Cells]]]:
    """A title and a table for each setting whose layers were measured by themselves."""
    found: dict[str, list[Quality]] = {}
    for row in rows:
        if row.case.layer is not None:
            shares = f"K {row.case.key_sparsity:g} V {row.case.value_sparsity:g}"
            name = label(dataclasses.replace(row.case, layer=None, plan=None))
            found.setdefault(f"{name} {shares}, one layer at a time", []).append(row)
    tables = []
    for title, alone in found.items():
        table: list[Cells] = [["layer", "KL nats", "95 %", "output error", "of its heads"]]
        for row in (row for row in alone if row.case.head is None):
            heads = [
                other.measures.output_error
                for other in alone
                if other.case.head is not None
                and other.case.layer == row.case.layer
                and other.measures.output_error is not None
            ]
            spread = f"{min(heads):.3g} to {max(heads):.3g}" if heads else ""
            m = row.measures
            error = known(m.output_error, "{:.3g}".format)
            table.append([str(row.case.layer), known(m.kl, nats), between(m.kl_lo, m.kl_hi, nats), error, spread])
        tables.append((title, table))
    return tables


def facts(report: QualityReport) -> list[tuple[str, str]]:
    """Label and line: how sure the figures are, what was simulated, what stopped the run."""
    rows = [result.record for result in report.results]
    lines = []
    over = next((row.measures for row in rows if row.measures.interval_over is not None), None)
    if over is not None:
        of = "windows" if over.interval_over == "windows" else "stretches of 64 tokens in these windows"
        lines.append(("intervals", f"95 %, paired, over {over.interval_n} {of}"))
    if any(row.measures.simulated for row in rows):
        lines.append(("~", "attention simulated in fp32 over what the definition stores: no kernel for it yet"))
    if any(row.case.evict for row in rows):
        lines.append(("evicted", "whole blocks, of least attention mass of the last 64 queries before them"))
    errors = [row.measures.rel_error for row in rows if row.measures.rel_error is not None]
    if errors:
        lines.append(("checked", f"kernels against fp32 on their own caches, error at most {text.error(max(errors))}"))
    lines += report.notes
    if report.interrupted:
        lines.append(("stopped", "the run was interrupted; figures are of the windows that were done"))
    return lines


def nats(value: float) -> str:
    """Three digits, as far below 1 as they go: 1.23, 0.0532, 8.6e-7."""
    return text.error(value) if abs(value) < 1e-4 and value else f"{value:.3g}"


def between(low: float | None, high: float | None, form: Callable[[float], str]) -> str:
    """An interval: "[0.05, 0.06]"; "" without one."""
    return "" if low is None or high is None else f"[{form(low)}, {form(high)}]"


def _reasons(page: Page, rows: Sequence[Quality]) -> None:
    for row in rows:
        if row.status != "ok" and row.reason and row.case.head is None:
            style = "bold red" if row.status == "incorrect" else "dim"
            page.labelled("!!", f"{label(row.case)}: {text.instead(row.status, row.reason)}", style=style, indent=3)


def _intervals(table: list[Cells]) -> list[int]:
    """All but the first, KL's."""
    return [at for at, name in enumerate(table[0]) if name == "95 %"][1:]
