"""``reference``: attention in fp32, the result that every other method is checked against."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hsbench.attention.reference import SCORES, attention
from hsbench.kernels.device import Device
from hsbench.methods.base import Method, Prepared
from hsbench.problem.elements import FP32
from hsbench.problem.inputs import Inputs
from hsbench.problem.phase import Phase
from hsbench.problem.workload import Workload


@dataclass(kw_only=True)
class _Prepared(Prepared):
    inputs: Inputs
    lse: Tensor

    def run(self) -> None:
        out, lse = attention(self.inputs.q, self.inputs.k, self.inputs.v)
        self.out.copy_(out)
        self.lse.copy_(lse)


class Reference(Method):
    name = "reference"
    dense = True

    def why_not_sharded(self, workload: Workload) -> str | None:
        return "prefill's is for a whole sequence" if workload.phase.causal else None

    def estimate_bytes(self, workload: Workload) -> int:
        queries = workload.batch * workload.q_heads * workload.q_len * workload.head_dim
        head = FP32.nbytes(2 * workload.seq * workload.head_dim)
        scores = FP32.nbytes(4 * max(SCORES, workload.group * workload.seq))
        return scores + head + workload.query_bytes + FP32.nbytes(queries)

    def held_bytes(self, workload: Workload) -> int:
        queries = workload.batch * workload.q_heads * workload.q_len
        return workload.query_bytes + FP32.nbytes(queries)

    def prepare(self, workload: Workload, inputs: Inputs) -> Prepared:
        q = inputs.q
        lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
        stored = {"dense": inputs.k.nbytes + inputs.v.nbytes}
        return _Prepared(out=torch.empty_like(q), lse=lse, memory=stored, inputs=inputs)


def methods(phase: Phase, device: Device) -> list[Method]:
    return [Reference()]
