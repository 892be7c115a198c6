"""The definition of pruning, against slow oracles in plain Python: sorts of exact values, sums of fractions."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from hsbench.cache.prune import (
    BLOCK,
    BlockPlan,
    Operand,
    block_loss,
    check_finite,
    choose_blocks,
    keep_2_of_4,
    keep_unstructured,
    kept_per_token,
    plan_blocks,
    prune_hierarchical,
    split_blocks,
)
from hsbench.errors import NonFiniteError

OPERANDS: tuple[Operand, ...] = ("k", "v")
INFINITY = {torch.float16: 0x7C00, torch.bfloat16: 0x7F80}
MANTISSA = {torch.float16: 10, torch.bfloat16: 7}
SMALLEST = {torch.float16: Fraction(1, 2**24), torch.bfloat16: Fraction(1, 2**133)}
EVERY_DTYPE = [pytest.param(dtype, id=str(dtype)[6:]) for dtype in INFINITY]
pytestmark = pytest.mark.usefixtures("one_torch_thread")


# ---- Data and oracles --------------------------------------------------------------------------------------
def from_bits(bits: list[int] | Tensor, dtype: torch.dtype) -> Tensor:
    """Signed or unsigned 16-bit patterns as ``dtype``."""
    return torch.as_tensor(bits, dtype=torch.int64).to(torch.int16).view(dtype)


def bits_of(x: Tensor) -> list[int]:
    return x.contiguous().view(torch.int16).flatten().tolist()


def make_data(kind: str, shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Finite tensors: ``gaussian``; ``ties`` of few magnitudes; ``subnormals``; ``wide``, any finite pattern."""
    random = torch.Generator().manual_seed(seed)
    if kind == "gaussian":
        return torch.randn(shape, generator=random).to(dtype)
    if kind == "ties":
        values = torch.tensor([0.0, -0.0, 0.5, -0.5, 1.0, -1.0], dtype=dtype)
        return values[torch.randint(len(values), shape, generator=random)]
    largest = {"subnormals": 2 << MANTISSA[dtype], "wide": INFINITY[dtype]}[kind]
    sign = torch.randint(2, shape, generator=random) << 15
    return from_bits(sign | torch.randint(largest, shape, generator=random), dtype)


KINDS = ("gaussian", "ties", "subnormals", "wide")


def group_keeps(group: list[float]) -> list[bool]:
    """Which of 4 values stay: largest magnitude first, then lower index."""
    best = sorted(range(4), key=lambda i: (-abs(group[i]), i))[:2]
    return [i in best for i in range(4)]


def block_keeps(block: list[list[float]], operand: Operand) -> list[list[bool]]:
    """Which of ``block [64][head_dim]`` stay; groups along head_dim for K, along tokens for V."""
    rows = block if operand == "k" else [list(column) for column in zip(*block, strict=True)]
    kept = [[keep for i in range(0, len(row), 4) for keep in group_keeps(row[i : i + 4])] for row in rows]
    return kept if operand == "k" else [list(row) for row in zip(*kept, strict=True)]


def exact_loss(block: list[list[float]], operand: Operand) -> Fraction:
    """The exact sum of the magnitudes that go. Doubles hold every fp16 and bf16 value."""
    kept = block_keeps(block, operand)
    flat = zip(itertools.chain(*block), itertools.chain(*kept), strict=True)
    return sum((Fraction(abs(value)) for value, keep in flat if not keep), Fraction(0))


def as_fraction(digits: list[int], dtype: torch.dtype) -> Fraction:
    """What the digits of ``block_loss`` stand for; all but the first must be base 2^32 digits, or the
    lexicographic order would not be that of the numbers."""
    assert digits[0] >= 0 and all(0 <= digit < 2**32 for digit in digits[1:])
    number = 0
    for digit in digits:
        number = number * 2**32 + digit
    return number * SMALLEST[dtype]


def block_dropping(losses: list[float], dtype: torch.dtype, operand: Operand) -> Tensor:
    """``[64, 64]`` in which 2:4 drops ``losses`` (at most 1024, spread over the groups, of either sign) and zeros."""
    largest = {torch.float16: 2.0**15, torch.bfloat16: 2.0**120}[dtype]
    groups = torch.zeros(BLOCK * 16, 4, dtype=torch.float64)
    groups[:, :2] = largest
    for i, loss in enumerate(losses):
        groups[(i * 37) % len(groups), 3] = -loss if i % 2 else loss
    exact = groups.view(BLOCK, BLOCK)
    block = exact.to(dtype)
    assert torch.equal(block.to(torch.float64), exact), "not exact in this dtype"
    return block if operand == "k" else block.mT.contiguous()


