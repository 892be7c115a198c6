"""The native compressors against their definition in torch, byte for byte, on each instruction set."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import compress_cases
from compress_cases import (
    ALONG_HEAD_DIM,
    BAD_PARAMETERS,
    DTYPES,
    FITS,
    FP8_FITS,
    FP8_KINDS,
    KINDS,
    LOSSES,
    OPERANDS,
    SEQS,
    bitmap_params,
    blocks_dropping,
    by_loss,
    compress_params,
    every_dtype,
    every_tensor,
    fit_fields,
    fp8_data,
    keeps,
    make_data,
    make_fit,
    make_fp8_fit,
    make_head_dim_fit,
    plans,
    with_non_finite,
)
from cpu_calls import ISAS, THREADS, needs_library
from hsbench.cache import bitmap
from hsbench.cache.block_map import is_kind
from hsbench.cache.fit import Fit
from hsbench.cache.layouts import layouts_of
from hsbench.cache.packing import compress_tensor_torch
from hsbench.cache.paged import PagedTensor
from hsbench.cache.prune import BLOCK, BlockKind, BlockPlan, Operand, plan_blocks
from hsbench.cache.pruner import Axis
from hsbench.kernels import library
from hsbench.kernels.device import CPU
from hsbench.problem.elements import SIXTEEN_BIT, STORED, STORED_FP8, STORED_INT4, StoredElements, element_by

pytestmark = [needs_library, pytest.mark.usefixtures("one_torch_thread")]


# ---- Data --------------------------------------------------------------------------------------------------
def draw_shape(draw: Callable[..., Any], *, batch: int, seq: int) -> tuple[int, int, int, int]:
    sizes = (st.integers(1, batch), st.integers(1, 3), st.integers(1, seq), st.sampled_from((64, 128)))
    return draw(st.tuples(*sizes))


def draw_data(draw: Callable[..., Any], shape: tuple[int, ...]) -> Tensor:
    kind, dtype = draw(st.sampled_from(KINDS)), draw(st.sampled_from(DTYPES))
    return make_data(kind, shape, dtype, draw(st.integers(0, 99)))


# ---- Calls, with poisoned and guarded outputs --------------------------------------------------------------
Buffer = partial(compress_cases.Buffer, device="cpu")


def how(isa: str, threads: int) -> dict[str, int]:
    return dict(isa=library.ISAS[isa], threads=threads)


def compress(
    x: Tensor,
    operand: Operand,
    plan: BlockPlan,
    isa: str,
    threads: int,
    fit: dict[str, Any] | None = None,
    elements: StoredElements = SIXTEEN_BIT,
) -> tuple[PagedTensor, int]:
    """Pages of ``x`` and the index of the first non-finite element (-1: none), from the native library."""
    batch, kv_heads, _, head_dim = x.shape
    heads = batch * kv_heads
    axis: Axis = "head_dim" if (fit or {}).get("value_axis") else "tokens"
    layout, plan = layouts_of(axis)[CPU.kind][elements], plan.stored_as(elements)
    sizes = {kind: page.nbytes(head_dim, elements.of(element_by(x.dtype))) for kind, page in layout.items()}
    pools = {kind: Buffer(heads * plan.count(kind) * size) for kind, size in sizes.items()}
    block_map, bad = Buffer(heads * plan.blocks * 4), Buffer(8)
    outputs = {layout[kind].pool: pool for kind, pool in pools.items()}
    outputs |= {"map": block_map, "non_finite": bad}
    params = compress_params(x, operand, plan, **how(isa, threads), **outputs, **(fit or {}))
    scratch = Buffer(library.load("cpu").number("hsb_cpu_compress_workspace", params))
    params.workspace = scratch.data_ptr()
    library.load("cpu").call("hsb_cpu_compress", params)
    for buffer in (*outputs.values(), scratch):
        buffer.check_guard()
    pages = PagedTensor(
        operand,
        tuple(x.shape),
        x.dtype,
        plan,
        map=block_map.bytes.view(torch.int32).view(batch, kv_heads, plan.blocks),
        pools={kind: pool.bytes.view(-1, sizes[kind]) for kind, pool in pools.items()},
        elements=elements,
        value_axis=axis,
    )
    return pages, int(bad.bytes.view(torch.int64))


def check_pages(
    x: Tensor,
    operand: Operand,
    plan: BlockPlan,
    fit: Fit | None = None,
    elements: StoredElements = SIXTEEN_BIT,
) -> None:
    expected = compress_tensor_torch(x, operand, plan, fit, elements)
    fields = fit_fields(fit, x) | dict(stored=elements.code) if fit else None
    for isa, threads in itertools.product(ISAS, THREADS):
        got, bad = compress(x, operand, plan, isa, threads, fields, elements)
        where = f"{isa}, {threads} threads, {plan}"
        assert bad == -1, where
        assert torch.equal(got.map, expected.map), f"map: {where}"
        for kind, pool in expected.pools.items():
            assert torch.equal(got.pools[kind], pool), f"{kind.name}: {where}"


def check_bitmap(x: Tensor, keep: int, isas: list[str] = ISAS) -> None:
    expected = bitmap.compress_bitmap_torch(x, "k", 1 - keep / x.shape[-1])
    for isa, threads in itertools.product(isas, THREADS):
        bits, offset = Buffer(expected.bitmap.nbytes), Buffer(expected.offset.nbytes)
        total, bad = Buffer(8), Buffer(8)
        params = bitmap_params(x, keep, **how(isa, threads), bitmap=bits, offset=offset, total=total, non_finite=bad)
        cpu = library.load("cpu")
        cpu.call("hsb_cpu_compress_bitmap", params)
        where = f"{isa}, {threads} threads, keep {keep}"
        assert int(total.bytes.view(torch.int64)) == expected.values.numel(), where
        values = Buffer(expected.values.nbytes)
        params.values = values.data_ptr()
        cpu.call("hsb_cpu_compress_bitmap", params)
        for buffer in (bits, offset, total, bad, values):
            buffer.check_guard()
        assert int(bad.bytes.view(torch.int64)) == -1, where
        assert int(total.bytes.view(torch.int64)) == expected.values.numel(), where
        assert torch.equal(bits.bytes.view(torch.int64), expected.bitmap.flatten()), f"bitmap: {where}"
        assert torch.equal(offset.bytes.view(torch.int32), expected.offset.flatten()), f"offset: {where}"
        stored = expected.values.view(torch.int16)  # bits, so that -0.0 is not 0.0
        assert torch.equal(values.bytes.view(torch.int16), stored), f"values: {where}"


# ---- Pages -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
@every_tensor
def test_pages_equal_the_definition(operand: Operand, dtype: torch.dtype, head_dim: int, kind: str) -> None:
    for seq in SEQS:
        x = make_data(kind, (1, 2, seq, head_dim) if seq > 256 else (2, 2, seq, head_dim), dtype, seed=seq)
        for plan in plans(seq):
            check_pages(x, operand, plan)


@pytest.mark.parametrize("kind", KINDS)
@every_tensor
def test_pages_under_a_pruner_equal_the_definition(
    operand: Operand, dtype: torch.dtype, head_dim: int, kind: str
) -> None:
    for seed, (fit, seq) in enumerate(itertools.product(FITS, (63, 333))):
        x = make_data(kind, (2, 2, seq, head_dim), dtype, seed=seed)
        for sparsity in (0.0, 0.3, 0.5):
            check_pages(x, operand, plan_blocks(seq, sparsity, sink=1), make_fit(fit, x, operand, seed))


@pytest.mark.parametrize("kind", FP8_KINDS)
@every_tensor
@pytest.mark.parametrize("elements", [STORED_FP8, STORED_INT4], ids=str)
def test_narrow_pages_equal_the_definition(
    elements: StoredElements, operand: Operand, dtype: torch.dtype, head_dim: int, kind: str
) -> None:
    """Order, shift, choice and fold before the conversion; what is not eligible stays wide."""
    for seed, (fit, seq) in enumerate(itertools.product(FP8_FITS, (63, 333))):
        x = fp8_data(kind, (2, 2, seq, head_dim), dtype, seed=seed)
        for sparsity in (0.0, 0.3, 0.5):
            plan = plan_blocks(seq, sparsity, sink=1, local=70 * (seed % 2))
            check_pages(x, operand, plan, make_fp8_fit(fit, x, operand, seed), elements)


@pytest.mark.parametrize("elements", STORED.values(), ids=str)
@pytest.mark.parametrize("kind", FP8_KINDS)
@pytest.mark.parametrize("head_dim", [64, 128])
@every_dtype
def test_v_along_head_dim_equals_the_definition(
    dtype: torch.dtype, head_dim: int, kind: str, elements: StoredElements
) -> None:
    seqs = SEQS[:-1] if elements == STORED_INT4 else SEQS  # its definition takes longest
    for seed, (fit, seq) in enumerate(itertools.product(ALONG_HEAD_DIM, seqs)):
        x = fp8_data(kind, (2, 2, seq, head_dim), dtype, seed=seed)
        for sparsity in (0.0, 0.3, 0.5):
            plan = plan_blocks(seq, sparsity, sink=seed % 3, local=70 * (seed % 2))
            check_pages(x, "v", plan, make_head_dim_fit(fit, x, elements, seed), elements)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_pages_of_any_shape(data: st.DataObject) -> None:
    draw = data.draw
    shape = draw_shape(draw, batch=3, seq=400)
    full = shape[2] // BLOCK
    first = draw(st.integers(0, full))
    last = draw(st.integers(first, full))
    plan = BlockPlan(-(-shape[2] // BLOCK), first, last, draw(st.integers(0, last - first)))
    x, operand = draw_data(draw, shape), draw(st.sampled_from(OPERANDS))
    check_pages(x, operand, plan)
    check_pages(x, operand, plan, make_fit(draw(st.sampled_from(FITS)), x, operand, draw(st.integers(0, 9))))


@pytest.mark.parametrize("operand", OPERANDS)
@pytest.mark.parametrize("losses", LOSSES.values(), ids=LOSSES)
def test_blocks_whose_losses_differ_in_the_last_place(losses: list[list[float]], operand: Operand) -> None:
    x = blocks_dropping(losses, operand)
    order = by_loss(losses)
    for sparse in range(1, len(losses)):
        plan = BlockPlan(len(losses), 0, len(losses), sparse)
        check_pages(x, operand, plan)
        pages, _ = compress(x, operand, plan, ISAS[-1], 1)
        chosen = is_kind(pages.map.flatten(), BlockKind.SPARSE_2_4)
        assert sorted(order[:sparse]) == torch.nonzero(chosen).flatten().tolist()


@pytest.mark.parametrize("operand", OPERANDS)
def test_flushing_subnormals_to_zero_changes_nothing(operand: Operand) -> None:
    """The caller's thread takes part, and its floating-point mode may flush."""
    for dtype in DTYPES:
        x = make_data("subnormals", (1, 1, 512, 64), dtype, seed=5)
        plan = plan_blocks(512, 0.25)
        expected = compress_tensor_torch(x, operand, plan)
        torch.set_flush_denormal(True)
        try:
            found = [compress(x, operand, plan, isa, 1)[0] for isa in ISAS]
        finally:
            torch.set_flush_denormal(False)
        assert all(torch.equal(pages.map, expected.map) for pages in found)
        sparse = BlockKind.SPARSE_2_4
        assert all(torch.equal(pages.pools[sparse], expected.pools[sparse]) for pages in found)


