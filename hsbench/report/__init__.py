"""How to show results: records, tables, Markdown, and the writers of every `--format`."""

from hsbench.report.generate import render_generate
from hsbench.report.markdown import markdown
from hsbench.report.page import console_for
from hsbench.report.quality import render_quality
from hsbench.report.stream import Writer
from hsbench.report.sweep import render_sweep
from hsbench.report.table import render
from hsbench.report.writers import FORMATS, parquet_writer, writer_for

__all__ = [
    "FORMATS",
    "Writer",
    "console_for",
    "markdown",
    "parquet_writer",
    "render",
    "render_generate",
    "render_quality",
    "render_sweep",
    "writer_for",
]
