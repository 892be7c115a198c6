"""int4 in caches: levels and scales, bytes where csrc/cpu/kinds/int4/page.h draws them, what comes back of a cache."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from hsbench.cache import cpu_int4, cpu_layout, int4, wide
from hsbench.cache.fitted import compress_kv
from hsbench.cache.layouts import why_decode_only, why_no_pages
from hsbench.cache.prune import BlockKind, Operand, keep_2_of_4
from hsbench.cache.pruner import CENTERED, MAGNITUDE, pruner_for, pruner_of
from hsbench.cache.simulate import simulate
from hsbench.kernels import library
from hsbench.kernels.device import CPU, CUDA
from hsbench.problem.elements import (
    INT4,
    SIXTEEN_BIT,
    STORED,
    STORED_FP8,
    STORED_INT4,
    CacheElements,
    elements_by_name,
    elements_of,
)

MISSING = library.why_missing("cpu")
NEEDS_NATIVE = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
OPERANDS: tuple[Operand, ...] = ("k", "v")


def blocks_of(head_dim: int, operand: Operand, *, sparse: bool) -> Tensor:
    """In units of their channels, pruned where ``sparse``: ties, zeros, values of other sizes, a block of nothing."""
    x = torch.randn(4, 64, head_dim, generator=torch.Generator().manual_seed(head_dim)) * 100
    x[0] = x[0].sign() * 3
    x[1, ::7], x[1, :, 3], x[2, 5], x[3] = -0.0, 1e-9, 1e6, 0.0
    return torch.where(keep_2_of_4(x, -1 if operand == "k" else -2), x, 0.0) if sparse else x


# ---- Values --------------------------------------------------------------------------------------------------
def test_all_nibbles_come_back() -> None:
    nibbles, scale = torch.arange(16, dtype=torch.uint8), torch.tensor(0.75)
    values = int4.from_nibbles(nibbles, scale)
    assert values.tolist() == [0.75 * s * (m + 0.5) for s in (1, -1) for m in range(8)]
    assert torch.equal(int4.to_nibbles(values, scale), nibbles)
    edges = torch.tensor([0.0, -0.0, 0.99, 1.0, -1.0, 7.99, 8.0, 1e30, -1e30])
    assert int4.from_nibbles(int4.to_nibbles(edges, torch.tensor(1.0)), torch.tensor(1.0)).tolist() == [
        *(0.5, 0.5, 0.5, 1.5, -1.5, 7.5, 7.5, 7.5, -7.5)
    ]
    none = torch.tensor(0.0)
    assert int4.from_nibbles(int4.to_nibbles(edges, none), none).abs().max() == 0.0


@pytest.mark.parametrize("head_dim", [64, 80, 128])
@pytest.mark.parametrize("operand", OPERANDS)
def test_a_scale_is_its_own_values_alone(operand: Operand, head_dim: int) -> None:
    """By channel of a block of K, by 64 channels of a token of V; half a step is the most that is lost."""
    x = torch.randn(3, 64, head_dim, generator=torch.Generator().manual_seed(0))
    scales = int4.scales_of(x, operand)
    assert scales.dtype == torch.float16 and scales.shape == (3, -(-head_dim // 64), 64)
    assert 3 * int4.scale_bytes(head_dim) == scales.numel() * 2
    spread = int4.spread(scales, operand, head_dim)
    for page, token, channel in itertools.product(range(3), range(0, 64, 9), range(0, head_dim, 7)):
        first = channel // 64 * 64
        group = x[page, :, channel] if operand == "k" else x[page, token, first : first + 64]
        assert spread[page, token, channel] == (group.abs().max() / 7.5).half()
    assert ((int4.rounded(x, operand) - x).abs() <= spread * (0.5 + 7.5 * 2**-10)).all()


def test_scales_stay_finite() -> None:
    assert int4.scales_of(torch.full((1, 64, 64), 3e38), "k").max() == 65504.0
    assert int4.scales_of(torch.full((1, 64, 64), 1e-30), "v").max() == 0.0


# ---- Pages ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("operand", OPERANDS)
def test_pages_give_back_every_value(operand: Operand, head_dim: int) -> None:
    for kind, page in cpu_int4.PAGES.items():
        x = blocks_of(head_dim, operand, sparse=kind is BlockKind.SPARSE_2_4)
        packed = page.pack(x, operand, None)
        assert packed.dtype == torch.uint8 and packed.shape == (len(x), page.nbytes(head_dim, INT4))
        want = wide.rounded(x).float() if kind is BlockKind.WIDE else int4.rounded(x, operand)
        if kind is BlockKind.SPARSE_2_4:
            want = want.masked_fill(~keep_2_of_4(x, -1 if operand == "k" else -2), 0.0)
        unpacked = page.unpack(packed, operand, torch.float16, head_dim)
        assert torch.equal(unpacked, want) and unpacked.dtype == torch.float32


def test_bytes_of_a_page() -> None:
    dense, sparse, _ = cpu_int4.PAGES.values()
    assert [dense.nbytes(d, INT4) for d in (64, 128)] == [2176, 4352]
    assert [sparse.nbytes(d, INT4) for d in (64, 128)] == [1536, 3072]
    assert [sparse.metadata_bytes(128), sparse.scale_bytes(128)] == [768, 256]


def digit_of(tile: Tensor, word: int, half: int, place: int) -> int:
    """Of a tile's words of 32 bits, counted in two's complement."""
    digit = int(tile.view(torch.int16)[2 * word + half]) >> 4 * place & 15
    return digit - 16 if digit >= 8 else digit


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("operand", OPERANDS)
def test_dense_digits_lie_where_the_drawing_has_them(operand: Operand, head_dim: int) -> None:
    x = blocks_of(head_dim, operand, sparse=False)[1]
    page = cpu_int4.pack_dense(x[None], operand)[0]
    scale = int4.spread(page[: 2 * head_dim].view(torch.float16).view(1, -1, 64), operand, head_dim)[0]
    halves = int4.from_nibbles(int4.to_nibbles(x, scale), torch.ones(()))
    matrix = halves if operand == "k" else halves.mT  # [lanes, steps]
    tiles = page[2 * head_dim :].view(-1, 1024)
    for lane, step in itertools.product(range(matrix.shape[0]), range(matrix.shape[1])):
        tile = tiles[lane // 32 * (matrix.shape[1] // 64) + step // 64]
        digit = digit_of(tile, step % 64 // 8 * 32 + lane % 32, step % 2, step % 8 // 2)
        assert digit + 0.5 == matrix[lane, step]


@pytest.mark.parametrize("operand", OPERANDS)
def test_kept_digits_lie_where_the_drawing_has_them(operand: Operand) -> None:
    x = blocks_of(64, operand, sparse=True)[0]
    page = cpu_int4.pack_sparse(x[None], operand)[0]
    scale = int4.spread(page[:128].view(torch.float16).view(1, -1, 64), operand, 64)[0]
    halves = int4.from_nibbles(int4.to_nibbles(x, scale), torch.ones(()))
    matrix, kept = (y if operand == "k" else y.mT for y in (halves, x != 0))
    tiles = page[128:].view(-1, 704)[:, 192:]
    for lane, group in itertools.product(range(64), range(16)):
        positions = kept[lane, 4 * group : 4 * group + 4].nonzero().flatten()
        assert len(positions) == 2
        for slot, position in enumerate(positions):
            digit = digit_of(tiles[lane // 32], group // 4 * 32 + lane % 32, slot, group % 4)
            assert digit + 0.5 == matrix[lane, 4 * group + position]


def test_patterns_are_those_of_other_pages() -> None:
    x = blocks_of(128, "v", sparse=True)[:2]
    tiles = cpu_int4.pack_sparse(x, "v")[:, 256:].view(2, 4, 704)
    of_fp8 = cpu_layout.pack_sparse_fp8(x, "v").view(2, 4, 1216)
    assert torch.equal(tiles[..., :192], of_fp8[..., :192])


# ---- Caches --------------------------------------------------------------------------------------------------
def tensors(dtype: torch.dtype = torch.float16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    k, v = (torch.randn(2, 2, 333, 64, generator=generator) for _ in range(2))
    return (k + 4).to(dtype), v.to(dtype)


@NEEDS_NATIVE
@pytest.mark.parametrize("pruner", [MAGNITUDE, CENTERED], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_cache_is_what_the_definition_says(dtype: torch.dtype, pruner: object) -> None:
    """And it keeps what one of 16 bits keeps: the choice and the fold come before the bits."""
    k, v = tensors(dtype)
    how = dict(key_sparsity=0.25, value_sparsity=0.5, sink=3, local=70, pruner=pruner)
    got, defined = compress_kv(k, v, elements=STORED_INT4, **how), simulate(k, v, elements=STORED_INT4, **how)
    assert all(torch.equal(a, b) for a, b in zip(got.unpack(), (defined.k, defined.v), strict=True))
    exact = compress_kv(k, v, **{**how, "pruner": pruner_for(pruner, STORED_INT4)})
    for mine, other in ((got.k, exact.k), (got.v, exact.v)):
        a, b = mine.unpack(), other.unpack().float()
        # There is no level 0: a value that is 0 and kept all the same, which a fold may leave, gets the smallest one.
        assert (a[b == 0] != 0).float().mean() < 1e-3 and (a - b).norm() < 0.12 * b.norm()
    memory = got.memory()
    heads, eligible = 4, 3
    assert memory["scale"] == 2 * heads * (4 * 64 + eligible * 128) and sum(memory.values()) == got.nbytes


def test_k_and_v_apart() -> None:
    mixed = elements_of(STORED_INT4, STORED_FP8)
    assert (mixed.name, mixed.has_scale, elements_by_name("int4/fp8")) == ("int4/fp8", True, mixed)
    assert all(elements_by_name(name) is stored is elements_of(stored, stored) for name, stored in STORED.items())
    k, v = tensors()
    how = dict(key_sparsity=0.5, value_sparsity=0.5, pruner=pruner_of("mirror:hd"))
    each: dict[CacheElements, object] = {e: simulate(k, v, elements=e, **how) for e in (*STORED.values(), mixed)}
    assert torch.equal(each[mixed].k, each[STORED_INT4].k) and torch.equal(each[mixed].v, each[STORED_FP8].v)
    assert 2 * each[mixed].nbytes == each[STORED_INT4].nbytes + each[STORED_FP8].nbytes
    only_k = simulate(k, v, elements=elements_of(STORED_INT4, SIXTEEN_BIT), **how)
    assert torch.equal(only_k.v, each[SIXTEEN_BIT].v) and only_k.fits[1].scale is None
    assert why_no_pages(mixed, CPU) is None is why_no_pages(mixed, CUDA)
    assert why_decode_only(mixed, CUDA) == "no CUDA prefill kernel reads int4 pages: decode's does"
    other = elements_of(STORED_FP8, SIXTEEN_BIT)
    assert why_decode_only(other, CUDA) == "no CUDA prefill kernel reads K and V of fp8/16bit: decode's does"
    assert why_decode_only(other, CPU) is None is why_decode_only(STORED_FP8, CUDA)
