"""The profiling hand-off: the same run once more, under a tool that shows what is inside a number.

    the run as it is  ->  its table, the result
    per report:           hsbench (a new process, few samples, no timing) under nsys, ncu or torch.profiler
                          -> a report file -> checked -> a summary of kernels by method, and how to open it

``base`` says what a profiler is, and has what they share; one file per profiler says how to find it, its command line,
what a good report is, and how to read a summary from it. ``child`` is the other side: what the re-run shows to the
profiler that it is under. Times taken under a profiler go nowhere: a summary shows shares.

Importing the room imports no torch.
"""

from __future__ import annotations

from hsbench.errors import UnavailableError
from hsbench.kernels.device import Device
from hsbench.profiling.base import Job, Profiler, report_stem, unused_stem
from hsbench.profiling.child import Orders
from hsbench.profiling.ncu import Ncu
from hsbench.profiling.nsys import Nsys
from hsbench.profiling.summary import summary_lines
from hsbench.profiling.torch_trace import TorchTrace

__all__ = ["PROFILERS", "Job", "Nsys", "Orders", "Profiler", "choose", "report_stem", "summary_lines", "unused_stem"]

PROFILERS: dict[str, type[Profiler]] = {profiler.name: profiler for profiler in (Nsys, Ncu, TorchTrace)}
"""By the name that ``--profiler`` takes; the first is the one to take where nobody asks."""


def choose(name: str | None, device: Device) -> tuple[Profiler, str | None]:
    """The profiler of that name, or the best one here: nsys where it is found and the run is on a GPU, else torch.

    Returns:
        The profiler, and one line that the user should read: why it is not nsys, or why it will see little.

    Raises:
        UnavailableError: asked for by name, and not here, or blind to work on ``device``.
    """
    if name is None:
        reason = Nsys().little_to_see(device) or Nsys().missing()
        return (Nsys(), None) if reason is None else (TorchTrace(), f"--profile takes torch.profiler: {reason}")
    profiler = PROFILERS[name]()
    if reason := profiler.nothing_to_see(device) or profiler.missing():
        raise UnavailableError(f"--profiler {name}: {reason}; or give --profiler torch")
    reason = profiler.little_to_see(device)
    return profiler, reason and f"--profiler {name}: {reason}; --profiler torch shows more"
