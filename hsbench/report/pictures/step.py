"""What a step is made of, as stacked bars: by method, a panel for each length of the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hsbench.report import text
from hsbench.report.generate import PARTS, label
from hsbench.report.pictures.marks import named, tooltip
from hsbench.report.pictures.picture import Picture
from hsbench.report.pictures.points import Point
from hsbench.results import Generated, Stored

WIDTH, BAR = 520, 24
_TIPS = {"method": "method", "part": "part", "ms": "ms", "shown_share": "of the step", "shown_step": "step"}


def picture(files: Sequence[Stored]) -> Picture:
    """Bars whose parts add up to the median step: attention, append, and the kinds of the model's layers. Parts run
    from dark to light, so that grey reads the same."""
    rows = [one.record for file in files for one in file.of(Generated)]
    shown = [row for row in rows if row.status == "ok" and row.measures.token_ms and row.measures.attention_share]
    case = (shown or rows)[0].case
    methods = text.unique(label(row.case) for row in shown)
    longest = max((row.measures.token_ms or 0.0 for row in shown), default=1.0)
    contexts = sorted({row.case.context for row in shown})
    panels = [
        _panel(context, [row for row in shown if row.case.context == context], methods, longest) for context in contexts
    ]
    several = f" · {case.batch} sequences" if case.batch > 1 else ""
    about = f"{case.model} · {case.text}{several} · {case.weights} weights · {case.device}"
    title = "What a token takes, by the parts of a step"
    return Picture("step", {"vconcat": panels}, title, about, (), tuple(files))


def _panel(context: int, rows: Sequence[Generated], methods: Sequence[str], longest: float) -> dict[str, Any]:
    points = [point for row in rows for point in _points(row)]
    colour = {
        "field": "part", "type": "ordinal", "sort": list(PARTS), "title": "part",
        "scale": {"domain": list(PARTS), "scheme": "viridis"},
        "legend": {"orient": "bottom", "columns": len(PARTS)},
    }  # fmt: skip
    x = {"field": "ms", "type": "quantitative", "stack": "zero", "title": "ms of a step",
         "scale": {"domain": [0, longest * 1.08]}}  # fmt: skip
    y = {"field": "method", "type": "nominal", "sort": list(methods), "title": None, "axis": {"labelLimit": 260}}
    encoding = {"x": x, "y": y, "color": colour, "order": {"field": "place"}, "tooltip": tooltip(points, _TIPS)}
    totals = [{"method": label(row.case), "end": row.measures.token_ms, "words": _told(row)} for row in rows]
    end = {"x": {"field": "end", "type": "quantitative"}, "y": y, "text": {"field": "words"}}
    layers = [
        {"data": {"values": points}, "mark": "bar", "encoding": encoding},
        {"data": {"values": totals}, "mark": {"type": "text", "align": "left", "dx": 4}, "encoding": end},
    ]
    return {"width": WIDTH, "height": {"step": BAR}, "layer": layers, **named(f"{text.size(context)} tokens")}


def _points(row: Generated) -> list[Point]:
    step = row.measures.token_ms or 0.0
    found = []
    for place, part in enumerate(PARTS):
        share = getattr(row.measures, f"{part}_share") or 0.0
        words = {"shown_share": f"{share:.1%}", "shown_step": f"{text.digits(step)} ms"}
        found.append({"method": label(row.case), "part": part, "place": place, "ms": share * step, **words})
    return found


def _told(row: Generated) -> str:
    ratio = row.measures.speedup
    return text.digits(row.measures.token_ms or 0.0) + (
        "" if ratio is None or ratio == 1.0 else f", {text.ratio(ratio)}"
    )
