"""What ``dense`` and ``hierarchical`` share: attention over pages, by our own kernels."""

from __future__ import annotations

from hsbench.attention import calls
from hsbench.cache.fitted import KVCompressor
from hsbench.cache.hierarchical import HierarchicalKV
from hsbench.cache.prune import BLOCK
from hsbench.kernels import library
from hsbench.kernels.device import Device
from hsbench.methods.base import Method, Prepared
from hsbench.methods.native_call import prepare_native, why_not_native
from hsbench.problem.elements import FP32
from hsbench.problem.inputs import Inputs
from hsbench.problem.phase import Phase
from hsbench.problem.workload import Workload


def paths(phase: Phase, device: Device) -> list[str]:
    """The kernels of a phase that can be asked for by name, after ``auto``, the choice that is left to the library."""
    return list(library.PATHS) if phase.causal and device.is_cuda else ["auto"]


class PagesMethod(Method):
    """Attention over pages at the sparsity that ``sparsities`` gives.

    Args:
        phase: the one that it runs in.
        path: one of :func:`paths`; a kernel that is named makes a variant, ``family:path``, that runs on request.
    """

    family: str

    def __init__(self, phase: Phase, path: str = "auto") -> None:
        self.phase, self.path = phase, path
        self.on_request = path != "auto"
        self.name = f"{self.family}:{path}" if self.on_request else self.family

    def sparsities(self, workload: Workload) -> tuple[float, float]:
        """Key and value sparsity, 0 to 0.5."""
        raise NotImplementedError

    def unavailable(self, device: Device) -> str | None:
        return library.why_cannot(self.phase.name, device) or calls.why_not_path(self.path)

    def unsupported(self, workload: Workload, device: Device) -> str | None:
        return why_not_native(workload)

    def estimate_bytes(self, workload: Workload) -> int:
        # The pages, at most a dense cache and its last padding; outputs; split partials are small beside them.
        outputs = workload.query_bytes + FP32.nbytes(workload.batch * workload.q_heads * workload.q_len)
        padding = 2 * workload.element.nbytes(workload.batch * workload.kv_heads * BLOCK * workload.head_dim)
        return workload.dense_kv_bytes + padding + outputs + (64 << 20)

    def prepare(self, workload: Workload, inputs: Inputs) -> Prepared:
        key, value = self.sparsities(workload)
        compressor = KVCompressor(
            inputs.k, inputs.v, key_sparsity=key, value_sparsity=value, sink=workload.sink, local=workload.local
        )

        def call_of(kv: HierarchicalKV) -> calls.NativeCall:
            return calls.prefill_call(inputs.q, kv, self.path) if self.phase.causal else calls.decode_call(inputs.q, kv)

        return prepare_native(compressor, call_of, prunes=not self.dense)
