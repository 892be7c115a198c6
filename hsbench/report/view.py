"""A report as text cells: what to show, in which unit, in which words. Layout is the tables' business."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from hsbench.report import memory, text
from hsbench.results.record import DENSE_FAMILIES, Record, Report

#: Columns after the method, each with its sub-columns; cells and headers use the keys of the sub-columns.
GROUPS: dict[str, tuple[str, ...]] = {
    "time": ("time", "spread"),
    "speedup": ("speedup", "interval"),
    "rate": ("rate", "percent"),
    "kv": ("kv", "kv_ratio"),
    "error": ("error",),
}

_CPU_WORDS = {
    "model": "{}",
    "cores": "{} cores",
    "quota_cores": "of which a quota allows {:g}",
    "threads": "{} threads used",
    "isa": "{}",
    "governor": "governor {}",
}
_GPU_WORDS = {"name": "{}", "driver": "driver {}", "power_limit_w": "limit {:.0f} W"}
_GPU_SWITCHES = {"ecc": "ECC", "mig": "MIG", "persistence": "persistence"}


@dataclass
class Row:
    """One method.

    Args:
        cells: by the keys of `GROUPS`; empty for a row without numbers.
        instead: status and reason, for a row without numbers.
        verdict: "faster", "slower", "baseline", "inconclusive" or "" (no speedup).
        marks: behind the method's name, see `Record.marks`.
    """

    method: str
    status: str
    cells: dict[str, str] = field(default_factory=dict)
    instead: str = ""
    verdict: str = ""
    marks: str = ""


@dataclass
class View:
    """One workload, ready to lay out.

    Args:
        heading: segments of the one heading line.
        headers: by the keys of the sub-columns, units included; a sub-column without one stands under the
            header to its left.
        memory: methods, and their stored bytes by component, in words.
        peaks: a header, and a line per method: the memory that it took, cells of equal count.
        alarms: what must not be missed (failed checks).
        facts: label and text, in the order to show.
    """

    heading: list[str]
    headers: dict[str, str]
    rows: list[Row]
    memory: list[tuple[str, str]]
    peaks: list[list[str]]
    alarms: list[str]
    facts: list[tuple[str, str]]


def view(report: Report) -> View:
    """Everything that a table of `report` says."""
    records = [result.record for result in report.results]
    ok = [record for record in records if record.status == "ok"]
    headers, rows = _rows(report, records, ok)
    return View(
        heading=heading(report),
        headers=headers,
        rows=rows,
        memory=memory.stored(report.results),
        peaks=memory.taken(ok),
        alarms=alarms(records),
        facts=_facts(report, records, ok),
    )


def heading(report: Report) -> list[str]:
    """What was measured: workload, phase, shape, sparsity, device, tensors, baseline."""
    workload, records = report.workload, [result.record for result in report.results]
    segments = [
        f"{workload.phase} {workload.name}",
        f"{text.size(workload.seq)} tokens",
        f"batch {workload.batch}",
        f"{workload.q_heads} q / {workload.kv_heads} kv heads × {workload.head_dim}",
        workload.dtype,
        sparsity(workload.key_sparsity, workload.value_sparsity, _achieved(records)),
    ]
    if workload.is_chunk:
        segments.insert(2, f"last {text.size(workload.q_len)} as queries")
    segments += [f"{name} {count}" for name in ("sink", "local") if (count := getattr(workload, name, 0))]
    segments += unique(record.device for record in records)
    segments.append(workload.tensors)
    baselines = unique(record.baseline for record in records)
    segments += [f"baseline {name}" for name in baselines]
    if not baselines and any(record.status == "ok" for record in records):
        segments.append("no baseline: no dense method ran")
    return [segment for segment in segments if segment]


def sparsity(key: float, value: float, achieved: list[float] | None = None) -> str:
    """ "sparsity 0.5 (achieved 0.499)"; K and V apart where they differ."""
    words = f"sparsity {key:g}" if key == value else f"sparsity K {key:g} V {value:g}"
    shown = unique(f"{share:.4g}" for share in sorted(achieved or []))
    if shown and shown != [f"{(key + value) / 2:.4g}"]:
        words += f" (achieved {'-'.join([shown[0], shown[-1]] if len(shown) > 1 else shown)})"
    return words


def alarms(records: list[Record]) -> list[str]:
    """A line when results failed their check."""
    wrong = [record.method for record in records if record.status == "incorrect"]
    if not wrong:
        return []
    return [f"{text.listed(wrong)} failed the check against the fp32 reference: no speedup is given."]


def inconclusive(record: Record) -> bool:
    """Whether the interval of the speedup holds 1: no difference was shown."""
    if record.speedup_lo is None or record.speedup_hi is None:
        return False
    return record.speedup_lo <= 1 <= record.speedup_hi


def verdict(record: Record) -> str:
    """How a record compares to the baseline; see `Row.verdict`."""
    if record.status != "ok":
        return ""
    if record.method == record.baseline:
        return "baseline"
    if record.speedup is None:
        return ""
    if inconclusive(record):
        return "inconclusive"
    return "faster" if record.speedup > 1 else "slower"


def machine_facts(machine: dict[str, Any]) -> list[tuple[str, str]]:
    """Label and text: what ran this, what was in the way, what is missing and how to get it."""
    facts = [("warning", line) for line in machine.get("warnings") or []]
    facts += [("missing", line) for line in machine.get("missing") or []]
    gpu, cpu = machine.get("gpu"), machine.get("cpu")
    if isinstance(gpu, dict):
        words = [_words(gpu, _GPU_WORDS)]
        words += [
            f"{name} {'on' if gpu[key] else 'off'}" for key, name in _GPU_SWITCHES.items() if gpu.get(key) is not None
        ]
        facts.append(("gpu", ", ".join(filter(None, words))))
    if isinstance(cpu, dict):
        cores = cpu.get("cores", cpu.get("usable_cores"))
        quota = cpu.get("quota_cores")
        limited = quota is not None and cores is not None and quota < cores
        facts.append(("cpu", _words({**cpu, "cores": cores, "quota_cores": quota if limited else None}, _CPU_WORDS)))
    versions = machine.get("versions")
    if isinstance(versions, dict):
        facts.append(("versions", ", ".join(f"{name} {version}" for name, version in versions.items() if version)))
    other = {name: value for name, value in machine.items() if isinstance(value, (str, int, float)) and value != ""}
    facts.append(("machine", ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in other.items())))
    return [(label, words) for label, words in facts if words]


def sustained(records: list[Record]) -> list[tuple[str, str]]:
    """Label and text where methods ran before their samples; a run does so for all or for none."""
    return [
        ("sustained", f"each method alone for {seconds:g} s before each of its samples")
        for seconds in unique(record.sustain_s for record in records)
        if seconds
    ]


def unique(items: Iterable[Any]) -> list[Any]:
    """The items that are something, each once, in order."""
    return list(dict.fromkeys(item for item in items if item is not None and item != ""))


def _rows(report: Report, records: list[Record], ok: list[Record]) -> tuple[dict[str, str], list[Row]]:
    unit, length = text.time_unit([record.time_us for record in ok if record.time_us is not None])
    byte_name, byte_length = text.byte_unit([record.kv_bytes for record in ok if record.kv_bytes is not None])
    rate = report.workload.phase.rate
    rate_field, rate_name = rate.column, rate.unit
    headers = {
        "time": f"time {unit}",
        "spread": "p25-p75",
        "speedup": "speedup",
        "rate": rate_name,
        "percent": "peak",
        "kv": f"KV {byte_name}",
        "kv_ratio": "ratio",
        "error": "error",
    }

    def us(value: float) -> str:
        return text.digits(value / length)

    columns: dict[str, Callable[[Record], str]] = {
        "time": lambda r: _if(r.time_us, us),
        "spread": lambda r: f"{_if(r.time_us_p25, us)}-{_if(r.time_us_p75, us)}" if r.time_us_p25 is not None else "",
        "speedup": lambda r: "baseline" if verdict(r) == "baseline" else _if(r.speedup, text.ratio),
        "interval": _interval,
        "rate": lambda r: _if(getattr(r, rate_field), text.rate),
        "percent": lambda r: _if(r.percent_of_peak, "{:.0f}%".format),
        "kv": lambda r: _if(r.kv_bytes, lambda count: text.amount(count, byte_length)),
        "kv_ratio": lambda r: _if(r.kv_ratio, text.ratio),
        "error": lambda r: _if(r.rel_error, text.error),
    }
    texts = {key: [cell(record) for record in ok] for key, cell in columns.items()}
    for key in ("time", "rate", "kv"):
        texts[key] = text.on_point(texts[key])
    cells = {id(record): {key: texts[key][at] for key in columns} for at, record in enumerate(ok)}
    return headers, [
        Row(
            record.method,
            record.status,
            cells.get(id(record), {}),
            instead(record) if record.status != "ok" else "",
            verdict(record),
            record.marks,
        )
        for record in records
    ]


def instead(record: Record) -> str:
    """What a row without numbers says."""
    status = record.status.upper() if record.status == "incorrect" else record.status
    words = f"{status}: {record.reason}" if record.reason else status
    if record.status == "incorrect" and record.rel_error is not None:
        words += f" (error {text.error(record.rel_error)})"
    return words


def _interval(record: Record) -> str:
    state = verdict(record)
    return {"inconclusive": state, "faster": _bounds(record), "slower": _bounds(record)}.get(state, "")


def _bounds(record: Record) -> str:
    if record.speedup_lo is None or record.speedup_hi is None:
        return ""
    return f"[{text.ratio_digits(record.speedup_lo)}, {text.ratio_digits(record.speedup_hi)}]"


def _achieved(records: list[Record]) -> list[float]:
    """Of the methods that prune: a dense method's achieved 0 is no news."""
    return [
        record.achieved_sparsity
        for record in records
        if record.achieved_sparsity is not None and record.family not in DENSE_FAMILIES
    ]


