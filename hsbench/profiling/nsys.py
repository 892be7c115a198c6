"""Nsight Systems: the time line of a run, from the first sample to the last."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hsbench.kernels.device import Device
from hsbench.measure import nvtx
from hsbench.measure.ranges import DOMAIN
from hsbench.profiling.base import Job, ProfilerError, Program, ask
from hsbench.profiling.child import CAPTURE
from hsbench.profiling.nsys_export import read_export
from hsbench.profiling.summary import Line

_IMPORTER = "QdstrmImporter"  # makes the report of what was recorded


class Nsys(Program):
    name = "nsys"
    product = "Nsight Systems"
    suffix = ".nsys-rep"

    def missing(self) -> str | None:
        if reason := super().missing():
            return reason
        if reason := nvtx.why_missing():
            return f"nsys would hear of none of hsbench's ranges, as {reason}"
        return _without_importer(Path(self.path))

    def little_to_see(self, device: Device) -> str | None:
        if device.is_cuda:
            return None
        return "nsys shows CUDA work and this run is on the CPU, of which it shows our ranges and calls into the OS"

    def work(self, device: Device) -> str:
        return "kernel" if device.is_cuda else "OS call"

    def no_report(self, device: Device) -> str | None:
        return None if device.is_cuda else f"none of hsbench's ranges reached it ({_DEAF})"

    def command(self, job: Job) -> list[str]:
        # Recorded is what lies between the first sample and the last. CUDA's own calls open the capture where there is
        # CUDA: that needs no range to get through, and a time line of kernels alone is still worth having. On a CPU
        # they would never be made. There a range opens it, without which the report would hold nothing of ours anyway.
        if job.device.is_cuda:
            what = ["--trace=cuda,nvtx", "--capture-range=cudaProfilerApi", "--cuda-graph-trace=node"]
        else:
            what = ["--trace=nvtx,osrt", "--capture-range=nvtx", f"--nvtx-capture={CAPTURE}@{DOMAIN}"]
        return [
            self.path,
            "profile",
            *what,
            "--capture-range-end=stop",
            "--sample=none",
            "--cpuctxsw=none",  # 2022.4 hangs with it where there are no perf events, in a container, say
            f"--output={job.stem}",  # nsys adds the suffix
            *job.command,
        ]

    def lines(self, job: Job) -> list[Line]:
        # Read from the export, not from what nsys says: the names and columns of its own reports differ by version
        # (gputrace, cuda_gpu_trace, ...); the tables that they are made of do not, from 2022.4 on at least.
        with tempfile.TemporaryDirectory() as folder:
            export = Path(folder) / "report.sqlite"
            options = ["--type=sqlite", "--force-overwrite=true", f"--output={export}"]
            said = ask([self.path, "export", *options, str(job.report)], str)
            if not export.is_file():
                raise ProfilerError(f"nsys exported nothing from the report {job.report}", said)
            has_ranges, lines = read_export(export, job.device)
        if not has_ranges:
            raise ProfilerError(f"the report {job.report} holds none of hsbench's ranges ({_DEAF})", said)
        return lines

    def remedy(self, output: str) -> str | None:
        if "importer binary" not in output:
            return None
        return f"this nsys ({self.path}) lacks {_IMPORTER}, or a library of its, to make a report with; reinstall it"


#: What to do where NVTX is here, and nsys hears nothing of it all the same.
_DEAF = "update Nsight Systems, unset NVTX_INJECTION64_PATH if you set it, or give --profiler torch"


def _without_importer(program: Path) -> str | None:
    """Why an nsys as Debian packages it leaves no report, with the remedy; None for one that does, or another's.

    Debian splits it over ``/usr/lib/nsight-systems`` and, the folder in which nsys looks for its importer,
    ``/usr/lib/x86_64-linux-gnu/nsight-systems``; no package makes the link between them.
    """
    target = program.resolve().parent.parent
    host = target.parent.parent / target.name
    if target.name != "nsight-systems" or target.parent.parent.name != "lib":
        return None
    if any(target.glob(f"host-linux-*/{_IMPORTER}")):
        return None
    found = next(host.glob(f"host-linux-*/{_IMPORTER}"), None)
    how = f"ln -s {found.parent} {target}/" if found else "apt-get install nsight-systems"
    return f"nsys does not find its {_IMPORTER}, without which it leaves no report: {how}"
