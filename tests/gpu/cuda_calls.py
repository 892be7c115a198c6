"""What the GPU tests of the attention kernels share: cases with exact results, and calls that notice what they should
not touch.

Pages are packed by the torch definition into random slots of larger pools. Unused slots, what lies around q and around
the outputs, the outputs themselves and the workspace are poisoned, so that what is not written, or read or written by
mistake, shows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hsbench.cache.bitmap import BitmapTensor
from hsbench.cache.block_map import entries_of, is_kind, slots_of
from hsbench.cache.hierarchical import PagedTensor, compress_tensor_torch
from hsbench.cache.prune import Operand, plan_blocks
from hsbench.kernels import library
from hsbench.problem.elements import element_by
from hsbench.run.check import TOLERANCE

DEVICE = "cuda"

Change = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""Makes other q, k and v of the random ones."""


@dataclass
class Case:
    """Inputs, pages, and the exact result for the largest group; smaller groups take the first heads."""

    q: Tensor  # [batch, kv_heads, group, q_len, head_dim]
    k: PagedTensor
    v: PagedTensor
    out: Tensor  # fp64, q's shape
    lse: Tensor  # fp64, q's shape without head_dim


def make_case(
    dtype: torch.dtype,
    head_dim: int,
    seq: int,
    *,
    q_len: int = 1,
    batch: int = 1,
    kv_heads: int = 2,
    group: int = 4,
    mix: tuple[float, float] = (0.5, 0.5),
    scale: float | None = None,
    change: Change | None = None,
) -> Case:
    """``mix`` is the sparsity of K and of V; ``change`` comes before pruning."""
    generator = torch.Generator(DEVICE).manual_seed(seq + head_dim)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=DEVICE).to(dtype)

    q = normal(batch, kv_heads, group, q_len, head_dim)
    k, v = normal(batch, kv_heads, seq, head_dim), normal(batch, kv_heads, seq, head_dim)
    if change:
        q, k, v = change(q, k, v)
    k_pages, k_pruned = scattered(k, "k", mix[0])
    v_pages, v_pruned = scattered(v, "v", mix[1])
    return Case(q, k_pages, v_pages, *attention(q, k_pruned, v_pruned, scale=scale))


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, rows: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Causal attention in fp64, one kv head at a time; the last query sees all tokens.

    Args:
        q: ``[batch, kv_heads, group, q_len, head_dim]``.
        k, v: ``[batch, kv_heads, seq, head_dim]``.
        scale: of the scores; ``1 / sqrt(head_dim)`` if None.
        rows: int64 ``[n]``: only these queries.

    Returns:
        ``out [batch, kv_heads, group, n, head_dim]`` and ``lse [batch, kv_heads, group, n]``, natural log.
    """
    q_len, seq = q.shape[3], k.shape[2]
    rows = torch.arange(q_len, device=q.device) if rows is None else rows
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    future = torch.arange(seq, device=q.device) > (rows + seq - q_len).unsqueeze(-1)
    lse = torch.empty(*q.shape[:3], len(rows), dtype=torch.float64, device=q.device)
    out = torch.empty(*lse.shape, q.shape[-1], dtype=torch.float64, device=q.device)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            scores = q[b, h][:, rows].double() @ k[b, h].double().mT * scale
            scores.masked_fill_(future, -math.inf)
            lse[b, h] = scores.logsumexp(-1)
            out[b, h] = (scores - lse[b, h].unsqueeze(-1)).exp_() @ v[b, h].double()
    return out, lse


def scattered(x: Tensor, operand: Operand, sparsity: float) -> tuple[PagedTensor, Tensor]:
    """Pages in random slots of pools twice as large, all ones (NaNs) elsewhere; and the pruned tensor they hold."""
    pages = compress_tensor_torch(x, operand, plan_blocks(x.shape[2], sparsity))
    pruned = pages.unpack()
    generator = torch.Generator().manual_seed(1)
    entries = pages.map.flatten()
    for kind, old in list(pages.pools.items()):
        if not len(old):
            continue
        new = torch.full((2 * len(old) + 1, old.shape[1]), 0xFF, dtype=torch.uint8, device=DEVICE)
        slots = torch.randperm(len(new), generator=generator)[: len(old)].to(DEVICE)
        new[slots] = old
        pages.pools[kind] = new
        of_kind = is_kind(entries, kind)
        entries[of_kind] = entries_of(slots[slots_of(entries[of_kind])], kind)
    return pages, pruned


class Call:
    """One attention operation bound to poisoned outputs, with room around its buffers to notice what is touched there.

    Args:
        operation: ``decode``, ``decode_bitmap`` or ``prefill``.
        q: ``[batch, kv_heads, group, q_len, head_dim]``; copied.
        operands: K and V by the names of their fields in the struct.
        counters: bytes at the workspace's start that must be zero before each run, and are again after it; the rest is
            poisoned. If None, all of the workspace starts as zeros.
        fields: other fields of the struct, or other values than those of the tensors.

    Attributes:
        q: the copy that is read.
        out, lse: q's shape; and that without head_dim.
    """

    SPARE = 256  # elements around each buffer; keeps its alignment

    def __init__(
        self,
        operation: str,
        q: Tensor,
        operands: dict[str, PagedTensor | BitmapTensor],
        *,
        counters: int | None = None,
        **fields: Any,
    ) -> None:
        batch, kv_heads, group, q_len, head_dim = q.shape
        self._function = f"hsb_{DEVICE}_{operation}"
        self._library = library.load(DEVICE)
        self._operands = operands  # keeps the pools alive
        self.q = self._guarded(q.shape, q.dtype)[1].copy_(q)
        self._rooms = []
        for name, dtype in (("out", q.dtype), ("lse", torch.float32)):
            room, inner = self._guarded(q.shape if name == "out" else q.shape[:-1], dtype)
            self._rooms.append((name, room))
            setattr(self, name, inner)
        seq = next(iter(operands.values())).shape[2]
        shape = dict(batch=batch, q_heads=kv_heads * group, kv_heads=kv_heads, head_dim=head_dim, seq=seq)
        if operation == "prefill":
            shape["q_len"] = q_len
        tensors = dict(q=self.q, out=self.out, lse=self.lse, **{name: struct_of(x) for name, x in operands.items()})
        common = dict(dtype=element_by(q.dtype).code, scale=1 / math.sqrt(head_dim), **library.on_device(q.device))
        struct = "hsb_prefill_params" if operation == "prefill" else "hsb_decode_params"
        self.params = library.make(struct, **shape | tensors | common | fields)
        self._size = self._library.number(f"{self._function}_workspace", self.params)
        self._workspace = torch.full((self._size + self.SPARE,), 0xFF, dtype=torch.uint8, device=DEVICE)
        self._counters = counters
        self._workspace[: self._size if counters is None else counters] = 0
        self.params.workspace = self._workspace.data_ptr()

    def run(self) -> tuple[Tensor, Tensor]:
        """``out`` and ``lse``, on the current stream."""
        if self.q.is_cuda:
            self.params.stream = torch.cuda.current_stream().cuda_stream
        self._library.call(self._function, self.params)
        return self.out, self.lse

    def poison(self) -> None:
        self.out.fill_(math.nan)
        self.lse.fill_(math.nan)

    def check_bounds(self) -> None:
        """Nothing was written around the buffers, and the counters are as they were."""
        for name, room in self._rooms:
            around = torch.cat([room[: self.SPARE], room[-self.SPARE :]])
            assert around.isnan().all(), f"written outside {name}"
        assert (self._workspace[self._size :] == 0xFF).all(), "written past the workspace"
        assert not self._counters or (self._workspace[: self._counters] == 0).all(), "the counters must be zero again"

    def _guarded(self, shape: torch.Size, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A buffer full of NaN, and the part of it, of that shape, that has spare elements on both sides."""
        size = math.prod(shape)
        room = torch.full((size + 2 * self.SPARE,), math.nan, dtype=dtype, device=DEVICE)
        return room, room[self.SPARE : self.SPARE + size].view(shape)


