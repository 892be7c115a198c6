"""The last layer in fp32: in 16 bits it would round logits to an eighth, more than what pruning may cost."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

_ROWS = 16_384  # of the vocabulary, whose weights are in fp32 at a time


class _WideHead(torch.nn.Module):
    """A linear layer with 16-bit weights, multiplied in fp32."""

    def __init__(self, linear: Any) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, getattr(linear, "bias", None)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """``[..., hidden]`` to fp32 ``[..., vocab]``."""
        wide = hidden.float()
        out = torch.empty(*hidden.shape[:-1], self.weight.shape[0], dtype=torch.float32, device=hidden.device)
        for first in range(0, self.weight.shape[0], _ROWS):
            rows = slice(first, first + _ROWS)
            bias = None if self.bias is None else self.bias[rows].float()
            out[..., rows] = F.linear(wide, self.weight[rows].float(), bias)
        return out


def widen_head(hf: Any) -> None:
    """Let a model with 16-bit weights compute its logits in fp32."""
    linear = hf.get_output_embeddings()
    if isinstance(linear, torch.nn.Linear):
        hf.set_output_embeddings(_WideHead(linear))
