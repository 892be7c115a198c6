"""``hsbench plot``."""

from __future__ import annotations

from pathlib import Path

from hsbench.cli import file_options as f
from hsbench.cli.exit_codes import OK
from hsbench.cli.output import writing
from hsbench.cli.parse import parse_choice, parse_list
from hsbench.cli.places import check_writable, same
from hsbench.cli.streams import say
from hsbench.errors import UsageError


def plot(
    files: f.ResultFiles,
    kind: f.PlotKind = None,
    methods: f.PlotMethods = None,
    metric: f.PlotMetric = None,
    theme: f.PlotTheme = None,
    output: f.PlotOutput = None,
) -> int:
    """Draw stored results; nothing runs again.

    scaling: time and speedup by sequence length. sparsity: speedup and memory by sparsity. roofline: the rate of each
    method against the probe of its run. quality: what settings cost a model, against memory and decode speedup, with
    the frontier. layers: the error of each layer and head.

    Example: hsbench plot sweep.csv --output sweep.svg
    """
    from hsbench.cli.stored import warn_of
    from hsbench.report.pictures import draw, drawing
    from hsbench.report.pictures.theme import THEMES

    chosen = "auto" if kind is None else parse_choice(kind, "kind", f.PLOT_KINDS)
    look = THEMES[0] if theme is None else parse_choice(theme, "theme", THEMES)
    of = f.PLOT_METRICS[0] if metric is None else parse_choice(metric, "metric", f.PLOT_METRICS)
    shown = None if methods is None else parse_list(methods, "methods")
    paths = [Path(one) for one in files]
    target = None if output is None else Path(output)
    if target is not None:
        _check(target, paths, tuple(drawing.FORMATS))

    from hsbench.results import read_filled

    stored = [read_filled(path) for path in paths]
    for one in stored:
        warn_of(one)
    picture = draw(stored, chosen, methods=shown, metric=of)
    if target is None:
        target = Path(f"{paths[0].stem}.{picture.kind}.svg")
        _check(target, paths, tuple(drawing.FORMATS))
    drawn = drawing.FORMATS[target.suffix.lower()](picture, look)
    with writing(target):
        target.write_bytes(drawn)
    say(f"hsbench: {target}: {picture.kind}, {picture.title[0].lower()}{picture.title[1:]}")
    return OK


def _check(target: Path, inputs: list[Path], endings: tuple[str, ...]) -> None:
    if target.suffix.lower() not in endings:
        raise UsageError("output", target, f"end it in {', '.join(endings[:-1])} or {endings[-1]}")
    check_writable(target)
    for path in inputs:
        if same(target, path):
            raise UsageError("output", target, "is the file of FILE; give another")
