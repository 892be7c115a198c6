"""``unstructured``: per-token unstructured sparsity in bitmaps, as MUSTAFAR (arXiv 2505.22913) does it.

Each token keeps its largest magnitudes; every token is pruned, sink and local tokens too, as in the published method.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from torch import Tensor

from hsbench import attend, native
from hsbench.formats.bitmap import BitmapKV, compress_bitmap_kv
from hsbench.measure import ranges
from hsbench.methods.base import Method, Prepared
from hsbench.methods.pages import why_not_native
from hsbench.tensors import Inputs
from hsbench.workload import Workload


@dataclass
class _Prepared(Prepared):
    call: attend.NativeCall | None = None
    kv: BitmapKV | None = None

    def run(self) -> None:
        self.call.run()

    def pruned(self, batch: int, kv_head: int) -> tuple[Tensor, Tensor] | None:
        return tuple(tensor.head(batch, kv_head).unpack()[0, 0] for tensor in (self.kv.k, self.kv.v))


class Unstructured(Method):
    name = "unstructured"

    def unavailable(self, device: str) -> str | None:
        return native.why_cannot("decode_bitmap", device)

    def unsupported(self, workload: Workload, device: str) -> str | None:
        if workload.phase == "prefill":
            return "the published method prunes after prefill and attends over bitmaps in decode only"
        return why_not_native(workload)

    def estimate_bytes(self, workload: Workload) -> int:
        elements = workload.dense_kv_bytes // 2
        kept = 1 - workload.mean_sparsity
        return round(elements * (2 * (kept + 7 / 64) + 12 / 64)) + (64 << 20)

    def prepare(self, workload: Workload, inputs: Inputs) -> Prepared:
        with ranges.annotate("compress"):
            start = time.perf_counter()
            kv = compress_bitmap_kv(
                inputs.k,
                inputs.v,
                key_sparsity=workload.key_sparsity,
                value_sparsity=workload.value_sparsity,
            )
            compress_s = time.perf_counter() - start
        call = attend.decode_bitmap_call(inputs.q, kv)
        return _Prepared(
            out=call.out,
            lse=call.lse,
            memory=kv.memory(),
            achieved_sparsity=kv.achieved_sparsity,
            compress_s=compress_s,
            call=call,
            kv=kv,
        )


def methods(phase: str, device: str) -> list[Method]:
    return [Unstructured()]
