"""The CUDA page, defined in torch: one 64-token block of K or V for one kv head, as the tensor cores read it.

Each operand is the matrix A of its product, ``[rows, cols]`` with cols the contraction: K itself (tokens x head_dim),
and V transposed (head_dim x tokens). ``csrc/cuda/page.cuh`` draws the bytes:

- dense: panels of 64 cols, row-major, 128 bytes a row, the 16-byte chunks of a row swizzled;
- 2:4: the kept values ``[rows, cols / 2]``, in panels and swizzled likewise, then the metadata in the register order of
  ``mma.sp.m16n8k32``: per strip of 16 rows and pair of k32 steps, 32 lanes of 32 bits.

Pages of e4m3 (``csrc/cuda/kinds/fp8_page.cuh``) have panels of rows of bytes, K's rows are tokens dealt over the
halves of each strip of 16, and the metadata is in the register order of ``wgmma.sp`` m64nNk64. Wide pages among these
(``csrc/cuda/kinds/wide.cuh``) have such rows, too: fp16 in the order of the registers that ``mma.m16n8k16`` takes.

V in groups along head_dim (:data:`ALONG_HEAD_DIM`) is another matrix in pages of the same bytes: ``[head_dim / 4, 64 x
4]``, whose col 4 t + i is element i of the group in token t. 2 of 4 along its cols is 2 of 4 along head_dim.

Works on tensors of any device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from hsbench.cache import e4m3, wide
from hsbench.cache.layout import PageFormat, PageLayout, no_metadata
from hsbench.cache.prune import BLOCK, BlockKind, Operand, keep_2_of_4
from hsbench.problem.elements import WIDE, Element

Matrix = Literal["k", "v", "v:hd"]
"""Which matrix A a page holds: that of an operand, or V's in groups along head_dim."""

PANEL_BYTES = 128
"""Of a row of a panel, at most."""

CHUNK_BYTES = 16
"""What a swizzle moves together."""

STRIP = 16
"""Rows of one mma."""

GROUP = 4
"""Elements of which 2:4 keeps 2."""

PAIR_GROUPS = 16
"""Groups of 4 that one row contributes to a strip's 32 metadata registers: 64 columns."""


def dense_page_bytes(head_dim: int, element: Element) -> int:
    return element.nbytes(BLOCK * head_dim)


def metadata_bytes(head_dim: int) -> int:
    """Metadata bytes within one 2:4 page."""
    return BLOCK * head_dim // 8