@pytest.mark.parametrize("operand", OPERANDS)
def test_flushing_subnormals_to_zero_changes_nothing_under_a_pruner(operand: Operand) -> None:
    """Nor is the caller's mode another one afterwards."""
    for dtype in DTYPES:
        x = make_data("subnormals", (1, 1, 512, 64), dtype, seed=5)
        plan, fit = plan_blocks(512, 0.25), make_fit("all", x, operand)
        expected, fields = compress_tensor_torch(x, operand, plan, fit), fit_fields(fit, x)
        smallest = torch.tensor([2.0**-149])
        torch.set_flush_denormal(True)
        try:
            found = [compress(x, operand, plan, isa, 1, fields)[0] for isa in ISAS]
            assert float(smallest + smallest) == 0.0
        finally:
            torch.set_flush_denormal(False)
        for pages in found:
            assert torch.equal(pages.map, expected.map)
            for kind, pool in expected.pools.items():
                assert torch.equal(pages.pools[kind], pool), kind


@pytest.mark.parametrize("operand", OPERANDS)
@pytest.mark.parametrize("seq", [64, 1000])
def test_the_first_non_finite_element_is_named(operand: Operand, seq: int) -> None:
    random = torch.Generator().manual_seed(seq)
    for dtype, isa, threads, sparsity in itertools.product(DTYPES, ISAS, THREADS, (0.25, 0.5)):
        x, first = with_non_finite(seq, dtype, random)
        _, bad = compress(x, operand, plan_blocks(seq, sparsity), isa, threads)
        assert bad == first, (dtype, isa, threads, sparsity)
        fields = fit_fields(make_fit("all", torch.ones_like(x), operand), torch.ones_like(x))
        _, bad = compress(x, operand, plan_blocks(seq, sparsity), isa, threads, fields)
        assert bad == first, (dtype, isa, threads, sparsity, "under a pruner")