def _facts(report: Report, records: list[Record], ok: list[Record]) -> list[tuple[str, str]]:
    facts = [("peak", line) for line in _peaks(report, ok)]
    if any(verdict(record) == "inconclusive" for record in ok):
        which = [f"{record.method} {_bounds(record)}" for record in ok if verdict(record) == "inconclusive"]
        facts.append(("compared", f"{text.listed(which)}: the interval of the speedup holds 1, no difference shown"))
    stops: dict[str, list[str]] = defaultdict(list)
    for record in ok:
        if record.samples is not None:
            stops[record.stop or "done"].append(f"{record.method} {record.samples}")
    if stops:
        facts.append(("samples", "; ".join(f"{stop}: {', '.join(names)}" for stop, names in stops.items())))
    caches: dict[str, list[str]] = defaultdict(list)
    for record in ok:
        if record.cache:
            caches[record.cache].append(record.method)
    if len(caches) == 1:
        facts.append(("cache", next(iter(caches))))
    else:
        facts += [("cache", f"{label}: {', '.join(names)}") for label, names in caches.items()]
    facts += sustained(ok)
    if telemetry := _telemetry(ok):
        facts.append(("telemetry", telemetry))
    throttled = [record for record in ok if record.throttled]
    if throttled:
        which = ", ".join(_clocked(record) for record in throttled)
        facts.append(("throttled", f"* {which}: {held_back(throttled)}"))
    if any(record.shared for record in ok):
        facts.append(("shared", "+ others used the device while these were sampled, in turn"))
    facts += [("note", f"{result.record.method}: {result.note}") for result in report.results if result.note]
    if report.interrupted:
        facts.append(("stopped", "the run was interrupted; rows that were not done say so"))
    return facts