def struct_of(operand: PagedTensor | BitmapTensor) -> Any:
    """An operand's struct; pages with their map, for they lie in random slots, whatever their kinds."""
    struct = operand.params()
    if isinstance(operand, PagedTensor):
        struct.map = operand.map.data_ptr()
    return struct


def assert_close(got: tuple[Tensor, Tensor], out: Tensor, lse: Tensor, *, message: str = "") -> None:
    """Each row of ``out`` within the tolerance that every method must keep, ``lse`` within fp32's."""
    tolerance = TOLERANCE[got[0].dtype]
    error = (got[0].double() - out).norm(dim=-1) / out.norm(dim=-1).clamp_min(1e-30)
    nan = error.isnan().any()
    assert (error <= tolerance).all(), f"{message}: relative error up to {error.max():.2e}, NaN is {nan}"
    torch.testing.assert_close(got[1].double(), lse, rtol=1e-5, atol=5e-5, msg=lambda text: f"{message}: lse: {text}")


# ---- Values whose sums could overflow ---------------------------------------------------------------------------
def near_the_largest() -> Iterator[tuple[str, Change]]:
    """V the largest that its type has, of one sign or of both, under scores that a lazy maximum meets in many ways: the
    output is finite, for it is a mean; sums that are not yet divided need not be."""

    def direction(q: Tensor) -> Tensor:
        return q[:, :, 0, :1].sign()

    def ramp(k: Tensor, begin: float, end: float) -> Tensor:
        return torch.linspace(begin, end, k.shape[2], device=k.device).view(1, 1, -1, 1).to(k.dtype)

    def changed(score: Any, sign: Any, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k = score(q, k)
        return q, k, sign(v) * torch.finfo(v.dtype).max

    scores = {
        "any": lambda q, k: (q, k),
        "equal": lambda q, k: (torch.zeros_like(q), k),
        "rising": lambda q, k: (q, direction(q) * ramp(k, 0, 20)),
        "falling": lambda q, k: (q, direction(q) * ramp(k, 20, 0)),
        # 2^30 times head_dim, beside which a few powers of 2 vanish
        "huge and equal": lambda q, k: (torch.full_like(q, 2.0**15), torch.full_like(k, 2.0**15)),
        "hugely negative": lambda q, k: (torch.full_like(q, 2.0**15), torch.full_like(k, -(2.0**15))),
    }
    values = {"positive": torch.ones_like, "negative": lambda v: -torch.ones_like(v), "mixed": torch.sign}
    for (of_scores, score), (of_values, sign) in itertools.product(scores.items(), values.items()):
        yield f"scores {of_scores}, values {of_values}", partial(changed, score, sign)


def small_values(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where room is made for the largest values, it is not taken from the small ones."""
    return q, k, v * 2.0**-80


# ---- What every kernel promises ------------------------------------------------------------------------------
def assert_repeats(call: Call, times: int = 50) -> None:
    """Bit for bit, on the same workspace."""
    first = [x.clone() for x in call.run()]
    for _ in range(times):
        call.poison()
        assert all(torch.equal(a, b) for a, b in zip(call.run(), first, strict=True))
    call.check_bounds()


def assert_replays(call: Call, out: Tensor, lse: Tensor) -> None:
    """From a CUDA graph, and each replay reads what its tensors hold then. Leaves q negated."""
    call.run()  # the first call of a process loads the kernel, which a capture does not allow
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call.run()
    for _ in range(3):
        call.poison()
        graph.replay()
        assert_close((call.out, call.lse), out, lse)
    expected = call.lse.clone()
    call.q.neg_()
    graph.replay()
    assert not torch.equal(call.lse, expected)
    call.check_bounds()


def assert_keeps_to_its_stream(call: Call, out: Tensor, lse: Tensor) -> None:
    """The call returns at once, and its work waits for the stream that was current."""
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
    assert_close((call.out, call.lse), out, lse)
