"""``evict``: attention over some of the blocks, all dense: the rival that spends the same memory on fewer tokens.

Which blocks are dropped: :func:`hsbench.cache.evict.evict_blocks`.
"""

from __future__ import annotations

from hsbench.cache.evict import same_memory
from hsbench.cache.paged import page_bytes
from hsbench.kernels.device import Device
from hsbench.methods.base import Method
from hsbench.methods.pages import PagesMethod, paths
from hsbench.problem.phase import Phase
from hsbench.problem.workload import Workload


class Evict(PagesMethod):
    family = "evict"

    def sparsities(self, workload: Workload) -> tuple[float, float]:
        return 0.0, 0.0

    def evict(self, workload: Workload) -> float:
        return share_of(workload, self.device)


def share_of(workload: Workload, device: Device) -> float:
    """What was asked for; else the share that leaves as many bytes as the 2:4 blocks of ``hierarchical`` take."""
    if workload.evict is not None:
        return workload.evict
    shares = 2 * workload.key_sparsity, 2 * workload.value_sparsity
    return same_memory(shares, page_bytes(device.kind, workload.head_dim, workload.element))


def methods(phase: Phase, device: Device) -> list[Method]:
    return [Evict(phase, device, path) for path in paths(phase, device)]
