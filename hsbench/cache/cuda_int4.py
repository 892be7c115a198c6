"""The CUDA page of int4, defined in torch; ``csrc/cuda/kinds/int4_page.cuh`` draws it.

Scales, values and metadata lie lane by lane, in the order of the registers of ``mma.m16n8k16`` and ``mma.sp.m16n8k32``.
Rows and the order of the contraction are those of wide pages (``cuda_layout``). Words are int64 until they are stored.

Works on tensors of any device.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hsbench.cache import cuda_layout, int4
from hsbench.cache.cpu_layout import PATTERNS
from hsbench.cache.cuda_layout import Matrix, from_dealt_matrix, matrix_shape, to_dealt_matrix
from hsbench.cache.layout import PageLayout
from hsbench.cache.prune import BLOCK, Operand, keep_2_of_4
from hsbench.problem.elements import WIDE, Element

STEP = 32
"""Columns of one ``mma.sp``."""

SIGN_AND_MAGNITUDE = (3, 1)
"""Half h of register r has its sign in nibble r + 4 h + 3 of a word, its magnitude in r + 4 h + 1, modulo 8."""


def metadata_bytes(head_dim: int) -> int:
    """Pattern bytes within one 2:4 page: 3 bits for a group of 4."""
    return BLOCK * head_dim // 4 * 3 // 8


def dense_page_bytes(head_dim: int, element: Element) -> int:
    return int4.scale_bytes(head_dim) + element.nbytes(BLOCK * head_dim)


def sparse_page_bytes(head_dim: int, element: Element) -> int:
    return int4.scale_bytes(head_dim) + element.nbytes(BLOCK * head_dim // 2) + metadata_bytes(head_dim)


def pack_dense(blocks: Tensor, operand: Matrix, scores: Tensor | None = None) -> Tensor:
    """Dense pages of ``blocks [pages, 64, head_dim]``, in units of their channels' scales."""
    scales, nibbles = _quantised(blocks, operand)
    # [page, strip, half of it, row of 8, pair, 16 of its cols, half of them, half of that, lane of its pair, 2]
    split = nibbles.unflatten(-1, (-1, 4, 2, 2, 2, 2)).unflatten(1, (-1, 2, 8))
    words = _words_of_nibbles(split.permute(0, 4, 1, 5, 3, 6, 8, 7, 2, 9))  # [page, pair, strip, 16 cols, row, t ..]
    return torch.cat([scales, _by_lane(words)], -1)


