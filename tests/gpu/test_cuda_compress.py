"""The CUDA compressors against their definition in torch, byte for byte.

Outputs are poisoned and guarded: every byte of the pools must be written, none past their end.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
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
from hsbench.cache import bitmap
from hsbench.cache.block_map import entries_of, is_kind
from hsbench.cache.fit import Fit, channel_order
from hsbench.cache.layout import PageLayout
from hsbench.cache.layouts import layouts_of
from hsbench.cache.packing import PageCompressor, padded_blocks
from hsbench.cache.prune import (
    BLOCK,
    BlockKind,
    BlockPlan,
    Operand,
    choose_blocks,
    kinds_of_chosen,
    plan_blocks,
    prune_hierarchical,
)
from hsbench.cache.pruner import Axis
from hsbench.errors import NonFiniteError
from hsbench.kernels import library
from hsbench.kernels.device import CUDA
from hsbench.problem.elements import SIXTEEN_BIT, STORED, STORED_FP8, STORED_INT4, StoredElements, element_by

DEVICE = "cuda"
MISSING = library.why_missing("cuda") or ("" if torch.cuda.is_available() else "torch sees no CUDA device")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(bool(MISSING), reason=MISSING),
    pytest.mark.usefixtures("one_torch_thread"),  # the definition's operations are many and small
]

# ---- Calls, with poisoned and guarded outputs --------------------------------------------------------------
Buffer = partial(compress_cases.Buffer, device=DEVICE)


def stream() -> int:
    return torch.cuda.current_stream().cuda_stream


@dataclass
class Pages:
    map: compress_cases.Buffer
    pools: dict[BlockKind, compress_cases.Buffer]
    non_finite: compress_cases.Buffer
    layout: PageLayout

    @classmethod
    def empty(cls, x: Tensor, plan: BlockPlan, elements: StoredElements, axis: Axis) -> Pages:
        batch, kv_heads, _, head_dim = x.shape
        heads, layout, plan = batch * kv_heads, layouts_of(axis)[CUDA.kind][elements], plan.stored_as(elements)
        element = elements.of(element_by(x.dtype))
        sizes = {kind: heads * plan.count(kind) * page.nbytes(head_dim, element) for kind, page in layout.items()}
        pools = {kind: Buffer(size) for kind, size in sizes.items()}
        non_finite = Buffer(8)
        non_finite.bytes.fill_(0xFF)  # -1
        return cls(map=Buffer(heads * plan.blocks * 4), pools=pools, non_finite=non_finite, layout=layout)

    @property
    def fields(self) -> dict[str, compress_cases.Buffer]:
        pools = {self.layout[kind].pool: pool for kind, pool in self.pools.items()}
        return {"map": self.map, "non_finite": self.non_finite, **pools}

    def check_guards(self) -> None:
        for buffer in self.fields.values():
            buffer.check_guard()


def compress(
    x: Tensor,
    operand: Operand,
    plan: BlockPlan,
    fit: dict[str, Any] | None = None,
    elements: StoredElements = SIXTEEN_BIT,
) -> Pages:
    """Pages of ``x``, a tensor on the device; ``fit`` has fields of the struct."""
    given = {name: x.to(DEVICE) if isinstance(x, Tensor) else x for name, x in (fit or {}).items()}
    axis: Axis = "head_dim" if given.get("value_axis") else "tokens"
    pages = Pages.empty(x, plan, elements, axis)
    params = compress_params(x, operand, plan, **pages.fields, **given)
    scratch = Buffer(library.load("cuda").number("hsb_cuda_compress_workspace", params))
    params.workspace = scratch.data_ptr()
    params.stream = stream()
    library.load("cuda").call("hsb_cuda_compress", params)
    pages.check_guards()
    scratch.check_guard()
    return pages


def check_pages(
    x: Tensor,
    operand: Operand,
    plan: BlockPlan,
    fit: Fit | None = None,
    elements: StoredElements = SIXTEEN_BIT,
) -> None:
    """``x`` on the CPU, where the definition runs."""
    got = compress(x.to(DEVICE), operand, plan, fit_fields(fit, x, elements) if fit else None, elements)
    fit = fit or Fit(operand)
    stored = fit.stored(x)
    scores = fit.scores(stored)
    chosen = choose_blocks(scores, fit.groups, plan)
    pruned = prune_hierarchical(stored, fit.groups, chosen, scores=scores, fold=fit.fold)
    if fit.scale is not None:
        scale = fit.scale[..., channel_order(fit.order, x.shape[-1])]
        pruned = pruned.float() / scale.unsqueeze(2)
    blocks, scored = padded_blocks(pruned, plan), padded_blocks(scores, plan)
    kinds = kinds_of_chosen(chosen, plan.stored_as(elements)).flatten()
    slots = torch.zeros_like(kinds)
    for kind in got.pools:
        slots = torch.where(kinds == kind, (kinds == kind).cumsum(0) - 1, slots)
    assert int(got.non_finite.cpu(torch.int64)) == -1
    assert torch.equal(got.map.cpu(torch.int32), entries_of(slots, kinds)), f"map: {plan}"
    for kind, pool in got.pools.items():
        of_kind = kinds == kind
        if of_kind.any():
            expected = got.layout[kind].pack(blocks[of_kind], operand, scored[of_kind])
            assert torch.equal(pool.cpu(torch.uint8), expected.flatten()), f"{kind.name}: {plan}"


@dataclass
class Bitmaps:
    bitmap: compress_cases.Buffer
    offset: compress_cases.Buffer
    total: compress_cases.Buffer
    non_finite: compress_cases.Buffer


def first_call(x: Tensor, keep: int) -> tuple[Any, Bitmaps]:
    batch, kv_heads, seq, head_dim = x.shape
    chunks = batch * kv_heads * seq * head_dim // bitmap.CHUNK
    out = Bitmaps(bitmap=Buffer(chunks * 8), offset=Buffer(chunks * 4), total=Buffer(8), non_finite=Buffer(8))
    params = bitmap_params(x, keep, **vars(out))
    scratch = Buffer(library.load("cuda").number("hsb_cuda_compress_bitmap_workspace", params))
    params.workspace = scratch.data_ptr()
    params.stream = stream()
    library.load("cuda").call("hsb_cuda_compress_bitmap", params)
    scratch.check_guard()
    return params, out


def check_bitmap(x: Tensor, keep: int) -> None:
    expected = bitmap.compress_bitmap_torch(x, "k", 1 - keep / x.shape[-1])
    on_device = x.to(DEVICE)
    params, out = first_call(on_device, keep)
    assert int(out.total.cpu(torch.int64)) == expected.values.numel(), keep
    assert torch.equal(out.bitmap.cpu(torch.int64), expected.bitmap.flatten()), f"bitmap: keep {keep}"
    assert torch.equal(out.offset.cpu(torch.int32), expected.offset.flatten()), f"offset: keep {keep}"
    values = Buffer(expected.values.nbytes)
    if expected.values.numel():
        params.values = values.data_ptr()
        library.load("cuda").call("hsb_cuda_compress_bitmap", params)
    for buffer in (*vars(out).values(), values):
        buffer.check_guard()
    assert int(out.non_finite.cpu(torch.int64)) == -1
    assert int(out.total.cpu(torch.int64)) == expected.values.numel()
    stored = expected.values.view(torch.int16)  # bits, so that -0.0 is not 0.0
    assert torch.equal(values.cpu(torch.int16), stored), f"values: keep {keep}"


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


@pytest.mark.parametrize("elements", [STORED_FP8, STORED_INT4], ids=str)
@pytest.mark.parametrize("kind", FP8_KINDS)
@every_tensor
def test_narrow_pages_equal_the_definition(
    operand: Operand, dtype: torch.dtype, head_dim: int, kind: str, elements: StoredElements
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
    for seed, (fit, seq) in enumerate(itertools.product(ALONG_HEAD_DIM, SEQS)):
        x = fp8_data(kind, (2, 2, seq, head_dim), dtype, seed=seed)
        for sparsity in (0.0, 0.3, 0.5):
            plan = plan_blocks(seq, sparsity, sink=seed % 3, local=70 * (seed % 2))
            check_pages(x, "v", plan, make_head_dim_fit(fit, x, elements, seed), elements)


@pytest.mark.parametrize("elements", STORED.values(), ids=str)
@pytest.mark.parametrize("operand", OPERANDS)
def test_more_blocks_than_the_choice_has_threads(operand: Operand, elements: StoredElements) -> None:
    """Ties and single keys over 1100 blocks: a thread of the choice takes two."""
    x = make_data("ties", (1, 1, 1100 * BLOCK, 64), torch.bfloat16, seed=3)
    x[:, :, 500 * BLOCK : 900 * BLOCK] = x[:, :, :BLOCK].repeat(1, 1, 400, 1)
    fit = make_fp8_fit("none", x, operand) if elements.has_scale else None
    check_pages(x, operand, BlockPlan(1100, 3, 1099, 601), fit, elements)


@pytest.mark.parametrize("operand", OPERANDS)
@pytest.mark.parametrize("losses", LOSSES.values(), ids=LOSSES)
def test_blocks_whose_losses_differ_in_the_last_place(losses: list[list[float]], operand: Operand) -> None:
    x = blocks_dropping(losses, operand)
    order = by_loss(losses)
    for sparse in range(1, len(losses)):
        plan = BlockPlan(len(losses), 0, len(losses), sparse)
        check_pages(x, operand, plan)
        pages = compress(x.to(DEVICE), operand, plan)
        chosen = is_kind(pages.map.cpu(torch.int32), BlockKind.SPARSE_2_4)
        assert sorted(order[:sparse]) == torch.nonzero(chosen.flatten()).flatten().tolist()


@pytest.mark.parametrize("operand", OPERANDS)
@pytest.mark.parametrize("seq", [64, 1000])
def test_the_first_non_finite_element_is_named(operand: Operand, seq: int) -> None:
    random = torch.Generator().manual_seed(seq)
    for dtype, sparsity in itertools.product(DTYPES, (0.0, 0.25, 0.5)):
        x, first = with_non_finite(seq, dtype, random)
        pages = compress(x.to(DEVICE), operand, plan_blocks(seq, sparsity))
        assert int(pages.non_finite.cpu(torch.int64)) == first, (dtype, sparsity)
        fields = fit_fields(make_fit("all", torch.ones_like(x), operand), torch.ones_like(x))
        pages = compress(x.to(DEVICE), operand, plan_blocks(seq, sparsity), fields)
        assert int(pages.non_finite.cpu(torch.int64)) == first, (dtype, sparsity, "under a pruner")


def test_a_check_forgets_what_it_has_named() -> None:
    """Runs only write what they find."""
    x, _ = with_non_finite(1000, torch.float16, torch.Generator().manual_seed(1))
    compressor = PageCompressor(x.to(DEVICE), "k", plan_blocks(1000, 0.5))
    compressor.run()
    with pytest.raises(NonFiniteError):
        compressor.check()
    compressor._x.nan_to_num_(0.0, 0.0, 0.0)
    compressor.run()
    compressor.check()


def test_the_tail_is_scanned_too() -> None:
    x = torch.zeros(1, 1, 65, 64, dtype=torch.float16)
    x[0, 0, 64, 63] = float("inf")
    for operand in OPERANDS:
        pages = compress(x.to(DEVICE), operand, plan_blocks(65, 0.5))
        assert int(pages.non_finite.cpu(torch.int64)) == x.numel() - 1


@pytest.mark.parametrize(("field", "value"), BAD_PARAMETERS)
def test_bad_parameters_are_refused(field: str, value: float) -> None:
    x = torch.zeros(1, 1, 150, 64, dtype=torch.float16, device=DEVICE)
    params = compress_params(x, "k", plan_blocks(150, 0.5))
    setattr(params, field, value)
    with pytest.raises(library.NativeError):
        library.load("cuda").number("hsb_cuda_compress_workspace", params)
    with pytest.raises(library.NativeError):
        library.load("cuda").call("hsb_cuda_compress", params)


def test_pages_in_a_graph() -> None:
    """Captured once, replayed on other data."""
    plan = plan_blocks(1000, 0.25)
    x = make_data("gaussian", (1, 2, 1000, 128), torch.float16, seed=1).to(DEVICE)
    pages = Pages.empty(x, plan, SIXTEEN_BIT, "tokens")
    params = compress_params(x, "v", plan, **pages.fields)
    scratch = Buffer(library.load("cuda").number("hsb_cuda_compress_workspace", params))
    params.workspace = scratch.data_ptr()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        params.stream = stream()
        library.load("cuda").call("hsb_cuda_compress", params)
    for seed in (2, 3):
        x.copy_(make_data("gaussian", tuple(x.shape), x.dtype, seed=seed))
        graph.replay()
        torch.cuda.synchronize()
        expected = compress(x, "v", plan)
        for part, buffer in pages.fields.items():
            assert torch.equal(buffer.bytes, expected.fields[part].bytes), part


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
def test_bitmaps_over_more_runs_than_the_scan_has_threads(dtype: torch.dtype) -> None:
    """140,000 tokens are 1094 runs."""
    check_bitmap(make_data("ties", (2, 1, 70000, 64), dtype, seed=0), 37)


def test_bitmap_names_the_first_non_finite_element() -> None:
    for dtype in DTYPES:
        x = make_data("gaussian", (1, 2, 700, 128), dtype, seed=1)
        x[0, 1, 3, 5], x[0, 0, 699, 77] = float("nan"), -float("inf")
        on_device = x.to(DEVICE)
        params, out = first_call(on_device, 64)
        assert int(out.non_finite.cpu(torch.int64)) == 699 * 128 + 77
        values = Buffer(int(out.total.cpu(torch.int64)) * 2)
        params.values = values.data_ptr()
        library.load("cuda").call("hsb_cuda_compress_bitmap", params)
        assert int(out.non_finite.cpu(torch.int64)) == 699 * 128 + 77
