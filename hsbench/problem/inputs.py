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
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    source: str
