"""Calls of CUDA kernels that notice what they should not touch: what lies around q and around the outputs, the outputs
themselves and the workspace are poisoned, so that what is not written, or read or written by mistake, shows. Cases and
their exact results: tests/kernels/kernel_cases.py.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

import kernel_cases
from hsbench.kernels import library
from hsbench.problem.elements import element_by
from kernel_cases import Operands, assert_close, struct_of

DEVICE = "cuda"

make_case = partial(kernel_cases.make_case, device=DEVICE)


def decode_counters(q: Tensor) -> int:
    """Bytes of decode's counters, at its workspace's start: u32, of each query head, or 8 of each kv head for the CTAs
    of its clusters, whichever are more, in whole lines of 64 bytes. ``q`` as of :class:`Call`."""
    batch, kv_heads, group = q.shape[:3]
    return -(-4 * batch * kv_heads * max(group, 8) // 64) * 64


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
        operands: dict[str, Operands],
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
