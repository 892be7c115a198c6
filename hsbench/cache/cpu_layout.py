"""The CPU page, defined in torch: one 64-token block of K or V for one kv head, as the kernels' SIMD stream.

Both products are ``y[lane] += sum over c of A[lane, c] * x[c]``: for K, lanes are tokens and c is the head dim; for V,
lanes are head dims and c is the token. A page is a row of tiles of 32 lanes x 64 steps of c (lane tile outer, c tile
inner). ``csrc/cpu/kinds/<kind>/page.h`` draws the bytes of a tile:

- dense, 4096 bytes: for each c, 32 lanes of 16-bit values;
- 2:4, 2240 bytes: 48 bits of pattern a lane (16 groups of 4 steps, one of 6 patterns each, 3 bits), then for each
  group and kept slot 32 lanes of values.

Values of e4m3 lie in the same order, a byte each: tiles of 2048 and of 1216 bytes. Wide pages among these are dense
ones of fp16.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from hsbench.cache import e4m3, wide
from hsbench.cache.layout import PageFormat, PageLayout, no_metadata
from hsbench.cache.prune import BLOCK, BlockKind, Operand, keep_2_of_4
from hsbench.problem.elements import FP8, WIDE, Element, element_by

LANES = 32
STEPS = 64
GROUPS = STEPS // 4
PATTERN_BYTES = 192
PATTERNS = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))
"""Kept positions by pattern code."""

_WORD_GROUPS = 10  # codes 0..9 in `low`; 10..14 in a half of `high`; code 15 in the bits that both have left


def tiles_per_page(head_dim: int) -> int:
    return BLOCK * head_dim // (LANES * STEPS)


def sparse_tile_bytes(element: Element) -> int:
    return PATTERN_BYTES + element.nbytes(GROUPS * 2 * LANES)


def dense_page_bytes(head_dim: int, element: Element) -> int:
    return tiles_per_page(head_dim) * element.nbytes(STEPS * LANES)


def sparse_page_bytes(head_dim: int, element: Element) -> int:
    return tiles_per_page(head_dim) * sparse_tile_bytes(element)


def metadata_bytes(head_dim: int) -> int:
    """Pattern bytes within one 2:4 page."""
    return tiles_per_page(head_dim) * PATTERN_BYTES


def pack_dense(blocks: Tensor, operand: Operand, scores: Tensor | None = None) -> Tensor:
    """Dense pages of ``blocks [pages, 64, head_dim]`` (16-bit floats): uint8 ``[pages, dense_page_bytes]``. All stays,
    whatever the scores."""
    steps_first = to_tiles(blocks, operand).mT.contiguous()
    return steps_first.view(torch.uint8).reshape(blocks.shape[0], -1)


def unpack_dense(pages: Tensor, operand: Operand, dtype: torch.dtype, head_dim: int) -> Tensor:
    """``[pages, 64, head_dim]`` from what :func:`pack_dense` made."""
    tiles = pages.contiguous().view(dtype).reshape(pages.shape[0], -1, STEPS, LANES).mT
    return from_tiles(tiles, operand, head_dim)


def pack_sparse(blocks: Tensor, operand: Operand, scores: Tensor | None = None) -> Tensor:
    """2:4 pages of ``blocks [pages, 64, head_dim]``: uint8 ``[pages, sparse_page_bytes]``; prunes as it packs, by
    ``scores``, of the shape of ``blocks``, or by the blocks themselves."""
    return pack_sparse_bytes(blocks if scores is None else scores, blocks, operand)


def pack_sparse_bytes(scores: Tensor, stored: Tensor, operand: Operand) -> Tensor:
    """2:4 pages: ``scores`` say what stays, and ``stored``, of the same shape, what is written of it, 8 or 16 bits."""
    pages = scores.shape[0]
    keep = keep_2_of_4(to_tiles(scores, operand).unflatten(-1, (GROUPS, 4)), -1)
    groups = to_tiles(stored, operand).unflatten(-1, (GROUPS, 4))  # [pages, tiles, lanes, groups, 4]
    bits = (keep.to(torch.int64) << torch.arange(4, device=stored.device)).sum(-1)
    code_of_bits = torch.zeros(16, dtype=torch.int64, device=stored.device)
    for code, (i, j) in enumerate(PATTERNS):
        code_of_bits[1 << i | 1 << j] = code
    codes = code_of_bits[bits]  # [pages, tiles, lanes, groups]
    kept = torch.gather(groups, -1, torch.tensor(PATTERNS, device=stored.device)[codes])
    values = kept.movedim(2, -1).contiguous()  # [pages, tiles, groups, slots, lanes]
    parts = (_pattern_words(codes), values)
    return torch.cat([part.view(torch.uint8).flatten(2) for part in parts], -1).reshape(pages, -1)


def unpack_sparse(pages: Tensor, operand: Operand, dtype: torch.dtype, head_dim: int) -> Tensor:
    """``[pages, 64, head_dim]`` from what :func:`pack_sparse` made, zeros in place of what was dropped."""
    return _unpack_sparse(pages, operand, torch.int16, element_by(dtype), head_dim).view(dtype)


def _unpack_sparse(pages: Tensor, operand: Operand, bits: torch.dtype, element: Element, head_dim: int) -> Tensor:
    """The values' bits, as integers of their size."""
    tiles = pages.reshape(pages.shape[0], -1, sparse_tile_bytes(element))
    codes = _pattern_codes(tiles[..., :PATTERN_BYTES].contiguous().view(torch.int32))
    values = tiles[..., PATTERN_BYTES:].contiguous().view(bits).unflatten(-1, (GROUPS, 2, LANES))
    slots = [values[..., slot, :].contiguous() for slot in range(2)]
    # Bit masks by pattern code, all ones where a slot's value goes to a position: far faster here than a scatter.
    positions = [[[-(at == i), -(at == j)] for i, j in PATTERNS] for at in range(4)]
    masks, flat = torch.tensor(positions, dtype=bits, device=pages.device), codes.flatten()

    def step(at: int) -> Tensor:
        low, high = (masks[at, :, slot].index_select(0, flat).view(codes.shape) & slots[slot] for slot in range(2))
        return low | high

    groups = torch.stack([step(at) for at in range(4)], -2)  # [pages, tiles, groups, 4, lanes]
    return from_tiles(groups.flatten(2, 3).mT, operand, head_dim)


