"""``unstructured``: per-token unstructured sparsity in bitmaps, as MUSTAFAR (arXiv 2505.22913) does it.

Each token keeps its largest magnitudes; every token is pruned, sink and local tokens too, as in the published method.
"""

from __future__ import annotations

from hsbench.attention import calls
from hsbench.cache.bitmap import BitmapKVCompressor
from hsbench.kernels import library
from hsbench.kernels.device import Device
from hsbench.methods.base import Method, Prepared
from hsbench.methods.native_call import prepare_native, why_not_native
from hsbench.problem.inputs import Inputs
from hsbench.problem.phase import Phase
from hsbench.problem.workload import Workload


class Unstructured(Method):
    name = "unstructured"

    def why_not_sharded(self, workload: Workload) -> str | None:
        return None  # tokens are pruned each by itself

    def unavailable(self, device: Device) -> str | None:
        return library.why_cannot("decode_bitmap", device)

    def unsupported(self, workload: Workload, device: Device) -> str | None:
        if workload.phase.causal:
            return "the published method prunes after prefill and attends over bitmaps in decode only"
        return why_not_native(workload)

    def estimate_bytes(self, workload: Workload) -> int:
        elements = 2 * workload.batch * workload.kv_heads * workload.seq * workload.head_dim
        kept = 1 - workload.mean_sparsity
        values = workload.element.nbytes(round(elements * (kept + 7 / 64)))  # each chunk of 64 padded to 8
        return values + round(elements * 12 / 64) + (64 << 20)

    def prepare(self, workload: Workload, inputs: Inputs) -> Prepared:
        compressor = BitmapKVCompressor(
            inputs.k, inputs.v, key_sparsity=workload.key_sparsity, value_sparsity=workload.value_sparsity
        )
        return prepare_native(compressor, lambda kv: calls.decode_bitmap_call(inputs.q, kv), prunes=True)


def methods(phase: Phase, device: Device) -> list[Method]:
    return [Unstructured()]
