"""int4, as caches store it: nibbles of a sign and 3 bits, and a 16-bit scale for each few of them.

A nibble ``s mmm`` is ``(m + 1/2) x scale``, negative where s is set: 16 levels, symmetric, none of them 0, for what 2:4
keeps lies away from 0. A scale belongs to a channel of a block of K, or to 64 channels of a token of V (KIVI, arXiv
2402.02750, has the same two axes), and is in units of the power of 2 that the channel's values are in as those of e4m3
are (:mod:`hsbench.cache.e4m3`). Blocks have 64 tokens, so that K and V have as many scales, for each 64 channels 64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hsbench.cache.prune import BLOCK, Operand
from hsbench.problem.elements import WIDE

CHANNELS = 64
"""Of a token of V that share a scale."""

LARGEST = 7.5
"""Scales that the largest value is."""

_SIGN = 8


def scale_bytes(head_dim: int) -> int:
    """Of the scales of a block of K or of V."""
    return WIDE.nbytes(-(-head_dim // CHANNELS) * BLOCK)


def scales_of(blocks: Tensor, operand: Operand) -> Tensor:
    """The scales that hold what is in blocks, fp16, in the order of a page's.

    Args:
        blocks: fp32 ``[pages, 64, head_dim]``, finite, in units of their channels' power of 2.

    Returns:
        ``[pages, ceil(head_dim / 64), 64]``: by channel of K; by 64 channels and token of V.
    """
    most = _by_64(blocks.float().abs()).amax(-2 if operand == "k" else -1)  # [pages, 64s of channels, 64]
    # By a tensor: on CUDA torch divides by a number as a product with its inverse.
    return (most / torch.full_like(most, LARGEST)).clamp(max=torch.finfo(WIDE.torch_dtype).max).to(WIDE.torch_dtype)


def spread(scales: Tensor, operand: Operand, head_dim: int) -> Tensor:
    """Each value's scale, fp32 ``[pages, 64, head_dim]``, of :func:`scales_of`'s."""
    each = scales.float().unsqueeze(-2 if operand == "k" else -1).expand(*scales.shape[:2], BLOCK, CHANNELS)
    return each.transpose(1, 2).flatten(2)[..., :head_dim]


def to_nibbles(x: Tensor, scale: Tensor) -> Tensor:
    """uint8 0 to 15, like ``x`` (fp32, finite) in shape: the nearest level; of two the one that is farther from 0."""
    steps = torch.where(scale > 0, x.abs() / scale, 0.0).floor().clamp(max=_SIGN - 1)
    return steps.to(torch.uint8) + _SIGN * (x < 0).to(torch.uint8)


def from_nibbles(nibbles: Tensor, scale: Tensor) -> Tensor:
    """fp32, like ``nibbles`` in shape."""
    magnitude = ((nibbles % _SIGN).float() + 0.5) * scale
    return torch.where(nibbles < _SIGN, magnitude, -magnitude)


def rounded(blocks: Tensor, operand: Operand) -> Tensor:
    """What comes back of blocks ``[pages, 64, head_dim]`` of which all is kept, fp32."""
    scale = spread(scales_of(blocks, operand), operand, blocks.shape[-1])
    return from_nibbles(to_nibbles(blocks.float(), scale), scale)


def _by_64(blocks: Tensor) -> Tensor:
    """``[pages, 64s of channels, 64 tokens, 64 channels]``, padded with zeros."""
    room = -blocks.shape[-1] % CHANNELS
    return torch.nn.functional.pad(blocks, (0, room)).unflatten(-1, (-1, CHANNELS)).transpose(1, 2)
