"""``dense``: our own dense kernel, the honest baseline beside torch's; and ``dense:fp8``, over e4m3.

It is the hierarchical kernel over pages that are all dense: the same layout work, the same skeleton, no pruning.
"""

from __future__ import annotations

from hsbench.kernels.device import Device
from hsbench.methods.base import Method
from hsbench.methods.pages import PagesMethod, variants
from hsbench.problem.phase import Phase
from hsbench.problem.workload import Workload


class Dense(PagesMethod):
    family = "dense"
    prunes = False

    @property
    def dense(self) -> bool:  # type: ignore[override]
        """Where its values are K's and V's own: what 8 bits leave of them is no baseline."""
        return not self.elements.has_scale

    def sparsities(self, workload: Workload) -> tuple[float, float]:
        return 0.0, 0.0


def methods(phase: Phase, device: Device) -> list[Method]:
    return [Dense(phase, device, path, elements) for path, elements in variants(phase, device)]
