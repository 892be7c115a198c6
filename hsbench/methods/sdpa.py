"""``sdpa:*``: torch's scaled_dot_product_attention, each backend as its own row.

Decode has two forms. ``sdpa:<backend>`` passes ``enable_gqa=True``. ``sdpa:<backend>-rows`` passes the group's query
heads as query rows of their kv head, which is the same sum without a mask and is often far faster.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from hsbench.errors import UnsupportedError
from hsbench.kernels.device import Device
from hsbench.measure.out_of_memory import is_out_of_memory
from hsbench.methods.base import Method, Prepared
from hsbench.problem.elements import FP32
from hsbench.problem.inputs import Inputs
from hsbench.problem.phase import Phase
from hsbench.problem.workload import Workload

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "mem-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
_ON = {"cpu": ("flash", "math"), "cuda": tuple(BACKENDS)}


@dataclass(kw_only=True)
class _Prepared(Prepared):
    inputs: Inputs
    backend: str = ""
    rows: bool = False
    causal: bool = False

    def run(self) -> None:
        q, k, v = self.inputs.q, self.inputs.k, self.inputs.v
        with sdpa_kernel(BACKENDS[self.backend]):
            if self.rows:
                batch, q_heads, _, head_dim = q.shape
                rows = q.view(batch, k.shape[1], q_heads // k.shape[1], head_dim)
                self.out = scaled_dot_product_attention(rows, k, v).reshape(q.shape)
            else:
                grouped = q.shape[1] != k.shape[1]
                square = q.shape[2] == k.shape[2]
                # is_causal aligns the first query with the first token; a chunk's last query sees the last one.
                bias = causal_lower_right(q.shape[2], k.shape[2]) if self.causal and not square else None
                self.out = scaled_dot_product_attention(
                    q, k, v, attn_mask=bias, is_causal=self.causal and square, enable_gqa=grouped
                )

    def poison(self) -> None:
        # Torch makes a new output each time; this one is there only to be replaced.
        self.out = torch.full_like(self.inputs.q, float("nan"))


class Sdpa(Method):
    dense = True

    def __init__(self, backend: str, rows: bool) -> None:
        self.backend, self.rows = backend, rows
        self.name = f"sdpa:{backend}" + ("-rows" if rows else "")

    def estimate_bytes(self, workload: Workload) -> int:
        queries = workload.batch * workload.q_heads * workload.q_len
        out = workload.query_bytes
        if self.backend != "math":
            mask = FP32.nbytes(workload.q_len * workload.seq) if workload.q_len not in (1, workload.seq) else 0
            return 2 * out + mask
        # The math backend repeats K and V per query head, holds them in fp32, K a second time scaled, and the scores
        # about three times.
        heads = 1 if self.rows else workload.group
        copies = 3 * heads + (heads if heads > 1 else 0)
        return 3 * FP32.nbytes(queries * workload.seq) + copies * workload.dense_kv_bytes + 3 * out

    def held_bytes(self, workload: Workload) -> int:
        return workload.query_bytes

    def prepare(self, workload: Workload, inputs: Inputs) -> Prepared:
        prepared = _Prepared(
            out=torch.empty_like(inputs.q),
            memory={"dense": inputs.k.nbytes + inputs.v.nbytes},
            inputs=inputs,
            backend=self.backend,
            rows=self.rows,
            causal=workload.phase.causal,
        )
        refusal = _refusal(prepared, workload)
        if refusal is not None:
            raise UnsupportedError(f"torch's {self.backend} backend refuses this: {refusal}")
        return prepared


def _refusal(prepared: _Prepared, workload: Workload) -> str | None:
    """Torch's own words on why a backend cannot take these tensors, from a run over the first tokens."""
    inputs = prepared.inputs
    q_len, seq = inputs.q.shape[2], inputs.k.shape[2]
    few = min(seq, 128)
    few_q = q_len if q_len == 1 else (few if q_len == seq else min(q_len, few // 2 or 1))

    def first(x: Tensor, tokens: int) -> Tensor:
        return x[:, :, :tokens].contiguous()

    small = Inputs(first(inputs.q, few_q), first(inputs.k, few), first(inputs.v, few), inputs.source)
    trial = _Prepared(out=small.q, inputs=small, backend=prepared.backend, rows=prepared.rows, causal=prepared.causal)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            trial.run()
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            # Which of the checks failed is said in warnings, below a heading each; the error only says that no backend
            # is left.
            said = [str(w.message).split(" (Triggered")[0].strip() for w in caught]
            said = [text for text in said if text and not text.endswith("because:")]
            return said[0] if said else str(error).splitlines()[0]
    return None


def methods(phase: Phase, device: Device) -> list[Method]:
    forms = (False,) if phase.causal else (False, True)
    return [Sdpa(backend, rows) for backend in _ON[device.kind] for rows in forms]
