"""What a run of ``quality`` measures, resolved and checked: the "run" part of its manifest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hsbench.kernels.device import Device
from hsbench.models.text import Text
from hsbench.problem.elements import Element
from hsbench.run.quality.layer_plan import LayerPlan
from hsbench.run.quality.settings import Setting, Task

SCHEMA = "hsbench-quality/1"


@dataclass(frozen=True)
class QualityPlan:
    """What to run.

    Attributes:
        model: as it was asked for.
        text: that is scored.
        task: of all rows.
        settings: the rows.
        device, weights, dtype: where; the weights' element type; the cache's.
        depths: where passkeys are hidden, in shares of the context; None for none.
        per_layer: whether each layer is measured by itself, too.
        plan_for: the KL that a plan of layers is to meet; None for no plan.
        layers: the plan of layers that was given.
        basis: the file of a basis, and the basis.
    """

    model: str
    text: Text
    task: Task
    settings: tuple[Setting, ...]
    device: Device
    weights: str
    dtype: Element
    depths: tuple[float, ...] | None = None
    per_layer: bool = False
    plan_for: float | None = None
    layers: LayerPlan | None = None
    basis: tuple[Path, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        settings = [
            {"method": one.method, "elements": one.elements, "pruner": one.pruner, "key_sparsity": one.key_sparsity,
             "value_sparsity": one.value_sparsity, "evict": one.evict, "plan": one.plan is not None}
            for one in self.settings
        ]  # fmt: skip
        return {
            "schema": SCHEMA,
            "device": self.device.kind,
            "model": self.model,
            "weights": self.weights,
            "dtype": self.dtype.name,
            "text": {"path": str(self.text.path.resolve()), "sha256": self.text.sha256},
            "task": self.task.to_dict(),
            "settings": settings,
            "depths": None if self.depths is None else list(self.depths),
            "per_layer": self.per_layer,
            "plan_for": self.plan_for,
            "plan": None if self.layers is None else self.layers.to_dict(),
            "basis": None if self.basis is None else str(self.basis[0].resolve()),
        }