def test_the_tail_is_scanned_too() -> None:
    x = torch.zeros(1, 1, 65, 64, dtype=torch.float16)
    x[0, 0, 64, 63] = float("inf")
    for isa in ISAS:
        assert compress(x, "k", plan_blocks(65, 0.5), isa, 1)[1] == x.numel() - 1


@pytest.mark.parametrize(("field", "value"), BAD_PARAMETERS)
def test_bad_parameters_are_refused(field: str, value: float) -> None:
    x = torch.zeros(1, 1, 150, 64, dtype=torch.float16)
    params = compress_params(x, "k", plan_blocks(150, 0.5), **how("auto", 1))
    setattr(params, field, value)
    with pytest.raises(library.NativeError):
        library.load("cpu").number("hsb_cpu_compress_workspace", params)
    with pytest.raises(library.NativeError):
        library.load("cpu").call("hsb_cpu_compress", params)


# ---- Bitmaps -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head_dim", [64, 128])
@every_dtype
def test_bitmaps_equal_the_definition(dtype: torch.dtype, head_dim: int, kind: str) -> None:
    for seq in SEQS:
        x = make_data(kind, (1, 2, seq, head_dim), dtype, seed=seq)
        for keep in keeps(seq, head_dim):
            check_bitmap(x, keep)