# ---- 2 of each 4 -------------------------------------------------------------------------------------------
@given(
    st.sampled_from(tuple(INFINITY)).flatmap(
        lambda dtype: st.tuples(
            st.just(dtype),
            st.lists(
                st.lists(
                    st.integers(0, INFINITY[dtype] - 1) | st.sampled_from((0, 1, 2, INFINITY[dtype] - 1)),
                    min_size=4,
                    max_size=4,
                ),
                min_size=1,
                max_size=8,
            ),
            st.integers(0, 2**32 - 1),
        )
    )
)
@settings(max_examples=200, deadline=None)
def test_the_two_largest_of_each_four_stay(case: tuple[torch.dtype, list[list[int]], int]) -> None:
    dtype, groups, signs = case
    signed = [bits | (signs >> i & 1) << 15 for i, bits in enumerate(itertools.chain(*groups))]
    x = from_bits(signed, dtype).view(-1, 4)
    expected = [group_keeps(group) for group in x.tolist()]
    assert keep_2_of_4(x, -1).tolist() == expected
    assert keep_2_of_4(x.flatten(), 0).tolist() == list(itertools.chain(*expected))
    # Positive 16-bit floats order as their bit patterns do: the same again without floating point.
    for group, kept in zip(groups, keep_2_of_4(x, -1).tolist(), strict=True):
        assert sum(kept) == 2
        stays = [bits for bits, keep in zip(group, kept, strict=True) if keep]
        goes = [bits for bits, keep in zip(group, kept, strict=True) if not keep]
        assert min(stays) >= max(goes)


@pytest.mark.parametrize("dtype", EVERY_DTYPE)
def test_every_order_of_ties_keeps_the_lower_index(dtype: torch.dtype) -> None:
    every = list(itertools.product((0.0, -0.0, 1.0, -1.0, 2.0, -2.0), repeat=4))
    got = keep_2_of_4(torch.tensor(every, dtype=dtype), -1).tolist()
    assert got == [group_keeps(list(group)) for group in every]


def test_equal_magnitudes_keep_the_first_two() -> None:
    for group in ([1.0, -1.0, 1.0, -1.0], [0.0] * 4, [-0.0, 0.0, 0.0, -0.0]):
        assert keep_2_of_4(torch.tensor(group, dtype=torch.float16), 0).tolist() == [True, True, False, False]


def test_groups_run_along_the_dimension_asked_for() -> None:
    x = make_data("gaussian", (3, 8, 12), torch.float16, seed=1)
    for dim in (-1, -2, 1, 2):
        kept = keep_2_of_4(x, dim)
        assert kept.shape == x.shape
        values, flags = x.movedim(dim, -1).reshape(-1, 4), kept.movedim(dim, -1).reshape(-1, 4)
        assert flags.tolist() == [group_keeps(group) for group in values.tolist()]


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("operand", OPERANDS)
def test_groups_run_along_head_dim_for_k_and_tokens_for_v(operand: Operand, head_dim: int) -> None:
    x = make_data("wide", (1, 1, BLOCK, head_dim), torch.bfloat16, seed=2)
    pruned = prune_hierarchical(x, operand, torch.ones(1, 1, 1, dtype=torch.bool))
    kept = block_keeps(x[0, 0].tolist(), operand)
    for before, after, keep in zip(bits_of(x), bits_of(pruned), itertools.chain(*kept), strict=True):
        assert after == (before if keep else 0)
    # The other direction would have kept other elements: the test can tell them apart.
    assert kept != block_keeps(x[0, 0].tolist(), "v" if operand == "k" else "k")


# ---- Loss --------------------------------------------------------------------------------------------------
@settings(max_examples=20, deadline=None)
@given(
    dtype=st.sampled_from(tuple(INFINITY)),
    operand=st.sampled_from(OPERANDS),
    kind=st.sampled_from(KINDS),
    head_dim=st.sampled_from((64, 128)),
    seed=st.integers(0, 2**20),
)
def test_loss_is_the_exact_sum(dtype: torch.dtype, operand: Operand, kind: str, head_dim: int, seed: int) -> None:
    blocks = make_data(kind, (2, BLOCK, head_dim), dtype, seed)
    digits = block_loss(blocks, operand).tolist()
    assert [as_fraction(each, dtype) for each in digits] == [exact_loss(each, operand) for each in blocks.tolist()]


