"""A model that generates, for people: a line per method, below it what a step is made of, and what to know."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from rich.console import Console

from hsbench.report import text
from hsbench.report.machine import machine_facts
from hsbench.report.page import Page
from hsbench.report.text import known
from hsbench.results import GenerateCase, Generated, GenerateReport

Cells = list[str]

PARTS = ("attention", "append", "projection", "mlp", "norm", "head", "other")
"""Of a step, as columns name them."""

FIRST_TO_GO = ("95 %", "reserved", "p95", "peak")
"""Columns that a narrow terminal does without, in this order."""


def render_generate(report: GenerateReport, console: Console, *, machine: bool = True) -> None:
    """Print the tables of a report, its facts, and the machine's."""
    page = Page(console)
    for rows in _groups(report):
        for piece in text.joined(heading(rows), page.width):
            page.line((piece, "bold"))
        page.table(table := methods_table(rows), [_named(table, name) for name in FIRST_TO_GO])
        for row in rows:
            if row.status != "ok" and row.reason:
                style = "bold red" if row.status == "incorrect" else "dim"
                page.labelled("!!", f"{label(row.case)}: {text.instead(row.status, row.reason)}", style=style, indent=3)
        if len(parts := parts_table(rows)) > 1:
            page.line()
            page.line(("of a step, ms", "bold"))
            page.table(parts, [])
        for row in rows:
            if row.measures.completion is not None:
                page.line()
                page.line((label(row.case), "bold"))
                for line in said(row.measures.completion).splitlines():
                    for piece in text.wrapped(line, page.width):
                        page.line(piece)
        page.line()
    page.facts(facts(report))
    if machine:
        page.facts(machine_facts(report.machine))


def generate_markdown(report: GenerateReport) -> str:
    """The same as Markdown, without the machine and without a final newline."""
    parts: list[str] = []
    for rows in _groups(report):
        parts += [f"### {' · '.join(heading(rows))}", text.piped(methods_table(rows))]
        reasons = [f"- {label(row.case)}: {text.instead(row.status, row.reason)}" for row in rows if row.status != "ok"]
        parts += ["\n".join(reasons)] * bool(reasons)
        if len(of_a_step := parts_table(rows)) > 1:
            parts += ["Of a step, ms:", text.piped(of_a_step)]
        for row in rows:
            if row.measures.completion is not None:
                quoted = "\n".join(f"> {line}" for line in said(row.measures.completion).splitlines())
                parts += [f"{label(row.case)}:", quoted]
    told = "\n".join(f"- {name}: {words}" for name, words in facts(report))
    return "\n\n".join([*parts, told] if told else parts)


def _groups(report: GenerateReport) -> list[list[Generated]]:
    rows = [result.record for result in report.results]
    return [list(group) for _, group in groupby(rows, lambda row: (row.case.context, row.case.batch, row.case.model))]


def heading(rows: Sequence[Generated]) -> list[str]:
    """What all rows have in common."""
    case = rows[0].case
    several = f" x {case.batch} sequences" if case.batch > 1 else ""
    windows = next((one.case for one in rows if one.case.sink is not None), None)
    return [
        f"generate {case.model}",
        case.text,
        f"{text.size(case.context)} + {text.size(case.new_tokens)} tokens{several}",
        f"{case.weights} weights",
        *([] if windows is None else [f"sink {windows.sink}", f"local {windows.local}"]),
        *([f"temperature {case.temperature:g}"] if case.temperature else []),
        case.device,
    ]


def label(case: GenerateCase) -> str:
    """A row's method, with what it prunes by."""
    pruned = case.key_sparsity or case.value_sparsity
    return (
        case.method + (f", {case.pruner}" if pruned and case.pruner else "") + (f", {case.plan}" if case.plan else "")
    )


