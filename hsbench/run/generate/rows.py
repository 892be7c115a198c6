"""The rows of a run of ``generate``: what was measured of each, and of each against the dense ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hsbench import measure
from hsbench.models.model import Model
from hsbench.problem.elements import element_of
from hsbench.results import GenerateCase, Generated, GenerateMeasures, Result
from hsbench.run.generate.measuring import Measured
from hsbench.run.generate.methods import cache_dtype, pruner_name
from hsbench.run.generate.plan import GeneratePlan
from hsbench.run.generate.settings import DENSE, TORCH, MethodSetting


@dataclass
class Done:
    """A row that ran, or did not.

    Attributes:
        found: None where nothing was measured.
    """

    setting: MethodSetting
    context: int
    status: str = "ok"
    reason: str | None = None
    found: Measured | None = None

    @property
    def timed(self) -> bool:
        """Whether its times may be compared."""
        return self.status == "ok" and self.found is not None and bool(self.found.steps_s)


def baseline_of(rows: Sequence[Done]) -> Done | None:
    """The fastest dense 16-bit row of a context."""
    dense = [row for row in rows if row.setting.dense and row.timed]
    return min(dense, key=lambda row: float(np.median(row.found.steps_s)) if row.found else 0.0, default=None)


def compared_to(rows: Sequence[Done]) -> torch.Tensor | None:
    """The tokens of our dense kernel's row."""
    ours = [row for row in rows if row.setting.family == DENSE and row.setting.dense and row.status == "ok"]
    return ours[0].found.tokens if ours and ours[0].found is not None else None


class Rows:
    """Makes results of rows.

    Args:
        machine: facts; on a CPU its threads and instruction set are part of the case.
    """

    def __init__(self, plan: GeneratePlan, model: Model, machine: Mapping[str, Any]) -> None:
        self._plan, self._model = plan, model
        self._cpu = {} if plan.device.is_cuda else machine.get("cpu") or {}

    def result(self, row: Done, baseline: Done | None, tokens: torch.Tensor | None) -> Result[Generated]:
        """The result of a row.

        Args:
            baseline: what its times are held against.
            tokens: int64 ``[batch, new_tokens]``, what its own are held against.
        """
        found, measures = row.found, {}
        if found is not None:
            measures = self._measures(row, found)
            if baseline is not None and baseline.found is not None and row.timed:
                measures |= _against(row, found, baseline, baseline.found)
            if tokens is not None and found.tokens is not None:
                measures |= _equal(found.tokens, tokens)
        case = self._case(row.setting, row.context)
        record = Generated(case, GenerateMeasures(**measures), row.status, row.reason)
        return Result(record, {name: size for name, size in (found.used if found else {}).items() if size})

    def _measures(self, row: Done, found: Measured) -> dict[str, Any]:
        g, task = self._model.geometry, self._plan.task
        measures: dict[str, Any] = {"rel_error": found.rel_error, "stepping": found.how, "backend": found.backend}
        if found.first_token_s:
            measures |= {"first_token_ms": 1e3 * found.first_token_s, "fill_ms": 1e3 * found.fill_s}
        if found.steps_s:
            ms = 1e3 * np.array(found.steps_s)
            quantiles = zip(("_p25", "", "_p75", "_p95"), np.quantile(ms, (0.25, 0.5, 0.75, 0.95)), strict=True)
            measures |= {f"token_ms{suffix}": float(value) for suffix, value in quantiles}
            measures |= {"samples": len(ms), "tokens_per_s": task.batch / (1e-3 * float(ms.mean()))}
        measures |= {f"{part}_share": share for part, share in found.shares.items()}
        if found.used:
            used = sum(found.used.values())
            tokens = task.batch * (row.context + task.new_tokens - 1)
            dense = 2 * g.layers * g.kv_heads * g.head_dim * tokens * self._plan.dtype.nbytes(1)
            measures |= {"kv_reserved_bytes": sum(found.reserved.values()), "kv_bytes": used, "kv_ratio": dense / used}
        measures["peak_bytes"] = found.peak_bytes
        if self._plan.told and found.tokens is not None:
            measures["completion"] = self._model.text(found.tokens[0]).encode("unicode_escape").decode("ascii")
        return measures

    def _case(self, setting: MethodSetting, context: int) -> GenerateCase:
        plan, task = self._plan, self._plan.task
        dtype = cache_dtype(setting, self._model, plan.dtype)
        element = element_of(dtype)
        ours, pruned = setting.family != TORCH, setting.pruner is not None
        return GenerateCase(
            model=self._model.name, model_hash=self._model.identity[:12], text=plan.prompt.name,
            text_hash=plan.prompt.sha256[:12], device=plan.device.kind, weights=plan.weights,
            dtype="fp32" if element is None else element.name, context=context, batch=task.batch,
            new_tokens=task.new_tokens, method=setting.method, pruner=pruner_name(setting, plan.device),
            basis=plan.basis[0].name if plan.basis is not None and pruned else None,
            plan=None if setting.plan is None else setting.plan.name, key_sparsity=setting.key_sparsity,
            value_sparsity=setting.value_sparsity, sink=task.sink if ours else None, local=task.local if ours else None,
            temperature=task.temperature, seed=task.seed, eager=task.eager,
            threads=self._cpu.get("threads"), isa=self._cpu.get("isa"),
        )  # fmt: skip


def _against(row: Done, found: Measured, baseline: Done, base: Measured) -> dict[str, Any]:
    name = baseline.setting.method
    if row is baseline:
        return {"baseline": name, "speedup": 1.0}
    ratio = measure.ratio_interval(base.steps_s, found.steps_s)
    gain = float(np.median(base.steps_s)) - float(np.median(found.steps_s))
    more = max(0.0, found.fill_s - base.fill_s)
    return {
        "baseline": name, "speedup": ratio.ratio, "speedup_lo": ratio.lo, "speedup_hi": ratio.hi,
        "break_even_tokens": more / gain if gain > 0 and not row.setting.dense else None,
    }  # fmt: skip


def _equal(tokens: torch.Tensor, right: torch.Tensor) -> dict[str, Any]:
    same = tokens == right
    until = [int(one.long().cumprod(0).sum()) for one in same]
    return {"tokens_equal": float(same.double().mean()), "tokens_until_other": min(until)}