def unpack_dense(pages: Tensor, operand: Matrix, dtype: torch.dtype, head_dim: int) -> Tensor:
    """fp32 ``[pages, 64, head_dim]``, in units of their channels' scales."""
    rows, cols = matrix_shape(operand, head_dim)
    scale, stored = _split(pages, operand, head_dim)
    words = _of_lanes(stored).view(-1, cols // 64, rows // 16, 4, 8, 2, 2)
    split = _nibbles_of_words(words).permute(0, 2, 8, 4, 1, 3, 5, 7, 6, 9)
    nibbles = split.flatten(4).flatten(1, 3)
    return int4.from_nibbles(from_dealt_matrix(nibbles, operand), scale)


def pack_sparse(blocks: Tensor, operand: Matrix, scores: Tensor | None = None) -> Tensor:
    """2:4 pages of ``blocks [pages, 64, head_dim]``, pruned, in units of their channels' scales."""
    scales, nibbles = _quantised(blocks, operand)
    groups = to_dealt_matrix(blocks if scores is None else scores, operand).unflatten(-1, (-1, 4))
    keep = keep_2_of_4(groups, -1)  # [page, row, group, 4]
    # A stable sort puts the positions of the two that stay first, in ascending order.
    positions = (~keep).to(torch.uint8).argsort(dim=-1, stable=True)[..., :2]
    kept = nibbles.unflatten(-1, (-1, 4)).gather(-1, positions)
    # [page, strip, half of it, row of 8, pair, step, lane of a quad, half of its groups, 2]
    split = kept.unflatten(2, (-1, 2, 4, 2)).unflatten(1, (-1, 2, 8))
    words = _words_of_nibbles(split.permute(0, 4, 1, 5, 3, 6, 7, 2, 8))  # [page, pair, strip, step, row, t]
    by_position = torch.zeros(4, 4, dtype=torch.int64, device=blocks.device)
    for pattern, (first, second) in enumerate(PATTERNS):
        by_position[first, second] = pattern
    patterns = by_position[positions[..., 0], positions[..., 1]]
    return torch.cat([scales, _by_lane(words), _codes_of_patterns(patterns)], -1)


def unpack_sparse(pages: Tensor, operand: Matrix, dtype: torch.dtype, head_dim: int) -> Tensor:
    """fp32 ``[pages, 64, head_dim]``, in units of their channels' scales, zeros in place of what was dropped."""
    rows, cols = matrix_shape(operand, head_dim)
    scale, stored = _split(pages, operand, head_dim)
    values, codes = stored[:, : -metadata_bytes(head_dim)], stored[:, -metadata_bytes(head_dim) :]
    words = _of_lanes(values).view(-1, cols // 64, rows // 16, 2, 8, 4)
    split = _nibbles_of_words(words).permute(0, 2, 7, 4, 1, 3, 5, 6, 8)
    kept = split.flatten(4, 7).flatten(1, 3)  # [page, row, group, 2]
    positions = torch.tensor(PATTERNS, device=pages.device)[_patterns_of_codes(codes, rows, cols)]
    # Beside its nibble a bit that says that there is one, for none of them is 0.
    there = torch.zeros(*kept.shape[:-1], 4, dtype=torch.uint8, device=pages.device)
    there.scatter_(-1, positions, kept | _KEPT)
    nibbles = from_dealt_matrix(there.flatten(-2), operand)
    return torch.where(nibbles >= _KEPT, int4.from_nibbles(nibbles % _KEPT, scale), 0.0)


_KEPT = 16


def _operand(matrix: Matrix) -> Operand:
    return "k" if matrix == "k" else "v"


def _quantised(blocks: Tensor, operand: Matrix) -> tuple[Tensor, Tensor]:
    """The bytes of the scales, and the matrix of nibbles."""
    scales = int4.scales_of(blocks, _operand(operand))
    nibbles = int4.to_nibbles(blocks.float(), int4.spread(scales, _operand(operand), blocks.shape[-1]))
    # Of 32 cols: half of them, half of that, the same again, lane of its pair, 2; to lane, register, 2. Of groups of 4
    # cols the last two are none.
    last = (1, 1) if operand == "v:hd" else (2, 2)
    by_lane = scales.flatten(1).unflatten(-1, (-1, 2, 2, 2, *last)).permute(0, 1, 3, 5, 4, 2, 6)
    return by_lane.contiguous().view(torch.uint8).flatten(1), to_dealt_matrix(nibbles, operand)


def _split(pages: Tensor, operand: Matrix, head_dim: int) -> tuple[Tensor, Tensor]:
    """Each value's scale, and what comes after the scales."""
    of_scales = int4.scale_bytes(head_dim)
    last = (1, 1) if operand == "v:hd" else (2, 2)
    stored = pages[:, :of_scales].contiguous().view(WIDE.torch_dtype)
    by_lane = stored.view(len(pages), -1, 2, last[0], 2, 2, last[1])
    scales = by_lane.permute(0, 1, 5, 2, 4, 3, 6).reshape(len(pages), -1, int4.CHANNELS)
    return int4.spread(scales, _operand(operand), head_dim), pages[:, of_scales:].contiguous()


def _places(device: torch.device) -> tuple[Tensor, Tensor]:
    """Where the sign and the magnitude of a word's values stand, in bits, ``[4 registers, 2 halves]``."""
    first = torch.arange(4, device=device).unsqueeze(-1) + 4 * torch.arange(2, device=device)
    sign, magnitude = (4 * ((first + nibble) % 8) for nibble in SIGN_AND_MAGNITUDE)
    return sign + 3, magnitude


def _words_of_nibbles(nibbles: Tensor) -> Tensor:
    """``[..., half of the row, half of the strip, 2]``, registers in this order, to words, ``[...]``."""
    registers = nibbles.flatten(-3, -2).to(torch.int64)
    sign, magnitude = _places(nibbles.device)
    return ((registers >> 3 << sign) | ((registers & 7) << magnitude)).sum((-2, -1))


def _nibbles_of_words(words: Tensor) -> Tensor:
    """The inverse of :func:`_words_of_nibbles`: uint8 ``[..., half of the row, half of the strip, 2]``."""
    sign, magnitude = _places(words.device)
    each = words.unsqueeze(-1).unsqueeze(-1)
    return ((each >> sign & 1) << 3 | (each >> magnitude & 7)).to(torch.uint8).unflatten(-2, (2, 2))


def _bytes_of_words(words: Tensor) -> Tensor:
    """Words of 32 bits ``[pages, ..]`` as ``[pages, bytes]``."""
    return (words - ((words >> 31) << 32)).to(torch.int32).contiguous().view(torch.uint8).flatten(1)


def _words_of_bytes(stored: Tensor) -> Tensor:
    return stored.contiguous().view(torch.int32).to(torch.int64) & 0xFFFFFFFF


def _by_lane(words: Tensor) -> Tensor:
    """Words ``[page, pair, strip, part, lane, ..]`` as bytes, four of a lane side by side."""
    lanes = words.flatten(4).flatten(1, 3).unflatten(1, (-1, 4))  # [page, chunk, 4, lane]
    return _bytes_of_words(lanes.mT)


def _of_lanes(stored: Tensor) -> Tensor:
    """The inverse: ``[page, words, lane]``."""
    return _words_of_bytes(stored).unflatten(-1, (-1, 32, 4)).mT.flatten(1, 2)


def _codes_of_patterns(patterns: Tensor) -> Tensor:
    """Patterns ``[page, row, group]`` as the bytes of three of every four words of codes."""
    # [page, strip, half of it, row of 8, pair, step, half of its groups, half of that, lane of its pair]
    split = patterns.unflatten(-1, (-1, 2, 2, 2, 2)).unflatten(1, (-1, 2, 8))
    # Nibble n of the metadata is nibble 4 (n % 2) + n / 2 of the codes.
    codes = split.permute(0, 4, 1, 3, 5, 8, 7, 2, 6).flatten(-3)  # [page, pair, strip, row, step, t, nibble]
    fours = codes.flatten(3, 5).flatten(1, 2).unflatten(1, (-1, 4))  # [page, four, 4, lane, nibble]
    spare = torch.stack([fours[:, :, 3] >> bit & 1 for bit in range(3)], 2)
    nibbles = fours[:, :, :3] | spare << 3
    return _bytes_of_words((nibbles << 4 * torch.arange(8, device=patterns.device)).sum(-1))


def _patterns_of_codes(stored: Tensor, rows: int, cols: int) -> Tensor:
    """The inverse of :func:`_codes_of_patterns`: ``[page, row, group]``."""
    words = _words_of_bytes(stored).view(len(stored), -1, 3, 32, 1)
    nibbles = words >> 4 * torch.arange(8, device=stored.device) & 15  # [page, four, 3, lane, nibble]
    fourth = torch.stack([(nibbles[:, :, bit] >> 3) << bit for bit in range(3)]).sum(0)
    fours = torch.cat([nibbles & 7, fourth.unsqueeze(2)], 2)
    codes = fours.flatten(1, 2).view(-1, cols // 64, rows // 16, 8, 2, 2, 2, 2, 2)
    return codes.permute(0, 2, 7, 3, 1, 4, 8, 6, 5).flatten(4).flatten(1, 3)


_BY_POOL: dict[str, dict[str, Any]] = {
    "dense": {"nbytes": dense_page_bytes, "pack": pack_dense, "unpack": unpack_dense},
    "sparse": {
        "nbytes": sparse_page_bytes,
        "pack": pack_sparse,
        "unpack": unpack_sparse,
        "metadata_bytes": metadata_bytes,
    },
}

PAGES: PageLayout = {
    kind: replace(page, scale_bytes=int4.scale_bytes, **_BY_POOL[page.pool]) if page.pool in _BY_POOL else page
    for kind, page in cuda_layout.FP8_PAGES.items()
}
"""The pages of int4, and those that stay wide among them."""

ALONG_HEAD_DIM: PageLayout = {kind: cuda_layout.along_head_dim(page) for kind, page in PAGES.items()}
"""The same of V in groups along head_dim."""
