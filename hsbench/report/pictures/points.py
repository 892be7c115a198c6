"""From rows of attention calls to points: a plain dictionary per row, in panels of what does not vary within one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from hsbench.methods import DENSE_FAMILIES, PRUNER_FAMILIES
from hsbench.problem.phase import PHASES
from hsbench.problem.workload import PAPER_PRUNER
from hsbench.report import text
from hsbench.report.heading import sparsity
from hsbench.results import Record, Report, Stored, ceiling_of, reports_of

Point = dict[str, Any]
T = TypeVar("T")


def _of_first(form: Callable[[Record], str], report: Report) -> str:
    return form(report.results[0].record)


#: What tells panels apart, and how a panel's title says it; what the picture's axes show is left out by each kind.
_PANEL: dict[str, Callable[[Record], str]] = {
    "phase": lambda row: row.case.phase,
    "workload": lambda row: row.case.workload,
    "seq": lambda row: f"{text.size(row.case.seq)} tokens",
    "queries": lambda row: _queries(row),
    "batch": lambda row: f"batch {row.case.batch}",
    "heads": lambda row: f"{row.case.q_heads}/{row.case.kv_heads} heads × {row.case.head_dim}",
    "dtype": lambda row: row.case.dtype,
    "tensors": lambda row: row.case.tensors.rpartition("/")[2],
    "window": lambda row: f"sink {row.case.sink}, local {row.case.local}" if row.case.sink or row.case.local else "",
    "cache": lambda row: row.case.cache or "",
    "sustain": lambda row: f"sustained {row.case.sustain_s:g} s" if row.case.sustain_s else "",
    "device": lambda row: row.case.device,
    "seed": lambda row: f"seed {row.case.seed}" if row.case.seed else "",
}

#: The same for what tells series apart, beside the method; nothing of it touches a dense one.
_SERIES: dict[str, Callable[[Record], str]] = {
    "sparsity": lambda row: "" if row.family in DENSE_FAMILIES else f"sparsity {_sparsity(row)}",
    "pruner": lambda row: row.case.pruner if row.case.pruner != PAPER_PRUNER else "",
    "evict": lambda row: f"evict {row.case.evict:.3g}" if row.case.evict else "",  # unless it follows from the sparsity
}


#: What tells cells apart.
_CELL: dict[str, Callable[[Report], str]] = {
    **{name: partial(_of_first, form) for name, form in _PANEL.items()},
    "sparsity": lambda report: sparsity(report.workload.key_sparsity, report.workload.value_sparsity),
    "pruner": lambda report: report.workload.pruner if report.workload.pruner != PAPER_PRUNER else "",
    "evict": lambda report: f"evict {report.workload.evict:.3g}" if report.workload.evict else "",
}


@dataclass(frozen=True)
class Points:
    """The points of a picture.

    Attributes:
        panels: by title, "" where there is one; points of the same series and place are one.
        series: every label with whether it is dense, sparse ones first.
        shared: what all rows have in common, in words.
    """

    panels: dict[str, list[Point]]
    series: tuple[tuple[str, bool], ...]
    shared: str

    @property
    def all(self) -> list[Point]:
        """The points of all panels."""
        return [point for points in self.panels.values() for point in points]


def points_of(files: Sequence[Stored], on_axis: Sequence[str], place: str, *, sparse_only: bool = False) -> Points:
    """The points of all attention rows.

    Args:
        on_axis: of `_PANEL` and `_SERIES`, what an axis of the picture shows.
        place: the field of a point that tells where it stands, by which doubles are found.
        sparse_only: leave out the dense methods.
    """
    found = [(file, result.record) for file in files for result in file.of(Record)]
    rows = [(file, row) for file, row in found if not (sparse_only and row.case.dense)]
    records = [row for _, row in rows]
    titles, shared = _varying(_PANEL, records, on_axis)
    pruned = [row for row in records if not row.case.dense]
    labels, also = _varying(_SERIES, pruned, [*on_axis, *(["evict"] if _follows(pruned) else [])])
    many = len({file.path for file, _ in rows}) > 1
    panels: dict[str, list[Point]] = {}
    dense: dict[str, bool] = {}
    for file, row in rows:
        source = f" ({file.path.name})" if many else ""
        label = ", ".join([row.method, *([] if row.case.dense else _words(row, labels, _SERIES))]) + source
        dense[label] = row.case.dense
        panels.setdefault(", ".join(_words(row, titles, _PANEL)), []).append(_point(row, label))
    series = sorted(dense.items(), key=lambda item: item[1])
    words = [*_words(records[0], shared, _PANEL)] if records else []
    words += [*_words(pruned[0], also, _SERIES)] if pruned else []
    return Points(
        {title: _singled(points, place) for title, points in panels.items()}, tuple(series), " · ".join(words)
    )


def cells_of(files: Sequence[Stored]) -> Points:
    """The points of all attention rows in a panel per cell, whose probe is its own; a series is a method."""
    found = [(file, report) for file in files for report in reports_of(file)]
    cells = [report for _, report in found]
    titles, shared = _varying(_CELL, cells, [])
    many = len({file.path for file, _ in found}) > 1
    panels: dict[str, list[Point]] = {}
    for file, report in found:
        title = ", ".join([*_words(report, titles, _CELL), *([file.path.name] if many else [])])
        panels.setdefault(title, []).extend(_point(one.record, one.record.method) for one in report.results)
    rows = {one.record.method: one.record.case.dense for report in cells for one in report.results}
    series = sorted(rows.items(), key=lambda item: item[1])
    words = _words(cells[0], shared, _CELL) if cells else []
    singled = {title: _singled(points, "seq") for title, points in panels.items()}
    return Points(singled, tuple(series), " · ".join(words))


def _varying(
    of: dict[str, Callable[[T], str]], rows: Sequence[T], on_axis: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Names of what differs between rows, or cells, and of what does not."""
    names = [name for name in of if name not in on_axis]
    differ = [name for name in names if len({of[name](row) for row in rows}) > 1]
    return differ, [name for name in names if name not in differ]


