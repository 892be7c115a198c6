"""What rate each method reaches, against the probe that was sampled in turn with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hsbench.report.pictures.marks import named, told, tooltip
from hsbench.report.pictures.picture import Picture
from hsbench.report.pictures.points import Point, cells_of
from hsbench.report.pictures.theme import FAILED, RING, series_encoding
from hsbench.results import Stored

WIDTH, STEP = 460, 22
_TIPS = {
    "series": "row", "shown_rate": "rate", "percent": "% of the probe", "probe": "probe", "shown_time": "time",
    "status": "status", "reason": "reason", "state": "meanwhile",
}  # fmt: skip


def picture(files: Sequence[Stored]) -> Picture:
    """A line per row, and the probe's rate across; a panel per cell. A decode's rate is of the bytes that it must read,
    a prefill's of dense-equivalent work, so that a sparse one may pass the probe."""
    found = cells_of(files)
    panels = [_panel(title, points, [label for label, _ in found.series]) for title, points in found.panels.items()]
    body: dict[str, Any] = {"vconcat": panels, "resolve": {"scale": {"x": "independent"}}}
    return Picture("roofline", body, "Rate against this machine's own probe", found.shared, found.series, tuple(files))


def _panel(title: str, points: list[Point], series: list[str]) -> dict[str, Any]:
    shown = [{**told(point), "shown_rate": _rate(point), "shown_percent": _percent(point)} for point in points]
    ran = [point for point in shown if point["rate"] is not None]
    failed = [point for point in shown if point["rate"] is None]
    order = [point["series"] for point in sorted(ran, key=lambda one: -one["rate"])]
    order += [point["series"] for point in failed]
    unit = points[0]["rate_unit"]
    work = "read by the call" if unit == "GB/s" else "dense-equivalent work"
    look, tips = series_encoding(series), tooltip(shown, _TIPS)
    y = {"field": "series", "type": "nominal", "sort": order, "title": None, "scale": {"domain": order},
         "axis": {"labelLimit": 320, "grid": True}}  # fmt: skip
    x = {"field": "rate", "type": "quantitative", "title": f"{unit}, {work}", "scale": {"zero": True}}
    colour = {"color": {**look["color"], "legend": None}}
    layers: list[dict[str, Any]] = [
        {"data": {"values": ran}, "mark": {"type": "rule", "strokeWidth": 2},
         "encoding": {"y": y, "x": x, "x2": {"datum": 0}, **colour}},
        {"data": {"values": ran}, "mark": {"type": "point", "size": 90},
         "encoding": {"y": y, "x": x, **colour, "shape": {**look["shape"], "legend": None}, "tooltip": tips}},
        {"data": {"values": [point for point in ran if point["percent"] is not None]},
         "mark": {"type": "text", "align": "left", "dx": 11, "baseline": "middle"},
         "encoding": {"y": y, "x": x, "text": {"field": "shown_percent", "type": "nominal"}}},
    ]  # fmt: skip
    if rings := [point for point in ran if point["state"]]:
        ring = {"mark": RING, "encoding": {"y": y, "x": x, "tooltip": tips}}
        layers.append({"data": {"values": rings}, **ring})
    if failed:
        words = {"type": "text", "style": "failed-text", "align": "left", "dx": 10, "baseline": "middle"}
        at = {"y": y, "x": {"value": 6}, "tooltip": tips}
        layers.append({"data": {"values": failed}, "mark": FAILED, "encoding": at})
        layers.append(
            {
                "data": {"values": failed},
                "mark": words,
                "encoding": {**at, "text": {"field": "status", "type": "nominal"}},
            }
        )
    probes = {point["probe"]: point["ceiling"] for point in ran if point["ceiling"] is not None}
    for name, value in probes.items():
        where = {"x": {"datum": value, "type": "quantitative"}}
        label = {"type": "text", "align": "right", "dx": 4, "baseline": "bottom"}
        mark = {"type": "rule", "strokeDash": [6, 3], "strokeWidth": 2}
        layers.append({"data": {"values": [{"probe": name, "ceiling": value}]}, "mark": mark, "encoding": where})
        text = f"{name} probe, {value:.4g} {unit}"
        at = {**where, "y": {"value": -3}}  # above the panel, where no row is
        layers.append({"data": {"values": [{}]}, "mark": {**label, "text": text, "fontWeight": "bold"}, "encoding": at})
    return {"width": WIDTH, "height": {"step": STEP}, "layer": layers, **named(title)}


def _percent(point: Point) -> str | None:
    return None if point["percent"] is None else f"{point['percent']:.0f} %"


def _rate(point: Point) -> str | None:
    return None if point["rate"] is None else f"{point['rate']:.4g} {point['rate_unit']}"
