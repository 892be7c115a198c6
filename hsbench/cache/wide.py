"""Blocks that stay wide in a cache of narrower elements: sink, window and tail, which a few bits would hurt most.

Their values are in units of the scale of a channel, as those of the narrow blocks beside them, so that a kernel's
queries and outputs are the same for both: fp16, whatever the input's type.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hsbench.problem.elements import WIDE


def rounded(x: Tensor) -> Tensor:
    """fp16, like ``x`` (finite, in units of its scales) in shape: rounded to nearest even, saturating."""
    largest = torch.finfo(WIDE.torch_dtype).max
    return x.float().clamp(-largest, largest).to(WIDE.torch_dtype)
