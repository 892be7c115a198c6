"""The rows of a run of ``quality``: open while windows are measured, and what they become."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hsbench.results import Quality, QualityCase, QualityMeasures, Result
from hsbench.run.quality import figures
from hsbench.run.quality.attending import Attending, Stored
from hsbench.run.quality.needle import Answers, needle_columns
from hsbench.run.quality.plan import QualityPlan
from hsbench.run.quality.protocol import Model
from hsbench.run.quality.scoring import Scores
from hsbench.run.quality.settings import Setting


@dataclass(eq=False)
class OpenRow:
    """A setting on its way.

    Attributes:
        scores: by window.
        answers: to the passkeys, by depth; with the dense run's beside.
        stored: what the last pass stored.
        rel_error: the largest that a checked pass had.
        seconds: that it took.
        output_error: of a layer's attention, where it was looked at.
        head: the query head that it is of.
    """

    setting: Setting
    scores: list[Scores] = field(default_factory=list)
    answers: list[tuple[Answers, Answers]] = field(default_factory=list)
    stored: Stored = field(default_factory=Stored)
    rel_error: float | None = None
    seconds: float = 0.0
    output_error: float | None = None
    head: int | None = None

    def passed(self, attending: Attending, seconds: float) -> None:
        """A window is through."""
        self.stored, self.seconds = attending.stored, self.seconds + seconds
        if attending.rel_error is not None:
            self.rel_error = max(self.rel_error or 0.0, attending.rel_error)


class Rows:
    """Makes results of open rows.

    Args:
        machine: facts; on a CPU its threads and instruction set are part of the case.
    """

    def __init__(self, plan: QualityPlan, model: Model, machine: Mapping[str, Any]) -> None:
        self._plan, self._model = plan, model
        self._cpu = {} if plan.device.is_cuda else machine.get("cpu") or {}

    def result(self, row: OpenRow, dense: list[np.ndarray], status: str, reason: str | None = None) -> Result[Quality]:
        """The result of a row, as far as it came.

        Args:
            dense: -log p of the dense run, by window.
        """
        measures: dict[str, Any] = {"rel_error": row.rel_error, "seconds": row.seconds or None}
        if row.scores:
            measures |= figures.columns(dense[: len(row.scores)], row.scores, self._plan.task.seed)
        if row.answers:
            measures |= needle_columns(row.answers)
        measures["output_error"] = row.output_error
        stored = row.stored
        if stored.layers:
            measures["simulated"] = stored.simulated / stored.layers
        if stored.layers and row.setting.only is None:  # of one layer alone they would tell nothing
            measures |= {
                "kv_bytes": stored.nbytes,
                "kv_ratio": stored.dense_nbytes / stored.nbytes,
                "achieved_sparsity": stored.pruned / stored.eligible if stored.eligible else 0.0,
                "achieved_evict": stored.evicted / stored.evictable if stored.evictable else 0.0,
            }
        memory = {component: size for component, size in stored.memory.items() if size and row.setting.only is None}
        return Result(Quality(self._case(row), QualityMeasures(**measures), status, reason), memory)

    def _case(self, row: OpenRow) -> QualityCase:
        plan, task, setting = self._plan, self._plan.task, row.setting
        return QualityCase(
            model=self._model.name, model_hash=self._model.identity[:12], text=plan.text.path.name,
            text_hash=plan.text.sha256[:12], device=plan.device.kind, weights=plan.weights, dtype=plan.dtype.name,
            when=task.when, chunk=task.chunk if task.has_chunks else None, context=task.context, score=task.score,
            windows=task.windows, method=setting.method, elements=setting.elements, pruner=setting.pruner,
            basis=plan.basis[0].name if plan.basis is not None and setting.pruner is not None else None,
            plan=None if setting.plan is None else setting.plan.name, key_sparsity=setting.key_sparsity,
            value_sparsity=setting.value_sparsity, evict=setting.evict,
            sink=task.sink, local=task.local, layer=setting.only, head=row.head,
            depths=self._depths(setting), seed=task.seed, threads=self._cpu.get("threads"), isa=self._cpu.get("isa"),
        )  # fmt: skip

    def _depths(self, setting: Setting) -> str | None:
        if self._plan.depths is None or setting.only is not None:
            return None
        return ",".join(f"{depth:g}" for depth in self._plan.depths)
