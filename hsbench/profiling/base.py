"""What a profiler is, and what all of them need: naming a report, running the tool, judging its end."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from hsbench.errors import HsbenchError, UnavailableError
from hsbench.kernels.device import Device
from hsbench.machine.software import find_tool
from hsbench.problem.shapes import load_shapes
from hsbench.problem.workload import PAPER_PRUNER, Workload
from hsbench.profiling.summary import Line
from hsbench.report import text

Parsed = TypeVar("Parsed")

_LAST_LINES = 12  # of a tool that failed
_GRACE_S = (10.0, 3.0)  # after SIGINT, for it to finish its report; after SIGTERM
_LOOK_S = 0.5  # how often a wait looks whether it is still wanted


class ProfilerError(HsbenchError):
    """The profiler failed, or left no report worth opening. ``output`` holds the last lines that it printed."""

    def __init__(self, message: str, output: str = "") -> None:
        super().__init__(message)
        self.output = last_lines(output)


@dataclass(frozen=True)
class Job:
    """One report to make.

    Attributes:
        command: the run, as the command line of a process that is to be looked at.
        stem: the report without its suffix; the folder is there, and no file in it has the name. It may hold dots.
        suffix: the report's.
        methods: the rows to profile, all of which ran ok without a profiler.
        device: ``cpu`` or ``cuda``.
    """

    command: tuple[str, ...]
    stem: Path
    suffix: str
    methods: tuple[str, ...]
    device: Device

    @property
    def report(self) -> Path:
        """The file to make."""
        return self.stem.parent / (self.stem.name + self.suffix)


class Profiler(ABC):
    """A tool that runs a command and leaves a report.

    Attributes:
        name: what ``--profiler`` takes.
        suffix: of its report's file name.
        rounds: samples of each method in the profiled run.
        one_report_per_method: whether each method gets a run and a report of its own.
    """

    name: str
    suffix: str
    rounds: int = 3
    one_report_per_method: bool = False

    def missing(self) -> str | None:
        """Why this machine lacks it, with the remedy; None if it is here."""
        return None

    def nothing_to_see(self, device: Device) -> str | None:
        """Why it cannot make a report of a run on that device, with the remedy; None if it can."""
        return None

    def little_to_see(self, device: Device) -> str | None:
        """Why its report of a run on that device will hold little; None if it is made for such runs."""
        return None

    @abstractmethod
    def command(self, job: Job) -> list[str]:
        """The command line that makes the report."""

    @abstractmethod
    def lines(self, job: Job) -> list[Line]:
        """What the report says of each method, from its largest share down.

        Raises:
            ProfilerError: the report cannot be read.
        """

    def no_report(self, device: Device) -> str | None:
        """What to think of first where a run on that device ends well and leaves no report at all; None for nothing."""
        return None

    def work(self, device: Device) -> str:
        """What one line of its summary is of."""
        return "kernel"

    def how_to_open(self, report: Path) -> str:
        """The command, or the page, that shows the report."""
        return f"{self.name}-ui {shlex.quote(str(report))}"

    def remedy(self, output: str) -> str | None:
        """What to do about a failure that it explains in ``output``; None for one that is not known."""
        return None

    def make(self, job: Job, still_wanted: Callable[[], None] | None = None) -> list[Line]:
        """Runs the command, checks the report, and reads its summary. Ctrl-C ends the tool, and leaves no report.

        Args:
            still_wanted: see :func:`run_tool`.

        Raises:
            ProfilerError: the tool failed, or its report is missing or empty.
            UnavailableError: the tool failed for lack of something that this machine could give it.
        """
        try:
            code, output = run_tool(self.command(job), still_wanted)
            if remedy := self.remedy(output):
                raise UnavailableError(f"--profiler {self.name}: {remedy}")
            if code != 0:
                raise ProfilerError(f"the run under {self.name} ended with exit code {code}", output)
        except BaseException:  # Ctrl-C, too
            remove_reports(job.stem)
            raise
        if not job.report.is_file():
            why = self.no_report(job.device)
            raise ProfilerError(f"{self.name} left no report {job.report}{f': {why}' if why else ''}", output)
        if job.report.stat().st_size == 0:
            raise ProfilerError(f"{self.name} left an empty report {job.report}", output)
        lines = self.lines(job)
        if not lines:
            raise ProfilerError(f"the report {job.report} holds no sample of {', '.join(job.methods)}", output)
        return lines


class Program(Profiler):
    """A profiler that is a program of NVIDIA's.

    Attributes:
        product: what it belongs to, as NVIDIA calls it.
    """

    product: str

    @property
    def path(self) -> str:
        """The program; its bare name where it is missing."""
        return find_tool(self.name) or self.name

    def missing(self) -> str | None:
        if find_tool(self.name) is not None:
            return None
        page = f"developer.nvidia.com/{self.product.lower().replace(' ', '-')}"
        return (
            f"{self.name} is not on the PATH: install {self.product} "
            f"(it comes with the CUDA toolkit, or by itself from {page})"
        )


def report_stem(workload: Workload, method: str | None = None) -> str:
    """A report's file name without suffix: phase, shape and sparsity, and the method where it is of one alone."""

    def size(tokens: int) -> str:
        return text.size(tokens).replace(",", "")

    w = workload
    parts = [w.phase.name, w.name]
    if w.name not in load_shapes():
        parts.append(f"h{w.q_heads}x{w.kv_heads}x{w.head_dim}")
    parts += [size(w.seq), f"b{w.batch}", w.dtype]
    if w.is_chunk:
        parts.append(f"q{size(w.q_len)}")
    if w.key_sparsity == w.value_sparsity:
        parts.append(f"s{w.key_sparsity:g}")
    else:
        parts.append(f"k{w.key_sparsity:g}-v{w.value_sparsity:g}")
    if w.pruner != PAPER_PRUNER:
        parts.append(w.pruner.replace(":", "-"))
    if method is not None:
        parts.append(method.replace(":", "-"))
    return "-".join(parts)


