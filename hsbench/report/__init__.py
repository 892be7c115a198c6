"""How to show results: records, tables, Markdown, and the writers of every `--format`."""

from hsbench.report.markdown import markdown
from hsbench.report.record import COLUMNS, SCHEMA, STATUSES, Peak, Record, Report, Result
from hsbench.report.sweep import render_sweep
from hsbench.report.table import console_for, render
from hsbench.report.writers import FORMATS, Writer, writer_for

__all__ = [
    "COLUMNS",
    "FORMATS",
    "SCHEMA",
    "STATUSES",
    "Peak",
    "Record",
    "Report",
    "Result",
    "Writer",
    "console_for",
    "markdown",
    "render",
    "render_sweep",
    "writer_for",
]