def pack_dense_fp8(blocks: Tensor, operand: Operand, scores: Tensor | None = None) -> Tensor:
    """Dense pages of e4m3 of ``blocks [pages, 64, head_dim]``, in units of their scales."""
    return pack_dense(e4m3.to_bytes(blocks), operand)


def unpack_dense_fp8(pages: Tensor, operand: Operand, dtype: torch.dtype, head_dim: int) -> Tensor:
    """fp32 ``[pages, 64, head_dim]``, in units of their scales."""
    return e4m3.from_bytes(unpack_dense(pages, operand, torch.uint8, head_dim))


def pack_sparse_fp8(blocks: Tensor, operand: Operand, scores: Tensor | None = None) -> Tensor:
    """2:4 pages of e4m3 of ``blocks [pages, 64, head_dim]``, pruned, in units of their scales."""
    return pack_sparse_bytes(blocks if scores is None else scores, e4m3.to_bytes(blocks), operand)


def unpack_sparse_fp8(pages: Tensor, operand: Operand, dtype: torch.dtype, head_dim: int) -> Tensor:
    """fp32 ``[pages, 64, head_dim]``, in units of their scales."""
    return e4m3.from_bytes(unpack_sparse_bytes(pages, operand, head_dim))


def unpack_sparse_bytes(pages: Tensor, operand: Operand, head_dim: int) -> Tensor:
    """uint8 ``[pages, 64, head_dim]`` of 2:4 pages whose values have a byte, zeros in place of what was dropped."""
    return _unpack_sparse(pages, operand, torch.int8, FP8, head_dim).view(torch.uint8)


