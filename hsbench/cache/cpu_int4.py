"""The CPU page of int4, defined in torch; ``csrc/cpu/kinds/int4.h`` draws it.

Scales, fp16 ``[head_dim / 64][64]`` (:func:`hsbench.cache.int4.scales_of`), then tiles, as of other CPU pages
(``cpu_layout``), whose values are nibbles: 16 bytes for 32 lanes, those of lanes 0 to 15 in the bytes' low halves.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hsbench.cache import cpu_layout, int4
from hsbench.cache.layout import PageLayout
from hsbench.cache.prune import Operand
from hsbench.problem.elements import WIDE, Element

HALF = cpu_layout.LANES // 2
"""Lanes whose nibbles lie in the same halves of bytes."""


def dense_page_bytes(head_dim: int, element: Element) -> int:
    return int4.scale_bytes(head_dim) + cpu_layout.dense_page_bytes(head_dim, element)


def sparse_page_bytes(head_dim: int, element: Element) -> int:
    return int4.scale_bytes(head_dim) + cpu_layout.sparse_page_bytes(head_dim, element)


def pack_dense(blocks: Tensor, operand: Operand, scores: Tensor | None = None) -> Tensor:
    """Dense pages of ``blocks [pages, 64, head_dim]``, in units of their channels' scales."""
    scales, nibbles = _quantised(blocks, operand)
    return torch.cat([scales, _halved(cpu_layout.pack_dense(nibbles, operand))], -1)


def unpack_dense(pages: Tensor, operand: Operand, dtype: torch.dtype, head_dim: int) -> Tensor:
    """fp32 ``[pages, 64, head_dim]``, in units of their channels' scales."""
    scale, tiles = _split(pages, operand, head_dim)
    return int4.from_nibbles(cpu_layout.unpack_dense(_whole(tiles), operand, torch.uint8, head_dim), scale)


def pack_sparse(blocks: Tensor, operand: Operand, scores: Tensor | None = None) -> Tensor:
    """2:4 pages of ``blocks [pages, 64, head_dim]``, pruned, in units of their channels' scales."""
    scales, nibbles = _quantised(blocks, operand)
    pages = cpu_layout.pack_sparse_bytes(blocks if scores is None else scores, nibbles, operand)
    tiles = pages.view(len(pages), cpu_layout.tiles_per_page(blocks.shape[-1]), -1)
    patterns, values = tiles[..., : cpu_layout.PATTERN_BYTES], tiles[..., cpu_layout.PATTERN_BYTES :]
    return torch.cat([scales, torch.cat([patterns, _halved(values)], -1).flatten(1)], -1)


def unpack_sparse(pages: Tensor, operand: Operand, dtype: torch.dtype, head_dim: int) -> Tensor:
    """fp32 ``[pages, 64, head_dim]``, in units of their channels' scales, zeros in place of what was dropped."""
    scale, packed = _split(pages, operand, head_dim)
    tiles = packed.view(len(pages), cpu_layout.tiles_per_page(head_dim), -1)
    patterns, values = tiles[..., : cpu_layout.PATTERN_BYTES], tiles[..., cpu_layout.PATTERN_BYTES :]
    # Beside its nibble a bit that says that there is one, for none of them is 0.
    there = torch.cat([patterns, _whole(values) | _KEPT], -1).flatten(1)
    nibbles = cpu_layout.unpack_sparse_bytes(there, operand, head_dim)
    return torch.where(nibbles >= _KEPT, int4.from_nibbles(nibbles % _KEPT, scale), 0.0)


_KEPT = 16


def _quantised(blocks: Tensor, operand: Operand) -> tuple[Tensor, Tensor]:
    """The bytes of the scales, and the nibbles, of the shape of ``blocks``."""
    scales = int4.scales_of(blocks, operand)
    nibbles = int4.to_nibbles(blocks.float(), int4.spread(scales, operand, blocks.shape[-1]))
    return scales.view(torch.uint8).flatten(1), nibbles


def _split(pages: Tensor, operand: Operand, head_dim: int) -> tuple[Tensor, Tensor]:
    """Each value's scale, and what comes after the scales."""
    of_scales = int4.scale_bytes(head_dim)
    scales = pages[:, :of_scales].contiguous().view(WIDE.torch_dtype).view(len(pages), -1, int4.CHANNELS)
    return int4.spread(scales, operand, head_dim), pages[:, of_scales:].contiguous()


def _halved(values: Tensor) -> Tensor:
    """Bytes that are nibbles, ``[..., n]``, as ``[..., n / 2]``."""
    lanes = values.unflatten(-1, (-1, 2, HALF))
    return (lanes[..., 0, :] | lanes[..., 1, :] << 4).flatten(-2)


def _whole(values: Tensor) -> Tensor:
    """The inverse of :func:`_halved`."""
    both = values.unflatten(-1, (-1, HALF))
    return torch.stack([both & 15, both >> 4], -2).flatten(-3)


_BY_POOL: dict[str, dict[str, Any]] = {
    "dense": {"nbytes": dense_page_bytes, "pack": pack_dense, "unpack": unpack_dense},
    "sparse": {"nbytes": sparse_page_bytes, "pack": pack_sparse, "unpack": unpack_sparse},
}

PAGES: PageLayout = {
    kind: replace(page, scale_bytes=int4.scale_bytes, **_BY_POOL[page.pool]) if page.pool in _BY_POOL else page
    for kind, page in cpu_layout.FP8_PAGES.items()
}
"""The pages of int4, and those that stay wide among them."""
