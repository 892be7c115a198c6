"""A run of ``quality``: windows, one after another, each dense and then by every setting; passkeys; layers; a plan."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from hsbench import measure
from hsbench.errors import UnsupportedError
from hsbench.machine import hardware
from hsbench.measure.out_of_memory import is_out_of_memory, let_go
from hsbench.results import Quality, QualityReport, Result
from hsbench.run.check import DisagreementError
from hsbench.run.quality import layers, needle, scoring
from hsbench.run.quality.attending import Attending, SeenOf
from hsbench.run.quality.layer_plan import LayerPlan
from hsbench.run.quality.material import Material
from hsbench.run.quality.plan import QualityPlan
from hsbench.run.quality.protocol import Model
from hsbench.run.quality.rows import OpenRow, Rows
from hsbench.run.quality.settings import Setting
from hsbench.run.quality.stores import METHODS
from hsbench.run.quality.watcher import Watcher

REMEDY = "give a smaller --context, --score or --chunk"
_VERIFICATIONS = 5


class QualityRun:
    """The rows of a plan, and what drives them on.

    Args:
        material: what goes through the model.
        watcher: told of progress and of finished rows.

    Attributes:
        made: the plan of layers that was asked for, once it has been verified.
    """

    def __init__(self, plan: QualityPlan, model: Model, material: Material, watcher: Watcher) -> None:
        self.plan, self.task, self.model, self.watcher = plan, plan.task, model, watcher
        where = str(plan.device)
        self.windows = [one.to(where) for one in material.windows]
        self._needles = [dataclasses.replace(one, ids=one.ids.to(where)) for one in material.needles]
        self.machine = hardware.facts(plan.device, measure.Telemetry(plan.device))
        self.rows = Rows(plan, model, self.machine)
        self.made: LayerPlan | None = None
        longest = max([self.task.tokens, *(len(one.ids) for one in self._needles)])
        self._cache = model.new_cache(1, longest)
        self._results: list[Result[Quality]] = []
        self._open: list[OpenRow] = []
        self._dense_nll: list[np.ndarray] = []

    def run(self) -> QualityReport:
        """Takes every row to its end. Ctrl-C ends the run: rows that are done stay, the others are ``interrupted`` with
        the figures of the windows that are through."""
        interrupted = False
        try:
            with torch.inference_mode():
                self._all()
        except KeyboardInterrupt:
            interrupted = True
        for row in list(self._open):
            done = f"{len(row.scores)} of {self.task.windows} windows were done"
            self._close(row, "interrupted", done if row.scores else None)
        notes = [("model", note) for note in self.model.notes]
        return QualityReport(self._results, self.machine, {}, notes, interrupted)

    @property
    def count(self) -> int:
        """Rows that are measured over all windows."""
        priced = [] if self.plan.plan_for is None else layers.one_layer_each(self._planned(), self.model.attended)
        alone = sum(len(self._layers(one)) for one in self.plan.settings) if self.plan.per_layer else 0
        return len(self.plan.settings) + alone + len(priced)

    def _all(self) -> None:
        settings = list(self.plan.settings)
        self._open = [OpenRow(setting) for setting in settings]
        alone: list[OpenRow] = []
        if self.plan.per_layer:
            alone = [OpenRow(dataclasses.replace(one, only=layer)) for one in settings for layer in self._layers(one)]
            self._open += alone
        costs = [] if self.plan.plan_for is None else layers.one_layer_each(self._planned(), self.model.attended)
        priced = {(layer, of): OpenRow(one) for layer, of, one in costs}
        self._open += priced.values()
        self._watch(len(self._open))
        if alone:
            self._look_at_layers(settings, alone)
        self._score(tuple(self._open))
        self._ask(tuple(self._open))
        for row in list(self._open):
            self._close(row, "ok")
        if priced:
            self._plan_layers({of: row for of, row in priced.items() if row.scores})

    def _score(self, rows: Sequence[OpenRow]) -> None:
        """All windows, by the dense model and by each row's setting."""
        self._dense_nll = []
        for at, ids in enumerate(self.windows):
            self.watcher.stage(f"window {at + 1}: dense")
            dense = scoring.dense_run(self.model, self._cache, ids, self.task.context, self.watcher.through)
            self._dense_nll.append(dense.nll)
            for row in rows:
                if row in self._open:
                    self.watcher.stage(f"window {at + 1}: {row.setting.label}")
                    self._attempt(row, partial(self._window, row, ids, dense))

    def _window(self, row: OpenRow, ids: Tensor, dense: scoring.Dense) -> None:
        attending, started = self._attending(row.setting, dense.queries), time.monotonic()
        try:
            row.scores.append(
                scoring.scored_run(
                    self.model, self._cache, ids, self.task.context, self.task, attending, dense, self.watcher.through
                )
            )
        finally:
            row.passed(attending, time.monotonic() - started)

    def _ask(self, rows: Sequence[OpenRow]) -> None:
        """All passkeys, of the dense model and of each setting of all layers."""
        for at, one in enumerate(self._needles):
            self.watcher.stage(f"passkey {at + 1}: dense")
            self._cache.rewind(0)
            queries = scoring.dense_prefix(self.model, self._cache, one.ids[: one.context], self.watcher.through)
            logits = self.model.forward(one.ids[None, one.context : -1], self._cache, None, logits="all")[0]
            right = needle.answers(one, one.context, [logits])
            for row in rows:
                if row in self._open and row.setting.only is None:
                    self.watcher.stage(f"passkey {at + 1}: {row.setting.label}")
                    self._attempt(row, partial(self._answer, row, one, right, queries))

    def _answer(self, row: OpenRow, one: needle.Needle, right: needle.Answers, queries: dict[int, Tensor]) -> None:
        attending = self._attending(row.setting, queries)
        seen: list[Tensor] = []
        scoring.run_passes(
            self.model, self._cache, one.ids, one.context, self.task, attending,
            lambda first, logits: seen.append(logits.clone()), self.watcher.through,
        )  # fmt: skip
        row.answers.append((needle.answers(one, one.context, seen), right))

    def _look_at_layers(self, settings: Sequence[Setting], alone: Sequence[OpenRow]) -> None:
        """The errors of the layers' outputs, in the first window; and a row for each head, with no other figure."""
        ids = self.windows[0]
        for setting in settings:
            errors = layers.OutputErrors()
            self.watcher.stage(f"layers: {setting.label}")
            self._cache.rewind(0)
            queries: dict[int, Tensor] = {}
            if self.task.keeps_prefix:
                queries = scoring.dense_prefix(self.model, self._cache, ids[: self.task.context], self.watcher.through)
            attending = self._attending(setting, queries, seen=errors.see)
            scoring.run_passes(
                self.model, self._cache, ids, self.task.context, self.task, attending, lambda first, logits: None,
                self.watcher.through,
            )  # fmt: skip
            for row in alone:
                layer = row.setting.only
                if layer is not None and dataclasses.replace(row.setting, only=None) == setting:
                    row.output_error, heads = errors.of(layer)
                    for head, error in enumerate(heads):
                        self._open.append(OpenRow(row.setting, output_error=error, head=head))
                        self._close(self._open[-1], "ok")

    def _plan_layers(self, priced: dict[tuple[int, int], OpenRow]) -> None:
        """A plan within the KL that was asked for, by what each layer costs alone: measured, and cut until it holds."""
        wanted, setting = self.plan.plan_for or 0.0, self._planned()
        costs = {of: float(np.mean([scores.kl.mean() for scores in row.scores])) for of, row in priced.items()}
        budget = wanted
        for _ in range(_VERIFICATIONS):
            shares = (setting.key_sparsity, setting.value_sparsity)
            chosen = layers.cheapest(costs, shares, self.model.geometry.layers, budget)
            plan = self._layer_plan(setting, chosen, None)
            planned = dataclasses.replace(setting, key_sparsity=plan.mean(0), value_sparsity=plan.mean(1), plan=plan)
            row = OpenRow(planned)
            self._open = [row]
            self._watch(1)
            self._score([row])
            if row not in self._open:
                return
            kl = float(np.mean([scores.kl.mean() for scores in row.scores]))
            if kl <= wanted or not any(map(any, chosen)):
                self.made = self._layer_plan(setting, chosen, kl)
                row.setting = dataclasses.replace(row.setting, plan=self.made)
                self._ask([row])
                self._close(row, "ok")
                return
            budget *= 0.9 * wanted / kl
        self._close(row, "unsupported", f"no plan was found that keeps KL within {wanted:g}: the last had {kl:.3g}")

    def _layer_plan(self, setting: Setting, chosen: Sequence[tuple[float, float]], kl: float | None) -> LayerPlan:
        task, wanted = self.task, self.plan.plan_for
        made = {"when": task.when, "sink": task.sink, "local": task.local, "asked_kl": wanted, "kl": kl}
        return layers.layer_plan(f"for KL {wanted:g}", self.model, setting, chosen, **made)

    def _planned(self) -> Setting:
        """The setting that a plan takes its pruner and its sparsity from: the first that prunes anything."""
        prune = [one for one in self.plan.settings if one.key_sparsity or one.value_sparsity]
        return dataclasses.replace(prune[0], evict=0.0)

    def _layers(self, setting: Setting) -> Sequence[int]:
        # What a layer's sparsity costs is asked where nothing is evicted.
        prunes = (setting.key_sparsity or setting.value_sparsity) and not setting.evict
        return list(self.model.attended) if prunes else []

    def _attending(self, setting: Setting, queries: dict[int, Tensor], seen: SeenOf | None = None) -> Attending:
        geometry, basis = self.model.geometry, None if self.plan.basis is None else self.plan.basis[1]
        store = METHODS[setting.method].store(
            setting, geometry.q_heads // geometry.kv_heads, basis, self.task, self._cache.capacity
        )
        known = queries if self.task.keeps_prefix else None
        dtype = self.plan.dtype.torch_dtype
        return Attending(store, setting, self.task, dtype, through=seen is None, seen=seen, queries=known)

    def _watch(self, rows: int) -> None:
        task = self.task
        each = sum(chunk.end - chunk.first for chunk in task.passes(task.context, task.context + task.score))
        asked = len(self._needles) * (task.context + sum(1 for row in self._open if row.setting.only is None) * 64)
        self.watcher.begin(task.windows * (task.context + task.score + rows * each) + asked)

    def _attempt(self, row: OpenRow, step: Callable[[], None]) -> None:
        """A step of a row; a known kind of failure ends it, and the others go on."""
        try:
            step()
        except DisagreementError as error:
            self._close(row, "incorrect", f"the kernel disagrees with its own cache: {error}")
        except UnsupportedError as error:
            self._close(row, "unsupported", str(error))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            let_go(error)
            self._close(row, "oom", f"ran out of memory: {REMEDY}")

    def _close(self, row: OpenRow, status: str, reason: str | None = None) -> None:
        result = self.rows.result(row, self._dense_nll, status, reason)
        self._open.remove(row)
        self._results.append(result)
        self.watcher.finished(result)
