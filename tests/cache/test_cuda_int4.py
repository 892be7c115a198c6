"""The CUDA page of int4 in torch: nothing lost between pack and unpack, and registers of tensor cores, read from its
bytes as csrc/cuda/kinds/int4_page.cuh draws them, whose products are those of the matrix."""

from __future__ import annotations

import itertools
import struct

import pytest
import torch
from torch import Tensor

from hsbench.cache import cpu_int4, cuda_int4, cuda_layout, int4
from hsbench.cache.cpu_layout import PATTERNS
from hsbench.cache.cuda_layout import Matrix
from hsbench.cache.layouts import LAYOUTS, why_decode_only, why_no_pages
from hsbench.cache.prune import BLOCK, BlockKind, Operand, keep_2_of_4
from hsbench.kernels.device import CPU, CUDA
from hsbench.problem.elements import INT4, STORED_FP8, STORED_INT4

OPERANDS: tuple[Operand, Operand] = ("k", "v")

every_page = pytest.mark.parametrize(("operand", "head_dim"), list(itertools.product(OPERANDS, (64, 128))))
every_matrix = pytest.mark.parametrize(("matrix", "head_dim"), list(itertools.product((*OPERANDS, "v:hd"), (64, 128))))


def blocks_of(head_dim: int, operand: Operand, *, sparse: bool, pages: int = 3) -> Tensor:
    x = torch.randn(pages, BLOCK, head_dim, generator=torch.Generator().manual_seed(head_dim))
    x[0] = x[0].mul(4).round()  # ties, zeros
    return x.masked_fill(~keep_2_of_4(x, -1 if operand == "k" else -2), 0.0) if sparse else x


@every_page
def test_pages_give_back_what_those_of_the_cpu_do(operand: Operand, head_dim: int) -> None:
    for kind, page in cuda_int4.PAGES.items():
        x = blocks_of(head_dim, operand, sparse=kind is BlockKind.SPARSE_2_4)
        packed, other = page.pack(x, operand, None), cpu_int4.PAGES[kind]
        assert packed.dtype == torch.uint8 and packed.shape == (len(x), page.nbytes(head_dim, INT4))
        assert page.nbytes(head_dim, INT4) == other.nbytes(head_dim, INT4)
        assert (page.metadata_bytes(head_dim), page.scale_bytes(head_dim)) == (
            other.metadata_bytes(head_dim),
            other.scale_bytes(head_dim),
        )
        got = page.unpack(packed, operand, torch.float16, head_dim)
        want = other.unpack(other.pack(x, operand, None), operand, torch.float16, head_dim)
        assert got.dtype == torch.float32 and torch.equal(got, want)


def test_scores_say_what_stays() -> None:
    x = blocks_of(64, "k", sparse=False)
    scores = x.flip(-1)
    kept = x.masked_fill(~keep_2_of_4(scores, -1), 0.0)
    unpacked = cuda_int4.unpack_sparse(cuda_int4.pack_sparse(kept, "k", scores), "k", torch.float16, 64)
    assert torch.equal(unpacked != 0, keep_2_of_4(scores, -1))


