"""e4m3 in caches: scales, what rounding may do, bytes where csrc/cuda/kinds/fp8_page.cuh draws them, and a model of the
tensor core's sparse 8-bit product, written from the PTX ISA's figures alone, that reads the pages."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from hsbench.cache import cpu_layout, cuda_layout, e4m3, wide
from hsbench.cache.block_map import is_kind, slots_of
from hsbench.cache.fit import Fit, channel_order
from hsbench.cache.fitted import compress_kv
from hsbench.cache.packing import compress_tensor_torch, pack_torch
from hsbench.cache.paged import PagedTensor
from hsbench.cache.prune import (
    BlockKind,
    BlockPlan,
    Operand,
    choose_blocks,
    keep_2_of_4,
    plan_blocks,
    prune_hierarchical,
)
from hsbench.cache.pruner import BALANCED, CENTERED, MAGNITUDE, PRUNERS, pruner_for
from hsbench.kernels import library
from hsbench.problem.elements import FP8, SIXTEEN_BIT, STORED, STORED_FP8

MISSING = library.why_missing("cpu")
NEEDS_NATIVE = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
DTYPES = (torch.float16, torch.bfloat16)
OPERANDS: tuple[Operand, ...] = ("k", "v")
LAYOUTS = [pytest.param(cpu_layout, id="cpu"), pytest.param(cuda_layout, id="cuda")]


def blocks_of(head_dim: int, operand: Operand, *, sparse: bool, pages: int = 3) -> Tensor:
    """In units of their scales, pruned where ``sparse``: all bytes, ties, both zeros among them."""
    x = torch.randn(pages, 64, head_dim, generator=torch.Generator().manual_seed(head_dim)) * 100
    x[0] = x[0].sign() * 3
    x[1, ::7] = -0.0
    return torch.where(keep_2_of_4(x, -1 if operand == "k" else -2), x, 0.0) if sparse else x


# ---- Values --------------------------------------------------------------------------------------------------
def test_all_bytes_come_back() -> None:
    stored = torch.tensor([byte for byte in range(256) if byte & 0x7F != 0x7F], dtype=torch.uint8)
    values = e4m3.from_bytes(stored)
    assert torch.equal(e4m3.to_bytes(values), stored)
    assert values.max() == e4m3.LARGEST and values[1] == 2.0**-9


def test_rounding_is_to_even_and_saturates() -> None:
    x = torch.tensor([17.0, 19.0, 448.0, 464.0, 1e30, -1e30, 2.0**-10, 3 * 2.0**-10, 0.0, -0.0])
    assert e4m3.from_bytes(e4m3.to_bytes(x)).tolist() == [16, 20, 448, 448, 448, -448, 0, 2.0**-8, 0, -0.0]


def test_the_scale_is_the_least_power_of_two_that_holds_all() -> None:
    for largest in (448.0, 448.0001, 1.0, 3e-7, 65504.0, 0.875, 0.8751, 2.0**-24):
        scale = e4m3.scale_of(torch.tensor(largest, dtype=torch.float64)).double()
        assert math.log2(scale) % 1 == 0
        assert largest <= 448 * scale and largest > 448 * scale / 2
    assert e4m3.scale_of(torch.tensor(0.0)) == 1.0
    tiny, huge = e4m3.scale_of(torch.tensor([2.0**-133, 3.38e38], dtype=torch.bfloat16)).tolist()
    assert (tiny, huge) == (2.0**-120, 2.0**119), "the ends of what fp32 can fold"


def test_no_scale_is_smaller_than_is_of_use() -> None:
    """fp16's smallest number is e4m3's smallest of the least scale, and all up to 448 such come out the same."""
    x = torch.arange(8192, dtype=torch.int16).view(torch.float16)  # 0 up to 2^-7
    least = e4m3.scale_of(x[1:2]).item()
    assert least == 2.0**-15
    for largest in (1, 2, 3, 15, 1000, 8191):
        some = x[: largest + 1]
        scale = e4m3.scale_of(some.amax().float())
        small = e4m3.from_bytes(e4m3.to_bytes(some.float() / scale)) * scale
        scale = e4m3.scale_of(some.amax())
        assert scale >= least
        assert torch.equal(e4m3.from_bytes(e4m3.to_bytes(some.float() / scale)) * scale, small)


# ---- Pages ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("operand", OPERANDS)
def test_pages_give_back_every_value(operand: Operand, head_dim: int, layout: type[cpu_layout]) -> None:
    for kind, page in layout.FP8_PAGES.items():
        x = blocks_of(head_dim, operand, sparse=kind is BlockKind.SPARSE_2_4)
        packed = page.pack(x, operand)
        assert packed.dtype == torch.uint8 and packed.shape == (len(x), page.nbytes(head_dim, FP8))
        unpacked = page.unpack(packed, operand, torch.float16, head_dim)
        is_wide = kind is BlockKind.WIDE
        assert torch.equal(unpacked, wide.rounded(x).float() if is_wide else e4m3.from_bytes(e4m3.to_bytes(x)))
        assert unpacked.dtype == torch.float32


def test_bytes_of_a_page() -> None:
    dense, sparse, wide = cuda_layout.FP8_PAGES.values()
    assert [dense.nbytes(d, FP8) for d in (64, 128)] == [4096, 8192]
    assert [sparse.nbytes(d, FP8) for d in (64, 128)] == [2560, 5120]
    assert [wide.nbytes(d, FP8) for d in (64, 128)] == [8192, 16_384]
    assert [page.nbytes(128, FP8) for page in cpu_layout.FP8_PAGES.values()] == [8192, 4 * 1216, 16_384]


def matrix_of(block: Tensor, operand: Operand) -> Tensor:
    """The matrix A of a CUDA page: K's row i of a strip is its token 2 i, row i + 8 its token 2 i + 1."""
    if operand == "v":
        return block.mT
    rows = [strip + token for strip in range(0, 64, 16) for token in (*range(0, 16, 2), *range(1, 16, 2))]
    return block[rows]


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("operand", OPERANDS)
def test_dense_bytes_lie_where_the_drawing_has_them(operand: Operand, head_dim: int) -> None:
    x = blocks_of(head_dim, operand, sparse=False, pages=2)[1]
    page = cuda_layout.pack_dense_fp8(x[None], operand)[0]
    matrix = matrix_of(e4m3.to_bytes(x), operand)
    rows, cols = matrix.shape
    for row, col in itertools.product(range(rows), range(cols)):
        key = row % 8 if cols == 128 else row // 2 % 4
        assert page[row * cols + (col // 16 ^ key) * 16 + col % 16] == matrix[row, col]


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("operand", OPERANDS)
def test_a_warp_reads_the_sparse_page_as_it_is_drawn(operand: Operand, head_dim: int) -> None:
    x = blocks_of(head_dim, operand, sparse=True)
    pages = cuda_layout.pack_sparse_fp8(x, operand)
    generator = torch.Generator().manual_seed(1)
    for page, block in zip(pages, e4m3.from_bytes(e4m3.to_bytes(x)), strict=True):
        matrix = matrix_of(block, operand).double()
        b = torch.randn(matrix.shape[1], 8, generator=generator, dtype=torch.float64)
        got = torch.cat([strip_product(page, *matrix.shape, strip, b) for strip in range(len(matrix) // 16)])
        torch.testing.assert_close(got, matrix @ b, rtol=1e-12, atol=1e-12)


def strip_product(page: Tensor, rows: int, cols: int, strip: int, b: Tensor) -> Tensor:
    """16 rows of A times ``b [cols, 8]``, on registers loaded as a warp loads them by ldmatrix.

    csrc/cuda/kinds/fp8_page.cuh: lane 4 i + t holds, of row i (registers 0 and 2) and row i + 8 (1 and 3), stored
    bytes 4 t .. 4 t + 3 of the first 16 (0, 1) and of the next 16 (2, 3). Its metadata register is of row i (t even) or
    of row i + 8 (t odd): the groups of the first 32 cols (t < 2) or of the next 32.
    """
    row_bytes = cols // 2
    values = e4m3.from_bytes(page[: rows * row_bytes]).double()
    words = page[rows * row_bytes :].view(torch.int32)
    total = torch.zeros(16, 8, dtype=torch.float64)
    for pair in range(cols // 64):
        dense = torch.zeros(16, 64, dtype=torch.float64)
        for lane, register in itertools.product(range(32), range(4)):
            i, t = divmod(lane, 4)
            in_strip = i + register % 2 * 8
            row, chunk = strip * 16 + in_strip, pair * 2 + register // 2
            key = {64: row // 2 % 4, 32: row // 4 % 2}[row_bytes]
            at = row * row_bytes + (chunk ^ key) * 16 + 4 * t
            for half in range(2):  # two groups
                group = register // 2 * 8 + 2 * t + half
                word = int(words[(strip * (cols // 64) + pair) * 32 + 4 * i + group // 8 * 2 + register % 2])
                code = word >> group % 8 * 4 & 15
                low, high = code & 3, code >> 2
                assert low < high, "positions must ascend (ordered metadata)"
                two = values[at + 2 * half : at + 2 * half + 2]
                dense[in_strip, group * 4 + low], dense[in_strip, group * 4 + high] = two
        total += dense @ b[pair * 64 : pair * 64 + 64]
    return total


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("operand", OPERANDS)
def test_a_lane_reads_its_registers_of_a_wide_page(operand: Operand, head_dim: int) -> None:
    """csrc/cuda/kinds/wide.cuh: 16 bytes a lane, of each strip and step of 16 cols, as mma.m16n8k16 takes them, B with
    cols c and c + 1, c + 4 and c + 5 in lane t of a quad, c = 8 (t / 2) + 2 (t % 2)."""
    x = blocks_of(head_dim, operand, sparse=False, pages=2)[1]
    words = cuda_layout.pack_wide(x[None], operand)[0].view(torch.float16)
    matrix = matrix_of(x, operand).half()
    rows, cols = matrix.shape
    for strip, step, lane in itertools.product(range(rows // 16), range(cols // 16), range(32)):
        row, t = strip * 16 + lane // 4, lane % 4
        col = step * 16 + t // 2 * 8 + t % 2 * 2
        a = [matrix[row + down, col + on : col + on + 2] for on in (0, 4) for down in (0, 8)]
        at = ((strip * (cols // 16) + step) * 32 + lane) * 8
        assert torch.equal(words[at : at + 8], torch.cat(a))


# ---- Tensors -------------------------------------------------------------------------------------------------
def test_a_tensor_keeps_what_16_bits_keep() -> None:
    """The same blocks, and the same elements of them, but for what rounds to zero."""
    x = torch.randn(2, 3, 64 * 9 + 5, 128, generator=torch.Generator().manual_seed(0)).half()
    for operand, order in itertools.product(OPERANDS, ("adjacent", "mirror")):
        plan = plan_blocks(x.shape[2], 0.25, sink=1, local=70)
        scale = e4m3.scale_of(x.abs().amax(2))
        placed = x[..., channel_order(order, 128)]
        of_16_bits = compress_tensor_torch(placed, operand, plan)
        chosen = choose_blocks(placed, operand, plan)
        pages = PagedTensor.empty(x, operand, plan, STORED_FP8, scale=scale, order=order)
        pack_torch(prune_hierarchical(placed, operand, chosen), pages, chosen)
        assert torch.equal(is_sparse(pages), is_sparse(of_16_bits))
        got, exact = pages.unpack(), of_16_bits.unpack().float()
        assert (got[exact == 0] == 0).all() and (exact[got == 0].abs() <= scale.max() * 2.0**-9).all()
        half_step = exact.abs() * 2**-4 + scale.amax() * 2.0**-10
        assert ((got - exact).abs() <= half_step).all()
        stays_wide = torch.ones(x.shape[2], dtype=torch.bool)
        stays_wide[plan.first * 64 : plan.last * 64] = False
        assert torch.equal(got[:, :, stays_wide], exact[:, :, stays_wide])
        one = pages.head(1, 2)
        assert torch.equal(one.unpack()[0, 0], got[1, 2]) and one.memory()["scale"] * 6 == pages.memory()["scale"]


def is_sparse(pages: PagedTensor) -> Tensor:
    return is_kind(pages.map, BlockKind.SPARSE_2_4)


def test_which_blocks_stay_wide_and_where_they_lie() -> None:
    """Sink, window and tail, numbered head by head in a pool of their own; none of them in a cache of 16 bits."""
    x = torch.randn(2, 2, 64 * 7 + 5, 64, generator=torch.Generator().manual_seed(0)).half()
    plan = plan_blocks(x.shape[2], 0.5, sink=64, local=140)
    assert (plan.first, plan.last, plan.wide, plan.stored_as(SIXTEEN_BIT)) == (1, 4, 0, plan)
    chosen = choose_blocks(x, "k", plan)
    pages = PagedTensor.empty(x, "k", plan, STORED_FP8, scale=e4m3.scale_of(x.abs().amax(2)))
    pack_torch(prune_hierarchical(x, "k", chosen), pages, chosen)
    plan = pages.plan
    assert [plan.count(kind) for kind in BlockKind] == [0, 3, 5] == [len(pool) // 4 for pool in pages.pools.values()]
    stays = is_kind(pages.map, BlockKind.WIDE)
    assert stays[0, 0].tolist() == [True] + [False] * 3 + [True] * 4 and (stays == stays[0, 0]).all()
    assert torch.equal(slots_of(pages.map)[stays], torch.arange(20))
    assert pages.memory()["wide"] == 20 * 64 * 64 * 2 and pages.memory()["dense"] == 0
    back = pages.unpack()
    assert torch.equal(back[:, :, :64], x[:, :, :64].float()) and torch.equal(back[:, :, 256:], x[:, :, 256:].float())
    assert torch.equal(pages.head(1, 1).unpack()[0, 0], back[1, 1])


def test_wide_values_saturate() -> None:
    x = torch.tensor([65504.0, 65519.0, 1e30, -1e30, 2.0**-24, 2.0**-26, 1.0 + 2.0**-11])
    assert wide.rounded(x).tolist() == [65504, 65504, 65504, -65504, 2.0**-24, 0, 1]


def test_shifts_come_before_8_bits_whatever_the_pruner() -> None:
    assert pruner_for(MAGNITUDE, SIXTEEN_BIT) == MAGNITUDE
    assert pruner_for(CENTERED, STORED_FP8) == CENTERED
    shifted = pruner_for(MAGNITUDE, STORED_FP8)
    assert shifted.key_shift and shifted.value_shift and shifted.order == "adjacent" and shifted.name == "magnitude"


def cache(k: Tensor, v: Tensor, sparsity: float, **options: object):  # noqa: ANN201
    return compress_kv(k, v, key_sparsity=sparsity, value_sparsity=sparsity, elements=STORED_FP8, **options)


@NEEDS_NATIVE
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_constant_channel_takes_no_bits_of_the_others(dtype: torch.dtype) -> None:
    """Qwen-like: channels of 60,000 beside others of 1e-4, and means of 50 beside noise of 1."""
    generator = torch.Generator().manual_seed(0)
    k, v = (torch.randn(1, 2, 200, 64, generator=generator) for _ in range(2))
    k[..., 5], k[..., 6] = 60_000, k[..., 6] * 1e-4
    k[..., 7] += 50
    k, v = k.to(dtype), v.to(dtype)
    unpacked = cache(k, v, 0.0).unpack()[0]
    assert torch.equal(unpacked[..., 5], k[..., 5].float())
    for channel, noise in ((6, 1e-4), (7, 1.0), (8, 1.0)):
        step = torch.finfo(dtype).eps * k[..., channel].abs().max().float() / 2  # of the mean, taken off in 16 bits
        error = (unpacked[..., channel] - k[..., channel].float()).abs().max()
        assert error <= 4 * noise * 2**-4 + step, channel


@NEEDS_NATIVE
@pytest.mark.parametrize("pruner", [MAGNITUDE, CENTERED, BALANCED], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_cache_is_pruned_as_one_of_16_bits(dtype: torch.dtype, pruner: object) -> None:
    """The choice is made before values are rounded, folds included: what differs is e4m3's rounding."""
    generator = torch.Generator().manual_seed(1)
    k, v = (torch.randn(2, 2, 333, 64, generator=generator).to(dtype) for _ in range(2))
    got = cache(k, v, 0.25, pruner=pruner)
    want = compress_kv(k, v, key_sparsity=0.25, value_sparsity=0.25, pruner=pruner_for(pruner, STORED_FP8))
    for mine, other, of_scale in ((got.k, want.k, got.key_fit), (got.v, want.v, got.value_fit)):
        assert torch.equal(is_sparse(mine), is_sparse(other))
        a, b = mine.unpack(), other.unpack().float()
        assert ((a - b).abs() <= b.abs() * 2**-4 + of_scale.scale.amax() * 2.0**-10).all()
        assert (a[b == 0] == 0).all()
    assert got.memory()["scale"] == 2 * 4 * 2 * 2 * 64
    assert sum(got.memory().values()) == got.nbytes and got.nbytes < 0.64 * want.nbytes


@NEEDS_NATIVE
@pytest.mark.parametrize("share", [0.0, 0.3, 0.5])
@pytest.mark.parametrize("name", PRUNERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bytes_are_the_definitions(dtype: torch.dtype, name: str, share: float) -> None:
    generator = torch.Generator().manual_seed(2)
    for head_dim, seq in ((64, 333), (128, 128), (64, 63)):
        k, v = (
            (5 * torch.randn(2, 2, 1, head_dim, generator=generator)
             + torch.randn(2, 2, seq, head_dim, generator=generator)).to(dtype)
            for _ in range(2)
        )  # fmt: skip
        sources = dict(
            queries=torch.randn(2, 4, 20, head_dim, generator=generator).to(dtype),
            query_rms=torch.rand(2, head_dim, generator=generator),
        )
        kv = cache(k, v, share, pruner=PRUNERS[name], sink=1, **sources)
        for x, got, fit in ((k, kv.k, kv.key_fit), (v, kv.v, kv.value_fit)):
            assert_definition(got, x, fit, plan_blocks(seq, share, sink=1))


def assert_definition(got: PagedTensor, x: Tensor, fit: Fit, plan: BlockPlan) -> None:
    want = compress_tensor_torch(x, fit.operand, plan, fit, STORED_FP8)
    assert torch.equal(got.map, want.map)
    for kind, pool in want.pools.items():
        assert torch.equal(got.pools[kind], pool), f"{fit.operand}, {kind}"


@NEEDS_NATIVE
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bytes_of_what_is_left_are_the_definitions(dtype: torch.dtype) -> None:
    """Evicted blocks are gone before anything is packed; scales are those of all tokens."""
    generator = torch.Generator().manual_seed(3)
    k, v = (torch.randn(2, 2, 64 * 9 + 5, 64, generator=generator).to(dtype) for _ in range(2))
    kv = cache(k, v, 0.3, pruner=BALANCED, sink=1, local=64, evict=0.5)
    assert kv.eviction is not None and kv.eviction.evicted > 0
    plan = plan_blocks(kv.eviction.length, 0.3, sink=1, local=64)
    for x, got, fit in ((k, kv.k, kv.key_fit), (v, kv.v, kv.value_fit)):
        assert_definition(got, kv.eviction.gather(x), fit, plan)


@NEEDS_NATIVE
def test_a_scale_stays_as_the_cache_grows() -> None:
    """And what comes later and is larger saturates."""
    k, v = (torch.randn(1, 1, 128, 64, generator=torch.Generator().manual_seed(i)).half() for i in range(2))
    first = cache(k, v, 0.0)
    fits = first.key_fit, first.value_fit
    grown = cache(torch.cat([k, 1000 * k], 2), torch.cat([v, v], 2), 0.0, fits=fits)
    assert torch.equal(grown.k.scale, first.k.scale)
    assert torch.equal(grown.unpack()[0][:, :, :128], first.unpack()[0])
    largest = (grown.key_fit.scale * e4m3.LARGEST).unsqueeze(2) + first.key_fit.shift.unsqueeze(2).abs()
    assert (grown.unpack()[0].abs() <= largest).all() and torch.isfinite(grown.unpack()[0]).all()


def test_elements_are_told_by_name() -> None:
    assert list(STORED) == ["16bit", "fp8", "int4"] and not SIXTEEN_BIT.has_scale and STORED_FP8.has_scale
    assert [stored.code for stored in STORED.values()] == [0, 1, 2]
