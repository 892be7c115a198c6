"""What a run reports: records, their identity, and the machine beside them."""

from hsbench.results.record import COLUMNS, SCHEMA, STATUSES, Peak, Record, Report, Result

__all__ = ["COLUMNS", "SCHEMA", "STATUSES", "Peak", "Record", "Report", "Result"]
