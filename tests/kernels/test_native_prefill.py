"""The native prefill kernel against causal attention in fp64 on the unpacked tensors: all shapes, mixes of blocks and
instruction sets.

What is poisoned: see kernel_cases.py and cpu_calls.py.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from cpu_calls import ISAS, make_case, needs_library, run, variants
from hsbench.kernels import library
from hsbench.problem.elements import FP16
from kernel_cases import (
    DEGENERATE,
    Case,
    Pack,
    assert_rounded,
    extreme,
    near_the_largest,
    scattered,
    scattered_fp8,
    scattered_int4,
)

pytestmark = needs_library

GROUPS = (1, 2, 3, 4, 8)
LENGTHS = ((1, 1), (1, 65), (63, 63), (64, 64), (65, 65), (5, 200), (130, 130), (200, 333))  # q_len, seq
MIXES = ((0.0, 0.0), (0.5, 0.5), (0.25, 0.25), (0.0, 0.5))  # key and value sparsity


of_all_elements = pytest.mark.parametrize(
    "pack", [scattered, scattered_fp8, scattered_int4], ids=["16bit", "fp8", "int4"]
)


def check(case: Case, isa: str) -> None:
    assert_rounded(run("prefill", case.q, case.operands, isa=isa), case.out, case.lse)


@pytest.mark.parametrize(("q_len", "seq"), LENGTHS)
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@of_all_elements
def test_causal_attention(pack: Pack, dtype: torch.dtype, head_dim: int, q_len: int, seq: int) -> None:
    for mix in MIXES:
        case = make_case(dtype, head_dim, seq, q_len=q_len, group=max(GROUPS), mix=mix, pack=pack)
        for variant, group in itertools.product(variants(), GROUPS):
            got = run("prefill", case.q[:, :, :group], case.operands, **variant)
            assert_rounded(got, case.out[:, :, :group], case.lse[:, :, :group])


@pytest.mark.parametrize("isa", ISAS)
def test_the_largest_group(isa: str) -> None:
    check(make_case(torch.float16, 64, 100, q_len=70, group=16, mix=(0.25, 0.25)), isa)


@pytest.mark.parametrize("isa", ISAS)
def test_any_number_of_threads_gives_the_same_bits(isa: str) -> None:
    """Enough rows for units of several tiles, whose number of tiles changes with the number of threads."""
    case = make_case(torch.float16, 64, 450, q_len=400, group=8, mix=(0.25, 0.25))
    check(case, isa)
    first = run("prefill", case.q, case.operands, isa=isa)
    for threads in (1, 3, 3, 4, 64):
        again = run("prefill", case.q, case.operands, isa=isa, threads=threads)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_the_future_leaves_no_trace(sparsity: float, isa: str) -> None:
    """Tokens after a query's last one may hold anything finite: not a bit of its output changes."""
    seq, cut = 200, 77

    def wild(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        k, v = k.clone(), v.clone()
        k[:, :, cut:], v[:, :, cut:] = 65504.0, -65504.0
        return q, k, v

    # A 2:4 block of V prunes across tokens, so the future decides which of the past are kept: K alone is 2:4.
    results = []
    for change in (None, wild):
        case = make_case(torch.float16, 64, seq, q_len=seq, group=3, mix=(sparsity, 0.0), change=change)
        results.append(run("prefill", case.q, case.operands, isa=isa))
    assert all(torch.equal(a[:, :, :, :cut], b[:, :, :, :cut]) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("sparsity", [0.0, 0.5])
@pytest.mark.parametrize("what", DEGENERATE)
def test_degenerate_inputs(what: str, sparsity: float, isa: str) -> None:
    shape = dict(q_len=150, group=3, mix=(sparsity, sparsity))
    check(make_case(torch.float16, 64, 300, change=DEGENERATE[what], **shape), isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_extreme_inputs_stay_finite(sparsity: float, isa: str) -> None:
    case = make_case(torch.float16, 64, 300, q_len=150, group=3, mix=(sparsity, sparsity), change=extreme)
    out, lse = run("prefill", case.q, case.operands, isa=isa)
    assert torch.isfinite(out).all() and torch.isfinite(lse).all()


@pytest.mark.parametrize("sparsity", [0.0, 0.5])
@pytest.mark.parametrize(("q_len", "seq"), [(1, 1), (65, 65), (70, 1000)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_values_near_the_largest(dtype: torch.dtype, q_len: int, seq: int, sparsity: float) -> None:
    shape = dict(q_len=q_len, batch=1, kv_heads=1, group=3, mix=(sparsity, sparsity))
    for _, change in near_the_largest():
        case = make_case(dtype, 64, seq, change=change, **shape)
        for isa in ISAS:
            check(case, isa)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head_dim": 96}, "head_dim must be 64 or 128"),
        ({"q_heads": 3}, "q_heads must be"),
        ({"q_heads": 34}, "q_heads must be"),
        ({"batch": 0}, "must be positive"),
        ({"q_len": 0}, "q_len must be"),
        ({"q_len": 65}, "q_len must be"),
        ({"dtype": 2}, "dtype must be"),
        ({"threads": 0}, "threads must be positive"),
        ({"isa": 9}, "does not have the instruction set"),
    ],
)
def test_bad_shapes_are_refused(change: dict[str, int], message: str) -> None:
    shape = dict(batch=1, q_heads=2, kv_heads=2, head_dim=64, q_len=64, seq=64, dtype=FP16.code, threads=1) | change
    params = library.make("hsb_prefill_params", **shape)
    with pytest.raises(library.NativeError, match=message):
        library.load("cpu").number("hsb_cpu_prefill_workspace", params)
