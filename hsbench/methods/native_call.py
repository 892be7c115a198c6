"""What all methods on our own kernels share: the prepared call, and the shapes that the kernels take."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hsbench.attention import calls
from hsbench.cache.bitmap import BitmapKV
from hsbench.cache.hierarchical import HEAD_DIMS, HierarchicalKV
from hsbench.methods.base import Prepared
from hsbench.problem.workload import Workload


@dataclass
class NativePrepared(Prepared):
    call: calls.NativeCall | None = None
    kv: HierarchicalKV | BitmapKV | None = None

    def run(self) -> None:
        self.call.run()

    def pruned(self, batch: int, kv_head: int) -> tuple[Tensor, Tensor] | None:
        if self.achieved_sparsity is None:
            return None
        return tuple(tensor.head(batch, kv_head).unpack()[0, 0] for tensor in (self.kv.k, self.kv.v))


def why_not_native(workload: Workload) -> str | None:
    """Shapes that our kernels do not take, with what they do take."""
    if workload.head_dim not in HEAD_DIMS:
        return f"head_dim {workload.head_dim}: the kernels take 64 and 128"
    if workload.group > calls.MAX_GROUP:
        return f"{workload.group} query heads per kv head: the kernels take 1 to {calls.MAX_GROUP}"
    return None
