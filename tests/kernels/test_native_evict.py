"""The native kernels where blocks are evicted, against attention in fp64 on what is left: prefill, which must know
where what is stored stood, and decode, which need not.
"""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch

import evict_cases
from cpu_calls import ISAS, needs_library, run
from evict_cases import DROPS
from hsbench.kernels import library
from kernel_cases import DEGENERATE, assert_rounded

pytestmark = needs_library

LENGTHS = ((1, 200), (64, 200), (65, 192), (200, 200), (65, 65))  # q_len, seq

_MIXES = itertools.cycle(((0.0, 0.0), (0.5, 0.5), (0.25, 0.1)))
"""Key and value sparsity, the next for each test."""

evict_case = partial(evict_cases.evict_case, device="cpu")


@pytest.mark.parametrize("drop", DROPS)
@pytest.mark.parametrize(("q_len", "seq"), LENGTHS)
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_is_evicted_takes_no_part(dtype: torch.dtype, head_dim: int, q_len: int, seq: int, drop: str) -> None:
    mix = next(_MIXES)
    case = evict_case(dtype, head_dim, seq, drop, q_len=q_len, batch=1, group=3, mix=mix)
    if case is None:
        pytest.skip("nothing to drop, or nothing would be left")
    for isa in ISAS:
        case.assert_close(run("prefill", case.q, case.operands, isa=isa, **case.fields), close=assert_rounded)
        if q_len == 1:
            assert_rounded(run("decode", case.q, case.operands, isa=isa), case.out, case.lse)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("drop", ["the first", "half, at random"])
@pytest.mark.parametrize("what", DEGENERATE)
def test_degenerate_inputs(what: str, drop: str, isa: str) -> None:
    """Beside queries that see nothing, which share tiles with those that do."""
    case = evict_case(torch.float16, 64, 300, drop, q_len=300, group=3, mix=(0.25, 0.25), change=DEGENERATE[what])
    assert case is not None
    case.assert_close(run("prefill", case.q, case.operands, isa=isa, **case.fields), close=assert_rounded)


@pytest.mark.parametrize("isa", ISAS)
def test_any_number_of_threads_gives_the_same_bits(isa: str) -> None:
    case = evict_case(torch.float16, 64, 450, "half, at random", q_len=400, group=8, mix=(0.25, 0.25))
    assert case is not None
    first = run("prefill", case.q, case.operands, isa=isa, **case.fields)
    for threads in (3, 4):
        again = run("prefill", case.q, case.operands, isa=isa, threads=threads, **case.fields)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("stored", [0, -1, 4])
def test_more_or_fewer_blocks_than_there_can_be_are_refused(stored: int) -> None:
    case = evict_case(torch.float16, 64, 192, "the first", q_len=64)
    assert case is not None
    with pytest.raises(library.NativeError, match="stored_blocks must be 1 to the blocks of seq"):
        run("prefill", case.q, case.operands, **case.fields | {"stored_blocks": stored})