def held_back(throttled: list[Record]) -> str:
    """What "*" means: a GPU's clocks were held down, or a CPU's threads were stopped."""
    if all(record.throttle_reasons == "cpu_quota" for record in throttled):
        return "a CPU quota stopped the threads while sampling"
    return "the clock was held down while sampling"


def _clocked(record: Record) -> str:
    seen = [
        record.throttle_reasons,
        _if(record.throttled_share, lambda share: f"{share:.0%} of samples"),
        _if(record.sm_clock_mhz, "{:.0f} MHz".format),
        _if(record.power_w, "{:.0f} W".format),
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
        known = sorted(value for record in ok if (value := getattr(record, column)) is not None)
        if known:
            words.append(form.format("-".join(unique(f"{value:.0f}" for value in (known[0], known[-1])))))
    return ", ".join(words)


def _peaks(report: Report, ok: list[Record]) -> list[str]:
    """The probes that percentages are against; with the methods where there are several."""
    users: dict[str, list[str]] = defaultdict(list)
    for record in ok:
        if record.peak:
            users[record.peak].append(record.method)
    lines = []
    for name, methods in users.items():
        peak = report.peaks.get(name)
        ceiling = f"{name} probe, {text.digits(peak.value)} {peak.unit}" if peak else f"{name} probe"
        of = f" ({', '.join(methods)})" if len(users) > 1 else ""
        lines.append(f"{ceiling}, measured here in this run; percentages are of it{of}")
    return lines


def _words(facts: dict[str, Any], forms: dict[str, str]) -> str:
    return ", ".join(form.format(facts[key]) for key, form in forms.items() if facts.get(key) not in (None, ""))


def _if(value: Any, form: Callable[[Any], str]) -> str:
    return "" if value is None else form(value)
