"""A plan: how sparse K and V of each layer are, as a file.

{"schema": "hsbench-layers/1", "model": {"name", "identity"}, "pruner", "when", "sink", "local",
 "asked_kl", "kl", "layers": [{"key_sparsity", "value_sparsity"}, ...]}
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hsbench.errors import UsageError

SCHEMA = "hsbench-layers/1"
_NAME, _, _VERSION = SCHEMA.partition("/")


@dataclass(frozen=True)
class LayerPlan:
    """Shares by layer.

    Attributes:
        name: of its file, or what it is for.
        model, identity: whose layers they are.
        pruner: that it was made with.
        layers: the sparsity of K and of V, by layer.
        made: what it was made for and with, and the KL that was measured then.
    """

    name: str
    model: str
    identity: str
    pruner: str | None
    layers: tuple[tuple[float, float], ...]
    made: tuple[tuple[str, Any], ...] = ()

    def mean(self, of: int) -> float:
        """The mean sparsity of K (0) or V (1)."""
        return sum(shares[of] for shares in self.layers) / len(self.layers)

    def to_dict(self) -> dict[str, Any]:
        """The document."""
        return {
            "schema": SCHEMA,
            "model": {"name": self.model, "identity": self.identity},
            "pruner": self.pruner,
            **dict(self.made),
            "layers": [{"key_sparsity": key, "value_sparsity": value} for key, value in self.layers],
        }

    def check(self, model: str, identity: str, layers: int, option: str = "plan") -> None:
        """Raises :class:`UsageError` if it was made for another model."""
        if len(self.layers) != layers:
            remedy = f"has {len(self.layers)} layers, and {model} has {layers}; make one with `plan_for`"
            raise UsageError(option, self.name, remedy)
        if self.identity != identity:
            other = f"{self.model}, not for {model}" if self.model != model else f"another {model}"
            raise UsageError(option, self.name, f"was made for {other}; make one with `plan_for`")


def read_layer_plan(path: Path) -> LayerPlan:
    """A plan from its file.

    Raises:
        UsageError: no such file, no plan, or a newer hsbench's.
    """
    remedy = "give what `plan_output` wrote"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError("plan", path, f"cannot be read ({error.strerror or error}); {remedy}") from error
    except ValueError as error:
        raise UsageError("plan", path, f"is not whole JSON; {remedy}") from error
    name, _, version = str(document.get("schema") if isinstance(document, dict) else "").partition("/")
    if name != _NAME or not version.isdecimal():
        raise UsageError("plan", path, f"is no plan of layers; {remedy}")
    if int(version) > int(_VERSION):
        raise UsageError("plan", path, f"is of a newer hsbench ({name}/{version}, this one reads {SCHEMA}); update")
    try:
        layers = tuple((_share(one["key_sparsity"]), _share(one["value_sparsity"])) for one in document["layers"])
        if not layers:
            raise ValueError("no layers")
        model, pruner = document["model"], document["pruner"]
        rest = {key: value for key, value in document.items() if key not in ("schema", "model", "pruner", "layers")}
        return LayerPlan(path.name, str(model["name"]), str(model["identity"]), pruner, layers, _frozen(rest))
    except (KeyError, TypeError, ValueError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise UsageError("plan", path, f"is damaged ({what}); {remedy}") from error


def _share(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 0.5:
        raise ValueError(f"a sparsity of {value!r}")
    return float(value)


def _frozen(rest: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple((key, value) for key, value in rest.items() if isinstance(value, str | int | float | None))