def _follows(rows: Sequence[Record]) -> bool:
    """Whether nobody asked for shares to evict: rows that only evict then have as many as the sparsity makes them."""
    shares: dict[Any, set[float]] = {}
    for row in rows:
        if row.family in PRUNER_FAMILIES and row.case.evict:
            return False
        case = row.case
        asked = (row.method, case.key_sparsity, case.value_sparsity, case.seq, case.batch, case.dtype, case.workload)
        shares.setdefault(asked, set()).add(case.evict)
    return all(len(found) == 1 for found in shares.values())


def _words(row: T, names: Iterable[str], of: dict[str, Callable[[T], str]]) -> list[str]:
    return [words for name in names if (words := of[name](row))]


def _point(row: Record, series: str) -> Point:
    case, m, rate = row.case, row.measures, PHASES[row.case.phase].rate
    ceiling = ceiling_of(row)
    ran = row.status == "ok" and m.time_us is not None
    state = ["clocks held down"] * bool(m.throttled) + ["device shared"] * bool(m.shared)
    return {
        "series": series, "method": case.method, "dense": case.dense, "seq": case.seq, "sparsity": _mean_sparsity(row),
        "ran": ran, "status": row.status, "reason": row.reason, "state": ", ".join(state) or None,
        "time": m.time_us if ran else None, "time_lo": m.time_us_p25, "time_hi": m.time_us_p75, "samples": m.samples,
        "speedup": m.speedup if ran else None, "speedup_lo": m.speedup_lo, "speedup_hi": m.speedup_hi,
        "baseline": m.baseline, "is_baseline": m.baseline == case.method, "kv_ratio": m.kv_ratio if ran else None,
        "rate": getattr(m, rate.column) if ran else None, "rate_unit": rate.unit, "percent": m.percent_of_ceiling,
        "ceiling": None if ceiling is None else ceiling.value, "probe": m.ceiling,
    }  # fmt: skip


def _singled(points: list[Point], place: str) -> list[Point]:
    """One point for each series and place: a dense method was measured beside each sparsity, and nothing in it
    differs; of those times the middle one is shown."""
    groups: dict[tuple[Any, Any], list[Point]] = {}
    for point in points:
        groups.setdefault((point["series"], point[place]), []).append(point)
    chosen = []
    for group in groups.values():
        ran = sorted((point for point in group if point["ran"]), key=lambda point: point["time"])
        chosen.append(ran[len(ran) // 2] if ran else group[0])
    return chosen


def _mean_sparsity(row: Record) -> float:
    return (row.case.key_sparsity + row.case.value_sparsity) / 2


def _sparsity(row: Record) -> str:
    key, value = row.case.key_sparsity, row.case.value_sparsity
    return f"{key:g}" if key == value else f"K {key:g} V {value:g}"


def _queries(row: Record) -> str:
    case = row.case
    return "" if case.q_len in (1, case.seq) else f"last {text.size(case.q_len)} as queries"
