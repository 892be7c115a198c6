"""The native prefill kernel against causal attention in fp64 on the unpacked tensors: all shapes, mixes of blocks and
instruction sets.

Outputs, workspaces and unused pool slots are poisoned: what is not written, or read by mistake, shows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from hsbench.cache import cpu_layout
from hsbench.cache.block_map import BlockKind, entries_of
from hsbench.cache.prune import BLOCK, Operand, split_blocks
from hsbench.kernels import library
from hsbench.problem.elements import FP16, element_by

BATCH, KV_HEADS, MAX_GROUP = 2, 2, 8
GROUPS = (1, 2, 3, 4, 8)
LENGTHS = ((1, 1), (1, 65), (63, 63), (64, 64), (65, 65), (5, 200), (130, 130), (200, 333))  # q_len, seq
THREADS = (1, 3)
MIXES = ((0.0, 0.0), (1.0, 1.0), (0.5, 0.5))  # share of 2:4 blocks of K and of V


def isas() -> list[str]:
    """Those that this machine can run; none without the library, where all tests here are skipped with the reason."""
    if library.why_missing("cpu"):
        return []
    best = library.load("cpu").number("hsb_cpu_best_isa")
    return [name for name, value in library.ISAS.items() if 0 < value <= best]


pytestmark = pytest.mark.skipif(bool(library.why_missing("cpu")), reason=str(library.why_missing("cpu")))


@dataclass
class Pages:
    """K or V in random slots of pools that are larger than needed; ``pruned`` is what they hold."""

    dense: Tensor
    sparse: Tensor
    map: Tensor
    pruned: Tensor

    def params(self) -> Any:
        return library.make(
            "hsb_pages",
            dense=self.dense,
            sparse=self.sparse,
            map=self.map,
            dense_page_bytes=self.dense.shape[1],
            sparse_page_bytes=self.sparse.shape[1],
        )


def make_pages(x: Tensor, operand: Operand, share: float, seed: int = 0) -> Pages:
    """Any block may be 2:4, except a partial tail block. Slots that no block uses are all ones: NaNs."""
    generator = torch.Generator().manual_seed(seed)
    batch, kv_heads, seq, head_dim = x.shape
    count = -(-seq // BLOCK)
    is_sparse = torch.rand(batch, kv_heads, count, generator=generator) < share
    is_sparse[..., seq // BLOCK :] = False
    padded = torch.zeros(batch, kv_heads, count * BLOCK, head_dim, dtype=x.dtype)
    padded[:, :, :seq] = x
    blocks = split_blocks(padded).flatten(0, 2).clone()
    entries = torch.empty(len(blocks), dtype=torch.int32)
    pools = []
    for kind, (pack, page_bytes) in enumerate(
        (
            (cpu_layout.pack_dense, cpu_layout.dense_page_bytes(head_dim)),
            (cpu_layout.pack_sparse, cpu_layout.sparse_page_bytes(head_dim)),
        )
    ):
        chosen = is_sparse.flatten() == bool(kind)
        used = int(chosen.sum())
        pool = torch.full((2 * used + 1, page_bytes), 0xFF, dtype=torch.uint8)
        slots = torch.randperm(len(pool), generator=generator)[:used]
        if used:
            pool[slots] = pack(blocks[chosen], operand)
            entries[chosen] = entries_of(slots, BlockKind(kind))
            if kind:
                blocks[chosen] = cpu_layout.unpack_sparse(pool[slots], operand, x.dtype, head_dim)
        pools.append(pool)
    pruned = blocks.view_as(padded)[:, :, :seq]
    return Pages(pools[0], pools[1], entries.view(is_sparse.shape), pruned)


def make_qkv(
    dtype: torch.dtype, head_dim: int, q_len: int, seq: int, *, group: int = MAX_GROUP
) -> tuple[Tensor, Tensor, Tensor]:
    """``q [batch, kv_heads, group, q_len, head_dim]`` and k, v ``[batch, kv_heads, seq, head_dim]``."""
    generator = torch.Generator().manual_seed(q_len * 1000 + seq)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    shape = (BATCH, KV_HEADS, seq, head_dim)
    return normal(BATCH, KV_HEADS, group, q_len, head_dim), normal(*shape), normal(*shape)


def attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """``q [batch, kv_heads, group, q_len, head_dim]``: out of its shape and the log-sum-exp, fp64."""
    q_len, seq = q.shape[3], k.shape[2]
    scores = q.double() @ k.double().mT.unsqueeze(2) / math.sqrt(q.shape[-1])
    future = torch.arange(seq) > torch.arange(q_len).unsqueeze(-1) + seq - q_len
    scores = scores.masked_fill(future, -math.inf)
    lse = scores.logsumexp(-1)
    return (scores - lse.unsqueeze(-1)).exp() @ v.double().unsqueeze(2), lse


def run(q: Tensor, k: Pages, v: Pages, *, isa: str = "auto", threads: int = 1) -> tuple[Tensor, Tensor]:
    """``q [batch, kv_heads, group, q_len, head_dim]``; out of its shape, lse without the last dimension."""
    q = q.contiguous()
    batch, kv_heads, group, q_len, head_dim = q.shape
    out = torch.full_like(q, math.nan)
    lse = torch.full(q.shape[:-1], math.nan)
    params = library.make(
        "hsb_prefill_params",
        batch=batch,
        q_heads=kv_heads * group,
        kv_heads=kv_heads,
        head_dim=head_dim,
        q_len=q_len,
        seq=k.pruned.shape[2],
        dtype=element_by(q.dtype).code,
        threads=threads,
        isa=library.ISAS[isa],
        scale=1 / math.sqrt(head_dim),
        q=q,
        out=out,
        lse=lse,
        k=k.params(),
        v=v.params(),
    )
    cpu = library.load("cpu")
    size = cpu.number("hsb_cpu_prefill_workspace", params)
    room = torch.full((size + 128,), 0xFF, dtype=torch.uint8)
    start = -room.data_ptr() % 64
    params.workspace = room.data_ptr() + start
    cpu.call("hsb_cpu_prefill", params)
    assert (room[start + size :] == 0xFF).all(), "written past the workspace"
    return out, lse


def assert_close(got: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    out, lse = got
    reference, reference_lse = expected
    step = torch.finfo(out.dtype).eps
    # Half a step of rounding, and fp32 sums whose error follows the largest terms.
    scale = reference.abs().amax(-1, keepdim=True)
    assert ((out.double() - reference).abs() <= 0.51 * step * reference.abs() + 2e-5 * scale + 1e-7).all()
    torch.testing.assert_close(lse.double(), reference_lse, rtol=2e-6, atol=2e-5)


def variants() -> Iterator[dict[str, Any]]:
    return ({"isa": isa, "threads": threads} for isa in isas() for threads in THREADS)


@pytest.mark.parametrize(("q_len", "seq"), LENGTHS)
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_causal_attention(dtype: torch.dtype, head_dim: int, q_len: int, seq: int) -> None:
    q, k, v = make_qkv(dtype, head_dim, q_len, seq)
    for key_share, value_share in MIXES:
        keys, values = make_pages(k, "k", key_share, 1), make_pages(v, "v", value_share, 2)
        reference = attention(q, keys.pruned, values.pruned)
        for variant in variants():
            for group in GROUPS:
                got = run(q[:, :, :group], keys, values, **variant)
                assert_close(got, tuple(part[:, :, :group] for part in reference))


@pytest.mark.parametrize("isa", isas())
def test_the_largest_group(isa: str) -> None:
    q, k, v = make_qkv(torch.float16, 64, 70, 100, group=16)
    keys, values = make_pages(k, "k", 0.5), make_pages(v, "v", 0.5)
    assert_close(run(q, keys, values, isa=isa), attention(q, keys.pruned, values.pruned))


@pytest.mark.parametrize("isa", isas())
def test_any_number_of_threads_gives_the_same_bits(isa: str) -> None:
    """Enough rows for units of several tiles, whose number of tiles changes with the number of threads."""
    q, k, v = make_qkv(torch.float16, 64, 400, 450, group=8)
    keys, values = make_pages(k, "k", 0.5), make_pages(v, "v", 0.5)
    first = run(q, keys, values, isa=isa)
    assert_close(first, attention(q, keys.pruned, values.pruned))
    for threads in (1, 3, 3, 4, 64):
        again = run(q, keys, values, isa=isa, threads=threads)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_future_leaves_no_trace(share: float, isa: str) -> None:
    """Tokens after a query's last one may hold anything finite: not a bit of its output changes."""
    seq, cut = 200, 77
    q, k, v = make_qkv(torch.float16, 64, seq, seq, group=3)
    wild_k, wild_v = k.clone(), v.clone()
    wild_k[:, :, cut:], wild_v[:, :, cut:] = 65504.0, -65504.0
    # A 2:4 block of V prunes across tokens, so the future decides which of the past are kept: K alone is 2:4.
    tame = run(q, make_pages(k, "k", share), make_pages(v, "v", 0.0), isa=isa)
    wild = run(q, make_pages(wild_k, "k", share), make_pages(wild_v, "v", 0.0), isa=isa)
    assert all(torch.equal(a[:, :, :, :cut], b[:, :, :, :cut]) for a, b in zip(tame, wild, strict=True))


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_degenerate_scores(share: float, isa: str) -> None:
    q_len, seq = 150, 300
    q, k, v = make_qkv(torch.float16, 64, q_len, seq, group=3)

    def check(q: Tensor, k: Tensor, v: Tensor) -> None:
        keys, values = make_pages(k, "k", share), make_pages(v, "v", share)
        assert_close(run(q, keys, values, isa=isa), attention(q, keys.pruned, values.pruned))

    check(torch.zeros_like(q), k, v)  # all scores equal
    check(q, torch.zeros_like(k), v)
    for token in (0, 130, seq - 1):  # one huge score, early, in the middle and for the last query alone
        peaked = k.clone()
        peaked[:, :, token] = 60 * q[:, :, 0, -1].sign()
        check(q, peaked, v)
    ramp = torch.linspace(0.0, 2.0, seq).unsqueeze(-1)  # every block raises the maximum, or every block lowers it
    for sign in (1.0, -1.0):
        check(q.abs() + 1, (sign * ramp * torch.ones_like(k, dtype=torch.float32)).half(), v)
    largest = torch.finfo(torch.float16).max
    check(q, k, torch.full_like(v, -largest))
    check(torch.full_like(q, largest), torch.full_like(k, -largest), v)
    # Sums of signs tie in many tokens, and rounding tells such scores apart: only finiteness can be asked.
    keys, values = make_pages(k.sign() * largest, "k", share), make_pages(v.sign() * largest, "v", share)
    out, lse = run(q.sign() * largest, keys, values, isa=isa)
    assert torch.isfinite(out).all() and torch.isfinite(lse).all()


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize(("q_len", "seq"), [(1, 1), (65, 65), (70, 1000)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_values_near_the_largest(dtype: torch.dtype, q_len: int, seq: int, share: float) -> None:
    """Their mean is finite, so that the output is, whatever the scores; sums of them, not yet divided, need not be."""
    q, k, v = (x[:1, :1] for x in make_qkv(dtype, 64, q_len, seq, group=3))
    rising = q[:, :, 0, :1].sign() * torch.linspace(0, 20, seq).view(1, 1, -1, 1).to(dtype)
    huge = torch.full_like(k, 2.0**15)  # scores of 2^33, beside which a few powers of 2 vanish
    queries = [(q, k), (q * 0, k), (q, rising), (q, rising.flip(2)), (q * 0 + 2.0**15, huge)]
    largest = torch.full_like(v, torch.finfo(dtype).max)
    for (some_q, key), value in itertools.product(queries, (largest, -largest, largest * v.sign())):
        keys, values = make_pages(key, "k", share), make_pages(value, "v", share)
        reference = attention(some_q, keys.pruned, values.pruned)
        for isa in isas():
            assert_close(run(some_q, keys, values, isa=isa), reference)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head_dim": 96}, "head_dim must be 64 or 128"),
        ({"q_heads": 3}, "q_heads must be"),
        ({"q_heads": 34}, "at most 16 query heads"),
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
