"""What an nsys report holds of a run, from its export to SQLite.

    NVTX_EVENTS                    a row per range (59) and domain (75)
    CUPTI_ACTIVITY_KIND_RUNTIME    a row per CUDA call, by correlation id that of the work that it launched:
    CUPTI_ACTIVITY_KIND_KERNEL, _MEMSET, _MEMCPY
    OSRT_API                       a row per call into the OS's runtime, by the thread that waits for it
    StringIds                      names

A table is there only if something was recorded for it. Times are in ns, on one clock.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from itertools import groupby
from pathlib import Path

from hsbench.kernels.device import Device
from hsbench.measure.ranges import DOMAIN
from hsbench.profiling.base import ProfilerError
from hsbench.profiling.summary import Line, Span, by_share, joined, short_name, with_unseen

_RANGES = """
    SELECT event.globalTid, coalesce(event.text, name.value), event.start, event.end
    FROM NVTX_EVENTS AS event LEFT JOIN StringIds AS name ON name.id = event.textId
    WHERE event.eventType = 59 AND event.end IS NOT NULL AND event.domainId IN (
        SELECT domain.domainId
        FROM NVTX_EVENTS AS domain LEFT JOIN StringIds AS name ON name.id = domain.textId
        WHERE domain.eventType = 75 AND coalesce(domain.text, name.value) = ?
    )
    ORDER BY event.globalTid, event.start, event.end DESC
"""
_CALLS = """
    SELECT call.globalTid, name.value, call.start, call.end
    FROM OSRT_API AS call JOIN StringIds AS name ON name.id = call.nameId
    ORDER BY call.globalTid, call.start, call.end DESC
"""
# Work counts where it was launched: it may run later. A globalTid is a process's number and, in 24 bits, a thread's.
_LAUNCHED = """
    SELECT {name}, call.start, call.end, work.end - work.start
    FROM {table} AS work JOIN CUPTI_ACTIVITY_KIND_RUNTIME AS call
    ON call.correlationId = work.correlationId AND call.globalTid >> 24 = work.globalPid >> 24
"""
_WORK = {
    "CUPTI_ACTIVITY_KIND_KERNEL": "(SELECT value FROM StringIds WHERE id = work.demangledName)",
    "CUPTI_ACTIVITY_KIND_MEMSET": "'[CUDA memset]'",
    "CUPTI_ACTIVITY_KIND_MEMCPY": "'[CUDA memcpy]'",
}
_UNSEEN = "outside the OS (compiled code, Python)"


def read_export(path: Path, device: Device) -> tuple[bool, list[Line]]:
    """Whether a report holds any range of ours, and its work by method.

    On a GPU that is kernels; on the CPU calls into the OS by the thread that runs the samples, and what they leave.

    Raises:
        ProfilerError: it is no such export.
    """
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as export:
            tables = {name for (name,) in export.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            ranges = list(export.execute(_RANGES, (DOMAIN,))) if "NVTX_EVENTS" in tables else []
            samples = _samples(ranges)
            read = _launched if device.is_cuda else _os_calls
            return bool(ranges), read(export, tables, samples)
    except sqlite3.Error as error:
        raise ProfilerError(f"the export of the report cannot be read ({error})") from error


def _samples(ranges: list[tuple[int, str, int, int]]) -> dict[int, list[Span]]:
    """By thread, each range of a sample, named by its method: the range around it."""
    found: dict[int, list[Span]] = {}
    for thread, own in groupby(ranges, key=lambda row: row[0]):
        around: list[tuple[str, int]] = []  # the ranges that are open: name, end
        for _, name, start, end in own:
            while around and around[-1][1] < end:
                around.pop()
            if name == "sample" and around:
                found.setdefault(thread, []).append(Span(around[-1][0], start, end))
            around.append((name, end))
    return found


def _launched(export: sqlite3.Connection, tables: set[str], samples: dict[int, list[Span]]) -> list[Line]:
    """Kernels and the like; none without the calls that launched them."""
    if "CUPTI_ACTIVITY_KIND_RUNTIME" not in tables:
        return []
    work = [
        Span(short_name(what), start, end, busy=busy)
        for table, name in _WORK.items()
        if table in tables
        for what, start, end, busy in export.execute(_LAUNCHED.format(table=table, name=name))
    ]
    return joined(work, [sample for own in samples.values() for sample in own])


def _os_calls(export: sqlite3.Connection, tables: set[str], samples: dict[int, list[Span]]) -> list[Line]:
    calls: dict[int, list[Span]] = {}
    for thread, name, start, end in export.execute(_CALLS) if "OSRT_API" in tables else ():
        own = calls.setdefault(thread, [])
        if not own or start >= own[-1].end:  # else a call inside a call
            own.append(Span(name, start, end))
    lines = [
        line
        for thread, own in samples.items()
        for line in with_unseen(joined(calls.get(thread, ()), own), own, _UNSEEN)
    ]
    return by_share(lines, [sample.name for own in samples.values() for sample in own])
