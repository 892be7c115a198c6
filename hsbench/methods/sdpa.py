"""``sdpa:*``: torch's scaled_dot_product_attention, each backend as its own row.

Decode has two forms. ``sdpa:<backend>`` passes ``enable_gqa=True``. ``sdpa:<backend>-rows`` passes the group's query
heads as query rows of their kv head, which is the same sum without a mask and is often far faster.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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


@dataclass(kw_only=True)
class _Part(_Prepared):
    """Decode over a part of a sequence, by the operation below the public one, which gives the log-sum-exp, too."""

    def run(self) -> None:
        q, k, v = self.inputs.q, self.inputs.k, self.inputs.v
        batch, q_heads, q_len, head_dim = q.shape
        rows = q.view(batch, k.shape[1], q_heads // k.shape[1], head_dim)
        out, lse = _WITH_LSE["cpu" if q.device.type == "cpu" else self.backend](rows, k, v)[:2]
        self.out = out.reshape(q.shape)
        # Some backends pad the rows, or give each a dimension of its own.
        self.lse = lse.flatten(2)[..., : rows.shape[2]].reshape(batch, q_heads, q_len)

    def poison(self) -> None:
        super().poison()
        self.lse = torch.full(self.out.shape[:-1], float("nan"), dtype=torch.float32, device=self.out.device)


_WITH_LSE: dict[str, Callable[..., Any]] = {
    "cpu": torch.ops.aten._scaled_dot_product_flash_attention_for_cpu,
    "flash": torch.ops.aten._scaled_dot_product_flash_attention,
    "cudnn": lambda q, k, v: torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True),
    "mem-efficient": lambda q, k, v: torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, True),
}
"""Of each backend's decode over heads as rows; ``cpu`` for flash there."""


class Sdpa(Method):
    dense = True

    def __init__(self, backend: str, rows: bool) -> None:
        self.backend, self.rows = backend, rows
        self.name = f"sdpa:{backend}" + ("-rows" if rows else "")

    def why_not_sharded(self, workload: Workload) -> str | None:
        if self.backend == "math":
            return "torch's math backend gives no log-sum-exp, by which parts of a sequence are combined"
        if workload.phase.causal:
            return "torch's causal form is not offered over a part of the keys with its log-sum-exp"
        if not self.rows:
            return f"torch gives a log-sum-exp where heads are rows: ask for sdpa:{self.backend}-rows"
        return None

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
        return self._prepare(workload, inputs, _Prepared)

    def prepare_part(self, workload: Workload, inputs: Inputs) -> Prepared:
        prepared = self._prepare(workload, inputs, _Part)
        prepared.poison()  # whoever gathers it looks at what there is
        return prepared

    def _prepare(self, workload: Workload, inputs: Inputs, kind: type[_Prepared]) -> Prepared:
        prepared = kind(
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
