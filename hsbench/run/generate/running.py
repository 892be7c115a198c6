"""A run of ``generate``: for each context every method, the dense ones first."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

from torch import Tensor

from hsbench import measure
from hsbench.errors import NonFiniteError, UnavailableError, UnsupportedError, UsageError
from hsbench.machine import hardware
from hsbench.measure.out_of_memory import is_out_of_memory, let_go
from hsbench.models.living import LivingCache
from hsbench.models.model import Model
from hsbench.models.step import fused_step
from hsbench.results import Generated, GenerateReport, Result
from hsbench.run.check import DisagreementError
from hsbench.run.generate.measuring import measure_row
from hsbench.run.generate.methods import about_bytes, choose_backend, new_cache
from hsbench.run.generate.plan import GeneratePlan
from hsbench.run.generate.rows import Done, Rows, baseline_of, compared_to
from hsbench.run.generate.settings import TORCH, MethodSetting
from hsbench.run.quality.watcher import Watcher

REMEDY = "give less of --context or --batch"


class GenerateRun:
    """The rows of a plan, and what drives them on.

    Args:
        prompts: int64 ``[batch, context]`` on the CPU, of each context.
        watcher: told of progress and of finished rows.
    """

    def __init__(self, plan: GeneratePlan, model: Model, prompts: Sequence[Tensor], watcher: Watcher) -> None:
        self.plan, self.model, self.watcher, self._prompts = plan, model, watcher, prompts
        self.machine = hardware.facts(plan.device, measure.Telemetry(plan.device))
        self._rows = Rows(plan, model, self.machine)
        self._results: list[Result[Generated]] = []

    def run(self) -> GenerateReport:
        """Takes every row to its end. Ctrl-C ends the run: rows that are done stay, the others are ``interrupted``."""
        task, interrupted = self.plan.task, False
        tokens = sum(ids.numel() + task.batch * task.new_tokens for ids in self._prompts)
        self.watcher.begin(tokens * len(self.plan.settings))
        with fused_step(self.model, task.batch) if self.plan.device.is_cuda else nullcontext(((), ())) as (_, unfused):
            for ids in self._prompts:
                interrupted = self._context(ids, stopped=interrupted)
        notes = [("model", note) for note in (*self.model.notes, *unfused)]
        longest = max(task.contexts) + task.new_tokens
        if longest > (positions := self.model.geometry.max_positions):
            notes.append(
                ("model", f"tokens beyond its {positions:,} positions are of little sense; their time is as of any")
            )
        return GenerateReport(self._results, self.machine, {}, notes, interrupted)

    def _context(self, ids: Tensor, *, stopped: bool) -> bool:
        done: list[Done] = []
        told = 0
        for setting in self.plan.settings:
            row = Done(setting, ids.shape[1], "interrupted")
            if not stopped:
                try:
                    self._measure(row, ids)
                except KeyboardInterrupt:
                    stopped = True
            done.append(row)
            # What the dense rows are held against is known once all of them are through.
            if stopped or not any(one.dense for one in self.plan.settings[len(done) :]):
                for row in done[told:]:
                    self._finish(row, done)
                told = len(done)
        return stopped

    def _finish(self, row: Done, done: Sequence[Done]) -> None:
        result = self._rows.result(row, baseline_of(done), compared_to(done))
        self._results.append(result)
        self.watcher.finished(result)

    def _measure(self, row: Done, ids: Tensor) -> None:
        """A row; a known kind of failure ends it, and the others go on."""
        plan, setting = self.plan, row.setting
        self.watcher.stage(f"{setting.method}, {row.context:,} tokens")
        try:
            self._check_room(setting, row.context)
            make = partial(_make, setting, self.model, plan)
            choose = self._choose if setting.family == TORCH and setting.variant is None else _leave
            row.found = measure_row(self.model, make, ids, plan.task, choose, self.watcher.through)
            row.status = "ok"
        except DisagreementError as error:
            row.status, row.reason = "incorrect", f"the kernel disagrees with its own cache: {error}"
        except NonFiniteError as error:
            row.status, row.reason = "unsupported", f"{error.tensor} is not finite in the cache: give another --dtype"
        except (UnsupportedError, UnavailableError, UsageError) as error:
            row.status = "unavailable" if isinstance(error, UnavailableError) else "unsupported"
            row.reason = str(error)
        except _TooLargeError as error:
            row.status, row.reason = "oom", str(error)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            let_go(error)
            row.status, row.reason = "oom", f"ran out of memory: {REMEDY}"

    def _choose(self, cache: LivingCache) -> str | None:
        return choose_backend(cache, self.model.geometry.q_heads)

    def _check_room(self, setting: MethodSetting, context: int) -> None:
        plan, task = self.plan, self.plan.task
        measure.release_memory(plan.device)
        free = measure.free_memory(plan.device)
        need = about_bytes(setting, self.model, task, task.capacity(context), plan.dtype)
        need += self.model.pass_bytes(task.batch * context)
        if free is not None and need > free.nbytes:
            under = f" under {free.limit}" if free.limit else ""
            sizes = f"{need / 2**30:.1f} GiB are needed, {free.nbytes / 2**30:.1f} GiB are free{under}"
            raise _TooLargeError(f"estimated not to fit: {sizes}: {REMEDY}")


class _TooLargeError(Exception):
    """What a row needs is more than there is."""


def _leave(cache: LivingCache) -> str | None:
    return None


def _make(setting: MethodSetting, model: Model, plan: GeneratePlan, batch: int, capacity: int) -> LivingCache:
    basis = None if plan.basis is None else plan.basis[1]
    return new_cache(setting, model, plan.task, capacity, plan.dtype, basis, batch=batch)
