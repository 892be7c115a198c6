"""``hsbench show``."""

from __future__ import annotations

from pathlib import Path

from hsbench.cli import file_options as f
from hsbench.cli import options as o
from hsbench.cli.exit_codes import OK
from hsbench.cli.output import make_output
from hsbench.cli.streams import stderr
from hsbench.errors import UsageError


def show(file: f.ResultFile, format: o.Format = None, output: o.Output = None) -> int:
    """Show results of before as if they had just been measured: their tables, and of a sweep its summary.

    With --format or --output in another format, which is how one becomes another.

    Example: hsbench show sweep.csv
    """
    path = Path(file)
    target = make_output(output, format, None, "table", [("file", path)])
    target.manifest_path = None  # it is the first run's to write

    from hsbench.cli.stored import warn_of
    from hsbench.report import console_for, render_sweep
    from hsbench.results import Generated, Quality, model_report_of, read_filled, reports_of

    stored = read_filled(path)
    kinds = {type(row) for row in stored.rows}
    if len(kinds) > 1:
        raise UsageError("FILE", path, f"holds rows of {' and '.join(sorted(k.benchmark for k in kinds))}; split it")
    warn_of(stored)
    target.manifest = stored.manifest
    reports = reports_of(stored)
    with target:
        for kind in (Quality, Generated):
            if kinds == {kind}:
                target.rows = kind
                target.report(model_report_of(stored, kind))
        for report in reports:
            target.report(report)
    if target.format == "table" and len(reports) > 1:
        render_sweep(reports, console_for(stderr()))
    return OK
