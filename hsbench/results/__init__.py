"""What a run reports: rows of a case and its measures, their identity, and the machine beside them."""

from hsbench.results.attention import COLUMNS, AttentionCase, AttentionMeasures, Record
from hsbench.results.generate import GenerateCase, Generated, GenerateMeasures
from hsbench.results.identity import key, may_match
from hsbench.results.quality import Quality, QualityCase, QualityMeasures
from hsbench.results.reading import read_rows
from hsbench.results.report import GenerateReport, MeasuredCeiling, ModelReport, QualityReport, Report, Reported, Result
from hsbench.results.row import SCHEMA, STATUSES, Row
from hsbench.results.stored import (
    Stored,
    ceiling_of,
    ceilings_of,
    model_report_of,
    read_filled,
    read_stored,
    reports_of,
)

__all__ = [
    "COLUMNS",
    "SCHEMA",
    "STATUSES",
    "AttentionCase",
    "AttentionMeasures",
    "GenerateCase",
    "GenerateMeasures",
    "GenerateReport",
    "Generated",
    "MeasuredCeiling",
    "ModelReport",
    "Quality",
    "QualityCase",
    "QualityMeasures",
    "QualityReport",
    "Record",
    "Report",
    "Reported",
    "Result",
    "Row",
    "Stored",
    "ceiling_of",
    "ceilings_of",
    "key",
    "may_match",
    "model_report_of",
    "read_filled",
    "read_rows",
    "read_stored",
    "reports_of",
]
