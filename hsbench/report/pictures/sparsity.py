"""Speedup and size of the cache against sparsity."""

from __future__ import annotations

from collections.abc import Sequence

from hsbench.errors import UsageError
from hsbench.report.pictures.marks import lines, named, ratio, rule_at, told
from hsbench.report.pictures.picture import Picture
from hsbench.report.pictures.points import points_of
from hsbench.results import Stored

WIDTH, HEIGHT = 360, 270


def picture(files: Sequence[Stored]) -> Picture:
    """Of the methods that prune; the dense ones are the line at 1."""
    found = points_of(files, ["sparsity"], "sparsity", sparse_only=True)
    if not found.series:
        raise UsageError("kind", "sparsity", "no method of the file prunes; try scaling or roofline")
    series = [label for label, _ in found.series]
    shares = sorted({point["sparsity"] for point in found.all})
    x = {"field": "sparsity", "type": "quantitative", "title": "sparsity of K and V, mean",
         "scale": {"padding": 14, "nice": False, "zero": False}, 
         "axis": {"values": shares, "labelExpr": "datum.value"}}  # fmt: skip
    panels = []
    for title, points in found.panels.items():
        shown = [told(point) for point in points]
        faster = ratio("speedup", "speedup over the fastest dense method", shown)
        smaller = ratio("kv_ratio", "times smaller KV cache", shown, log=False)
        size = {"width": WIDTH, "height": HEIGHT}
        row = [
            {**size, "layer": [*rule_at(1, "fastest dense method"), *lines(shown, x, faster, series, HEIGHT)]},
            {**size, "layer": [*rule_at(1, "dense cache"), *lines(shown, x, smaller, series, HEIGHT)]},
        ]
        panels.append({"hconcat": row, **named(title)})
    body = {"vconcat": panels}
    return Picture("sparsity", body, "Speedup and memory by sparsity", found.shared, found.series, tuple(files))
