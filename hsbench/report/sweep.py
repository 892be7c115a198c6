"""The end of a sweep on one screen: where sparsity wins, by how much, and what could not be told."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console

from hsbench.problem.workload import PAPER_PRUNER
from hsbench.report import text
from hsbench.report.compared import alarms, verdict
from hsbench.report.footer import held_back, sustained
from hsbench.report.machine import machine_facts
from hsbench.report.page import Page
from hsbench.report.table import VERDICT_STYLES
from hsbench.report.text import unique
from hsbench.results import Record, Report

#: What tells one cell of a sweep from another, and how the heading names a value that all cells share.
_AXES: dict[str, tuple[Callable[[Report], str], str]] = {
    "workload": (lambda report: report.workload.name, "{}"),
    "phase": (lambda report: report.workload.phase.name, "{}"),
    "seq": (lambda report: text.size(report.workload.seq), "{} tokens"),
    "queries": (lambda report: _queries(report), ""),
    "batch": (lambda report: str(report.workload.batch), "batch {}"),
    "heads": (lambda r: f"{r.workload.q_heads}/{r.workload.kv_heads}×{r.workload.head_dim}", "heads {}"),
    "dtype": (lambda report: report.workload.dtype, "{}"),
    "sparsity": (lambda report: _sparsity(report), "sparsity {}"),
    "pruner": (lambda report: report.workload.pruner, "{}"),
    "evict": (lambda report: text.known(report.workload.evict, "{:g}".format), "evict {}"),
    "ranks": (lambda report: _ranks(report), "{} ranks"),
    "tensors": (lambda report: report.workload.tensors.rpartition("/")[2], "{}"),
}
#: A column even where all cells agree: a row should say what it is.
_ALWAYS = ("phase", "seq", "sparsity")
_NUMBERS = ("seq", "queries", "batch", "sparsity", "evict")
_Cell = tuple[str, str]  # words, style


def render_sweep(reports: list[Report], console: Console) -> None:
    """Print one row per report: the fastest dense method, then every sparse method's time, speedup, and how
    many times smaller its KV cache is.

    Below: in how many cells each sparse method won, what failed its check, what could not run, the machine.
    """
    if not reports:
        return
    page = Page(console)
    axes = [name for name in _AXES if len({_AXES[name][0](r) for r in reports}) > 1 or name in _ALWAYS]
    usual = {"pruner": PAPER_PRUNER}  # no news
    shared = [
        label.format(form(reports[0]))
        for name, (form, label) in _AXES.items()
        if name not in axes and form(reports[0]) not in (usual.get(name), "")
    ]
    devices = unique(result.record.case.device for report in reports for result in report.results)
    for piece in text.joined(["summary", *filter(None, shared), *devices], page.width):
        page.line((piece, "bold"))
    methods = _sparse_methods(reports)
    _table(page, reports, axes, methods)
    page.line()
    for method in methods:
        page.labelled(method, _tally(method, reports), style="", indent=max(map(len, methods)) + 2)
    for report in reports:
        for alarm in alarms([result.record for result in report.results]):
            page.labelled("!!", f"{_where(report, axes)}: {alarm}", style="bold red", indent=3)
    page.line()
    page.facts(_gaps(reports) + machine_facts(reports[-1].machine))


def _table(page: Page, reports: list[Report], axes: list[str], methods: list[str]) -> None:
    """Two header lines, the methods and their columns; then a line per report."""
    columns = ["time", "speedup", "KV"]
    left = [[(_AXES[name][0](report), "") for name in axes] + _dense(report) for report in reports]
    right = [[_sparse(_find(report, method)) for method in methods] for report in reports]
    heads = [*axes, "fastest dense", "time"]
    left_widths = [max(len(head), *(len(line[at][0]) for line in left)) for at, head in enumerate(heads)]

    def widths(at: int) -> list[int]:
        """Of one method's columns. A status stands in place of all of them, so it only widens the last."""
        cells = [line[at] for line in right if len(line[at]) > 1]
        own = [max([len(name), *(len(line[col][0]) for line in cells)]) for col, name in enumerate(columns)]
        words = [methods[at], *(line[at][0][0] for line in right if len(line[at]) == 1)]
        own[-1] += max(0, max(map(len, words)) - sum(own) - len(own) + 1)
        return own

    right_widths = [widths(at) for at in range(len(methods))]

    def total() -> int:
        blocks = [*left_widths, *(sum(own) + len(own) - 1 for own in right_widths)]
        return sum(blocks) + 2 * (len(blocks) - 1)

    if total() > page.width:
        columns.pop()  # the tally below the table says how much smaller the cache is
        right_widths = [widths(at) for at in range(len(methods))]

    spans = [sum(own) + len(own) - 1 for own in right_widths]
    margin = " " * (sum(left_widths) + 2 * len(left_widths))
    page.line((margin + "  ".join(name.ljust(span) for name, span in zip(methods, spans, strict=True)), "dim"))
    parts: list[str] = [_aligned(head, head, width) for head, width in zip(heads, left_widths, strict=True)]
    parts += [" ".join(n.rjust(w) for n, w in zip(columns, own, strict=True)) for own in right_widths]
    page.line(("  ".join(parts), "dim"))
    page.line(("─" * total(), "dim"))
    for plain, sparse in zip(left, right, strict=True):
        line: list[_Cell] = []
        for head, (words, style), width in zip(heads, plain, left_widths, strict=True):
            line += [(_aligned(head, words, width), style), ("  ", "")]
        for cells, own, span in zip(sparse, right_widths, spans, strict=True):
            if len(cells) == 1:
                line.append((cells[0][0].ljust(span), cells[0][1]))
            else:
                for at, ((words, style), width) in enumerate(zip(cells[: len(own)], own, strict=True)):
                    line += [(" " if at else "", ""), (words.rjust(width), style)]
            line.append(("  ", ""))
        page.line(*line)


