"""What a run reports: rows of a case and its measures, their identity, and the machine beside them."""

from hsbench.results.attention import COLUMNS, AttentionCase, AttentionMeasures, Record
from hsbench.results.identity import key, may_match
from hsbench.results.quality import Quality, QualityCase, QualityMeasures
from hsbench.results.reading import read_rows
from hsbench.results.report import MeasuredCeiling, QualityReport, Report, Reported, Result
from hsbench.results.row import SCHEMA, STATUSES, Row

__all__ = [
    "COLUMNS",
    "SCHEMA",
    "STATUSES",
    "AttentionCase",
    "AttentionMeasures",
    "MeasuredCeiling",
    "Quality",
    "QualityCase",
    "QualityMeasures",
    "QualityReport",
    "Record",
    "Report",
    "Reported",
    "Result",
    "Row",
    "key",
    "may_match",
    "read_rows",
]