@every_dtype
def test_bitmaps_over_several_runs_of_tokens(dtype: torch.dtype) -> None:
    """Offsets go on over the boundaries between the runs that threads take."""
    check_bitmap(make_data("ties", (2, 1, 1601, 128), dtype, seed=0), 37)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_bitmaps_of_any_shape(data: st.DataObject) -> None:
    draw = data.draw
    shape = draw_shape(draw, batch=2, seq=200)
    x = draw_data(draw, shape)
    check_bitmap(x, draw(st.integers(0, shape[-1])))


def test_bitmap_names_the_first_non_finite_element() -> None:
    for dtype, isa, threads in itertools.product(DTYPES, ISAS, THREADS):
        x = make_data("gaussian", (1, 2, 700, 128), dtype, seed=1)
        x[0, 1, 3, 5], x[0, 0, 699, 77] = float("nan"), -float("inf")
        bits, offset, total, bad = Buffer(2 * 700 * 2 * 8), Buffer(2 * 700 * 2 * 4), Buffer(8), Buffer(8)
        params = bitmap_params(x, 64, **how(isa, threads), bitmap=bits, offset=offset, total=total, non_finite=bad)
        library.load("cpu").call("hsb_cpu_compress_bitmap", params)
        assert int(bad.bytes.view(torch.int64)) == 699 * 128 + 77, (dtype, isa, threads)
