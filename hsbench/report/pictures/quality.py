"""Whether it pays: what a setting costs a model, against what it saves and how much faster decode attention gets."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hsbench.errors import UsageError
from hsbench.methods import DENSE_FAMILIES, PRUNER_FAMILIES
from hsbench.problem.elements import SIXTEEN_BIT
from hsbench.problem.phase import PHASES
from hsbench.report import text
from hsbench.report.pictures.marks import named, ratio, rule_at, tooltip
from hsbench.report.pictures.picture import Picture
from hsbench.report.pictures.points import Point
from hsbench.report.pictures.theme import series_encoding
from hsbench.report.quality import between, label, nats
from hsbench.results import Quality, Record, Stored

WIDTH, HEIGHT = 380, 320
_FLOOR = 1e-6  # nats: what rounding costs; a logarithmic axis needs an end


@dataclass(frozen=True)
class Metric:
    """What a setting costs.

    Attributes:
        field: of a row's measures; its interval has `_lo` and `_hi`.
        title: of the axis.
        log: whether the axis is logarithmic.
    """

    field: str
    title: str
    log: bool


METRICS = {
    "kl": Metric("kl", "KL to the dense run, nats per token", True),
    "perplexity": Metric("perplexity_change", "change of perplexity, %", False),
}
_TIPS = {
    "setting": "setting", "sparsity": "sparsity", "shown_cost": "cost", "change": "perplexity, %",
    "kv_ratio": "KV ratio", "shown_speedup": "decode speedup", "seq": "at tokens", "text": "text",
    "simulated": "simulated",
}  # fmt: skip


def picture(files: Sequence[Stored], metric: str) -> Picture:
    """A point per setting and the frontier of those that no other beats in both; a panel per model, text and time of
    pruning. Decode's speedup is that of the same setting in rows of ``compare``, the longest sequence there."""
    of = METRICS[metric]
    rows = [one.record for file in files for one in file.of(Quality) if one.record.case.layer is None]
    rows = [row for row in rows if row.status == "ok" and getattr(row.measures, of.field) is not None]
    if not rows:
        raise UsageError("kind", "quality", "no setting of the files has figures; rows of single layers go with layers")
    times = [one.record for file in files for one in file.of(Record) if not PHASES[one.record.case.phase].causal]
    points = [_point(row, of, times) for row in rows]
    series = tuple((name, False) for name in text.unique(point["series"] for point in points))
    panels: dict[str, list[Point]] = {}
    for row, point in zip(rows, points, strict=True):
        panels.setdefault(_panel_of(row, rows), []).append(point)
    body = {"vconcat": [_row(title, found, of, [name for name, _ in series]) for title, found in panels.items()]}
    case = rows[0].case
    seen = text.unique(point["seq"] for point in points)
    speed = f"decode at {text.size(seen[0])} tokens" if len(seen) == 1 else ""
    about = [f"{case.windows} x {text.size(case.context)} + {text.size(case.score)} tokens", f"sink {case.sink}",
             f"local {case.local}", f"{case.dtype} cache", *_common(rows), speed]  # fmt: skip
    return Picture("quality", body, "What it costs the model, and what it buys", _joined(about), series, tuple(files))


def frontier(points: Sequence[Point], gain: str) -> list[Point]:
    """The points that no other beats in both, by rising gain: a smaller cost, and a larger gain."""
    best: list[Point] = []
    for point in sorted((one for one in points if one[gain] is not None), key=lambda one: (-one[gain], one["cost"])):
        if not best or point["cost"] < best[-1]["cost"]:
            best.append(point)
    return best[::-1]


def _point(row: Quality, of: Metric, times: Sequence[Record]) -> Point:
    case, m = row.case, row.measures
    values = [getattr(m, f"{of.field}{end}") for end in ("", "_lo", "_hi")]
    cost, low, high = (max(one, _FLOOR) if of.log and one is not None else one for one in values)
    timed = _timed(row, times)
    form = nats if of.log else "{:+.2f} %".format
    plain = dataclasses.replace(case, plan=None, evict=0.0)
    return {
        "series": label(plain), "setting": label(case),
        "sparsity": f"K {case.key_sparsity:g} V {case.value_sparsity:g}", "short": _short(row),
        "cost": cost, "cost_lo": low, "cost_hi": high, "kv_ratio": m.kv_ratio,
        "shown_cost": " ".join(filter(None, [form(values[0]), between(values[1], values[2], form)])),
        "change": m.perplexity_change, "simulated": m.simulated or None, "text": case.text,
        "speedup": None if timed is None else timed.measures.speedup,
        "speedup_lo": None if timed is None else timed.measures.speedup_lo,
        "speedup_hi": None if timed is None else timed.measures.speedup_hi,
        "shown_speedup": None if timed is None else text.ratio(timed.measures.speedup or 0.0),
        "seq": None if timed is None else timed.case.seq,
    }  # fmt: skip


