"""Feed-forward layers in pieces: of a long prompt they alone would take more memory than all else in a pass.

Each token goes through them by itself, so a piece at a time gives the same, and at this size costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

PIECE = 1 << 15
"""Tokens of a piece."""

ANY_PIECE = 1 << 62
"""Where they are not cut."""

_PARTS = ("gate_proj", "up_proj", "down_proj")


def in_pieces(hf: Any) -> bool:
    """Let a model's gated feed-forward layers take at most :data:`PIECE` tokens at a time; whether all of it are such.
    Others, with experts that are chosen, stay as they are."""
    found = [module for path, module in hf.named_modules() if path.endswith(".mlp")]
    gated = [
        module for module in found if all(isinstance(getattr(module, part, None), torch.nn.Linear) for part in _PARTS)
    ]
    for module in gated:
        module.forward = _cut(module.forward)
    return bool(found) and len(gated) == len(found)


def _cut(whole: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(hidden: torch.Tensor) -> torch.Tensor:
        flat = hidden.reshape(-1, hidden.shape[-1])
        if len(flat) <= PIECE:
            return whole(hidden)
        out = torch.empty_like(flat)
        for piece, part in zip(out.split(PIECE), flat.split(PIECE), strict=True):
            piece.copy_(whole(part))
        return out.reshape(hidden.shape)

    return forward
