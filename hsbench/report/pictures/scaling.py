"""Time and speedup against the length of the sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hsbench.report import text
from hsbench.report.pictures.marks import lines, named, ratio, rule_at, tokens, told
from hsbench.report.pictures.picture import Picture
from hsbench.report.pictures.points import Point, points_of
from hsbench.results import Stored

WIDTH, HEIGHT = 360, 270


def picture(files: Sequence[Stored]) -> Picture:
    """Both axes logarithmic; quartiles of times and intervals of speedups as bands."""
    found = points_of(files, ["seq"], "seq")
    series = [label for label, _ in found.series]
    unit, length = text.time_unit([point["time"] for point in found.all if point["time"] is not None])
    panels = []
    for title, points in found.panels.items():
        shown = [_in_unit(told(point), length) for point in points]
        panels.append({"hconcat": [_times(shown, series, unit), _speedups(shown, series)], **named(title)})
    body = {"vconcat": panels}
    return Picture("scaling", body, "Time and speedup by sequence length", found.shared, found.series, tuple(files))


def _in_unit(point: Point, length: float) -> Point:
    names = ("time", "time_lo", "time_hi")
    return {**point, **{name: None if point[name] is None else point[name] / length for name in names}}


def _times(points: list[Point], series: list[str], unit: str) -> dict[str, Any]:
    y = {
        "field": "time",
        "type": "quantitative",
        "title": f"time, {unit}",
        "scale": {"type": "log", "nice": False, "padding": 14},
    }
    return {"width": WIDTH, "height": HEIGHT, "layer": lines(points, tokens(points), y, series, HEIGHT)}


def _speedups(points: list[Point], series: list[str]) -> dict[str, Any]:
    compared = [point for point in points if not point["dense"]]
    compared = compared or [point for point in points if not point["is_baseline"]]
    y = ratio("speedup", "speedup over the fastest dense method", compared)
    drawn = lines(compared, tokens(points), y, series, HEIGHT)
    return {"width": WIDTH, "height": HEIGHT, "layer": [*rule_at(1, "fastest dense method"), *drawn]}
