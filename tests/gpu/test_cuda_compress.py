"""The CUDA compressors against their definition in torch, byte for byte.

Outputs are poisoned and guarded: every byte of the pools must be written, none past their end.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

from hsbench.cache import bitmap, cuda_layout
from hsbench.cache.block_map import BlockKind, entries_of, is_kind
from hsbench.cache.prune import BLOCK, BlockPlan, Operand, choose_blocks, plan_blocks, split_blocks
from hsbench.kernels import library
from hsbench.problem.elements import INPUTS, element_by

DTYPES = tuple(element.torch_dtype for element in INPUTS.values())

DEVICE = "cuda"
MISSING = library.why_missing("cuda") or ("" if torch.cuda.is_available() else "torch sees no CUDA device")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(MISSING), reason=MISSING)]

POISON = 0xA5
GUARD = 256  # bytes past a buffer's end, which nothing may touch


# ---- Data --------------------------------------------------------------------------------------------------
def from_bits(bits: Tensor, dtype: torch.dtype) -> Tensor:
    return bits.to(torch.int16).view(dtype)


def make_data(kind: str, shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Finite tensors on the CPU: ``gaussian``; ``ties``, few magnitudes of either sign; ``zeros`` of either sign;
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


# ---- Calls, with poisoned and guarded outputs --------------------------------------------------------------
class Buffer:
    """``nbytes`` of poison on the device, and a guard behind them."""

    def __init__(self, nbytes: int) -> None:
        self._all = torch.full((nbytes + GUARD,), POISON, dtype=torch.uint8, device=DEVICE)
        self.bytes = self._all[:nbytes]

    def data_ptr(self) -> int:
        return self._all.data_ptr()

    def check_guard(self) -> None:
        assert bool((self._all[len(self.bytes) :] == POISON).all()), "written past the end"

    def cpu(self, dtype: torch.dtype) -> Tensor:
        return self.bytes.cpu().view(dtype)


def stream() -> int:
    return torch.cuda.current_stream().cuda_stream


@dataclass
class Pages:
    map: Buffer
    dense: Buffer
    sparse: Buffer
    non_finite: Buffer

    def check_guards(self) -> None:
        for buffer in (self.map, self.dense, self.sparse, self.non_finite):
            buffer.check_guard()


def compress_params(x: Tensor, operand: Operand, plan: BlockPlan, **buffers: Any) -> Any:
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
        x=x,
        **buffers,
    )


def compress(x: Tensor, operand: Operand, plan: BlockPlan) -> Pages:
    """Pages of ``x``, a tensor on the device."""
    batch, kv_heads, _, head_dim = x.shape
    heads = batch * kv_heads
    pages = Pages(
        map=Buffer(heads * plan.blocks * 4),
        dense=Buffer(heads * plan.dense * cuda_layout.dense_page_bytes(head_dim)),
        sparse=Buffer(heads * plan.sparse * cuda_layout.sparse_page_bytes(head_dim)),
        non_finite=Buffer(8),
    )
    params = compress_params(x, operand, plan, **vars(pages))
    scratch = Buffer(library.load("cuda").number("hsb_cuda_compress_workspace", params))
    params.workspace = scratch.data_ptr()
    params.stream = stream()
    library.load("cuda").call("hsb_cuda_compress", params)
    pages.check_guards()
    scratch.check_guard()
    return pages


def check_pages(x: Tensor, operand: Operand, plan: BlockPlan) -> None:
    """``x`` on the CPU, where the definition runs."""
    batch, kv_heads, seq, head_dim = x.shape
    chosen = choose_blocks(x, operand, plan).flatten()
    padded = torch.zeros(batch, kv_heads, plan.blocks * BLOCK, head_dim, dtype=x.dtype)
    padded[:, :, :seq] = x
    blocks = split_blocks(padded).flatten(0, 2)
    slots = torch.where(chosen, chosen.cumsum(0), (~chosen).cumsum(0)) - 1
    got = compress(x.to(DEVICE), operand, plan)
    assert int(got.non_finite.cpu(torch.int64)) == -1
    assert torch.equal(got.map.cpu(torch.int32), entries_of(slots, chosen)), f"map: {plan}"
    if plan.dense:
        expected = cuda_layout.pack_dense(blocks[~chosen], operand)
        assert torch.equal(got.dense.cpu(torch.uint8), expected.flatten()), f"dense: {plan}"
    if plan.sparse:
        expected = cuda_layout.pack_sparse(blocks[chosen], operand)
        assert torch.equal(got.sparse.cpu(torch.uint8), expected.flatten()), f"2:4: {plan}"


@dataclass
class Bitmaps:
    bitmap: Buffer
    offset: Buffer
    total: Buffer
    non_finite: Buffer


def first_call(x: Tensor, keep: int) -> tuple[Any, Bitmaps]:
    batch, kv_heads, seq, head_dim = x.shape
    chunks = batch * kv_heads * seq * head_dim // bitmap.CHUNK
    out = Bitmaps(bitmap=Buffer(chunks * 8), offset=Buffer(chunks * 4), total=Buffer(8), non_finite=Buffer(8))
    params = library.make(
        "hsb_compress_bitmap_params",
        batch=batch,
        kv_heads=kv_heads,
        head_dim=head_dim,
        keep=keep,
        seq=seq,
        dtype=element_by(x.dtype).code,
        x=x,
        **vars(out),
    )
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


@pytest.mark.parametrize("operand", OPERANDS)
def test_more_blocks_than_the_choice_has_threads(operand: Operand) -> None:
    """Ties and single keys over 1100 blocks: a thread of the choice takes two."""
    x = make_data("ties", (1, 1, 1100 * BLOCK, 64), torch.bfloat16, seed=3)
    x[:, :, 500 * BLOCK : 900 * BLOCK] = x[:, :, :BLOCK].repeat(1, 1, 400, 1)
    check_pages(x, operand, BlockPlan(1100, 3, 1099, 601))


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


# Both add up to 2^40 + 1: one within the window of the fast sum, the other only in digits.
TIE_NARROW = [129.0] + [2.0**e for e in range(7, 40)]
TIE_WIDE = [2.0**40, 2.0**-120, 2.0**-120] + [2.0**-e for e in range(1, 120)]
LAST_PLACE = [[2.0**100, 2.0**-126], [2.0**100], [2.0**100, 2.0**-133], [2.0**100, 2.0**-125]]
NINE = [1.0 - 2.0**-8] * 9
# Exponents 32 and 33 below the largest: the last that the fast sum holds, and the first that it does not.
WINDOW = [
    [1.0, 255 * 2.0**-39],
    [1.0, 255 * 2.0**-40],
    [1.0, 2.0**-32],
    [1.0, 2.0**-33],
    [1.0, 129 * 2.0**-40],
]


@pytest.mark.parametrize("operand", OPERANDS)
@pytest.mark.parametrize(
    "losses",
    [
        pytest.param(LAST_PLACE, id="last-place"),
        pytest.param([[2.0**-133], [], [2.0**-132], [2.0**-133, 2.0**-133]], id="subnormal"),
        pytest.param([TIE_NARROW, TIE_WIDE, [2.0**40, 2.0], [2.0**40]], id="both-paths-tie"),
        pytest.param([TIE_WIDE, TIE_NARROW, [2.0**40], [2.0**40, 0.5]], id="both-paths-tie-reversed"),
        pytest.param([[2.0**119] * 2000, [2.0**119] * 1999 + [2.0**118] * 2, [2.0**119] * 1999], id="carry"),
        pytest.param([[*NINE, 2.0**-40], NINE, [2.0**64], [2.0**63, 2.0**63]], id="limbs"),
        pytest.param(WINDOW, id="window"),
        pytest.param([[2.0**-100] * 3, [2.0**-99, 2.0**-100], [2.0**-100, 2.0**-133]], id="small"),
        pytest.param([*LAST_PLACE, *LAST_PLACE, *LAST_PLACE], id="equal-digits"),
    ],
)
def test_blocks_whose_losses_differ_in_the_last_place(losses: list[list[float]], operand: Operand) -> None:
    x = blocks_dropping(losses, operand)
    exact = [sum(map(Fraction, dropped), Fraction(0)) for dropped in losses]
    order = sorted(range(len(losses)), key=lambda i: (exact[i], i))
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
        x = make_data("wide", (2, 2, seq, 64), dtype, seed=seq)
        places = torch.randint(x.numel(), (3,), generator=random)
        x.view(-1)[places] = torch.tensor([float("nan"), float("inf"), -float("inf")], dtype=dtype)
        pages = compress(x.to(DEVICE), operand, plan_blocks(seq, sparsity))
        assert int(pages.non_finite.cpu(torch.int64)) == int(places.min()), (dtype, sparsity)


def test_the_tail_is_scanned_too() -> None:
    x = torch.zeros(1, 1, 65, 64, dtype=torch.float16)
    x[0, 0, 64, 63] = float("inf")
    for operand in OPERANDS:
        pages = compress(x.to(DEVICE), operand, plan_blocks(65, 0.5))
        assert int(pages.non_finite.cpu(torch.int64)) == x.numel() - 1


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
    pages = Pages(
        map=Buffer(2 * plan.blocks * 4),
        dense=Buffer(2 * plan.dense * cuda_layout.dense_page_bytes(128)),
        sparse=Buffer(2 * plan.sparse * cuda_layout.sparse_page_bytes(128)),
        non_finite=Buffer(8),
    )
    params = compress_params(x, "v", plan, **vars(pages))
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
        for part in ("map", "dense", "sparse", "non_finite"):
            assert torch.equal(getattr(pages, part).bytes, getattr(expected, part).bytes), part


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
