"""Nsight Compute: what a method's kernels do to the chip, counter by counter."""

from __future__ import annotations

import csv

from hsbench.kernels.device import Device
from hsbench.profiling.base import Job, Program, ask
from hsbench.profiling.summary import Line, by_share, short_name

#: A sample of ours launches one kernel or two. Of a method that launches hundreds, the first say enough: each is run
#: again for every group of counters.
_LAUNCHES = 8
_BUSY = "gpu__time_duration.sum"
_METRICS = {
    "SM": "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "memory": "gpu__compute_memory_throughput.avg.pct_of_peak_sustained_elapsed",
    "DRAM": "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed",
    "warps": "sm__warps_active.avg.pct_of_peak_sustained_active",
}
_REGISTERS = "launch__registers_per_thread"


class Ncu(Program):
    name = "ncu"
    product = "Nsight Compute"
    suffix = ".ncu-rep"
    rounds = 1
    # The limit on launches counts over the whole process: with all methods in one, the first would use it up.
    one_report_per_method = True

    def nothing_to_see(self, device: Device) -> str | None:
        if device.is_cuda:
            return None
        return "ncu shows CUDA kernels and this run is on the CPU: give --device cuda"

    def command(self, job: Job) -> list[str]:
        return [
            self.path,
            # What is counted is what the run itself opens and closes the profiler around: its samples (see child).
            "--target-processes",
            "all",
            "--profile-from-start",
            "off",
            "--nvtx",  # so that the report names each launch's ranges; nothing is chosen by them
            "--clock-control",
            "none",
            "--set",
            "detailed",
            "--launch-count",
            str(_LAUNCHES),
            "--export",
            str(job.report),
            *job.command,
        ]

    def lines(self, job: Job) -> list[Line]:
        command = [self.path, "--import", str(job.report), "--page", "raw", "--csv", "--print-units", "base"]
        return ask(command, lambda output: parse_raw(output, job.methods[0]))

    def remedy(self, output: str) -> str | None:
        if "ERR_NVGPUCTRPERM" not in output:
            return None
        return (
            "the driver keeps its performance counters for administrators: run as one, or have one set "
            "NVreg_RestrictProfilingToAdminUsers=0 (developer.nvidia.com/ERR_NVGPUCTRPERM), or give --profiler nsys"
        )


def parse_raw(output: str, method: str) -> list[Line]:
    """Kernels of one method, from ncu's raw page as CSV: headings, units, then a row per launch.

    The percentages of kernels that ran more than once are means.

    Raises:
        ValueError, KeyError: not such a text.
    """
    table = [line for line in output.splitlines() if line.startswith('"')]
    launches: dict[str, list[dict[str, str]]] = {}
    for row in csv.DictReader(table):
        if row["ID"].strip():  # the row of units has none
            launches.setdefault(short_name(row["Kernel Name"]), []).append(row)
    lines = []
    for kernel, rows in launches.items():
        metrics = {name: f"{_mean(rows, metric):.0f}%" for name, metric in _METRICS.items() if rows[0].get(metric)}
        if registers := rows[0].get(_REGISTERS):
            metrics["registers"] = f"{_number(registers):.0f}"
        busy = sum(_number(row[_BUSY]) for row in rows)
        lines.append(Line(method, kernel, len(rows), busy, metrics))
    return by_share(lines, [method])


def _mean(rows: list[dict[str, str]], metric: str) -> float:
    return sum(_number(row[metric]) for row in rows) / len(rows)


def _number(text: str) -> float:
    return float(text.replace(",", ""))
