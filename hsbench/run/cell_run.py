"""One cell through the stages: what a run that measures and a run under a profiler have in common.

    inputs -> each method: prepare (prune, compress) -> check -> [rounds: A B C, C A B ..] -> check -> records

A row that cannot run is a row with a status and a reason; the others go on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeVar

from hsbench import measure
from hsbench.kernels.device import Device
from hsbench.machine import hardware
from hsbench.measure.out_of_memory import REMEDY, is_out_of_memory, let_go
from hsbench.methods import find_methods
from hsbench.problem.inputs import Inputs
from hsbench.results import MeasuredCeiling, Report, Result
from hsbench.run import accounting, stages
from hsbench.run.fit import Fit
from hsbench.run.observer import Observer
from hsbench.run.plan import Cell
from hsbench.run.settings import Settings
from hsbench.run.stages import Asked, Packed, Planned, Ready, Refused, Sampled

S = TypeVar("S", bound=Asked)


class CellRun(ABC):
    """The rows of a cell, each at its stage or done, and what drives them on.

    Attributes:
        with_ceiling: whether the machine's ceiling has its turns among the methods.
        ceilings: the ones that were measured.
        ranks: processes that a row's sequence is sharded over.
    """

    with_ceiling: bool
    ranks = 1

    def __init__(self, cell: Cell, device: Device, settings: Settings, observer: Observer) -> None:
        self.cell, self.workload = cell, cell.workload
        self.device, self.settings, self.observer = device, settings, observer
        self.telemetry = measure.Telemetry(device)
        self.machine = hardware.facts(device, self.telemetry)
        self.ceilings: dict[str, MeasuredCeiling] = {}
        self._doing = ""
        self._rows: list[Asked | Result] = [
            Asked(method) for method in find_methods(cell.methods, cell.workload.phase, device, rows_alone=True)
        ]

    @abstractmethod
    def sample(self, rows: list[Ready]) -> measure.Sampling:
        """Gives the rows their turns."""

    @abstractmethod
    def account(self, rows: list[Sampled]) -> None:
        """Closes the rows that had turns."""

    def run(self) -> Report:
        """Takes every row to its end. Ctrl-C ends the run: rows that are done stay, the others are ``interrupted``.

        Raises:
            NonFiniteError: the tensors hold a NaN or an infinity.
        """
        with measure.annotate("workload"):
            try:
                interrupted = self._all()
            except KeyboardInterrupt:
                interrupted = True
            except Exception as error:
                interrupted = self._failed(error)
        self._close_open("interrupted", None)
        results = [row for row in self._rows if isinstance(row, Result)]
        return Report(self.workload, results, self.machine, self.ceilings, interrupted)

    def begin(self, doing: str) -> None:
        """A stage begins."""
        self._doing = doing
        self.observer.stage(doing)

    def close(self, row: Asked, status: str, reason: str | None, note: str = "", **columns: object) -> Result:
        """Ends a row with its record, and tells the observer."""
        memory: dict[str, int] = {}
        if isinstance(row, Packed):
            memory = dict(row.prepared.memory)
            columns |= accounting.storage(self.workload, row.prepared)
        if isinstance(row, Planned):
            columns |= row.footprint.columns()
        record = accounting.record(
            self.workload, row.method.name, self.device, self.settings, status, reason, self.machine, columns,
            ranks=self.ranks,
        )  # fmt: skip
        result = Result(record, memory, note)
        self._rows = [result if other is row else other for other in self._rows]
        self.observer.finished(result)
        return result

    def _all(self) -> bool:
        """Runs all stages; returns whether the user interrupted the sampling."""
        fit = self.fit()
        self._step(Asked, lambda row: self.plan(row, fit))
        if not self._at(Planned):
            return False
        self.begin("generating q, k, v" if self.cell.captured is None else "loading q, k, v")
        inputs = self.load()
        self._step(Planned, lambda row: self.prepare(row, inputs), "preparing")
        reference = self.reference(inputs)
        used_bytes = self.telemetry.memory_used_bytes
        self._step(Packed, lambda row: reference.check(row, used_bytes), "checking against fp32")
        if not self._at(Ready):
            return False
        sampling = self.sample(self._at(Ready))
        self._step(Ready, lambda row: stages.sampled(row, sampling[row.method.name]))
        self._step(Sampled, lambda row: stages.check_after(row, again=sampling.interrupted))
        self.account([row for row in self._at(Sampled) if row.samples.times_s])
        return sampling.interrupted

    def fit(self) -> Fit:
        """The room for the cell."""
        return Fit(self.workload, self.device, cold=self.settings.cache == "cold", ceiling=self.with_ceiling)

    def plan(self, row: Asked, fit: Fit) -> Planned | Refused:
        """Whether a row can run."""
        return stages.plan(row, self.workload, self.device, fit)

    def load(self) -> Inputs:
        """The tensors."""
        return stages.load(self.workload, self.cell.captured, self.device, self.cell.basis)

    def prepare(self, row: Planned, inputs: Inputs) -> Packed:
        """The row with its K and V."""
        return stages.prepare(row, self.workload, inputs)

    def reference(self, inputs: Inputs) -> stages.Reference:
        """What outputs are held against."""
        return stages.Reference(inputs, self.workload.seed)

    def agreed(self, after: Asked | Refused) -> Asked | Refused:
        """What became of a row in a step, by all who take part in it."""
        return after

    def _at(self, stage: type[S]) -> list[S]:
        """The rows that are at a stage."""
        return [row for row in self._rows if type(row) is stage]

    def _step(self, stage: type[S], take: Callable[[S], Asked | Refused], doing: str = "") -> None:
        """Takes each row at a stage one step further, or ends it."""
        for at in range(len(self._rows)):
            row = self._rows[at]
            if type(row) is stage:
                if doing:
                    self.begin(f"{row.method.name}: {doing}")
                try:
                    after = take(row)
                except Exception as error:
                    after = stages.refused(error, self.device)
                after = self.agreed(after)
                if isinstance(after, Refused):
                    # Its tensors go first: a row that failed tells nothing of them.
                    ended = _without_tensors(row)
                    if after.footprint is not None:
                        ended = Planned(ended.method, after.footprint)
                    del row
                    self._rows[at] = ended
                    self.close(ended, after.status, after.reason)
                else:
                    self._rows[at] = after

    def _failed(self, error: Exception) -> bool:
        """Closes the rows that are not done where memory ran out for what they share; raises any other error again.
        Whether the run was interrupted."""
        if not is_out_of_memory(error):
            raise error
        let_go(error)
        self._rows = [row if isinstance(row, Result) else _without_tensors(row) for row in self._rows]
        self._close_open("oom", f"ran out of memory while {self._doing}: {REMEDY}")
        return False

    def _close_open(self, status: str, reason: str | None) -> None:
        for row in list(self._rows):
            if isinstance(row, Asked):
                self.close(row, status, reason)


def _without_tensors(row: Asked) -> Asked:
    return Planned(row.method, row.footprint) if isinstance(row, Planned) else row


def subject(
    row: Ready,
    cache: measure.CachePolicy,
    sustain_s: float,
    device: Device,
    last: Callable[[], None] = lambda: None,
    now: Callable[[], float] | None = None,
) -> measure.Subject:
    """A method's turn: its clocks, its output, its caches, and then ``last``; by the clock ``now``, if told."""
    run = row.prepared.run
    sustain = sustaining(sustain_s, device, now)
    order_caches = cache.before(run)

    def before() -> None:
        sustain(run)  # first: it fills output and caches
        row.prepared.poison()
        if order_caches is not None:
            order_caches()
        last()
        measure.settle()  # last: torch poisons a large output with all its threads, which spin afterwards

    return measure.Subject(row.method.name, run, before)


def sustaining(seconds: float, device: Device, now: Callable[[], float] | None) -> Callable[[Callable[[], None]], None]:
    """Repeats a run for so long, by the clock ``now``, if told."""
    clock = {} if now is None else {"now": now}
    return lambda run: measure.sustain(run, seconds, device, **clock)


def cache_policy(rows: list[Ready], settings: Settings, device: Device) -> measure.CachePolicy:
    """The one that all rows share, made for the one that reads least."""
    return measure.policy(min(row.prepared.kv_bytes for row in rows), device, settings.cache)
