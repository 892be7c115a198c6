"""CUDA decode over pages against attention in fp64 on the unpacked tensors.

Pages are packed by the torch definition into random slots of larger pools; unused slots, outputs and the workspace
beyond its counters are poisoned, so that what is not written, or read by mistake, shows.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from hsbench import native
from hsbench.formats.hierarchical import DTYPES, PagedTensor, compress_tensor_torch
from hsbench.prune import Operand, plan_blocks

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
GROUPS = (1, 2, 3, 4, 7, 8, 9, 16)
SEQS = (1, 63, 64, 65, 200, 1000, 64 * 40)
MIXES = ((0.0, 0.0), (0.5, 0.5), (0.0, 0.5), (0.5, 0.0), (0.3, 0.15))
"""Key and value sparsity."""
SHAPES = ((1, 1), (2, 3))
"""Batch and kv heads."""
TOLERANCE = {torch.float16: 1e-3, torch.bfloat16: 8e-3}


@dataclass
class Case:
    """Inputs, pages, and the exact result for the largest group; smaller groups take the first heads."""

    q: Tensor  # [batch, kv_heads, group, head_dim]
    seq: int
    k: PagedTensor
    v: PagedTensor
    out: Tensor  # fp64
    lse: Tensor


def make_case(
    dtype: torch.dtype,
    head_dim: int,
    seq: int,
    *,
    batch: int = 1,
    kv_heads: int = 2,
    group: int = 4,
    mix: tuple[float, float] = (0.5, 0.5),
    change: Any = None,
) -> Case:
    generator = torch.Generator(DEVICE).manual_seed(seq + head_dim)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=DEVICE).to(dtype)

    q = normal(batch, kv_heads, group, head_dim)
    k, v = normal(batch, kv_heads, seq, head_dim), normal(batch, kv_heads, seq, head_dim)
    if change:
        q, k, v = change(q, k, v)
    k_pages, k_pruned = scattered(k, "k", mix[0])
    v_pages, v_pruned = scattered(v, "v", mix[1])
    scores = q.double() @ k_pruned.double().mT / math.sqrt(head_dim)
    lse = scores.logsumexp(-1)
    return Case(q, seq, k_pages, v_pages, (scores - lse.unsqueeze(-1)).exp() @ v_pruned.double(), lse)


def scattered(x: Tensor, operand: Operand, sparsity: float) -> tuple[PagedTensor, Tensor]:
    """Pages in random slots of pools twice as large, all ones (NaNs) elsewhere; and the pruned tensor they hold."""
    pages = compress_tensor_torch(x, operand, plan_blocks(x.shape[2], sparsity))
    pruned = pages.unpack()
    generator = torch.Generator().manual_seed(1)
    entries = pages.map.flatten()
    for kind, name in enumerate(("dense", "sparse")):
        old = getattr(pages, name)
        if not len(old):
            continue
        new = torch.full((2 * len(old) + 1, old.shape[1]), 0xFF, dtype=torch.uint8, device=DEVICE)
        slots = torch.randperm(len(new), generator=generator)[: len(old)].to(DEVICE)
        new[slots] = old
        setattr(pages, name, new)
        of_kind = (entries & 1) == kind
        entries[of_kind] = (slots[(entries[of_kind] >> 1).long()] * 2 + kind).to(torch.int32)
    return pages, pruned


def with_map(pages: PagedTensor) -> Any:
    """The struct with its map: pages here lie in random slots, so the map is needed whatever their kinds."""
    struct = pages.params()
    struct.map = pages.map.data_ptr()
    return struct


class Call:
    """One decode bound to poisoned outputs and a workspace with room to notice what is written past its end."""

    SPARE = 256

    def __init__(self, case: Case, group: int | None = None, **change: Any) -> None:
        q = (case.q if group is None else case.q[:, :, :group]).contiguous()
        batch, kv_heads, group, head_dim = q.shape
        self.out = torch.full_like(q, math.nan)
        self.lse = torch.full(q.shape[:3], math.nan, device=DEVICE)
        self.library = native.library("cuda")
        self.keep = (q, case)
        fields = dict(
            batch=batch,
            q_heads=kv_heads * group,
            kv_heads=kv_heads,
            head_dim=head_dim,
            seq=case.seq,
            dtype=DTYPES[q.dtype],
            scale=1 / math.sqrt(head_dim),
            q=q,
            out=self.out,
            lse=self.lse,
            k=with_map(case.k),
            v=with_map(case.v),
        )
        self.params = native.make("hsb_decode_params", **fields | change)
        size = self.library.number("hsb_cuda_decode_workspace", self.params)
        self.workspace = torch.full((size + self.SPARE,), 0xFF, dtype=torch.uint8, device=DEVICE)
        self.counters = self.workspace[: -(-batch * kv_heads * group * 4 // 64) * 64]
        self.counters.zero_()
        self.params.workspace = self.workspace.data_ptr()

    def run(self) -> tuple[Tensor, Tensor]:
        self.params.stream = torch.cuda.current_stream().cuda_stream
        self.library.call("hsb_cuda_decode", self.params)
        return self.out, self.lse

    def check_workspace(self) -> None:
        assert (self.counters == 0).all(), "the counters must be zero again"
        assert (self.workspace[-self.SPARE :] == 0xFF).all(), "written past the workspace"


def assert_close(got: tuple[Tensor, Tensor], out: Tensor, lse: Tensor, *, message: str = "") -> None:
    tolerance = TOLERANCE[got[0].dtype]
    error = (got[0].double() - out).norm(dim=-1) / out.norm(dim=-1).clamp_min(1e-30)
    nan = error.isnan().any()
    assert (error <= tolerance).all(), f"{message}: relative error up to {error.max():.2e}, NaN is {nan}"
    torch.testing.assert_close(got[1].double(), lse, rtol=1e-5, atol=5e-5)


@pytest.mark.parametrize("seq", SEQS)
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_shape(dtype: torch.dtype, head_dim: int, seq: int) -> None:
    for (batch, kv_heads), mix in itertools.product(SHAPES, MIXES):
        case = make_case(dtype, head_dim, seq, batch=batch, kv_heads=kv_heads, group=max(GROUPS), mix=mix)
        for group in GROUPS:
            call = Call(case, group)
            got = call.run()
            here = f"batch {batch}, kv heads {kv_heads}, mix {mix}, group {group}"
            assert_close(got, case.out[:, :, :group], case.lse[:, :, :group], message=here)
            call.check_workspace()


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize(
    ("batch", "kv_heads", "seq"),
    [(1, 8, 8192), (1, 1, 40_000), (3, 5, 64 * 131 + 7), (64, 8, 100), (300, 2, 64), (1, 8, 64 * 33)],
)
def test_every_way_to_cut_the_work(batch: int, kv_heads: int, seq: int, mix: tuple[float, float]) -> None:
    """Heads over many CTAs, many heads to a CTA, heads that begin and end within one."""
    case = make_case(torch.float16, 128, seq, batch=batch, kv_heads=kv_heads, mix=mix)
    call = Call(case)
    assert_close(call.run(), case.out, case.lse)
    call.check_workspace()


DEGENERATE = {
    "queries are zero": lambda q, k, v: (torch.zeros_like(q), k, v),
    "keys are zero": lambda q, k, v: (q, torch.zeros_like(k), v),
    "values are the most negative": lambda q, k, v: (q, k, torch.full_like(v, -torch.finfo(v.dtype).max)),
    "scores are huge and equal": lambda q, k, v: (torch.full_like(q, 65504), torch.full_like(k, -65504), v),
    "one score is huge, early": lambda q, k, v: (q, with_peak(q, k, 0), v),
    "one score is huge, in the middle": lambda q, k, v: (q, with_peak(q, k, k.shape[2] // 2), v),
    "one score is huge, in the tail": lambda q, k, v: (q, with_peak(q, k, k.shape[2] - 1), v),
    "scores rise": lambda q, k, v: (q, rising(q, k), v),
}


def with_peak(q: Tensor, k: Tensor, token: int) -> Tensor:
    k = k.clone()
    k[:, :, token] = 60 * q[:, :, 0].sign()
    return k


def rising(q: Tensor, k: Tensor) -> Tensor:
    """Every block beats the reference maximum of those before."""
    return q[:, :, :1].sign() * torch.linspace(0, 40, k.shape[2], device=k.device, dtype=k.dtype).view(1, 1, -1, 1)


@pytest.mark.parametrize("seq", [300, 64 * 200 + 3])
@pytest.mark.parametrize("sparsity", [0.0, 0.5])
@pytest.mark.parametrize("what", DEGENERATE)
def test_degenerate_inputs(what: str, sparsity: float, seq: int) -> None:
    case = make_case(torch.float16, 64, seq, mix=(sparsity, sparsity), change=DEGENERATE[what])
    assert_close(Call(case).run(), case.out, case.lse)


@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_extreme_inputs_stay_finite(sparsity: float) -> None:
    """Sums of signs tie in many tokens, and rounding tells such scores apart: only finiteness can be asked."""

    def extreme(*tensors: Tensor) -> list[Tensor]:
        return [x.sign() * 65504 for x in tensors]

    out, lse = Call(make_case(torch.float16, 128, 1000, mix=(sparsity, sparsity), change=extreme)).run()
    assert torch.isfinite(out).all() and torch.isfinite(lse).all()


@pytest.mark.parametrize("scale", [-0.2, 0.0, 1.5])
def test_any_scale(scale: float) -> None:
    case = make_case(torch.float16, 64, 777)
    scores = case.q.double() @ case.k.unpack().double().mT * scale
    assert_close(Call(case, scale=scale).run(), scores.softmax(-1) @ case.v.unpack().double(), scores.logsumexp(-1))


@pytest.mark.parametrize(("batch", "kv_heads", "seq"), [(1, 8, 64 * 300 + 5), (64, 8, 64 * 3)])
def test_runs_repeat_bit_for_bit(batch: int, kv_heads: int, seq: int) -> None:
    call = Call(make_case(torch.float16, 128, seq, batch=batch, kv_heads=kv_heads, mix=(0.25, 0.4)))
    first = [x.clone() for x in call.run()]
    for _ in range(50):
        call.out.fill_(math.nan)
        call.lse.fill_(math.nan)
        assert all(torch.equal(a, b) for a, b in zip(call.run(), first, strict=True))
    call.check_workspace()


def test_graph_replays() -> None:
    case = make_case(torch.float16, 128, 64 * 50 + 1, kv_heads=4)
    call = Call(case)
    call.run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call.run()
    q = call.keep[0]
    for _ in range(3):
        call.out.fill_(math.nan)
        graph.replay()
        assert_close((call.out, call.lse), case.out, case.lse)
    expected = call.lse.clone()
    q.neg_()  # a replay reads what is there now
    graph.replay()
    assert not torch.equal(call.lse, expected)
    call.check_workspace()


def test_a_side_stream_is_used() -> None:
    case = make_case(torch.float16, 128, 5000)
    call = Call(case)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # the default stream is free meanwhile
        call.run()
        done = torch.cuda.Event()
        done.record()
    torch.cuda.default_stream().synchronize()
    assert not done.query(), "the call must wait for its own stream"
    assert call.out.isnan().all()  # syncs the default stream only
    stream.synchronize()
    assert_close((call.out, call.lse), case.out, case.lse)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head_dim": 96}, "head_dim must be 64 or 128"),
        ({"q_heads": 3}, "q_heads must be"),
        ({"q_heads": 34}, "q_heads must be"),
        ({"seq": 0}, "sizes must be positive"),
        ({"dtype": 2}, "dtype must be"),
    ],
)
def test_bad_shapes_are_refused(change: dict[str, int], message: str) -> None:
    shape = dict(batch=1, q_heads=2, kv_heads=2, head_dim=64, seq=64, dtype=native.FP16) | change
    params = native.make("hsb_decode_params", **shape)
    with pytest.raises(native.NativeError, match=message):
        native.library("cuda").number("hsb_cuda_decode_workspace", params)
