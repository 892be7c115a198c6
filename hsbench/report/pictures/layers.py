"""The error of each layer's and head's attention, as a heat map."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from hsbench.errors import UsageError
from hsbench.report import text
from hsbench.report.pictures.marks import named, tooltip
from hsbench.report.pictures.picture import Picture
from hsbench.report.pictures.points import Point
from hsbench.report.quality import between, label, nats
from hsbench.results import Quality, Stored

CELL, HEIGHT = 17, 130
_TIPS = {"layer": "layer", "head": "query head", "error": "error of its output", "shown_kl": "KL, this layer alone"}


def picture(files: Sequence[Stored]) -> Picture:
    """A map of layers by heads per setting, of one layer pruned at a time; above it the KL that each layer costs alone,
    where it was measured. Colours run from dark to light with the logarithm, so that grey reads the same."""
    rows = [one.record for file in files for one in file.of(Quality) if one.record.case.layer is not None]
    heads = [row for row in rows if row.case.head is not None and row.measures.output_error is not None]
    if not heads:
        raise UsageError("kind", "layers", "the files have no rows of single heads; quality --per-layer writes them")
    settings: dict[str, list[Quality]] = {}
    for row in rows:
        settings.setdefault(_setting(row), []).append(row)
    errors = [row.measures.output_error for row in heads if row.measures.output_error]
    domain = [min(errors, default=1e-6), max(errors, default=1.0)]
    panels = [panel for title, found in settings.items() for panel in _panels(title, found, domain)]
    case = heads[0].case
    about = f"{case.model} · {case.text} · {text.size(case.context)} tokens · sink {case.sink} · local {case.local}"
    body: dict[str, Any] = {"vconcat": panels, "resolve": {"scale": {"color": "shared"}}}
    return Picture("layers", body, "Error of attention by layer and head", about, (), tuple(files))


def _setting(row: Quality) -> str:
    case = dataclasses.replace(row.case, layer=None, plan=None)
    return f"{label(case)}, K {case.key_sparsity:g} V {case.value_sparsity:g}, one layer at a time"


def _panels(title: str, rows: list[Quality], domain: list[float]) -> list[dict[str, Any]]:
    alone = [_point(row) for row in rows if row.case.head is None and row.measures.kl is not None]
    heads = [_point(row) for row in rows if row.case.head is not None and row.measures.output_error is not None]
    number = "ordinal"
    x = {"field": "layer", "type": number, "title": "layer", "axis": {"labelAngle": 0, "labelOverlap": True}}
    order = {"scale": {"domain": sorted({row.case.layer for row in rows if row.case.layer is not None})}}
    panels: list[dict[str, Any]] = []
    if alone:
        y = {
            "field": "kl",
            "type": "quantitative",
            "title": "KL, nats",
            "scale": {"type": "log"},
            "axis": {"format": "~g"},
        }
        span = {"x": {**x, **order}, "y": {**y, "field": "kl_lo"}, "y2": {"field": "kl_hi"}}
        ends = [point for point in alone if point["kl_lo"] is not None]
        marks = [
            {"data": {"values": ends}, "mark": "rule", "encoding": span},
            {"data": {"values": alone}, "mark": {"type": "point"},
             "encoding": {"x": {**x, **order}, "y": y, "tooltip": tooltip(alone, _TIPS)}},
        ]  # fmt: skip
        panels.append({"width": {"step": CELL}, "height": HEIGHT, "layer": marks, **named(title)})
    if heads:
        colour = {
            "field": "error", "type": "quantitative", "title": "error of the output, relative",
            "scale": {"type": "log", "domain": domain, "scheme": "viridis"},
            "legend": {"orient": "bottom", "gradientLength": 260, "format": "~g"},
        }  # fmt: skip
        y = {"field": "head", "type": number, "title": "query head"}
        encoding = {"x": {**x, **order}, "y": y, "color": colour, "tooltip": tooltip(heads, _TIPS)}
        size = {"width": {"step": CELL}, "height": {"step": CELL}}
        name = {} if alone else named(title)
        panels.append({**size, **name, "data": {"values": heads}, "mark": "rect", "encoding": encoding})
    return panels


def _point(row: Quality) -> Point:
    m = row.measures
    low, high = (None if end is None else max(end, 1e-9) for end in (m.kl_lo, m.kl_hi))
    words = None if m.kl is None else " ".join(filter(None, [nats(m.kl), between(m.kl_lo, m.kl_hi, nats)]))
    floor = {"kl": None if m.kl is None else max(m.kl, 1e-9), "kl_lo": low, "kl_hi": high}
    error = None if m.output_error is None else max(m.output_error, 1e-9)
    return {"layer": row.case.layer, "head": row.case.head, "error": error, "shown_kl": words, **floor}