# ---- Registers -----------------------------------------------------------------------------------------------
class Page:
    """A page's bytes as a warp loads them."""

    def __init__(self, stored: Tensor, rows: int, cols: int) -> None:
        self.rows, self.cols = rows, cols
        self.scale_bytes = rows * cols // 64 * 2
        self._words = [word & 0xFFFFFFFF for word in stored.view(torch.int32).tolist()]
        self._halves = stored.view(torch.float16).float()

    def scales(self, strip: int, step: int, lane: int) -> list[tuple[float, float]]:
        """Of the lane's four registers of B."""
        if self.cols == 256:  # of V in groups along head_dim: four of two neighbours, for two cols each
            at = (strip * 8 + step) * 8 + lane % 4 // 2 * 4
            return [(value, value) for value in self._halves[at : at + 4].tolist()]
        sets = strip // 4 if self.cols == 64 else 0
        at = ((sets * (self.cols // 32) + step) * 4 + lane % 4) * 8
        values = self._halves[at : at + 8].tolist()
        return [(values[i], values[i + 1]) for i in range(0, 8, 2)]

    def word(self, number: int, lane: int) -> int:
        return self._words[self.scale_bytes // 4 + (number // 4 * 32 + lane) * 4 + number % 4]

    def metadata(self, pair: int, strip: int, lane: int, value_bytes: int) -> int:
        number = pair * (self.rows // 16) + strip
        first = (self.scale_bytes + value_bytes) // 4 + number // 4 * 96 + lane
        words = [self._words[first + 32 * i] for i in range(3)]
        if number % 4 < 3:
            codes = [words[number % 4] >> 4 * k & 7 for k in range(8)]
        else:
            codes = [sum((words[i] >> (4 * k + 3) & 1) << i for i in range(3)) for k in range(8)]
        nibbles = [codes[n // 2 + n % 2 * 4] for n in range(8)]
        return sum((PATTERNS[code][0] | PATTERNS[code][1] << 2) << 4 * n for n, code in enumerate(nibbles))


def halves_of(word: int, register: int) -> list[float]:
    """The two fp16 of a register, by a rotation and a mask, in units of 2^-20: half of an odd number."""
    turned = word >> 4 * register | word << (32 - 4 * register) & 0xFFFFFFFF
    bits = turned & 0x80708070 | 0x00080008
    return [half * 2.0**20 for half in struct.unpack("<2e", bits.to_bytes(4, "little"))]


def matrix_of(blocks: Tensor, matrix: Matrix) -> Tensor:
    if matrix == "v:hd":  # [groups, tokens x places]
        return blocks.unflatten(-1, (-1, 4)).transpose(1, 2).flatten(2)
    return blocks[:, cuda_layout.token_of_row()] if matrix == "k" else blocks.mT


@every_matrix
def test_a_tensor_core_reads_the_dense_page(matrix: Matrix, head_dim: int) -> None:
    x = blocks_of(head_dim, "k", sparse=False, pages=1)
    want = matrix_of(int4.rounded(x, "k" if matrix == "k" else "v"), matrix)[0].double()
    rows, cols = want.shape
    page, got = Page(cuda_int4.pack_dense(x, matrix)[0], rows, cols), [[0.0] * cols for _ in range(rows)]
    for strip, tile, lane in itertools.product(range(rows // 16), range(cols // 16), range(32)):
        pair, of_pair = divmod(tile, 4)
        word = page.word((pair * (rows // 16) + strip) * 4 + of_pair, lane)
        i, t = divmod(lane, 4)
        scales = page.scales(strip, tile // 2, lane)
        for register in range(4):
            col = tile * 16 + t // 2 * 8 + t % 2 * 2 + register // 2 * 4
            # B's register n of a step: cols + 0, 16, 4, 20
            scale = scales[tile % 2 + register // 2 * 2]
            for half, value in enumerate(halves_of(word, register)):
                got[strip * 16 + i + register % 2 * 8][col + half] = value * scale[half]
    torch.testing.assert_close(torch.tensor(got, dtype=torch.float64), want, rtol=1e-7, atol=0.0)


@every_matrix
def test_a_tensor_core_reads_the_sparse_page(matrix: Matrix, head_dim: int) -> None:
    x = blocks_of(head_dim, "v" if matrix == "v" else "k", sparse=True, pages=1)
    packed = cuda_int4.pack_sparse(x, matrix)
    want = matrix_of(cuda_int4.unpack_sparse(packed, matrix, torch.float16, head_dim), matrix)[0].double()
    rows, cols = want.shape
    page, got = Page(packed[0], rows, cols), [[0.0] * cols for _ in range(rows)]
    for strip, step, lane in itertools.product(range(rows // 16), range(cols // 32), range(32)):
        pair, selector = divmod(step, 2)
        word = page.word((pair * (rows // 16) + strip) * 2 + selector, lane)
        i, t = divmod(lane, 4)
        for register in range(4):
            # mma.sp: group t (registers 0, 1) or t + 4 of the step's, whose codes lanes 2 selector + {0, 1} hold
            group = t + register // 2 * 4
            metadata = page.metadata(pair, strip, i * 4 + selector * 2 + group // 4, rows * cols // 4)
            code = metadata >> (register % 2 * 16 + group % 4 * 4) & 15
            for half, value in enumerate(halves_of(word, register)):
                k = group * 4 + (code >> 2 * half & 3)  # of the instruction's 32 rows of B
                number, lane_of_b, odd = k // 8, k % 8 // 2, k % 2
                col = step * 32 + lane_of_b // 2 * 8 + lane_of_b % 2 * 2 + (0, 16, 4, 20)[number] + odd
                scale = page.scales(strip, step, lane_of_b)[number][odd]
                got[strip * 16 + i + register % 2 * 8][col] = value * scale
    torch.testing.assert_close(torch.tensor(got, dtype=torch.float64), want, rtol=1e-7, atol=0.0)


def test_only_decode_reads_them() -> None:
    assert LAYOUTS[CUDA.kind][STORED_INT4] is cuda_int4.PAGES and why_no_pages(STORED_INT4, CUDA) is None
    assert why_decode_only(STORED_INT4, CUDA) == "no CUDA prefill kernel reads int4 pages: decode's does"
    assert why_decode_only(STORED_FP8, CUDA) is None is why_decode_only(STORED_INT4, CPU)