def wide_page_bytes(head_dim: int, element: Element) -> int:
    return dense_page_bytes(head_dim, WIDE)


def pack_wide(blocks: Tensor, operand: Operand, scores: Tensor | None = None) -> Tensor:
    """Wide pages of ``blocks [pages, 64, head_dim]``, in units of their scales."""
    return pack_dense(wide.rounded(blocks), operand)


def unpack_wide(pages: Tensor, operand: Operand, dtype: torch.dtype, head_dim: int) -> Tensor:
    """fp32 ``[pages, 64, head_dim]``, in units of their scales."""
    return unpack_dense(pages, operand, WIDE.torch_dtype, head_dim).float()


def to_tiles(blocks: Tensor, operand: Operand) -> Tensor:
    """``[pages, 64, head_dim]`` to ``[pages, tiles, lanes, steps]``."""
    matrix = blocks if operand == "k" else blocks.mT
    tiles = matrix.unflatten(-1, (-1, STEPS)).unflatten(-3, (-1, LANES))  # [pages, lane tile, lane, c tile, c]
    return tiles.transpose(-3, -2).flatten(1, 2)


def from_tiles(tiles: Tensor, operand: Operand, head_dim: int) -> Tensor:
    steps = head_dim if operand == "k" else BLOCK
    matrix = tiles.unflatten(1, (-1, steps // STEPS)).transpose(-3, -2).flatten(-2).flatten(1, 2)
    return (matrix if operand == "k" else matrix.mT).contiguous()


def _pattern_words(codes: Tensor) -> Tensor:
    """3-bit codes ``[pages, tiles, 32 lanes, 16 groups]`` to int32 ``[pages, tiles, 48]``: low[32], high[16]."""
    shifts = 3 * torch.arange(_WORD_GROUPS, device=codes.device)
    last = codes[..., -1]
    low = (codes[..., :_WORD_GROUPS] << shifts).sum(-1) | (last & 3) << 30
    half = (codes[..., _WORD_GROUPS:-1] << shifts[: GROUPS - 1 - _WORD_GROUPS]).sum(-1) | (last >> 2) << 15
    high = half[..., :16] | half[..., 16:] << 16
    words = torch.cat([low, high], -1)
    return (words - ((words >> 31) << 32)).to(torch.int32)  # the same 32 bits, as a signed number


def _pattern_codes(words: Tensor) -> Tensor:
    """The inverse of :func:`_pattern_words`, with groups before lanes: ``[pages, tiles, 16 groups, 32 lanes]``."""
    low, high = words[..., :LANES], words[..., LANES:]
    half = torch.cat([high, high >> 16], -1)  # of the upper half word only its low 16 bits are looked at
    codes = [low >> 3 * group & 7 for group in range(_WORD_GROUPS)]
    codes += [half >> 3 * group & 7 for group in range(GROUPS - 1 - _WORD_GROUPS)]
    codes += [low >> 30 & 3 | (half >> 15 & 1) << 2]
    return torch.stack(codes, -2)


PAGES: PageLayout = {
    BlockKind.DENSE: PageFormat("dense", "dense", dense_page_bytes, no_metadata, pack_dense, unpack_dense),
    BlockKind.SPARSE_2_4: PageFormat(
        "sparse", "2:4 values", sparse_page_bytes, metadata_bytes, pack_sparse, unpack_sparse
    ),
}
"""The pages by kind of block."""

FP8_PAGES: PageLayout = {
    BlockKind.DENSE: replace(PAGES[BlockKind.DENSE], pack=pack_dense_fp8, unpack=unpack_dense_fp8),
    BlockKind.SPARSE_2_4: replace(PAGES[BlockKind.SPARSE_2_4], pack=pack_sparse_fp8, unpack=unpack_sparse_fp8),
    BlockKind.WIDE: PageFormat("wide", "wide", wide_page_bytes, no_metadata, pack_wide, unpack_wide),
}
"""The pages of e4m3, and those that stay wide among them."""
