"""How pictures look: colours that colour-blind readers tell apart, with a shape and a dash each for those of grey.

A specification names no colour: it says which series there are, and the configuration of a theme gives them colours. So
the same picture is drawn light or dark.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

THEMES = ("light", "dark")

# Okabe and Ito's hues, darker on white and lighter on black, so that lines stand out from either by 3:1 at least.
_HUES = {
    "light": ("#0072B2", "#D55E00", "#007F5C", "#A34F86", "#8A6D00", "#2A8FC7"),
    "dark": ("#56B4E9", "#FF8A3D", "#2BC79A", "#E39AC6", "#E6C229", "#9AD4F5"),
}
_GREYS = {
    "light": ("#1B1F24", "#5F6772", "#868E99", "#3C434C"),
    "dark": ("#F0F2F5", "#A8B0BB", "#7D8691", "#CED4DB"),
}
_INK = {"light": "#1B1F24", "dark": "#E6E8EB"}
_QUIET = {"light": "#5F6772", "dark": "#A8B0BB"}
_GRID = {"light": "#E3E6EA", "dark": "#2E333A"}
_PAPER = {"light": "#FFFFFF", "dark": "#15181C"}
_ALARM = {"light": "#B00020", "dark": "#FF6B7A"}

SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "triangle-right", "triangle-left")
DASHES: tuple[list[int], ...] = ([1, 0], [7, 3], [2, 2], [8, 3, 2, 3], [4, 4, 1, 4])

#: What asks for care: a ring around a point whose clocks were held down or whose device was shared, and a cross, which
#: no series has, for what could not run.
RING = {"type": "point", "style": "ring", "filled": False, "size": 190}
FAILED = {"type": "point", "style": "failed", "filled": False, "size": 60, "shape": "M-1,-1L1,1M1,-1L-1,1"}


def series_encoding(series: Sequence[str], title: str = "method") -> dict[str, Any]:
    """Colour, shape and dash of each series, in their order. Colour and shape share a legend. Vega-Lite puts into one
    what has one domain, and would draw its symbols in dashes: therefore lines have names of their own, see `line_of`.

    Args:
        series: all that the picture has.
    """
    count = len(series)
    domain, lines = list(series), [line_of(one) for one in series]

    def scale(values: Sequence[Any], domain: list[str]) -> dict[str, Any]:
        return {"domain": domain, "range": [values[at % len(values)] for at in range(count)]}

    legend = {"title": title, "orient": "bottom", "columns": 3, "labelLimit": 400, "symbolSize": 90}
    legend |= {"symbolOpacity": 1}
    one = {"field": "series", "type": "nominal", "sort": domain, "legend": legend}
    return {
        "color": {**one, "scale": {"domain": domain}},
        "shape": {**one, "scale": scale(SHAPES, domain)},
        "strokeDash": {"field": "line", "type": "nominal", "legend": None, "scale": scale(DASHES, lines)},
    }


def line_of(series: str) -> str:
    """The name of a series' line."""
    return f"line of {series}"


def config(theme: str, series: Sequence[tuple[str, bool]]) -> dict[str, Any]:
    """The configuration of a theme.

    Args:
        theme: one of `THEMES`.
        series: the picture's, each with whether it is dense; dense ones are grey, and hues are for the others.
    """
    ink, quiet, grid, paper, alarm = (of[theme] for of in (_INK, _QUIET, _GRID, _PAPER, _ALARM))
    hues, greys = iter(_HUES[theme] * len(series)), iter(_GREYS[theme] * len(series))
    colours = [next(greys) if dense else next(hues) for _, dense in series] or list(_HUES[theme])
    font = {
        "labelColor": quiet,
        "titleColor": ink,
        "labelFontSize": 11,
        "titleFontSize": 11,
        "titleFontWeight": "normal",
    }
    return {
        "background": paper,
        "font": "sans-serif",
        "padding": 12,
        "view": {"stroke": grid},
        "axis": {**font, "gridColor": grid, "domainColor": quiet, "tickColor": quiet},
        "legend": font,
        "header": {"labelColor": ink, "titleColor": ink, "labelFontSize": 12, "labelFontWeight": "bold"},
        "title": {"color": ink, "subtitleColor": quiet, "fontSize": 15, "subtitleFontSize": 11, "anchor": "start",
                  "offset": 12, "subtitlePadding": 4},
        "range": {"category": colours, "heatmap": {"scheme": "viridis"}},
        "mark": {"color": _HUES[theme][0]},
        "line": {"strokeWidth": 2},
        "rule": {"color": quiet},
        "text": {"color": quiet, "fontSize": 10},
        "point": {"size": 55, "filled": True, "opacity": 1},
        "style": {
            "ring": {"color": alarm, "strokeWidth": 1.5},
            "failed": {"color": alarm, "strokeWidth": 2},
            "failed-text": {"color": alarm},
            "frontier": {"color": quiet},
        },
    }  # fmt: skip