def _short(row: Quality) -> str:
    case = row.case
    if case.evict and not case.key_sparsity and not case.value_sparsity:
        return f"evict {case.evict:.2g}"
    key, value = case.key_sparsity, case.value_sparsity
    return f"{key:.2g}" if key == value else f"{key:.2g}/{value:.2g}"


def _timed(row: Quality, times: Sequence[Record]) -> Record | None:
    """The decode of a setting: same storage, pruner, sparsities and evicted share; what it leaves to the window is not
    asked, for that is a matter of lengths."""
    case = row.case
    method = case.method + (f":{case.elements}" if case.elements != SIXTEEN_BIT.name else "")
    nothing = not (case.key_sparsity or case.value_sparsity or case.evict)

    def fits(other: Record) -> bool:
        there = other.case
        if other.measures.speedup is None or there.method != method:
            return False
        if case.pruner is not None and not nothing and there.pruner != case.pruner:
            return False
        asked = [(there.key_sparsity, case.key_sparsity), (there.value_sparsity, case.value_sparsity)]
        spends_none = there.family in DENSE_FAMILIES or (case.evict > 0 and there.family not in PRUNER_FAMILIES)
        asked = [] if spends_none else asked
        return all(abs(one - two) < 1e-3 for one, two in [*asked, (there.evict, case.evict)])

    return max((one for one in times if fits(one)), key=lambda one: one.case.seq, default=None)


def _panel_of(row: Quality, rows: Sequence[Quality]) -> str:
    """What tells the panels apart, where it differs."""
    parts = [_PANELS[name](row) for name in _PANELS if len({_PANELS[name](one) for one in rows}) > 1]
    return " · ".join(parts)


def _common(rows: Sequence[Quality]) -> list[str]:
    return [form(rows[0]) for form in _PANELS.values() if len({form(one) for one in rows}) == 1]


_PANELS = {
    "model": lambda row: str(row.case.model),
    "text": lambda row: str(row.case.text),
    "when": lambda row: f"when: {row.case.when}",
    "device": lambda row: str(row.case.device),
}


def _joined(parts: Sequence[str]) -> str:
    return " · ".join(part for part in parts if part)


def _row(title: str, points: list[Point], of: Metric, series: list[str]) -> dict[str, Any]:
    gains = [("kv_ratio", "times smaller KV cache, measured in the model")]
    if any(point["speedup"] is not None for point in points):
        gains.append(("speedup", "decode speedup over the fastest dense method"))
    panels = [_panel([point for point in points if point[gain] is not None], gain, words, of, series)
              for gain, words in gains]  # fmt: skip
    return {"hconcat": panels, **named(title)}


def _panel(points: list[Point], gain: str, words: str, of: Metric, series: list[str]) -> dict[str, Any]:
    look, tips = series_encoding(series, "setting"), tooltip(points, _TIPS)
    x = ratio(gain, words, points, log=False)
    x["scale"] = {"zero": False, "padding": 24}
    scale = {"type": "log", "nice": False} if of.log else {"zero": True}
    axis = {"format": "~g", "values": [10.0**power for power in range(-7, 3)]} if of.log else {}
    y = {"field": "cost", "type": "quantitative", "title": of.title, "scale": {**scale, "padding": 14}, "axis": axis}
    colour = {"color": look["color"]}
    best = frontier(points, gain)
    steps = {
        "type": "line",
        "style": "frontier",
        "strokeWidth": 1.5,
        "strokeDash": [4, 3],
        "interpolate": "step-before",
    }
    ends = [point for point in points if point["cost_lo"] is not None and point["cost_hi"] is not None]
    bars = {"x": x, "y": {**y, "field": "cost_lo"}, "y2": {"field": "cost_hi"}, **colour}
    name = {"type": "text", "align": "left", "dx": 8, "dy": -6}
    layers: list[dict[str, Any]] = [
        {"data": {"values": best}, "mark": steps, "encoding": {"x": x, "y": y}},
        {"data": {"values": ends}, "mark": {"type": "rule", "opacity": 0.6}, "encoding": bars},
        {"data": {"values": points}, "mark": {"type": "point", "size": 80},
         "encoding": {"x": x, "y": y, **colour, "shape": look["shape"], "tooltip": tips}},
        {"data": {"values": points}, "mark": name, "encoding": {"x": x, "y": y, "text": {"field": "short"}}},
    ]  # fmt: skip
    if not of.log:
        layers = [*rule_at(0, "as the dense run"), *layers]
    return {"width": WIDTH, "height": HEIGHT, "layer": layers}
