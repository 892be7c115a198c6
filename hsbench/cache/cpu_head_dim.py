"""The CPU page of V in groups along head_dim, defined in torch.

Decode walks V token by token, so 2:4 along head_dim is dense work on values that are spread out as they are read. Only
2:4 pages differ from those of ``cpu_layout``: a row of tiles of 32 head dims x 64 tokens, and of a tile
(``csrc/cpu/kinds/sparse_2_4_rows/page.h``)

- 256 bytes of masks: 32 bits for each token, bit i for head dim i of the tile;
- for each token the 16 values that it keeps, in ascending order: 2,048 bytes, or 1,024 of e4m3.

2:4 pages of int4 (``csrc/cpu/kinds/int4_rows/page.h``) have scales as others do (``cpu_int4``), then for each 64 head
dims and 8 tokens 192 bytes, words of 16 lanes, lane ``4 b + k`` being group ``4 k + b`` of 4 head dims: masks, bit
``16 half + 4 j + i`` for head dim i of token ``2 j + half``; and for each of its two slots that token's digit.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from hsbench.cache import cpu_int4, cpu_layout, e4m3, int4
from hsbench.cache.layout import Pack, PageFormat, PageLayout, Unpack
from hsbench.cache.prune import BLOCK, Operand, keep_2_of_4
from hsbench.problem.elements import Element

DIMS = 32
"""Head dims of a tile."""

_KEPT = DIMS // 2
_MASK_BYTES = BLOCK * DIMS // 8


def metadata_bytes(head_dim: int) -> int:
    """Mask bytes within one 2:4 page."""
    return head_dim // DIMS * _MASK_BYTES


def sparse_page_bytes(head_dim: int, element: Element) -> int:
    return element.nbytes(BLOCK * head_dim // 2) + metadata_bytes(head_dim)


def pack_sparse(blocks: Tensor, operand: Operand, scores: Tensor | None = None) -> Tensor:
    """2:4 pages of ``blocks [pages, 64, head_dim]`` of V: uint8 ``[pages, sparse_page_bytes]``; prunes as it packs, by
    ``scores``, of the shape of ``blocks``, or by the blocks themselves."""
    return _pack(blocks if scores is None else scores, blocks)


def unpack_sparse(pages: Tensor, operand: Operand, dtype: torch.dtype, head_dim: int) -> Tensor:
    """``[pages, 64, head_dim]`` from what :func:`pack_sparse` made, zeros in place of what was dropped."""
    return _unpack(pages, torch.int16, head_dim).view(dtype)


def pack_sparse_fp8(blocks: Tensor, operand: Operand, scores: Tensor | None = None) -> Tensor:
    """2:4 pages of e4m3 of ``blocks [pages, 64, head_dim]`` of V, pruned, in units of their scales."""
    return _pack(blocks if scores is None else scores, e4m3.to_bytes(blocks))


def unpack_sparse_fp8(pages: Tensor, operand: Operand, dtype: torch.dtype, head_dim: int) -> Tensor:
    """fp32 ``[pages, 64, head_dim]``, in units of their scales."""
    return e4m3.from_bytes(_unpack(pages, torch.int8, head_dim).view(torch.uint8))


def _pack(scores: Tensor, stored: Tensor) -> Tensor:
    """``scores`` say what stays, and ``stored``, of the same shape, what is written of it, 8 or 16 bits."""
    keep, values = (_to_tiles(x) for x in (keep_2_of_4(scores, -1), stored))  # [pages, tiles, tokens, 32]
    bits = (keep.to(torch.int64) << torch.arange(DIMS, device=stored.device)).sum(-1)
    masks = (bits - ((bits >> 31) << 32)).to(torch.int32)  # the same 32 bits, as a signed number
    kept = values[keep].unflatten(0, (*masks.shape, _KEPT))
    return torch.cat([part.contiguous().view(torch.uint8).flatten(2) for part in (masks, kept)], -1).flatten(1)


def _unpack(pages: Tensor, bits: torch.dtype, head_dim: int) -> Tensor:
    """The values' bits, as integers of their size."""
    tiles = pages.reshape(pages.shape[0], head_dim // DIMS, -1)
    masks = tiles[..., :_MASK_BYTES].contiguous().view(torch.int32)  # [pages, tiles, tokens]
    keep = (masks.unsqueeze(-1) >> torch.arange(DIMS, device=pages.device) & 1).bool()
    values = torch.zeros(keep.shape, dtype=bits, device=pages.device)
    values[keep] = tiles[..., _MASK_BYTES:].contiguous().view(bits).flatten()
    return values.transpose(1, 2).flatten(2)


def _to_tiles(x: Tensor) -> Tensor:
    """``[pages, 64, head_dim]`` to ``[pages, tiles, 64, 32]``."""
    return x.unflatten(-1, (-1, DIMS)).transpose(1, 2)


_PARTS = 3
"""Masks, and two slots of digits."""


def sparse_page_bytes_int4(head_dim: int, element: Element) -> int:
    return int4.scale_bytes(head_dim) + sparse_page_bytes(head_dim, element)


def pack_sparse_int4(blocks: Tensor, operand: Operand, scores: Tensor | None = None) -> Tensor:
    """2:4 pages of int4 of ``blocks [pages, 64, head_dim]`` of V, pruned, in units of their channels' scales."""
    scales, digits = cpu_int4.quantised(blocks, operand)
    keep, digits = (_to_lanes(x) for x in (keep_2_of_4(blocks if scores is None else scores, -1), digits))
    masks = (keep.to(torch.uint8) << torch.arange(4, dtype=torch.uint8, device=blocks.device)).sum(
        -1, dtype=torch.uint8
    )
    parts = torch.cat([masks.unsqueeze(-1), digits[keep].unflatten(0, (*masks.shape, 2))], -1)
    tokens = parts.unflatten(2, (-1, cpu_int4.IN_HALF, 2))  # [pages, rows, eighths, 4, 2, lanes, parts]
    return torch.cat([scales, cpu_int4.to_words(tokens.movedim(-1, 3)).flatten(1)], -1)


def unpack_sparse_int4(pages: Tensor, operand: Operand, dtype: torch.dtype, head_dim: int) -> Tensor:
    """fp32 ``[pages, 64, head_dim]``, in units of their channels' scales, zeros in place of what was dropped."""
    scale, rows = cpu_int4.split(pages, operand, head_dim)
    words = rows.reshape(len(pages), head_dim // int4.CHANNELS, BLOCK // cpu_int4.WORD, _PARTS, -1)
    parts = cpu_int4.from_words(words).movedim(3, -1).flatten(2, 4)  # [pages, rows, tokens, lanes, parts]
    keep = (parts[..., :1] >> torch.arange(4, device=pages.device) & 1).bool()
    digits = torch.zeros(keep.shape, dtype=torch.uint8, device=pages.device)
    digits[keep] = parts[..., 1:].flatten()
    kept, nibbles = (_from_lanes(x) for x in (keep, cpu_int4.turned(digits)))
    return torch.where(kept, int4.from_nibbles(nibbles, scale), 0.0)


def _to_lanes(x: Tensor) -> Tensor:
    """``[pages, 64, head_dim]`` to ``[pages, rows, 64, lanes, 4]``."""
    groups = x.unflatten(-1, (-1, 4, 4, 4))  # [pages, tokens, rows, k, b, 4]
    return groups.transpose(3, 4).flatten(3, 4).transpose(1, 2)


def _from_lanes(x: Tensor) -> Tensor:
    """The inverse of :func:`_to_lanes`."""
    return x.transpose(1, 2).unflatten(3, (4, 4)).transpose(3, 4).flatten(2)


def _sparse(pack: Pack, unpack: Unpack) -> PageFormat:
    return PageFormat("sparse", "2:4 values", sparse_page_bytes, metadata_bytes, pack, unpack)


PAGES: PageLayout = {
    kind: _sparse(pack_sparse, unpack_sparse) if page.pool == "sparse" else page
    for kind, page in cpu_layout.PAGES.items()
}
FP8_PAGES: PageLayout = {
    kind: _sparse(pack_sparse_fp8, unpack_sparse_fp8) if page.pool == "sparse" else page
    for kind, page in cpu_layout.FP8_PAGES.items()
}
INT4_PAGES: PageLayout = {
    kind: replace(
        page,
        nbytes=sparse_page_bytes_int4,
        metadata_bytes=metadata_bytes,
        pack=pack_sparse_int4,
        unpack=unpack_sparse_int4,
    )
    if page.pool == "sparse"
    else page
    for kind, page in cpu_int4.PAGES.items()
}
"""By kind of block, of 16-bit values, of e4m3 and of int4; dense and wide blocks lie as those along tokens do."""