def methods_table(rows: Sequence[Generated]) -> list[Cells]:
    """A header, and a line per method."""
    sizes = [row.measures.kv_bytes for row in rows if row.measures.kv_bytes is not None]
    name, length = text.byte_unit(sizes)
    head = [
        "method",
        "ms/token",
        "p95",
        "tokens/s",
        "speedup",
        "95 %",
        "first token",
        f"KV {name}",
        "reserved",
        "ratio",
    ]
    head += ["peak", "same tokens", "break-even"]
    return [head, *(_cells(row, length) for row in rows)]


def _cells(row: Generated, length: int) -> Cells:
    m = row.measures
    if row.status != "ok":
        return [label(row.case), row.status.upper() if row.status == "incorrect" else row.status]
    is_baseline = m.baseline is not None and m.baseline == row.case.method

    def of_bytes(count: int) -> str:
        return text.amount(count, length)

    interval = "" if m.speedup_lo is None else f"[{m.speedup_lo:.2f}, {m.speedup_hi:.2f}]"
    return [
        label(row.case),
        known(m.token_ms, text.digits),
        known(m.token_ms_p95, text.digits),
        known(m.tokens_per_s, text.rate),
        "baseline" if is_baseline else known(m.speedup, text.ratio),
        interval,
        known(m.first_token_ms, lambda ms: text.duration(1e3 * ms)),
        known(m.kv_bytes, of_bytes),
        known(m.kv_reserved_bytes, of_bytes),
        known(m.kv_ratio, text.ratio),
        known(m.peak_bytes, _size),
        known(m.tokens_equal, "{:.0%}".format),
        known(m.break_even_tokens, lambda tokens: f"{tokens:,.0f}"),
    ]


def parts_table(rows: Sequence[Generated]) -> list[Cells]:
    """A header, and of each method what the parts of a step take: their shares, of the median step."""
    table = [["method", *PARTS, "step"]]
    for row in rows:
        m = row.measures
        if row.status != "ok" or m.token_ms is None or m.attention_share is None:
            continue
        shares = [getattr(m, f"{part}_share") or 0.0 for part in PARTS]
        table.append([label(row.case), *(text.digits(share * m.token_ms) for share in shares), text.digits(m.token_ms)])
    return table


def facts(report: GenerateReport) -> list[tuple[str, str]]:
    """Label and line: how it was timed, what was checked, what stopped the run."""
    rows = [result.record for result in report.results]
    lines = []
    how = text.unique(row.measures.stepping for row in rows)
    if how:
        told = {
            "graph": "one captured CUDA graph, replayed",
            "a graph per step": "a CUDA graph, captured for each length",
        }
        by_method = [
            f"{told.get(kind, 'launched one by one')} ({', '.join(_methods(rows, kind))})" if len(how) > 1
            else told.get(kind, "launched one by one")
            for kind in how
        ]  # fmt: skip
        lines.append(("step", "; ".join(by_method)))
    if backends := text.unique(row.measures.backend for row in rows):
        lines.append(("sdpa", f"by its {text.listed(backends)} backend, the fastest of those tried"))
    if any(row.measures.break_even_tokens is not None for row in rows):
        lines.append(
            ("break-even", "tokens after which what filling the cache takes beyond the baseline's is made up for")
        )
    if any(row.measures.tokens_equal is not None for row in rows):
        lines.append(("same", "tokens that are those of dense, place by place: one that differs changes all behind it"))
    errors = [row.measures.rel_error for row in rows if row.measures.rel_error is not None]
    if errors:
        lines.append(("checked", f"kernels against fp32 on their own caches, error at most {text.error(max(errors))}"))
    lines += report.notes
    if report.interrupted:
        lines.append(("stopped", "the run was interrupted"))
    return lines


def _methods(rows: Sequence[Generated], kind: str) -> list[str]:
    return text.unique(row.case.method for row in rows if row.measures.stepping == kind)


def said(completion: str) -> str:
    """The text of a row, with its line breaks."""
    return completion.encode("ascii").decode("unicode_escape")


def _size(count: int) -> str:
    name, length = text.byte_unit([count])
    return f"{text.amount(count, length)} {name}"


def _named(table: list[Cells], name: str) -> list[int]:
    return [at for at, head in enumerate(table[0]) if head == name]
