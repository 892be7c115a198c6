"""The labelled lines under a table: what its numbers are of, how they were measured, what was in the way."""

from __future__ import annotations

from collections import defaultdict

from hsbench.report import text
from hsbench.report.compared import bounds, verdict
from hsbench.results import Record, Report


def facts(report: Report, records: list[Record], ok: list[Record]) -> list[tuple[str, str]]:
    """Label and text, in the order to show; `ok` are the records that are."""
    lines = [("peak", line) for line in _peaks(report, ok)]
    if evicting := [record for record in ok if record.measures.evict_by is not None]:
        lines.append(("evicted", "; ".join(map(_evicted, evicting))))
    if any(verdict(record) == "inconclusive" for record in ok):
        which = [f"{record.method} {bounds(record)}" for record in ok if verdict(record) == "inconclusive"]
        lines.append(("compared", f"{text.listed(which)}: the interval of the speedup holds 1, no difference shown"))
    stops: dict[str, list[str]] = defaultdict(list)
    for record in ok:
        if record.measures.samples is not None:
            stops[record.measures.stop or "done"].append(f"{record.method} {record.measures.samples}")
    if stops:
        lines.append(("samples", "; ".join(f"{stop}: {', '.join(names)}" for stop, names in stops.items())))
    caches: dict[str, list[str]] = defaultdict(list)
    for record in ok:
        if label := _cache(record):
            caches[label].append(record.method)
    if len(caches) == 1:
        lines.append(("cache", next(iter(caches))))
    else:
        lines += [("cache", f"{label}: {', '.join(used)}") for label, used in caches.items()]
    lines += sustained(ok)
    if telemetry := _telemetry(ok):
        lines.append(("telemetry", telemetry))
    throttled = [record for record in ok if record.measures.throttled]
    if throttled:
        clocked = ", ".join(_clocked(record) for record in throttled)
        lines.append(("throttled", f"* {clocked}: {held_back(throttled)}"))
    if any(record.measures.shared for record in ok):
        lines.append(("shared", "+ others used the device while these were sampled, in turn"))
    lines += [("note", f"{result.record.method}: {result.note}") for result in report.results if result.note]
    if report.interrupted:
        lines.append(("stopped", "the run was interrupted; rows that were not done say so"))
    return lines


def sustained(records: list[Record]) -> list[tuple[str, str]]:
    """Label and text where methods ran before their samples; a run does so for all or for none."""
    return [
        ("sustained", f"each method alone for {seconds:g} s before each of its samples")
        for seconds in text.unique(record.case.sustain_s for record in records)
        if seconds
    ]


def held_back(throttled: list[Record]) -> str:
    """What "*" means: a GPU's clocks were held down, or a CPU's threads were stopped."""
    if all(record.measures.throttle_reasons == "cpu_quota" for record in throttled):
        return "a CPU quota stopped the threads while sampling"
    return "the clock was held down while sampling"


def _evicted(record: Record) -> str:
    """Which share of the blocks, and what chose them."""
    share = text.known(record.measures.achieved_evict, "{:.4g}".format)
    return f"{record.method} {share} of the eligible blocks, by {record.measures.evict_by}"


def _cache(record: Record) -> str:
    """What was asked of the caches, and what made them so."""
    return (record.case.cache or "") + text.known(record.measures.cold_by, " ({})".format)


def _clocked(record: Record) -> str:
    state = record.measures
    seen = [
        state.throttle_reasons,
        text.known(state.throttled_share, "{:.0%} of samples".format),
        text.known(state.sm_clock_mhz, "{:.0f} MHz".format),
        text.known(state.power_w, "{:.0f} W".format),
    ]
    return f"{record.method} ({', '.join(filter(None, seen))})" if any(seen) else record.method


def _telemetry(ok: list[Record]) -> str:
    """Clocks, power and temperature over all methods' medians; "" without telemetry."""
    forms = {
        "sm_clock_mhz": "SM {} MHz",
        "memory_clock_mhz": "memory {} MHz",
        "power_w": "{} W",
        "temperature_c": "{} C",
    }
    words = []
    for column, form in forms.items():
        known = sorted(value for record in ok if (value := getattr(record.measures, column)) is not None)
        if known:
            words.append(form.format("-".join(text.unique(f"{value:.0f}" for value in (known[0], known[-1])))))
    return ", ".join(words)


def _peaks(report: Report, ok: list[Record]) -> list[str]:
    """The probes that percentages are against; with the methods where there are several."""
    users: dict[str, list[str]] = defaultdict(list)
    for record in ok:
        if record.measures.ceiling:
            users[record.measures.ceiling].append(record.method)
    lines = []
    for name, methods in users.items():
        measured = report.ceilings.get(name)
        ceiling = f"{name} probe" + (f", {text.digits(measured.value)} {measured.unit}" if measured else "")
        of = f" ({', '.join(methods)})" if len(users) > 1 else ""
        lines.append(f"{ceiling}, measured here in this run; percentages are of it{of}")
    return lines
