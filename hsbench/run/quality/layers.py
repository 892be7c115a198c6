"""Layers by themselves: the error of each one's attention output, and a plan from what pruning each alone costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hsbench.models.dense import dense_attend
from hsbench.run.quality.layer_plan import LayerPlan
from hsbench.run.quality.settings import Setting


class OutputErrors:
    """Of each layer and query head, ||out - dense|| / ||dense|| over all that passes, on the model's own q, K and V."""

    def __init__(self) -> None:
        self._sums: dict[int, Tensor] = {}

    def see(self, layer: int, q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> None:
        """One more pass of a layer; as ``attending.SeenOf``."""
        dense = dense_attend(q, k, v).double()
        off = (out.double() - dense).square().sum((0, 2, 3))
        sums = torch.stack([off, dense.square().sum((0, 2, 3))])
        self._sums[layer] = self._sums[layer] + sums if layer in self._sums else sums

    def of(self, layer: int) -> tuple[float, list[float]]:
        """The layer's error, and its heads'."""
        off, dense = self._sums[layer]
        return float((off.sum() / dense.sum()).sqrt()), (off / dense).sqrt().tolist()


def cheapest(
    costs: Mapping[tuple[int, int], float], shares: tuple[float, float], layers: int, budget: float
) -> tuple[tuple[float, float], ...]:
    """Which K and V to prune: those that cost least, as long as their costs add up to no more than a budget.

    KLs of layers pruned alone do not add up exactly: the caller measures what comes out.

    Args:
        costs: KL by (layer, 0 for K or 1 for V); what is not in it stays dense.
        shares: the sparsity of K and of V where they are pruned.
    """
    chosen = [[0.0, 0.0] for _ in range(layers)]
    spent = 0.0
    for (layer, of), cost in sorted(costs.items(), key=lambda item: item[1]):
        spent += max(cost, 0.0)
        if spent > budget:
            break
        chosen[layer][of] = shares[of]
    return tuple((key, value) for key, value in chosen)


def one_layer_each(setting: Setting, layers: Sequence[int]) -> list[tuple[int, int, Setting]]:
    """The settings that cost K alone, and V alone, of each layer: (layer, 0 for K or 1 for V, setting)."""
    found = []
    for layer in layers:
        if setting.key_sparsity:
            found.append((layer, 0, _only(setting, layer, setting.key_sparsity, 0.0)))
        if setting.value_sparsity:
            found.append((layer, 1, _only(setting, layer, 0.0, setting.value_sparsity)))
    return found


def _only(setting: Setting, layer: int, key: float, value: float) -> Setting:
    return replace(setting, key_sparsity=key, value_sparsity=value, plan=None, only=layer)


def layer_plan(
    name: str, model: Any, setting: Setting, chosen: Sequence[tuple[float, float]], **made: Any
) -> LayerPlan:
    """A plan of what was chosen."""
    return LayerPlan(name, model.name, model.identity, setting.pruner, tuple(chosen), tuple(made.items()))