def sparse_page_bytes(head_dim: int, element: Element) -> int:
    return element.nbytes(BLOCK * head_dim // 2) + metadata_bytes(head_dim)


def pack_dense(blocks: Tensor, operand: Matrix, scores: Tensor | None = None) -> Tensor:
    """Dense pages of ``blocks [pages, 64, head_dim]`` (16-bit floats): uint8 ``[pages, dense_page_bytes]``. All stays,
    whatever the scores."""
    return _bytes(_to_panels(_to_matrix(blocks, operand)))


def unpack_dense(pages: Tensor, operand: Matrix, dtype: torch.dtype, head_dim: int) -> Tensor:
    """``[pages, 64, head_dim]`` from what :func:`pack_dense` made."""
    return _from_matrix(_from_panels(pages.contiguous().view(dtype), *matrix_shape(operand, head_dim)), operand)


def pack_sparse(blocks: Tensor, operand: Matrix, scores: Tensor | None = None) -> Tensor:
    """2:4 pages of ``blocks [pages, 64, head_dim]``: uint8 ``[pages, sparse_page_bytes]``; prunes as it packs, by
    ``scores``, of the shape of ``blocks``, or by the blocks themselves."""
    matrix = _to_matrix(blocks, operand)
    return _pack_matrix(matrix if scores is None else _to_matrix(scores, operand), matrix)


def _pack_matrix(scores: Tensor, stored: Tensor) -> Tensor:
    """2:4 pages: ``scores [pages, rows, cols]`` say what stays, and ``stored``, of the same shape, what is written."""
    # A stable sort puts the positions of the two that stay first, in ascending order.
    keep = keep_2_of_4(scores.unflatten(-1, (-1, 4)), -1)  # [pages, row, group, 4]
    positions = (~keep).to(torch.uint8).argsort(dim=-1, stable=True)[..., :2]
    values = stored.unflatten(-1, (-1, 4)).gather(-1, positions).flatten(-2)
    codes = positions[..., 0] | positions[..., 1] << 2
    # The registers are those of instructions on 16-bit or on 8-bit values.
    return torch.cat([_bytes(_to_panels(values)), _bytes(_metadata_words(codes, values.dtype.itemsize))], -1)


def unpack_sparse(pages: Tensor, operand: Matrix, dtype: torch.dtype, head_dim: int) -> Tensor:
    """``[pages, 64, head_dim]`` from what :func:`pack_sparse` made, zeros in place of what was dropped."""
    return _from_matrix(_unpack_matrix(pages, dtype, *matrix_shape(operand, head_dim)), operand)


def _unpack_matrix(pages: Tensor, dtype: torch.dtype, rows: int, cols: int) -> Tensor:
    """``[pages, rows, cols]`` of 2:4 pages."""
    value_bytes = dtype.itemsize * rows * cols // 2
    values = _from_panels(pages[:, :value_bytes].contiguous().view(dtype), rows, cols // 2)
    words = pages[:, value_bytes:].contiguous().view(torch.int32)
    codes = _metadata_codes(words, rows, cols, dtype.itemsize)
    positions = torch.stack([codes & 3, codes >> 2], -1)
    groups = torch.zeros(*codes.shape, 4, dtype=dtype, device=pages.device)
    groups.scatter_(-1, positions, values.unflatten(-1, (-1, 2)))
    return groups.flatten(-2)


def pack_dense_fp8(blocks: Tensor, operand: Matrix, scores: Tensor | None = None) -> Tensor:
    """Dense pages of e4m3 of ``blocks [pages, 64, head_dim]``, in units of their scales."""
    return _bytes(_to_panels(to_dealt_matrix(e4m3.to_bytes(blocks), operand)))


def unpack_dense_fp8(pages: Tensor, operand: Matrix, dtype: torch.dtype, head_dim: int) -> Tensor:
    """fp32 ``[pages, 64, head_dim]``, in units of their scales."""
    matrix = _from_panels(pages, *matrix_shape(operand, head_dim))
    return e4m3.from_bytes(from_dealt_matrix(matrix, operand))


def pack_sparse_fp8(blocks: Tensor, operand: Matrix, scores: Tensor | None = None) -> Tensor:
    """2:4 pages of e4m3 of ``blocks [pages, 64, head_dim]``, pruned, in units of their scales."""
    by = to_dealt_matrix(blocks if scores is None else scores, operand)
    return _pack_matrix(by, to_dealt_matrix(e4m3.to_bytes(blocks), operand))


def unpack_sparse_fp8(pages: Tensor, operand: Matrix, dtype: torch.dtype, head_dim: int) -> Tensor:
    """fp32 ``[pages, 64, head_dim]``, in units of their scales."""
    matrix = _unpack_matrix(pages, torch.uint8, *matrix_shape(operand, head_dim))
    return e4m3.from_bytes(from_dealt_matrix(matrix, operand))


def wide_page_bytes(head_dim: int, element: Element) -> int:
    return WIDE.nbytes(BLOCK * head_dim)


def pack_wide(blocks: Tensor, operand: Matrix, scores: Tensor | None = None) -> Tensor:
    """Wide pages of ``blocks [pages, 64, head_dim]``, in units of their scales: uint8 ``[pages, wide_page_bytes]``. All
    stays, whatever the scores."""
    matrix = to_dealt_matrix(wide.rounded(blocks), operand)
    # [page, strip, half of it, row of 8, step of 16 cols, half of it, register of a row, lane of its pair, 2]
    split = matrix.unflatten(-1, (-1, 2, 2, 2, 2)).unflatten(1, (-1, 2, 8))
    return _bytes(split.permute(0, 1, 4, 3, 5, 7, 6, 2, 8))


def unpack_wide(pages: Tensor, operand: Matrix, dtype: torch.dtype, head_dim: int) -> Tensor:
    """fp32 ``[pages, 64, head_dim]``, in units of their scales."""
    rows, cols = matrix_shape(operand, head_dim)
    registers = pages.contiguous().view(WIDE.torch_dtype).view(-1, rows // STRIP, cols // 16, 8, 2, 2, 2, 2, 2)
    matrix = registers.permute(0, 1, 7, 3, 2, 4, 6, 5, 8).flatten(4).flatten(1, 3)
    return from_dealt_matrix(matrix, operand).float()


def token_of_row() -> Tensor:
    """Which token of a block each row of K's pages of e4m3 is, int64 ``[64]``: even ones of each 16, then odd ones."""
    return torch.arange(BLOCK, device="cpu").view(-1, STRIP // 2, 2).mT.flatten()


def to_dealt_matrix(blocks: Tensor, operand: Matrix) -> Tensor:
    """The matrix ``[pages, rows, cols]`` of ``blocks [pages, 64, head_dim]``, K's rows dealt over the halves of a
    strip."""
    matrix = _to_matrix(blocks, operand)
    return matrix[:, token_of_row().to(matrix.device)] if operand == "k" else matrix


def from_dealt_matrix(matrix: Tensor, operand: Matrix) -> Tensor:
    """The inverse of :func:`to_dealt_matrix`."""
    if operand == "k":
        matrix = matrix[:, token_of_row().argsort().to(matrix.device)]
    return _from_matrix(matrix, operand)


def matrix_shape(operand: Matrix, head_dim: int) -> tuple[int, int]:
    """Rows and cols."""
    return {"k": (BLOCK, head_dim), "v": (head_dim, BLOCK), "v:hd": (head_dim // GROUP, BLOCK * GROUP)}[operand]


def _to_matrix(blocks: Tensor, operand: Matrix) -> Tensor:
    if operand == "v:hd":
        return blocks.unflatten(-1, (-1, GROUP)).transpose(1, 2).flatten(2)
    return blocks if operand == "k" else blocks.mT


def _from_matrix(matrix: Tensor, operand: Matrix) -> Tensor:
    if operand == "v:hd":
        return matrix.unflatten(-1, (-1, GROUP)).transpose(1, 2).flatten(2)
    return (matrix if operand == "k" else matrix.mT).contiguous()


def _to_panels(matrix: Tensor) -> Tensor:
    """``[pages, rows, cols]`` as ``[pages, panels, rows, cols of a panel]``, swizzled."""
    cols = min(matrix.shape[-1], PANEL_BYTES // matrix.dtype.itemsize)
    return _swizzled(matrix.unflatten(-1, (-1, cols)).transpose(1, 2))


def _from_panels(panels: Tensor, rows: int, cols: int) -> Tensor:
    """The inverse, of the values of pages ``[pages, rows * cols]``."""
    of_panel = min(cols, PANEL_BYTES // panels.dtype.itemsize)
    return _swizzled(panels.view(-1, cols // of_panel, rows, of_panel)).transpose(1, 2).flatten(-2)


def _bytes(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.uint8).flatten(1)


def _swizzled(x: Tensor) -> Tensor:
    """Swaps the chunks within each row of ``[..., rows, cols]``; its own inverse.

    Rows of 128 bytes: chunk c goes to c ^ (row & 7). Rows of 64: to c ^ (row / 2 & 3). Of 32: to c ^ (row / 4 & 1).
    """
    per_chunk = CHUNK_BYTES // x.dtype.itemsize
    rows, chunks = x.shape[-2], x.shape[-1] // per_chunk
    row = torch.arange(rows, device=x.device).unsqueeze(-1)
    key = {8: row & 7, 4: row >> 1 & 3, 2: row >> 2 & 1}[chunks]
    source = torch.arange(chunks, device=x.device) ^ key  # [row, chunk]
    split = x.unflatten(-1, (chunks, per_chunk))
    return split.gather(-2, source.unsqueeze(-1).expand(split.shape)).flatten(-2)


def _metadata_words(codes: Tensor, value_bytes: int) -> Tensor:
    """4-bit codes ``[pages, rows, groups]`` to int32 ``[pages, strips, pairs, 32 lanes]``, by the bytes of a value."""
    # [page, strip, half of the strip, row of 8, pair, part of the pair's groups, group]
    if value_bytes == 1:  # lane of a quad: half of the 16 groups, half of the strip
        split = codes.unflatten(-1, (-1, 2, 8)).unflatten(1, (-1, 2, 8))
        nibbles = split.permute(0, 1, 4, 3, 5, 2, 6).flatten(4, 5)
    else:  # lane of a quad: a quarter of the groups; nibble: half of the strip, group of 4
        split = codes.unflatten(-1, (-1, 4, 4)).unflatten(1, (-1, 2, 8))
        nibbles = split.permute(0, 1, 4, 3, 5, 2, 6).flatten(-2)
    # nibbles: [page, strip, pair, row of 8, lane of a quad, nibble]
    words = (nibbles.to(torch.int64) << 4 * torch.arange(8, device=codes.device)).sum(-1).flatten(-2)
    return (words - ((words >> 31) << 32)).to(torch.int32)  # the same 32 bits, as a signed number


def _metadata_codes(words: Tensor, rows: int, cols: int, value_bytes: int) -> Tensor:
    """The inverse of :func:`_metadata_words`: int64 ``[pages, rows, groups]``."""
    lanes = words.view(-1, rows // STRIP, cols // 4 // PAIR_GROUPS, 8, 4).to(torch.int64)
    nibbles = lanes.unsqueeze(-1) >> 4 * torch.arange(8, device=words.device) & 15
    split = nibbles.unflatten(4, (2, 2)) if value_bytes == 1 else nibbles.unflatten(-1, (2, 4))
    # Half of the strip is the one before last of both.
    return split.permute(0, 1, 5, 3, 2, 4, 6).flatten(4).flatten(1, 3)


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


def along_head_dim(page: PageFormat) -> PageFormat:
    """The same page of V in groups along head_dim; its functions make and read one of any matrix."""
    matrix: Matrix = "v:hd"
    pack: Callable[..., Tensor] = page.pack
    unpack: Callable[..., Tensor] = page.unpack

    def pack_values(blocks: Tensor, operand: Operand, scores: Tensor | None = None) -> Tensor:
        return pack(blocks, matrix, scores)

    def unpack_values(pages: Tensor, operand: Operand, dtype: torch.dtype, head_dim: int) -> Tensor:
        return unpack(pages, matrix, dtype, head_dim)

    return replace(page, pack=pack_values, unpack=unpack_values)


ALONG_HEAD_DIM: PageLayout = {kind: along_head_dim(page) for kind, page in PAGES.items()}
FP8_ALONG_HEAD_DIM: PageLayout = {kind: along_head_dim(page) for kind, page in FP8_PAGES.items()}
"""Both, of V in groups along head_dim."""
