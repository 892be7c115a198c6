"""``unstructured``: per-token unstructured sparsity in bitmaps, as MUSTAFAR (arXiv 2505.22913) does it.

Each token keeps its largest magnitudes; every token is pruned, sink and local tokens too, as in the published method.
"""

from __future__ import annotations

from hsbench.attention import calls
from hsbench.cache.bitmap import BitmapCompressor, BitmapKV
from hsbench.kernels import library
from hsbench.kernels.device import Device
from hsbench.measure import ranges
from hsbench.methods.base import Method, Prepared
from hsbench.methods.native_call import NativePrepared, why_not_native
from hsbench.problem.inputs import Inputs
from hsbench.problem.phase import Phase
from hsbench.problem.workload import Workload


class Unstructured(Method):
    name = "unstructured"

    def unavailable(self, device: Device) -> str | None:
        return library.why_cannot("decode_bitmap", device)

    def unsupported(self, workload: Workload, device: Device) -> str | None:
        if workload.phase.causal:
            return "the published method prunes after prefill and attends over bitmaps in decode only"
        return why_not_native(workload)

    def estimate_bytes(self, workload: Workload) -> int:
        elements = workload.dense_kv_bytes // 2
        kept = 1 - workload.mean_sparsity
        return round(elements * (2 * (kept + 7 / 64) + 12 / 64)) + (64 << 20)

    def prepare(self, workload: Workload, inputs: Inputs) -> Prepared:
        k = BitmapCompressor(inputs.k, "k", workload.key_sparsity)
        v = BitmapCompressor(inputs.v, "v", workload.value_sparsity)

        def compress() -> None:
            k.run()
            v.run()

        with ranges.annotate("prune"), ranges.annotate("compress"):  # one operation does both
            compress()
        kv = BitmapKV(k.result, v.result)
        call = calls.decode_bitmap_call(inputs.q, kv)
        return NativePrepared(
            out=call.out,
            lse=call.lse,
            memory=kv.memory(),
            achieved_sparsity=kv.achieved_sparsity,
            compress=compress,
            call=call,
            kv=kv,
        )


def methods(phase: Phase, device: Device) -> list[Method]:
    return [Unstructured()]