@pytest.mark.parametrize("operand", OPERANDS)
@pytest.mark.parametrize("dtype", EVERY_DTYPE)
def test_the_largest_and_the_smallest_losses(dtype: torch.dtype, operand: Operand) -> None:
    for pattern in (INFINITY[dtype] - 1, 0x8000 | INFINITY[dtype] - 1, 0x8001):
        blocks = from_bits(torch.full((1, BLOCK, 128), pattern), dtype)
        one = Fraction(abs(float(blocks[0, 0, 0])))
        assert as_fraction(block_loss(blocks, operand)[0].tolist(), dtype) == one * (BLOCK * 128 // 2)


# What float64 (or any order of adding in it) would call equal or would turn round, as losses of two blocks: less, more.
CLOSE = {
    torch.bfloat16: [
        pytest.param([2.0**100], [2.0**100, 2.0**-126], id="2^100 and 2^-126"),
        pytest.param([2.0**100, 2.0**-133], [2.0**100, 2.0**-132], id="subnormals under 2^100"),
        pytest.param([2.0**60], [2.0**59, 2.0**59, 2.0**-133], id="a carry"),
        pytest.param([2.0**-100] * 255, [2.0**-92], id="256 make the next"),
        pytest.param([2.0**52, 1.0], [2.0**52, 1.0, 2.0**-1], id="53 bits"),
        pytest.param([2.0**31] * 3 + [1.0] * 1000, [2.0**31] * 3 + [1.0] * 999 + [2.0], id="digit boundary"),
        pytest.param([2.0**-133] * 1023, [2.0**-133] * 1024, id="only subnormals"),
    ],
    torch.float16: [
        pytest.param([2.0**14] * 1000, [2.0**14] * 1000 + [2.0**-24], id="1000 x 2^14 and 2^-24"),
        pytest.param([2.0**14, 2.0**-24], [2.0**14, 2.0**-23], id="last place"),
        pytest.param([2.0**-24] * 1023, [2.0**-14], id="1024 subnormals make a normal"),
    ],
}


@pytest.mark.parametrize("operand", OPERANDS)
@pytest.mark.parametrize(
    ("dtype", "less", "more"),
    [
        pytest.param(dtype, *case.values, id=f"{str(dtype)[6:]}: {case.id}")
        for dtype, cases in CLOSE.items()
        for case in cases
    ],
)
def test_losses_that_differ_in_the_last_place(
    dtype: torch.dtype, less: list[float], more: list[float], operand: Operand
) -> None:
    blocks = torch.stack([block_dropping(losses, dtype, operand) for losses in (more, less)])
    digits = block_loss(blocks, operand).tolist()
    exact = [sum(map(Fraction, losses), Fraction(0)) for losses in (more, less)]
    assert exact[0] > exact[1]
    assert [as_fraction(each, dtype) for each in digits] == exact
    assert digits[0] > digits[1]  # lists compare lexicographically, as block choice does
    x = blocks.view(1, 1, 2 * BLOCK, BLOCK)
    assert choose_blocks(x, operand, BlockPlan(2, 0, 2, 1)).tolist() == [[[False, True]]]


@pytest.mark.parametrize("operand", OPERANDS)
def test_the_order_of_summation_changes_nothing(operand: Operand) -> None:
    random = torch.Generator().manual_seed(3)
    block = make_data("wide", (BLOCK, 64), torch.bfloat16, seed=4)
    along = 0 if operand == "k" else 1  # whole groups move: across tokens for K, across head dims for V
    shuffled = [block.index_select(along, torch.randperm(64, generator=random)) for _ in range(20)]
    losses = block_loss(torch.stack([block, *shuffled]), operand)
    assert (losses == losses[0]).all()
    # The same magnitudes, added in fp64 in these orders, do not all agree: order would matter.
    dropped = [(each.double().abs() * ~keep_2_of_4(each, 1 - along)).flatten().tolist() for each in shuffled]
    assert len({sum(values) for values in dropped}) > 1


# ---- Choice of blocks --------------------------------------------------------------------------------------
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_blocks_of_lowest_loss_are_chosen(data: st.DataObject) -> None:
    draw = data.draw
    seq = draw(st.integers(1, 8 * BLOCK))
    dtype, operand = draw(st.sampled_from(tuple(INFINITY))), draw(st.sampled_from(OPERANDS))
    plan = plan_blocks(
        seq,
        draw(st.integers(0, 50)) / 100,
        sink=draw(st.integers(0, 2 * BLOCK)),
        local=draw(st.integers(0, 2 * BLOCK)),
    )
    x = make_data(draw(st.sampled_from(KINDS)), (1, 2, seq, 64), dtype, draw(st.integers(0, 999)))
    blocks = list(range(plan.first, plan.last))
    if len(blocks) > 2 and draw(st.booleans()):  # equal blocks, further apart than neighbours
        x[:, :, blocks[-1] * BLOCK : (blocks[-1] + 1) * BLOCK] = x[:, :, blocks[0] * BLOCK : (blocks[0] + 1) * BLOCK]
    chosen = choose_blocks(x, operand, plan)
    assert chosen.shape == (1, 2, plan.blocks)
    for head in range(2):
        losses = {i: exact_loss(x[0, head, i * BLOCK : (i + 1) * BLOCK].tolist(), operand) for i in blocks}
        expected = sorted(sorted(blocks, key=lambda i: (losses[i], i))[: plan.sparse])
        assert torch.nonzero(chosen[0, head]).flatten().tolist() == expected


@pytest.mark.parametrize("operand", OPERANDS)
@pytest.mark.parametrize("dtype", EVERY_DTYPE)
def test_tied_blocks_take_the_lower_index(dtype: torch.dtype, operand: Operand) -> None:
    block = make_data("gaussian", (BLOCK, 64), dtype, seed=5)
    x = torch.stack([block, -block, block.flip(-1 if operand == "k" else -2), block]).view(1, 1, -1, 64)
    # Flipping a group of 4 leaves its magnitudes, and gaussians seldom tie: all four losses are one.
    assert len({exact_loss(each.tolist(), operand) for each in split_blocks(x)[0, 0]}) == 1
    for sparse in range(5):
        got = choose_blocks(x, operand, BlockPlan(4, 0, 4, sparse))[0, 0].tolist()
        assert got == [i < sparse for i in range(4)]
    assert choose_blocks(x, operand, BlockPlan(4, 1, 4, 2))[0, 0].tolist() == [False, True, True, False]


def test_heads_and_batches_choose_on_their_own() -> None:
    x = torch.ones(2, 2, 3 * BLOCK, 64, dtype=torch.float16)
    lowest = {(0, 0): 2, (0, 1): 0, (1, 0): 1, (1, 1): 2}
    for (batch, head), block in lowest.items():
        x[batch, head, block * BLOCK : (block + 1) * BLOCK] = 0.5
    chosen = choose_blocks(x, "k", BlockPlan(3, 0, 3, 1))
    for (batch, head), block in lowest.items():
        assert chosen[batch, head].tolist() == [i == block for i in range(3)]


# ---- Plans -------------------------------------------------------------------------------------------------
def touches(block: int, first: int, last: int) -> bool:
    """Whether the block holds one of the tokens first .. last - 1; token by token."""
    return any(first <= token < last for token in range(block * BLOCK, (block + 1) * BLOCK))


@settings(max_examples=200, deadline=None)
@given(
    seq=st.integers(1, 12 * BLOCK) | st.sampled_from((1, 63, 64, 65, 127, 128, 129)),
    percent=st.integers(0, 500),
    sink=st.integers(0, 14 * BLOCK) | st.sampled_from((0, 1, 63, 64, 65)),
    local=st.integers(0, 14 * BLOCK) | st.sampled_from((0, 1, 63, 64, 65)),
)
@example(seq=63, percent=500, sink=0, local=0)
@example(seq=128, percent=500, sink=64, local=64)
@example(seq=200, percent=500, sink=1000, local=0)
@example(seq=200, percent=500, sink=0, local=1000)
def test_sink_local_and_tail_are_never_eligible(seq: int, percent: int, sink: int, local: int) -> None:
    plan = plan_blocks(seq, percent / 1000, sink=sink, local=local)
    blocks = math.ceil(Fraction(seq, BLOCK))
    eligible = [
        block
        for block in range(blocks)
        if (block + 1) * BLOCK <= seq and not touches(block, 0, sink) and not touches(block, seq - local, seq)
    ]
    assert plan.blocks == blocks
    assert list(range(plan.first, plan.last)) == eligible and plan.eligible == len(eligible)
    assert 0 <= plan.first <= plan.last <= seq // BLOCK  # what the compiled compressor requires
    assert plan.sparse == math.ceil(Fraction(2 * percent, 1000) * len(eligible))
    assert plan.dense == blocks - plan.sparse


@pytest.mark.parametrize(("seq", "eligible"), [(1, 0), (63, 0), (64, 1), (65, 1), (127, 1), (128, 2)])
def test_short_sequences(seq: int, eligible: int) -> None:
    assert plan_blocks(seq, 0.5) == BlockPlan(-(-seq // 64), 0, eligible, eligible)
    assert plan_blocks(seq, 0.0) == BlockPlan(-(-seq // 64), 0, eligible, 0)
    for dtype, operand in itertools.product(INFINITY, OPERANDS):
        x = make_data("gaussian", (1, 1, seq, 64), dtype, seed=seq)
        plan = plan_blocks(seq, 0.5)
        chosen = choose_blocks(x, operand, plan)
        assert chosen.tolist() == [[[i < eligible for i in range(plan.blocks)]]]
        pruned = prune_hierarchical(x, operand, chosen)
        assert int((pruned == 0).sum()) == eligible * BLOCK * 64 // 2
        assert torch.equal(pruned[:, :, eligible * BLOCK :], x[:, :, eligible * BLOCK :])


def test_the_ceiling_survives_binary_floating_point() -> None:
    assert plan_blocks(15 * BLOCK, 0.1).sparse == 3  # ratio 0.2
    assert 2 * 0.07 * 50 > 7 and plan_blocks(50 * BLOCK, 0.07).sparse == 7
    assert plan_blocks(100 * BLOCK, 1e-6).sparse == 1  # and yet it is a ceiling
    assert plan_blocks(100 * BLOCK, 0.005 + 1e-6).sparse == 2


@settings(max_examples=200, deadline=None)
@given(eligible=st.integers(0, 4096), thousandths=st.integers(0, 500))
def test_the_ceiling_at_any_decimal_ratio(eligible: int, thousandths: int) -> None:
    plan = plan_blocks(eligible * BLOCK + 1, thousandths / 1000)
    assert plan.sparse == math.ceil(Fraction(2 * thousandths, 1000) * eligible)


def test_ratio_0_and_1() -> None:
    x = make_data("ties", (2, 2, 4 * BLOCK + 9, 64), torch.float16, seed=6)
    for operand in OPERANDS:
        none = choose_blocks(x, operand, plan_blocks(x.shape[2], 0.0))
        assert not none.any() and bits_of(prune_hierarchical(x, operand, none)) == bits_of(x)
        every = choose_blocks(x, operand, plan_blocks(x.shape[2], 0.5))
        assert every[..., :4].all() and not every[..., 4].any()


def test_achieved_sparsity() -> None:
    assert plan_blocks(3 * BLOCK, 0.25).achieved_sparsity == pytest.approx(1 / 3)  # 2 of 3 blocks, half of each
    assert plan_blocks(4 * BLOCK, 0.25, sink=1, local=1).achieved_sparsity == 0.25
    assert plan_blocks(63, 0.5).achieved_sparsity == 0.0
    assert plan_blocks(8 * BLOCK, 0.0).achieved_sparsity == 0.0
    x = make_data("gaussian", (1, 1, 7 * BLOCK + 3, 64), torch.bfloat16, seed=7)
    assert (x != 0).all()
    for sparsity in (0.1, 0.3, 0.5):
        plan = plan_blocks(x.shape[2], sparsity)
        zeros = int((prune_hierarchical(x, "v", choose_blocks(x, "v", plan)) == 0).sum())
        assert plan.achieved_sparsity == zeros / (plan.eligible * BLOCK * 64)
        assert sparsity <= plan.achieved_sparsity <= sparsity + 0.5 / plan.eligible


# ---- Pruned tensors ----------------------------------------------------------------------------------------
@settings(max_examples=15, deadline=None)
@given(
    seq=st.integers(1, 4 * BLOCK + 1),
    operand=st.sampled_from(OPERANDS),
    dtype=st.sampled_from(tuple(INFINITY)),
    kind=st.sampled_from(KINDS),
    pattern=st.integers(0, 2**8 - 1),
)
def test_only_chosen_blocks_lose_anything(
    seq: int, operand: Operand, dtype: torch.dtype, kind: str, pattern: int
) -> None:
    x = make_data(kind, (1, 2, seq, 64), dtype, seed=pattern)
    before = bits_of(x)
    blocks, full = -(-seq // BLOCK), seq // BLOCK
    flags = [[bool(pattern >> (4 * head + i) & 1) and i < full for i in range(blocks)] for head in range(2)]
    pruned = prune_hierarchical(x, operand, torch.tensor([flags]))
    assert bits_of(x) == before, "the input was written to"
    for head, block in itertools.product(range(2), range(blocks)):
        tokens = slice(block * BLOCK, (block + 1) * BLOCK)
        was, got = x[0, head, tokens], pruned[0, head, tokens]
        kept = block_keeps(was.tolist(), operand) if flags[head][block] else [[True] * 64] * len(was)
        expected = [bits if keep else 0 for bits, keep in zip(bits_of(was), itertools.chain(*kept), strict=True)]
        assert bits_of(got) == expected


# ---- Unstructured ------------------------------------------------------------------------------------------
@settings(max_examples=100, deadline=None)
@given(
    head_dim=st.sampled_from((64, 128)),
    hundredths=st.integers(0, 99),
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from(tuple(INFINITY)),
    seed=st.integers(0, 999),
)
def test_each_token_keeps_its_largest(head_dim: int, hundredths: int, kind: str, dtype: torch.dtype, seed: int) -> None:
    sparsity = hundredths / 100
    x = make_data(kind, (1, 2, 3, head_dim), dtype, seed)
    kept = keep_unstructured(x, sparsity)
    exact = Fraction(100 - hundredths, 100) * head_dim
    count = kept_per_token(sparsity, head_dim)
    assert abs(count - exact) <= Fraction(1, 2)
    for token, flags in zip(x.view(-1, head_dim).tolist(), kept.view(-1, head_dim).tolist(), strict=True):
        order = sorted(range(head_dim), key=lambda i: (-abs(token[i]), i))
        assert flags == [i in set(order[:count]) for i in range(head_dim)]


@pytest.mark.parametrize(
    ("sparsity", "head_dim", "count"),
    [(0.0, 64, 64), (0.5, 128, 64), (0.3, 128, 90), (0.7, 64, 19), (0.99, 64, 1), (0.999, 64, 0)],
)
def test_how_many_a_token_keeps(sparsity: float, head_dim: int, count: int) -> None:
    assert kept_per_token(sparsity, head_dim) == count
    # All magnitudes are one: the lower indices stay.
    ties = torch.tensor([1.0, -1.0] * (head_dim // 2), dtype=torch.bfloat16)
    assert keep_unstructured(ties, sparsity).tolist() == [i < count for i in range(head_dim)]


# ---- Finite ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", EVERY_DTYPE)
def test_check_finite_names_the_tensor_and_the_first_index(dtype: torch.dtype, bad: float) -> None:
    x = from_bits(torch.full((2, 3, 5, 64), INFINITY[dtype] - 1), dtype)  # the largest finite number
    check_finite("k", x)
    x[1, 2, 4, 63] = bad
    with pytest.raises(NonFiniteError, match=r"k is not finite at index \[1, 2, 4, 63\]") as caught:
        check_finite("k", x)
    assert (caught.value.tensor, caught.value.index) == ("k", (1, 2, 4, 63))
    x[1, 0, 0, 7] = math.nan
    x[0, 2, 4, 63] = math.inf
    with pytest.raises(NonFiniteError) as caught:
        check_finite("v", x)
    assert (caught.value.tensor, caught.value.index) == ("v", (0, 2, 4, 63))


def test_check_finite_of_a_view() -> None:
    x = torch.zeros(1, 1, 4, 64, dtype=torch.float16).mT
    x[0, 0, 3, 1] = math.inf
    x[0, 0, 5, 0] = math.inf
    with pytest.raises(NonFiniteError) as caught:
        check_finite("v", x)
    assert caught.value.index == (0, 0, 3, 1)
