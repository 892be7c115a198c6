"""The CUDA page in torch: nothing lost between pack and unpack, every byte where csrc/cuda/page.cuh draws it, and a
model of the tensor core's sparse product, written from the PTX ISA's figures alone, that reads the pages."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hsbench.cache import cuda_layout
from hsbench.cache.prune import BLOCK, BlockKind, Operand, keep_2_of_4
from hsbench.problem.elements import element_by

DTYPES = (torch.float16, torch.bfloat16)
HEAD_DIMS = (64, 128)
OPERANDS = ("k", "v")

every_page = [
    pytest.mark.parametrize("operand", OPERANDS),
    pytest.mark.parametrize("head_dim", HEAD_DIMS),
    pytest.mark.parametrize("dtype", DTYPES),
]


def for_every_page(test):  # noqa: ANN001, ANN201
    for mark in every_page:
        test = mark(test)
    return test


def blocks_of(dtype: torch.dtype, head_dim: int, pages: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(head_dim)
    x = torch.randn(pages, BLOCK, head_dim, generator=generator)
    x[0] = x[0].mul(4).round().div(4)  # ties, zeros
    return x.to(dtype)


def matrix_of(block: Tensor, operand: Operand) -> Tensor:
    """The matrix A that a page stores."""
    return block if operand == "k" else block.mT


@for_every_page
def test_dense_pages_give_back_every_bit(dtype: torch.dtype, head_dim: int, operand: Operand) -> None:
    x = blocks_of(dtype, head_dim)
    pages = cuda_layout.pack_dense(x, operand)
    assert pages.shape == (len(x), 2 * BLOCK * head_dim) and pages.is_contiguous()
    assert cuda_layout.dense_page_bytes(head_dim, element_by(dtype)) == pages.shape[1]
    assert torch.equal(cuda_layout.unpack_dense(pages, operand, dtype, head_dim), x)


@for_every_page
def test_sparse_pages_give_back_what_2_of_4_keeps(dtype: torch.dtype, head_dim: int, operand: Operand) -> None:
    x = blocks_of(dtype, head_dim)
    pages = cuda_layout.pack_sparse(x, operand)
    assert pages.shape == (len(x), BLOCK * head_dim * 9 // 8) and pages.is_contiguous()
    assert cuda_layout.sparse_page_bytes(head_dim, element_by(dtype)) == pages.shape[1]
    assert cuda_layout.metadata_bytes(head_dim) * 9 == pages.shape[1]
    kept = keep_2_of_4(x, -1 if operand == "k" else -2)
    unpacked = cuda_layout.unpack_sparse(pages, operand, dtype, head_dim)
    assert torch.equal(unpacked, torch.where(kept, x, 0.0))


@pytest.mark.parametrize("operand", OPERANDS)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_no_pages(head_dim: int, operand: Operand) -> None:
    x = torch.empty(0, BLOCK, head_dim, dtype=torch.float16)
    for pack, unpack in (
        (cuda_layout.pack_dense, cuda_layout.unpack_dense),
        (cuda_layout.pack_sparse, cuda_layout.unpack_sparse),
    ):
        pages = pack(x, operand)
        assert pages.shape[0] == 0
        assert unpack(pages, operand, torch.float16, head_dim).shape == x.shape


@for_every_page
def test_dense_bytes_lie_where_the_drawing_has_them(dtype: torch.dtype, head_dim: int, operand: Operand) -> None:
    x = blocks_of(dtype, head_dim, pages=1)
    page = cuda_layout.pack_dense(x, operand)[0].view(dtype)
    matrix = matrix_of(x[0], operand)
    for row in range(matrix.shape[0]):
        for col in range(matrix.shape[1]):
            panel, chunk, within = col // 64, col % 64 // 8, col % 8
            at = panel * matrix.shape[0] * 64 + row * 64 + (chunk ^ row % 8) * 8 + within
            assert page[at] == matrix[row, col]


@for_every_page
def test_a_tensor_core_reads_the_sparse_page(dtype: torch.dtype, head_dim: int, operand: Operand) -> None:
    x = blocks_of(dtype, head_dim)
    x = torch.where(x == 0, 1.0, x)  # so that a wrong position shows
    pages = cuda_layout.pack_sparse(x, operand)
    pruned = torch.where(keep_2_of_4(x, -1 if operand == "k" else -2), x, 0.0)
    generator = torch.Generator().manual_seed(1)
    for page, block in zip(pages, pruned, strict=True):
        matrix = matrix_of(block, operand).double()
        b = torch.randn(matrix.shape[1], 8, generator=generator, dtype=torch.float64)
        got = torch.cat([strip_product(page, dtype, *matrix.shape, strip, b) for strip in range(len(matrix) // 16)])
        torch.testing.assert_close(got, matrix @ b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tensor_core_reads_v_along_head_dim(dtype: torch.dtype, head_dim: int) -> None:
    """out[4 g + j, h] is the sum over tokens t and places i of A[g, 4 t + i] times p[t, h] where i = j."""
    x = blocks_of(dtype, head_dim)
    pages = cuda_layout.ALONG_HEAD_DIM[BlockKind.SPARSE_2_4].pack(x, "v", None)
    pruned = torch.where(keep_2_of_4(x, -1), x, 0.0).double()
    p = torch.rand(BLOCK, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    spread = torch.einsum("th,ij->tihj", p, torch.eye(4, dtype=torch.float64)).reshape(BLOCK * 4, 8)
    groups = head_dim // 4
    for page, block in zip(pages, pruned, strict=True):
        got = torch.cat([strip_product(page, dtype, groups, BLOCK * 4, strip, spread) for strip in range(groups // 16)])
        out = got.view(groups, 2, 4).permute(1, 0, 2).flatten(1)  # [head, dim]
        torch.testing.assert_close(out, p.mT @ block, rtol=1e-12, atol=1e-12)


def strip_product(page: Tensor, dtype: torch.dtype, rows: int, cols: int, strip: int, b: Tensor) -> Tensor:
    """16 rows of A times ``b [cols, 8]`` by mma.sp steps, on registers loaded as a warp loads them."""
    values = page[: rows * cols].view(dtype).double()
    words = page[rows * cols :].view(torch.int32)
    total = torch.zeros(16, 8, dtype=torch.float64)
    for step in range(cols // 32):
        pair, selector = divmod(step, 2)
        first = (strip * (cols // 64) + pair) * 32
        metadata = [int(word) & 0xFFFFFFFF for word in words[first : first + 32]]
        a = [
            [ldmatrix_pair(values, rows, cols, strip, step, lane, register) for register in range(4)]
            for lane in range(32)
        ]
        total += mma_sp_m16n8k32(a, metadata, selector, b[step * 32 : step * 32 + 32])
    return total


def ldmatrix_pair(
    values: Tensor, rows: int, cols: int, strip: int, step: int, lane: int, register: int
) -> tuple[float, float]:
    """The two values of one A register: registers 0..3 are the 8 x 8 tiles (rows 0-7, 8-15) x (kept cols 0-7, 8-15)."""
    row = strip * 16 + lane // 4 + register % 2 * 8
    panel, chunk = divmod(step * 2 + register // 2, 8)
    of_row = min(cols, 128)  # bytes of kept values, in a panel
    key = row % 8 if of_row == 128 else row // 2 % 4
    at = (panel * rows + row) * (of_row // 2) + (chunk ^ key) * 8 + lane % 4 * 2
    return float(values[at]), float(values[at + 1])


def mma_sp_m16n8k32(a: list[list[tuple[float, float]]], metadata: list[int], selector: int, b: Tensor) -> Tensor:
    """What mma.sp.m16n8k32 (f16, bf16) makes of its registers; ``b [32, 8]``.

    PTX ISA, "Matrix fragments for sparse mma.m16n8k32 with .f16 and .bf16 types". A's fragment: lane 4 i + t holds, of
    row i (registers 0 and 2) and row i + 8 (1 and 3), the two kept elements of group t (0, 1) and of group t + 4
    (2, 3). Metadata: lanes 4 i + 2 selector and + 1 hold the groups of cols 0..15 and of cols 16..31, row i in the low
    half and row i + 8 in the high half, lowest cols in the lowest bits, two 2-bit positions per group.
    """
    dense = torch.zeros(16, 32, dtype=torch.float64)
    for lane in range(32):
        i, t = divmod(lane, 4)
        for register, pair in enumerate(a[lane]):
            row, group = i + register % 2 * 8, t + register // 2 * 4
            word = metadata[4 * i + 2 * selector + group // 4]
            code = word >> (row // 8 * 16 + group % 4 * 4) & 15
            low, high = code & 3, code >> 2
            assert low < high, "positions must ascend (ordered metadata)"
            dense[row, group * 4 + low], dense[row, group * 4 + high] = pair
    return dense @ b
