"""The CPU page of int4, defined in torch; ``csrc/cpu/kinds/int4/page.h`` draws it.

Scales, fp16 ``[head_dim / 64][64]`` (:func:`hsbench.cache.int4.scales_of`), then tiles, as of other CPU pages
(``cpu_layout``), whose values are digits: nibbles in two's complement, ``level = 2 digit + 1`` in halves of a scale.
Eight digits of a lane are a 32-bit word, whose halves are what kernels multiply at once:

- dense, 1024 bytes: for each 8 steps 32 words, step ``2 j + half`` at bit ``16 half + 4 j``;
- 2:4, 704 bytes: the patterns of other 2:4 tiles, then for each 4 groups 32 words, slot ``half`` of group ``j`` there.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hsbench.cache import cpu_layout, int4
from hsbench.cache.cpu_layout import GROUPS, LANES, PATTERN_BYTES, STEPS
from hsbench.cache.layout import PageLayout
from hsbench.cache.prune import Operand
from hsbench.problem.elements import WIDE, Element

IN_HALF = 4
"""Digits in a half of a word."""

WORD = 2 * IN_HALF


def dense_page_bytes(head_dim: int, element: Element) -> int:
    return int4.scale_bytes(head_dim) + cpu_layout.dense_page_bytes(head_dim, element)


def sparse_page_bytes(head_dim: int, element: Element) -> int:
    return int4.scale_bytes(head_dim) + cpu_layout.sparse_page_bytes(head_dim, element)


def pack_dense(blocks: Tensor, operand: Operand, scores: Tensor | None = None) -> Tensor:
    """Dense pages of ``blocks [pages, 64, head_dim]``, in units of their channels' scales."""
    scales, digits = quantised(blocks, operand)
    steps = cpu_layout.to_tiles(digits, operand).unflatten(-1, (STEPS // WORD, IN_HALF, 2))
    return torch.cat([scales, to_words(steps.movedim(2, -1)).flatten(1)], -1)


def unpack_dense(pages: Tensor, operand: Operand, dtype: torch.dtype, head_dim: int) -> Tensor:
    """fp32 ``[pages, 64, head_dim]``, in units of their channels' scales."""
    scale, tiles = split(pages, operand, head_dim)
    digits = from_words(tiles.unflatten(-1, (STEPS // WORD, -1))).flatten(2, 4).mT
    return int4.from_nibbles(turned(cpu_layout.from_tiles(digits, operand, head_dim)), scale)


def pack_sparse(blocks: Tensor, operand: Operand, scores: Tensor | None = None) -> Tensor:
    """2:4 pages of ``blocks [pages, 64, head_dim]``, pruned, in units of their channels' scales."""
    scales, digits = quantised(blocks, operand)
    pages = cpu_layout.pack_sparse_bytes(blocks if scores is None else scores, digits, operand)
    tiles = pages.view(len(pages), cpu_layout.tiles_per_page(blocks.shape[-1]), -1)
    patterns, kept = tiles[..., :PATTERN_BYTES], tiles[..., PATTERN_BYTES:]
    words = to_words(kept.unflatten(-1, (GROUPS // IN_HALF, IN_HALF, 2, LANES)))
    return torch.cat([scales, torch.cat([patterns, words.flatten(2)], -1).flatten(1)], -1)


def unpack_sparse(pages: Tensor, operand: Operand, dtype: torch.dtype, head_dim: int) -> Tensor:
    """fp32 ``[pages, 64, head_dim]``, in units of their channels' scales, zeros in place of what was dropped."""
    scale, tiles = split(pages, operand, head_dim)
    patterns, words = tiles[..., :PATTERN_BYTES], tiles[..., PATTERN_BYTES:]
    kept = from_words(words.unflatten(-1, (GROUPS // IN_HALF, -1))).flatten(2)
    # Beside its digit a bit that says that there is one, for none of them is 0.
    there = torch.cat([patterns, kept | _KEPT], -1).flatten(1)
    digits = cpu_layout.unpack_sparse_bytes(there, operand, head_dim)
    return torch.where(digits >= _KEPT, int4.from_nibbles(turned(digits % _KEPT), scale), 0.0)


_KEPT = 16


def turned(nibbles: Tensor) -> Tensor:
    """A sign and 3 bits, from 0 to 15, as digits, and the other way."""
    return nibbles ^ torch.where(nibbles >= 8, 7, 0).to(torch.uint8)


def quantised(blocks: Tensor, operand: Operand) -> tuple[Tensor, Tensor]:
    """The bytes of the scales, and the digits, of the shape of ``blocks``."""
    scales = int4.scales_of(blocks, operand)
    nibbles = int4.to_nibbles(blocks.float(), int4.spread(scales, operand, blocks.shape[-1]))
    return scales.view(torch.uint8).flatten(1), turned(nibbles)


def split(pages: Tensor, operand: Operand, head_dim: int) -> tuple[Tensor, Tensor]:
    """Each value's scale, and the bytes of the tiles, ``[pages, tiles, tile bytes]``."""
    of_scales = int4.scale_bytes(head_dim)
    scales = pages[:, :of_scales].contiguous().view(WIDE.torch_dtype).view(len(pages), -1, int4.CHANNELS)
    tiles = pages[:, of_scales:].reshape(len(pages), cpu_layout.tiles_per_page(head_dim), -1)
    return int4.spread(scales, operand, head_dim), tiles


def to_words(digits: Tensor) -> Tensor:
    """Digits ``[..., 4, 2, lanes]`` of a word in each lane, as bytes, ``[..., 4 lanes]``."""
    halves = (digits.to(torch.int32) << _places(digits)).sum(-3, dtype=torch.int32)
    return halves.to(torch.int16).mT.contiguous().view(torch.uint8).flatten(-2)


def from_words(words: Tensor) -> Tensor:
    """The inverse of :func:`to_words`."""
    halves = words.contiguous().view(torch.int16).unflatten(-1, (-1, 2)).mT.unsqueeze(-3).to(torch.int32)
    return (halves >> _places(words) & 15).to(torch.uint8)


def _places(like: Tensor) -> Tensor:
    """The first bits of a half's digits, ``[4, 1, 1]``."""
    return 4 * torch.arange(IN_HALF, dtype=torch.int32, device=like.device).view(-1, 1, 1)


_BY_POOL: dict[str, dict[str, Any]] = {
    "dense": {"nbytes": dense_page_bytes, "pack": pack_dense, "unpack": unpack_dense},
    "sparse": {"nbytes": sparse_page_bytes, "pack": pack_sparse, "unpack": unpack_sparse},
}

PAGES: PageLayout = {
    kind: replace(page, scale_bytes=int4.scale_bytes, **_BY_POOL[page.pool]) if page.pool in _BY_POOL else page
    for kind, page in cpu_layout.FP8_PAGES.items()
}
"""The pages of int4, and those that stay wide among them."""
