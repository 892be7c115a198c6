"""The native compressors against their definition in torch, byte for byte, on each instruction set."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hsbench.cache import bitmap, cpu_layout
from hsbench.cache.block_map import BlockKind, is_kind
from hsbench.cache.hierarchical import PagedTensor, compress_tensor_torch
from hsbench.cache.prune import BLOCK, BlockPlan, Operand, plan_blocks
from hsbench.kernels import library
from hsbench.problem.elements import INPUTS, element_by

DTYPES = tuple(element.torch_dtype for element in INPUTS.values())

MISSING = library.why_missing("cpu")
pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))

BEST = 0 if MISSING else library.load("cpu").number("hsb_cpu_best_isa")
ISAS = [name for name, value in library.ISAS.items() if 0 < value <= BEST]
THREADS = (1, 3)
POISON = 0xA5
GUARD = 256  # bytes past a buffer's end, which nothing may touch


@pytest.fixture(scope="module", autouse=True)
def one_torch_thread() -> Iterator[None]:
    """torch's threads spin between its many small operations here, in the way of ours."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ---- Data --------------------------------------------------------------------------------------------------
def from_bits(bits: Tensor, dtype: torch.dtype) -> Tensor:
    return bits.to(torch.int16).view(dtype)


def make_data(kind: str, shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Finite tensors: ``gaussian``; ``ties``, few magnitudes of either sign; ``zeros`` of either sign;
    ``subnormals``; ``wide``, every exponent of the dtype alike."""
    random = torch.Generator().manual_seed(seed)
    sign = torch.randint(2, shape, generator=random) << 15
    if kind == "gaussian":
        return torch.randn(shape, generator=random).to(dtype)
    if kind == "ties":
        values = torch.tensor([0.0, -0.0, 0.5, -0.5, 1.0, -1.0, 2.0, -3.0], dtype=dtype)
        return values[torch.randint(len(values), shape, generator=random)]
    if kind == "zeros":
        return from_bits(sign, dtype)
    mantissa_bits, infinity = {torch.float16: (10, 0x7C00), torch.bfloat16: (7, 0x7F80)}[dtype]
    largest = {"subnormals": 2 << mantissa_bits, "wide": infinity}[kind]
    return from_bits(sign | torch.randint(largest, shape, generator=random), dtype)


KINDS = ("gaussian", "ties", "zeros", "subnormals", "wide")


def draw_shape(draw: Callable[..., Any], *, batch: int, seq: int) -> tuple[int, int, int, int]:
    sizes = (st.integers(1, batch), st.integers(1, 3), st.integers(1, seq), st.sampled_from((64, 128)))
    return draw(st.tuples(*sizes))


def draw_data(draw: Callable[..., Any], shape: tuple[int, ...]) -> Tensor:
    kind, dtype = draw(st.sampled_from(KINDS)), draw(st.sampled_from(tuple(DTYPES)))
    return make_data(kind, shape, dtype, draw(st.integers(0, 99)))


# ---- Calls, with poisoned and guarded outputs --------------------------------------------------------------
class Buffer:
    """``nbytes`` of poison, and a guard behind them."""

    def __init__(self, nbytes: int) -> None:
        self._all = torch.full((nbytes + GUARD,), POISON, dtype=torch.uint8)
        self.bytes = self._all[:nbytes]

    def data_ptr(self) -> int:
        return self._all.data_ptr()

    def check_guard(self) -> None:
        assert bool((self._all[len(self.bytes) :] == POISON).all()), "written past the end"


def compress_params(x: Tensor, operand: Operand, plan: BlockPlan, isa: str, threads: int, **buffers: Any) -> Any:
    batch, kv_heads, seq, head_dim = x.shape
    return library.make(
        "hsb_compress_params",
        batch=batch,
        kv_heads=kv_heads,
        head_dim=head_dim,
        operand=library.KEY if operand == "k" else library.VALUE,
        seq=seq,
        first_eligible=plan.first,
        last_eligible=plan.last,
        sparse_per_head=plan.sparse,
        dtype=element_by(x.dtype).code,
        threads=threads,
        isa=library.ISAS[isa],
        x=x,
        **buffers,
    )


def compress(x: Tensor, operand: Operand, plan: BlockPlan, isa: str, threads: int) -> tuple[PagedTensor, int]:
    """Pages of ``x`` and the index of the first non-finite element (-1: none), from the native library."""
    batch, kv_heads, _, head_dim = x.shape
    heads = batch * kv_heads
    dense = Buffer(heads * plan.dense * cpu_layout.dense_page_bytes(head_dim))
    sparse = Buffer(heads * plan.sparse * cpu_layout.sparse_page_bytes(head_dim))
    block_map, bad = Buffer(heads * plan.blocks * 4), Buffer(8)
    outputs = {"dense": dense, "sparse": sparse, "map": block_map, "non_finite": bad}
    params = compress_params(x, operand, plan, isa, threads, **outputs)
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
        pools={
            BlockKind.DENSE: dense.bytes.view(-1, cpu_layout.dense_page_bytes(head_dim)),
            BlockKind.SPARSE_2_4: sparse.bytes.view(-1, cpu_layout.sparse_page_bytes(head_dim)),
        },
    )
    return pages, int(bad.bytes.view(torch.int64))


def check_pages(x: Tensor, operand: Operand, plan: BlockPlan, isas: list[str] = ISAS) -> None:
    expected = compress_tensor_torch(x, operand, plan)
    for isa, threads in itertools.product(isas, THREADS):
        got, bad = compress(x, operand, plan, isa, threads)
        where = f"{isa}, {threads} threads, {plan}"
        assert bad == -1, where
        for part in ("map", "dense", "sparse"):
            assert torch.equal(getattr(got, part), getattr(expected, part)), f"{part}: {where}"


def bitmap_params(x: Tensor, keep: int, isa: str, threads: int, **buffers: Any) -> Any:
    batch, kv_heads, seq, head_dim = x.shape
    return library.make(
        "hsb_compress_bitmap_params",
        batch=batch,
        kv_heads=kv_heads,
        head_dim=head_dim,
        keep=keep,
        seq=seq,
        dtype=element_by(x.dtype).code,
        threads=threads,
        isa=library.ISAS[isa],
        x=x,
        **buffers,
    )


def check_bitmap(x: Tensor, keep: int, isas: list[str] = ISAS) -> None:
    expected = bitmap.compress_bitmap_torch(x, "k", 1 - keep / x.shape[-1])
    for isa, threads in itertools.product(isas, THREADS):
        bits, offset = Buffer(expected.bitmap.nbytes), Buffer(expected.offset.nbytes)
        total, bad = Buffer(8), Buffer(8)
        params = bitmap_params(x, keep, isa, threads, bitmap=bits, offset=offset, total=total, non_finite=bad)
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
OPERANDS: tuple[Operand, ...] = ("k", "v")
SEQS = (1, 63, 64, 65, 256, 1000)
every_tensor = [
    pytest.param(operand, dtype, head_dim, id=f"{operand}-{str(dtype)[6:]}-{head_dim}")
    for operand, dtype, head_dim in itertools.product(OPERANDS, DTYPES, (64, 128))
]


@dataclass(frozen=True)
class Prune:
    sparsity: float
    sink: int = 0
    local: int = 0


PRUNES = (Prune(0), Prune(0.5), Prune(0.25), Prune(0.15, sink=70, local=100), Prune(0.5, sink=64, local=1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("operand", "dtype", "head_dim"), every_tensor)
def test_pages_equal_the_definition(operand: Operand, dtype: torch.dtype, head_dim: int, kind: str) -> None:
    for seq in SEQS:
        x = make_data(kind, (1, 2, seq, head_dim) if seq > 256 else (2, 2, seq, head_dim), dtype, seed=seq)
        for plan in {plan_blocks(seq, p.sparsity, sink=p.sink, local=p.local) for p in PRUNES}:
            check_pages(x, operand, plan)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_pages_of_any_shape(data: st.DataObject) -> None:
    draw = data.draw
    shape = draw_shape(draw, batch=3, seq=400)
    full = shape[2] // BLOCK
    first = draw(st.integers(0, full))
    last = draw(st.integers(first, full))
    plan = BlockPlan(-(-shape[2] // BLOCK), first, last, draw(st.integers(0, last - first)))
    x = draw_data(draw, shape)
    check_pages(x, draw(st.sampled_from(OPERANDS)), plan)


def blocks_dropping(losses: list[list[float]], operand: Operand) -> Tensor:
    """bf16 ``[1, 1, 64 x blocks, 64]``: block i drops the elements ``losses[i]`` (at most 2048) and zeros."""
    x = torch.zeros(len(losses), BLOCK, 16, 4, dtype=torch.float64)
    x[..., :2] = 2.0**120
    for block, dropped in zip(x, losses, strict=True):
        groups = block.view(-1, 4)
        for i, value in enumerate(dropped):
            groups[7 * i % len(groups), 2 + i // len(groups)] = -value if i % 2 else value
    x = x.flatten(-2)
    x = (x if operand == "k" else x.mT).contiguous()
    assert torch.equal(x.to(torch.bfloat16).to(torch.float64), x)
    return x.to(torch.bfloat16).view(1, 1, -1, BLOCK)


# Both add up to 2^40 + 1; one in double, whatever the order, the other only in limbs.
TIE_NARROW = [129.0] + [2.0**e for e in range(7, 40)]
TIE_WIDE = [2.0**40, 2.0**-120, 2.0**-120] + [2.0**-e for e in range(1, 120)]
LAST_PLACE = [[2.0**100, 2.0**-126], [2.0**100], [2.0**100, 2.0**-133], [2.0**100, 2.0**-125]]
MANY = [255 * 2.0**28] * 2047
NINE = [1.0 - 2.0**-8] * 9


@pytest.mark.parametrize("operand", OPERANDS)
@pytest.mark.parametrize(
    "losses",
    [
        pytest.param(LAST_PLACE, id="last-place"),
        pytest.param([[2.0**-133], [], [2.0**-132], [2.0**-133, 2.0**-133]], id="subnormal"),
        pytest.param([TIE_NARROW, TIE_WIDE, [2.0**40, 2.0], [2.0**40]], id="both-paths-tie"),
        pytest.param([TIE_WIDE, TIE_NARROW, [2.0**40], [2.0**40, 0.5]], id="both-paths-tie-reversed"),
        pytest.param([[2.0**119] * 2000, [2.0**119] * 1999 + [2.0**118] * 2, [2.0**119] * 1999], id="carry"),
        pytest.param([[2.0**46, 1.0 + 2.0**-7], [2.0**46, 1.0]], id="54-bits"),
        pytest.param([[*MANY, 1.0 + 2.0**-7], [*MANY, 1.0]], id="54-bits-of-many"),
        pytest.param([[*NINE, 2.0**-40], NINE, [2.0**64], [2.0**63, 2.0**63]], id="limbs"),
    ],
)
def test_blocks_whose_losses_differ_in_the_last_place(losses: list[list[float]], operand: Operand) -> None:
    x = blocks_dropping(losses, operand)
    exact = [sum(map(Fraction, dropped), Fraction(0)) for dropped in losses]
    order = sorted(range(len(losses)), key=lambda i: (exact[i], i))
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
        assert all(torch.equal(pages.sparse, expected.sparse) for pages in found)


@pytest.mark.parametrize("operand", OPERANDS)
@pytest.mark.parametrize("seq", [64, 1000])
def test_the_first_non_finite_element_is_named(operand: Operand, seq: int) -> None:
    random = torch.Generator().manual_seed(seq)
    for dtype, isa, threads, sparsity in itertools.product(DTYPES, ISAS, THREADS, (0.25, 0.5)):
        x = make_data("wide", (2, 2, seq, 64), dtype, seed=seq)
        places = torch.randint(x.numel(), (3,), generator=random)
        x.view(-1)[places] = torch.tensor([float("nan"), float("inf"), -float("inf")], dtype=dtype)
        _, bad = compress(x, operand, plan_blocks(seq, sparsity), isa, threads)
        assert bad == int(places.min()), (dtype, isa, threads, sparsity)


def test_the_tail_is_scanned_too() -> None:
    x = torch.zeros(1, 1, 65, 64, dtype=torch.float16)
    x[0, 0, 64, 63] = float("inf")
    for isa in ISAS:
        assert compress(x, "k", plan_blocks(65, 0.5), isa, 1)[1] == x.numel() - 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("head_dim", 96),
        ("dtype", 2),
        ("operand", 2),
        ("sparse_per_head", 3),
        ("last_eligible", 3),
        ("first_eligible", -1),
    ],
)
def test_bad_parameters_are_refused(field: str, value: int) -> None:
    x = torch.zeros(1, 1, 150, 64, dtype=torch.float16)
    params = compress_params(x, "k", plan_blocks(150, 0.5), "auto", 1)
    setattr(params, field, value)
    with pytest.raises(library.NativeError):
        library.load("cpu").number("hsb_cpu_compress_workspace", params)
    with pytest.raises(library.NativeError):
        library.load("cpu").call("hsb_cpu_compress", params)


# ---- Bitmaps -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
def test_bitmaps_equal_the_definition(dtype: torch.dtype, head_dim: int, kind: str) -> None:
    for seq in SEQS:
        x = make_data(kind, (1, 2, seq, head_dim), dtype, seed=seq)
        half = head_dim // 2
        for keep in (half, half + 3, 1) if seq > 256 else (0, 1, 7, half, head_dim - 1, head_dim):
            check_bitmap(x, keep)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
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
        params = bitmap_params(x, 64, isa, threads, bitmap=bits, offset=offset, total=total, non_finite=bad)
        library.load("cpu").call("hsb_cpu_compress_bitmap", params)
        assert int(bad.bytes.view(torch.int64)) == 699 * 128 + 77, (dtype, isa, threads)
