"""Nsight Systems: the time line of a run, from the first sample to the last."""

from __future__ import annotations

import csv

from hsbench.measure.ranges import DOMAIN
from hsbench.profiling.base import Job, Program, ask
from hsbench.profiling.summary import Line, Span, joined, short_name

_REPORTS = ("nvtx_gpu_proj_trace", "cuda_gpu_trace")


class Nsys(Program):
    name = "nsys"
    product = "Nsight Systems"
    suffix = ".nsys-rep"

    def little_to_see(self, device: str) -> str | None:
        if device.startswith("cuda"):
            return None
        return "nsys shows CUDA work and this run is on the CPU"

    def command(self, job: Job) -> list[str]:
        return [
            self.path,
            "profile",
            "--trace=cuda,nvtx",
            "--sample=none",
            "--cpuctxsw=none",
            "--capture-range=cudaProfilerApi",
            "--capture-range-end=stop",
            "--cuda-graph-trace=node",
            f"--output={job.stem}",  # nsys adds the suffix
            *job.command,
        ]

    def lines(self, job: Job) -> list[Line]:
        options = ["--force-export=true", f"--report={','.join(_REPORTS)}", "--format=csv"]
        return ask([self.path, "stats", *options, str(job.report)], parse_stats)


def parse_stats(output: str) -> list[Line]:
    """Kernels by method, from what ``nsys stats`` prints of our two reports as CSV.

    A range on the GPU's time line runs from the first kernel that was launched in it to the end of the last. So a
    kernel belongs to the sample in whose stretch it lies, and the sample to the method whose range is its parent.

    Raises:
        ValueError, KeyError: not such a text.
    """
    ranges: list[dict[str, str]] = []
    work: list[dict[str, str]] = []
    for table in _tables(output):
        if "Projected Start (ns)" in table[0]:
            ranges = table
        elif "CorrId" in table[0]:
            work = table
    named = {row["RangeId"]: _own_name(row["Name"]) for row in ranges if row["RangeId"].isdigit()}
    samples = [
        _span(named[row["ParentId"]], row["Projected Start (ns)"], row["Projected Duration (ns)"])
        for row in ranges
        if _own_name(row["Name"]) == "sample" and row["ParentId"] in named
    ]
    kernels = (_span(short_name(row["Name"]), row["Start (ns)"], row["Duration (ns)"]) for row in work)
    return joined(kernels, samples)


def _tables(output: str) -> list[list[dict[str, str]]]:
    """The tables in a text: each begins with a line of headings, two of which are in ns, and ends with an empty line
    or another table. What nsys says of its own work in between is none."""
    tables: list[list[str]] = []
    inside = False
    for line in output.splitlines():
        if line.count("(ns)") >= 2:
            tables.append([line])
            inside = True
        elif not line.strip() or line.startswith(("Processing ", "NOTICE", "SKIPPED", "WARNING", "ERROR")):
            inside = False
        elif inside:
            tables[-1].append(line)
    return [list(csv.DictReader(table)) for table in tables if len(table) > 1]


def _own_name(name: str) -> str:
    """A range's name without its domain, which newer versions put before it."""
    return name.strip().removeprefix(f"{DOMAIN}:").removeprefix(":")


def _span(name: str, start: str, duration: str) -> Span:
    return Span(name, float(start), float(start) + float(duration))
