"""torch.profiler: a Chrome trace of operators and ranges, and of kernels where there is a GPU; works everywhere."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from hsbench.kernels.device import Device
from hsbench.profiling.base import Job, Profiler, ProfilerError
from hsbench.profiling.summary import Line, Span, joined, short_name, with_unseen

#: What of a sample no operator covers. Our own kernels on the CPU are called past torch, so that they are all of it.
_UNSEEN = "outside torch (compiled code, Python)"

Event = dict[str, Any]


class TorchTrace(Profiler):
    name = "torch"
    suffix = ".trace.json"

    def command(self, job: Job) -> list[str]:
        return list(job.command)  # the run records itself

    def lines(self, job: Job) -> list[Line]:
        try:
            events = json.loads(job.report.read_text())["traceEvents"]
        except (ValueError, KeyError) as error:
            raise ProfilerError(f"the trace {job.report} cannot be read ({error})") from error
        return parse_trace(events, job.device)

    def work(self, device: Device) -> str:
        return "kernel" if device.is_cuda else "operator"

    def how_to_open(self, report: Path) -> str:
        return f"https://ui.perfetto.dev (Open trace file), or chrome://tracing: {report}"


def ranges_of(events: list[Event]) -> list[Event]:
    """Our ranges among a trace's events."""
    return [event for event in events if event.get("cat") == "user_annotation" and event.get("ph") == "X"]


def samples_of(events: list[Event]) -> list[tuple[Span, Event]]:
    """Each range of a sample: a span named by its method (the range around it), and the event itself."""
    ranges = sorted(ranges_of(events), key=lambda event: (event["ts"], -event["dur"]))
    found: list[tuple[Span, Event]] = []
    open_ranges: list[Event] = []
    for event in ranges:
        while open_ranges and not _holds(open_ranges[-1], event):
            open_ranges.pop()
        if event["name"] == "sample" and open_ranges:
            found.append((Span(open_ranges[-1]["name"], event["ts"], event["ts"] + event["dur"]), event))
        open_ranges.append(event)
    return found


def parse_trace(events: list[Event], device: Device) -> list[Line]:
    """Kernels by method on a GPU; on the CPU operators, each without those that it calls, and what of the samples no
    operator covers."""
    samples = samples_of(events)
    spans = [span for span, _ in samples]
    if device.is_cuda:
        return _kernels(events, spans)
    threads = {(event["pid"], event["tid"]) for _, event in samples}
    operators = [event for event in events if event.get("cat") == "cpu_op" and (event["pid"], event["tid"]) in threads]
    return with_unseen(joined(_without_inner(operators), spans), spans, _UNSEEN)


def _kernels(events: list[Event], samples: list[Span]) -> list[Line]:
    """Kernels count where they were launched: the device's clock need not agree with the host's."""
    launched = {
        event["args"]["correlation"]: (event["ts"], event["ts"] + event["dur"])
        for event in events
        if event.get("cat") in ("cuda_runtime", "cuda_driver") and "correlation" in event.get("args", {})
    }
    kernels = [
        Span(short_name(event["name"]), *launched[event["args"]["correlation"]], busy=event["dur"])
        for event in events
        if event.get("cat") in ("kernel", "gpu_memset", "gpu_memcpy")
        and event.get("args", {}).get("correlation") in launched
    ]
    return joined(kernels, samples)


def _without_inner(operators: list[Event]) -> list[Span]:
    """A span per operator that is busy for as long as no operator inside it is."""
    spans: list[Span] = []
    inside: list[tuple[Event, int]] = []  # the operators that are open, and where their spans are
    for event in sorted(operators, key=lambda event: (event["ts"], -event["dur"])):
        while inside and not _holds(inside[-1][0], event):
            inside.pop()
        if inside:
            at = inside[-1][1]
            spans[at] = replace(spans[at], busy=spans[at].busy - event["dur"])
        inside.append((event, len(spans)))
        spans.append(Span(event["name"], event["ts"], event["ts"] + event["dur"], busy=event["dur"]))
    return spans


def _holds(outer: Event, inner: Event) -> bool:
    same_thread = (outer["pid"], outer["tid"]) == (inner["pid"], inner["tid"])
    return same_thread and outer["ts"] <= inner["ts"] and inner["ts"] + inner["dur"] <= outer["ts"] + outer["dur"]
