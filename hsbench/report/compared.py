"""What a record says against the baseline, and what stands where it has no numbers."""

from __future__ import annotations

from hsbench.report import text
from hsbench.results import Record


def verdict(record: Record) -> str:
    """How a record compares to the baseline: "faster", "slower", "baseline", "inconclusive", or "" (no speedup)."""
    if record.status != "ok":
        return ""
    if record.method == record.measures.baseline:
        return "baseline"
    if record.measures.speedup is None:
        return ""
    if inconclusive(record):
        return "inconclusive"
    return "faster" if record.measures.speedup > 1 else "slower"


def inconclusive(record: Record) -> bool:
    """Whether the interval of the speedup holds 1: no difference was shown."""
    low, high = record.measures.speedup_lo, record.measures.speedup_hi
    return low is not None and high is not None and low <= 1 <= high


def interval(record: Record) -> str:
    """The interval of the speedup, or that it shows no difference; "" without one."""
    state = verdict(record)
    return {"inconclusive": state, "faster": bounds(record), "slower": bounds(record)}.get(state, "")


def bounds(record: Record) -> str:
    """The ends of the interval: "[1.57, 1.67]"."""
    low, high = record.measures.speedup_lo, record.measures.speedup_hi
    return "" if low is None or high is None else f"[{text.ratio_digits(low)}, {text.ratio_digits(high)}]"


def instead(record: Record) -> str:
    """What a row without numbers says."""
    status = record.status.upper() if record.status == "incorrect" else record.status
    words = f"{status}: {record.reason}" if record.reason else status
    if record.status == "incorrect" and record.measures.rel_error is not None:
        words += f" (error {text.error(record.measures.rel_error)})"
    return words


def alarms(records: list[Record]) -> list[str]:
    """A line when results failed their check."""
    wrong = [record.method for record in records if record.status == "incorrect"]
    if not wrong:
        return []
    return [f"{text.listed(wrong)} failed the check against the fp32 reference: no speedup is given."]