def unused_stem(folder: Path, stem: str) -> str:
    """``stem``, or the first of ``stem-2``, ``stem-3``, ... that no file in the folder has: nothing is overwritten."""
    taken = {path.name for path in folder.iterdir()}
    number, candidate = 1, stem
    while any(name.startswith(f"{candidate}.") for name in taken):
        number += 1
        candidate = f"{stem}-{number}"
    return candidate


def remove_reports(stem: Path) -> None:
    """Removes what an attempt left: the report, and files beside it that differ in suffix."""
    for path in stem.parent.iterdir():
        if path.name.startswith(f"{stem.name}.") and path.is_file():
            path.unlink(missing_ok=True)


def last_lines(output: str) -> str:
    """The last lines of a tool's output that say something."""
    return "\n".join([line.rstrip() for line in output.splitlines() if line.strip()][-_LAST_LINES:])


def run_tool(command: Sequence[str], still_wanted: Callable[[], None] | None = None) -> tuple[int, str]:
    """Runs a tool to its end; returns its exit code and all that it printed.

    It gets a process group of its own: on Ctrl-C the group is interrupted once, as a whole, and given time to end; then
    no process of it outlives this call.

    Args:
        still_wanted: called now and then while the tool runs; raises if it was interrupted meanwhile. For an exception
            of a signal's that came within a callback (a finalizer, say), where Python swallows it.
    """
    # Into a file: a pipe would be held open by a service that the tool leaves running.
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = _wait(process, still_wanted)
        except BaseException:
            try:
                for number, grace in zip((signal.SIGINT, signal.SIGTERM), _GRACE_S, strict=True):
                    _signal(process, number)
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(timeout=grace)
                        break
            finally:  # an impatient second Ctrl-C, too
                _signal(process, signal.SIGKILL)  # also what the tool itself has left behind
                process.wait()
            raise
        output.seek(0)
        return code, output.read().decode(errors="replace")


def _wait(process: subprocess.Popen[bytes], still_wanted: Callable[[], None] | None) -> int:
    if still_wanted is None:
        return process.wait()
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(timeout=_LOOK_S)
        still_wanted()


def ask(command: Sequence[str], parse: Callable[[str], Parsed]) -> Parsed:
    """What a tool says of a report.

    Raises:
        ProfilerError: it fails, or says something else than it should.
    """
    code, output = run_tool(command)
    if code != 0:
        raise ProfilerError(f"{shlex.join(command)} ended with exit code {code}", output)
    try:
        return parse(output)
    except (ValueError, KeyError, IndexError) as error:
        said = f"{type(error).__name__}: {error}"
        raise ProfilerError(f"{shlex.join(command)} gave something else than expected ({said})", output) from error


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
