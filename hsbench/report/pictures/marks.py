"""Layers that several pictures have: a line with its points and interval, what could not run, what asks for care."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hsbench.report import text
from hsbench.report.pictures.points import Point
from hsbench.report.pictures.theme import FAILED, RING, line_of, series_encoding

Layer = dict[str, Any]

#: Ratios at which an axis has a tick, wherever they fall in.
_RATIOS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.75, 1, 1.25, 1.5, 2, 3, 4, 5, 8, 10, 20, 50)

_TIPS = {
    "series": "row", "seq": "tokens", "sparsity": "sparsity", "shown_time": "time", "shown_speedup": "speedup",
    "baseline": "against", "kv_ratio": "KV ratio", "samples": "samples", "status": "status", "reason": "reason",
    "state": "meanwhile",
}  # fmt: skip


def told(point: Point) -> Point:
    """A point with what its tooltip says in words."""
    time, speedup = point["time"], point["speedup"]
    low, high = point["speedup_lo"], point["speedup_hi"]
    between = "" if low is None or high is None else f" [{text.ratio_digits(low)}, {text.ratio_digits(high)}]"
    words = {
        "shown_time": None if time is None else text.duration(time),
        "shown_speedup": None if speedup is None else text.ratio(speedup) + between,
    }
    return {**point, **words, "line": line_of(point["series"])}


def tooltip(points: Sequence[Point], names: dict[str, str] | None = None) -> list[dict[str, Any]]:
    """A tooltip's fields, without those that no point has."""
    shown = {
        name: title for name, title in (names or _TIPS).items() if any(one.get(name) is not None for one in points)
    }
    kinds = {name: "quantitative" if _is_number(points, name) else "nominal" for name in shown}
    form = {name: {"format": ".4~g"} for name, kind in kinds.items() if kind == "quantitative"}
    return [{"field": name, "title": title, "type": kinds[name], **form.get(name, {})} for name, title in shown.items()]


def _is_number(points: Sequence[Point], name: str) -> bool:
    return all(one.get(name) is None or type(one[name]) in (int, float) for one in points)


def tokens(points: Sequence[Point]) -> dict[str, Any]:
    """An axis of sequence lengths, logarithmic, with a tick at each."""
    lengths = sorted({point["seq"] for point in points})
    room = {} if len(lengths) > 1 else {"scale": {"type": "log", "domain": [lengths[0] / 2, lengths[0] * 2]}}
    label = "datum.value % 1024 == 0 ? datum.value / 1024 + 'k' : datum.value"
    return {
        "field": "seq",
        "type": "quantitative",
        "title": "tokens in the KV cache",
        "scale": {"type": "log", "base": 2, "nice": False, "padding": 12},
        "axis": {"values": lengths, "labelExpr": label, "labelOverlap": True},
        **room,
    }


def ratio(field: str, title: str, points: Sequence[Point], *, log: bool = True) -> dict[str, Any]:
    """An axis of ratios."""
    seen = [one[name] for one in points for name in (field, f"{field}_lo", f"{field}_hi") if one.get(name)]
    low, high = min([1.0, *seen]) * 0.95, max([1.0, *seen]) * 1.05
    ticks = [one for one in _RATIOS if low <= one <= high]
    scale = {"type": "log", "domain": [low, high], "nice": False} if log else {"zero": True}
    axis = (
        {"values": ticks, "labelExpr": "datum.label + 'x'", "format": "~g"}
        if log
        else {"labelExpr": "datum.label + 'x'"}
    )
    return {"field": field, "type": "quantitative", "title": title, "scale": scale, "axis": axis}


def lines(
    points: Sequence[Point], x: dict[str, Any], y: dict[str, Any], series: Sequence[str], height: int
) -> list[Layer]:
    """A line per series with its points, intervals as bands and bars, and the signs.

    Args:
        y: its field has the interval's ends beside it, as `_lo` and `_hi`.
        series: labels of the whole picture.
    """
    field = y["field"]
    shown = [point for point in points if point[field] is not None]
    banded = [point for point in shown if point.get(f"{field}_lo") is not None and point.get(f"{field}_hi") is not None]
    rings = [point for point in shown if point["state"]]
    failed = [point for point in points if not point["ran"]]
    look, tips = series_encoding(series), tooltip(points)
    span = {"y": {**y, "field": f"{field}_lo"}, "y2": {"field": f"{field}_hi"}}
    colour = {"color": look["color"]}
    layers: list[Layer] = []
    if banded:
        band = {"mark": {"type": "area", "opacity": 0.18}, "encoding": {"x": x, **span, **colour}}
        bars = {"mark": {"type": "rule", "opacity": 0.6}, "encoding": {"x": x, **span, **colour}}
        layers += [{"data": {"values": list(banded)}, **layer} for layer in (band, bars)]
    strokes = {"color": look["color"], "strokeDash": look["strokeDash"]}
    dots = {"color": look["color"], "shape": look["shape"], "tooltip": tips}
    layers += [
        {"data": {"values": list(shown)}, "mark": "line", "encoding": {"x": x, "y": y, **strokes}},
        {"data": {"values": list(shown)}, "mark": "point", "encoding": {"x": x, "y": y, **dots}},
    ]
    if rings:
        ring = {"mark": RING, "encoding": {"x": x, "y": y, "tooltip": tips}}
        layers.append({"data": {"values": rings}, **ring})
    if failed:
        layers.append(
            {
                "data": {"values": spread(failed, x["field"])},
                "mark": FAILED,
                "encoding": {
                    "x": x, "y": {"value": height - 8}, "yOffset": {"field": "nth", "type": "quantitative",
                    "scale": {"domain": [0, 1], "range": [0, -12]}}, "tooltip": tips,
                },
            }
        )  # fmt: skip
    return layers


def spread(failed: Sequence[Point], place: str) -> list[Point]:
    """Points of what did not run, one above the other where several stand at one place."""
    seen: dict[Any, int] = {}
    placed = []
    for point in failed:
        at = point[place]
        placed.append({**point, "nth": seen.get(at, 0)})
        seen[at] = seen.get(at, 0) + 1
    return placed


def named(title: str) -> dict[str, Any]:
    """A panel's title, where it has one."""
    return {"title": {"text": title, "fontSize": 12, "offset": 6}} if title else {}


def rule_at(value: float, words: str) -> list[Layer]:
    """A line across, named at its right end."""
    where = {"y": {"datum": value, "type": "quantitative"}}
    mark = {"type": "rule", "strokeDash": [3, 3]}
    name = {"type": "text", "align": "right", "baseline": "bottom", "dx": -3, "dy": -2}
    return [
        {"data": {"values": [{}]}, "mark": mark, "encoding": where},
        {"data": {"values": [{}]}, "mark": {**name, "text": words}, "encoding": {**where, "x": {"value": "width"}}},
    ]
