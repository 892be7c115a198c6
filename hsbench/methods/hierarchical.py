"""``hierarchical``: attention over dense and 2:4 blocks (HieraSparse, arXiv 2604.16864), those that are not evicted;
and ``hierarchical:fp8``, with values of e4m3."""

from __future__ import annotations

from hsbench.cache.pruner import Pruner, pruner_of
from hsbench.kernels.device import Device
from hsbench.methods.base import Method
from hsbench.methods.pages import PagesMethod, variants
from hsbench.problem.phase import Phase
from hsbench.problem.workload import Workload


class Hierarchical(PagesMethod):
    family = "hierarchical"

    def sparsities(self, workload: Workload) -> tuple[float, float]:
        return workload.key_sparsity, workload.value_sparsity

    def evict(self, workload: Workload) -> float:
        return workload.evict or 0.0

    def pruner(self, workload: Workload) -> Pruner:
        return pruner_of(workload.pruner)


def methods(phase: Phase, device: Device) -> list[Method]:
    return [Hierarchical(phase, device, path, elements) for path, elements in variants(phase, device)]
