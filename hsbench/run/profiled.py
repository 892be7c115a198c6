"""One cell under a profiler: the same stages, few samples, nothing timed, no number of it kept."""

from __future__ import annotations

import random
from contextlib import AbstractContextManager

from hsbench import measure
from hsbench.kernels.device import Device
from hsbench.results import Report
from hsbench.run.cell_run import CellRun, cache_policy, subject
from hsbench.run.observer import Observer
from hsbench.run.plan import Cell
from hsbench.run.settings import Settings
from hsbench.run.stages import Ready, Sampled


def profile_cell(
    cell: Cell,
    device: Device,
    settings: Settings,
    recording: AbstractContextManager[object],
    rounds: int,
    observer: Observer | None = None,
) -> Report:
    """Runs one cell of a plan for a profiler to look at.

    Args:
        settings: of these, the state of the caches. Nothing is sustained, whatever they say: that is for the clocks of
            what is timed, and the profiler would record run after run that is no sample.
        recording: the profiler's, entered around the rounds of samples.
        rounds: samples of each method, which are alone in the rounds.

    Returns:
        The report, whose rows have a status and no times.
    """
    measure.release_memory(device)
    return _Profiled(cell, device, settings, observer or Observer(), recording, rounds).run()


class _Profiled(CellRun):
    with_ceiling = False

    def __init__(
        self,
        cell: Cell,
        device: Device,
        settings: Settings,
        observer: Observer,
        recording: AbstractContextManager[object],
        rounds: int,
    ) -> None:
        super().__init__(cell, device, settings, observer)
        self.recording, self.rounds = recording, rounds

    def sample(self, rows: list[Ready]) -> measure.Sampling:
        self.begin("making the buffers that measuring takes")
        cache = cache_policy(rows, self.settings, self.device)
        subjects = [subject(row, cache, 0.0, self.device) for row in rows]
        self.begin("sampling in turn")
        return measure.sample_in_turn(
            subjects,
            measure.ProfiledClock(self.device),
            measure.StopRule(self.rounds, self.rounds, target=0.0),
            rng=random.Random(self.workload.seed),
            on_sample=lambda name, done, seconds: self.observer.sampled(name, done, self.rounds, 0.0),
            capture=self.recording,
        )

    def account(self, rows: list[Sampled]) -> None:
        for row in rows:
            status = "ok" if row.verdict.reason is None else "incorrect"
            self.close(row, status, row.verdict.reason, "profiled run, no timing")
