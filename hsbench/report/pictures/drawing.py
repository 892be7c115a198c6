"""From a specification to a file: SVG, PNG, one HTML page that needs nothing else, or the specification itself."""

from __future__ import annotations

import html
import importlib.util
import json
from collections.abc import Callable
from typing import Any

from hsbench.errors import UnavailableError
from hsbench.report.pictures.picture import Picture
from hsbench.report.pictures.theme import THEMES

_VERSION = "5.20"  # of Vega-Lite; vl-convert holds several, and a picture does not change with the newest
_SCALE = 2.0  # PNG pixels per unit

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
  :root {{ background: {light}; }}
  @media (prefers-color-scheme: dark) {{ :root {{ background: {dark}; }} }}
  body {{ margin: 1rem; font-family: sans-serif; }}
</style>
</head>
<body>
<div id="picture" role="img" aria-label="{title}"></div>
<script type="application/json" id="specification">{spec}</script>
<script type="application/json" id="looks">{looks}</script>
<script type="module">{script}</script>
</body>
</html>
"""

# The viewer's own choice of light or dark, also when it changes.
_SCRIPT = """
const read = (id) => JSON.parse(document.getElementById(id).textContent);
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const show = async () => {
  const spec = { ...read("specification"), config: read("looks")[dark.matches ? "dark" : "light"] };
  const done = await vegaEmbed("#picture", spec, {
    mode: "vega-lite", renderer: "svg", logLevel: 1, tooltip: { theme: dark.matches ? "dark" : "light" },
    actions: { export: true, source: false, compiled: false, editor: false },
  });
  document.body.dataset.drawn = dark.matches ? "dark" : "light";
  return done;
};
dark.addEventListener("change", show);
show();
"""


def require() -> None:
    """Make sure that what draws is there, without importing it.

    Raises:
        UnavailableError: it is not; says how to get it.
    """
    if importlib.util.find_spec("vl_convert") is None:
        raise UnavailableError("vl-convert-python is missing, which draws pictures: pip install 'hsbench[plot]'")


def svg(picture: Picture, look: str) -> bytes:
    """A picture as SVG, in a theme."""
    return _converter().vegalite_to_svg(picture.spec(look), vl_version=_VERSION).encode()


def png(picture: Picture, look: str) -> bytes:
    """A picture as PNG, in a theme, with two pixels for each unit."""
    drawn: bytes = _converter().vegalite_to_png(picture.spec(look), vl_version=_VERSION, scale=_SCALE)
    return drawn


def page(picture: Picture, look: str) -> bytes:
    """A picture as one HTML page with tooltips, light or dark as its reader has it: `look` is not asked. What draws it
    is in the page: it is about 1 MB, and loads nothing."""
    spec = picture.spec()
    configs = {name: picture.spec(name)["config"] for name in THEMES}
    del spec["config"]
    script = _converter().javascript_bundle(_SCRIPT, vl_version=_VERSION)
    filled = _PAGE.format(
        title=html.escape(picture.title),
        light=configs["light"]["background"],
        dark=configs["dark"]["background"],
        spec=_in_script(json.dumps(spec, allow_nan=False)),
        looks=_in_script(json.dumps(configs)),
        script=_in_script(script),
    )
    return filled.encode()


def specification(picture: Picture, look: str) -> bytes:
    """The specification itself, for Vega-Lite's other tools."""
    return (json.dumps(picture.spec(look), indent=1, allow_nan=False) + "\n").encode()


FORMATS: dict[str, Callable[[Picture, str], bytes]] = {
    ".svg": svg,
    ".png": png,
    ".html": page,
    ".json": specification,
}
"""By the ending of a file's name."""


def _in_script(text: str) -> str:
    """Text that cannot end the element which it stands in; in JSON and in a program's strings alike."""
    return text.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _converter() -> Any:
    require()
    import vl_convert

    return vl_convert