def _aligned(head: str, words: str, width: int) -> str:
    return words.rjust(width) if head in _NUMBERS or head == "time" else words.ljust(width)


def _dense(report: Report) -> list[_Cell]:
    """The baseline that the rows name, and its time."""
    names = unique(result.record.measures.baseline for result in report.results)
    record = _find(report, names[0]) if names else None
    return [(record.method, ""), (_time(record), "")] if record else [("none ran", "dim"), ("", "")]


def _sparse(record: Record | None) -> list[_Cell]:
    """Time, speedup, KV ratio; a single cell where there are no numbers."""
    if record is None:
        return [("", "")]
    if record.status != "ok":
        return [("INCORRECT", "bold red") if record.status == "incorrect" else (record.status, "dim")]
    state = verdict(record)
    speedup, smaller = (text.known(ratio, text.ratio) for ratio in (record.measures.speedup, record.measures.kv_ratio))
    return [
        (_time(record), ""),
        (f"~{speedup}" if state == "inconclusive" else speedup, VERDICT_STYLES.get(state, "")),
        (smaller, ""),
    ]


def _time(record: Record) -> str:
    return text.known(record.measures.time_us, lambda time_us: record.marks + text.duration(time_us))


def _tally(method: str, reports: list[Report]) -> str:
    """In how many cells the method won, and by how much."""
    records = [record for report in reports if (record := _find(report, method))]
    timed = [record for record in records if record.status == "ok" and record.measures.speedup is not None]
    cells = f"{len(records)} cell{'s' if len(records) != 1 else ''}"
    if not timed:
        return f"timed against a dense method in none of {cells}"
    parts = []
    for state in ("faster", "slower", "inconclusive"):
        found = [
            record.measures.speedup
            for record in timed
            if verdict(record) == state and record.measures.speedup is not None
        ]
        if found:
            span = f" ({_span(found)})" if state != "inconclusive" else ""
            parts.append(f"{state}{' than the baseline' if state == 'faster' else ''} in {len(found)}{span}")
    if len(timed) < len(records):
        parts.append(f"not compared in {len(records) - len(timed)}")
    ratios = [record.measures.kv_ratio for record in timed if record.measures.kv_ratio is not None]
    if ratios:
        parts.append(f"KV {_span(ratios)} smaller")
    return f"of {cells}: " + ", ".join(parts)


def _span(ratios: list[float]) -> str:
    low, high = text.ratio(min(ratios)), text.ratio(max(ratios))
    return low if low == high else f"{low} to {high}"


def _gaps(reports: list[Report]) -> list[tuple[str, str]]:
    """What the signs in the table mean; sustained clocks; rows without numbers, a line per method; an interrupted
    sweep."""
    records = [result.record for report in reports for result in report.results]
    lines = []
    if any(verdict(record) == "inconclusive" for record in records if not record.case.dense):
        lines.append(("~", "inconclusive: the interval of the speedup holds 1, no difference shown"))
    throttled = [record for record in records if record.measures.throttled]
    slowed = [record.method for record in throttled]
    if slowed:
        counts = [f"{name} in {slowed.count(name)}" for name in unique(slowed)]
        lines.append(("throttled", f"* {held_back(throttled)}: {', '.join(counts)}"))
    shared = sum(any(result.record.measures.shared for result in report.results) for report in reports)
    if shared:
        lines.append(("shared", f"+ others used the device meanwhile, in {shared} of {len(reports)} cells"))
    lines += sustained(records)
    gaps: dict[tuple[str, str], list[str]] = {}
    for record in records:
        if record.status not in ("ok", "incorrect"):
            gaps.setdefault((record.method, record.status), []).append(record.reason or "")
    for (method, status), reasons in gaps.items():
        different = unique(reasons)
        words = f"{method} {status} in {len(reasons)}" + (f": {different[0]}" if different else "")
        more = len(different) - 1
        lines.append(("not run", words + (f" (and {more} more reasons, see the rows)" if more > 0 else "")))
    if any(report.interrupted for report in reports):
        lines.append(("stopped", "the run was interrupted; rows that were not done say so"))
    return lines


def _where(report: Report, axes: list[str]) -> str:
    """The cell, by what tells it from the others."""
    return ", ".join(_AXES[name][1].format(_AXES[name][0](report)) for name in axes if _AXES[name][1])


def _sparsity(report: Report) -> str:
    key, value = report.workload.key_sparsity, report.workload.value_sparsity
    return f"{key:g}" if key == value else f"{key:g}/{value:g}"


def _ranks(report: Report) -> str:
    """Only several are worth telling."""
    ranks = max((result.record.case.ranks for result in report.results), default=1)
    return str(ranks) if ranks != 1 else ""


def _queries(report: Report) -> str:
    """Only chunked prefill has a number of queries worth telling."""
    workload = report.workload
    return text.size(workload.q_len) if workload.is_chunk else ""


def _sparse_methods(reports: list[Report]) -> list[str]:
    records = [result.record for report in reports for result in report.results]
    return unique(record.method for record in records if not record.case.dense)


def _find(report: Report, method: str | None) -> Record | None:
    return next((result.record for result in report.results if result.record.method == method), None)
