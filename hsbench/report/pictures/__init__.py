"""Pictures of stored results, each one declarative Vega-Lite specification, drawn from files alone.

A specification is a plain dictionary: what it draws is in it as data, which is what tests look at. Altair would be one
more way to write the same dictionary, and nothing is left for it to do; `drawing` turns one into SVG, PNG or HTML.
"""

from hsbench.report.pictures.kinds import KINDS, METRICS, draw
from hsbench.report.pictures.picture import Picture

__all__ = ["KINDS", "METRICS", "Picture", "draw"]
