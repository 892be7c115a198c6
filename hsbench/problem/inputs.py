"""The tensors that a workload is measured on, wherever they come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass
class Inputs:
    """Tensors of one workload, contiguous, in its dtype.

    Attributes:
        q: ``[batch, q_heads, q_len, head_dim]``.
        k, v: ``[batch, kv_heads, seq, head_dim]``.
        source: where they come from, as ``Workload.tensors``.
        context: ``[batch, q_heads, n, head_dim]``, the last n queries of the context, q's last among them, where they
            are known and a pruner looks at them.
        query_rms: fp32 ``[kv_heads, head_dim]``, of a basis, where a pruner takes one.
        ahead: tokens of the sequence behind k's last, where k and v are a part of it: q is the last of these.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    source: str
    context: torch.Tensor | None = None
    query_rms: torch.Tensor | None = None
    ahead: int = 0
