"""``hierarchical``: attention over dense and 2:4 blocks (HieraSparse, arXiv 2604.16864)."""

from __future__ import annotations

from hsbench.methods.base import Method
from hsbench.methods.pages import PagesMethod, paths
from hsbench.workload import Workload


class Hierarchical(PagesMethod):
    family = "hierarchical"

    def sparsities(self, workload: Workload) -> tuple[float, float]:
        return workload.key_sparsity, workload.value_sparsity


def methods(phase: str, device: str) -> list[Method]:
    return [Hierarchical(phase, path) for path in paths(phase, device)]
