"""The same cells once more, under a profiler: this side starts it, and the run that it starts is here too."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from hsbench.cli.exit_codes import INTERNAL, INTERRUPTED, OK
from hsbench.cli.output import writing
from hsbench.cli.request import Cell, Plan
from hsbench.cli.streams import say
from hsbench.errors import UsageError
from hsbench.kernels.device import Device
from hsbench.problem.workload import load_profiles

if TYPE_CHECKING:
    from hsbench.profiling import Job, Profiler
    from hsbench.profiling.child import Orders
    from hsbench.results import Report


def hand_off(plan: Plan, profiler: Profiler, reports: Sequence[Report]) -> None:
    """Make a report of every cell, of the rows that ran ok; all that is said of them goes to stderr.

    Raises:
        UsageError: the folder of the reports cannot be made after all.
        ProfilerError, UnavailableError: the profiler failed; reports made until then stay.
    """
    from hsbench.profiling import summary_lines
    from hsbench.profiling.base import ProfilerError

    if not any(_ran_ok(report) for report in reports):
        say("hsbench: nothing to profile: no row ran ok")
        return
    try:
        plan.profile_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        remedy = f"cannot be made ({error.strerror or error}); give another folder"
        raise UsageError("--profile-dir", plan.profile_dir, remedy) from error
    _free_gpu_memory(plan.device)
    for cell, report in zip(plan.cells, reports, strict=True):
        for job in _jobs(plan, profiler, cell, report):
            say(f"hsbench: profiling {cell.label} with {profiler.name}: {', '.join(job.methods)}")
            try:
                lines = profiler.make(job)
            except ProfilerError as error:
                say(*(f"  | {line}" for line in error.output.splitlines()))
                raise
            table = summary_lines(lines, profiler.work(job.device))
            say(f"profile    {job.report}", *(f"           {line}" for line in table))
            say(f"           profiled run, no timing: shares are of a method's time under {profiler.name}")
            say(f"open       {profiler.how_to_open(job.report)}")


def run_profiled(plan: Plan, given: Orders) -> int:
    """Carry out a plan of one cell under the profiler that started this process: few samples, no times.

    Returns:
        0; or, where a row that ran ok without a profiler did not now, 1 and its reason on stderr.
    """
    from hsbench import measure
    from hsbench.profiling.child import recording
    from hsbench.run import experiment

    # Nothing is sustained, whatever the plan says: that is for the clocks of what is timed, nothing is timed here, and
    # the profiler would record run after run that is no sample.
    settings = experiment.Settings(
        min_samples=given.rounds, max_samples=given.rounds, target=0.0, cache=plan.settings.cache
    )
    (cell,) = plan.cells
    with measure.annotate("run"):
        report = experiment.run_workload(
            cell.workload,
            methods=plan.methods,
            device=plan.device,
            settings=settings,
            captured=cell.captured,
            observer=experiment.Observer(),
            capture=recording(given, plan.device),
        )
    failed = [result.record for result in report.results if result.record.status != "ok"]
    with writing():
        for result in report.results:
            print(f"{result.record.method}: {result.record.status}, profiled run, no timing")
    for record in failed:
        say(f"hsbench: {record.method}: {record.status} under the profiler: {record.reason}")
    return INTERRUPTED if report.interrupted else INTERNAL if failed else OK


def command_of(cell: Cell, plan: Plan, methods: Sequence[str]) -> list[str]:
    """The command line that runs one cell of a plan by itself under a profiler, every choice of it spelled out."""
    w = cell.workload
    if cell.captured is not None:
        source = ["--kv", str(cell.captured.path), "--layer", str(cell.captured.layer)]
    else:
        source = ["--tensors", w.tensors]
    options = {
        "--seq": w.seq,
        "--batch": w.batch,
        "--q-heads": w.q_heads,
        "--kv-heads": w.kv_heads,
        "--head-dim": w.head_dim,
        "--dtype": w.dtype,
        "--key-sparsity": w.key_sparsity,
        "--value-sparsity": w.value_sparsity,
        "--sink": w.sink,
        "--local": w.local,
        "--seed": w.seed,
        "--methods": ",".join(methods),
        "--device": plan.device.kind,
        "--cache": plan.settings.cache,
    }
    if w.name in load_profiles():
        options["--workload"] = w.name
    if w.phase.causal:
        options["--q-len"] = w.q_len
    words = [word for option, value in options.items() for word in (option, str(value))]
    return [sys.executable, "-m", "hsbench", w.phase.name, *words, *source]


def _jobs(plan: Plan, profiler: Profiler, cell: Cell, report: Report) -> Iterator[Job]:
    from hsbench.profiling import Job, report_stem, unused_stem

    ok = _ran_ok(report)
    groups = [[method] for method in ok] if profiler.one_report_per_method else [ok] if ok else []
    for methods in groups:
        stem = report_stem(cell.workload, methods[0] if profiler.one_report_per_method else None)
        yield Job(
            command=tuple(command_of(cell, plan, methods)),
            stem=plan.profile_dir / unused_stem(plan.profile_dir, stem),
            suffix=profiler.suffix,
            methods=tuple(methods),
            device=plan.device,
        )


def _free_gpu_memory(device: Device) -> None:
    """Gives back what torch keeps for this process's next tensors: the profiled run needs it."""
    if device.is_cuda:
        import gc

        import torch

        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def _ran_ok(report: Report) -> list[str]:
    return [result.record.method for result in report.results if result.record.status == "ok"]
