"""The CPU page of V in groups along head_dim, defined in torch.

Decode walks V token by token, so 2:4 along head_dim is dense work on values that are spread out as they are read. Only
2:4 pages differ from those of ``cpu_layout``: a row of tiles of 32 head dims x 64 tokens, and of a tile
(``csrc/cpu/kinds/sparse_2_4_rows/page.h``)

- 256 bytes of masks: 32 bits for each token, bit i for head dim i of the tile;
- for each token the 16 values that it keeps, in ascending order: 2,048 bytes, or 1,024 of e4m3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hsbench.cache import cpu_layout, e4m3
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
"""By kind of block, of 16-bit values and of e4m3; dense and wide blocks lie as those along tokens do."""
