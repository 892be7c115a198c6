"""``dense``: our own dense kernel, the honest baseline beside torch's.

It is the hierarchical kernel over pages that are all dense: the same layout work, the same skeleton, no pruning.
"""

from __future__ import annotations

from hsbench.kernels.device import Device
from hsbench.methods.base import Method
from hsbench.methods.pages import PagesMethod, paths
from hsbench.problem.phase import Phase
from hsbench.problem.workload import Workload


class Dense(PagesMethod):
    family = "dense"
    dense = True

    def sparsities(self, workload: Workload) -> tuple[float, float]:
        return 0.0, 0.0


def methods(phase: Phase, device: Device) -> list[Method]:
    return [Dense(phase, device, path) for path in paths(phase, device)]
