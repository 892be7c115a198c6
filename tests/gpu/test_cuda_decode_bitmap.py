"""Decode over bitmaps on CUDA against attention in fp64 on the unpacked tensors.

Outputs and workspaces are poisoned, and so is what lies past the kept values.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from hsbench import native
from hsbench.formats.bitmap import BitmapTensor, compress_bitmap_torch
from hsbench.formats.hierarchical import DTYPES

DEVICE = "cuda"
MISSING = native.why_missing("cuda") or ("" if torch.cuda.is_available() else "torch sees no CUDA device")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(MISSING), reason=MISSING)]

BATCH, KV_HEADS, MAX_GROUP = 2, 2, 16
GROUPS = (1, 2, 3, 4, 7, 8, 9, 16)
SEQS = (1, 15, 16, 17, 63, 64, 65, 200, 1000, 3001)
MIXES = ((0.5, 0.5), (0.0, 0.9), (0.98, 0.25))  # key and value sparsity
TOLERANCE = {torch.float16: 1e-3, torch.bfloat16: 8e-3}  # of the norm


def stream() -> int:
    return torch.cuda.current_stream().cuda_stream


def multiprocessors() -> int:
    return torch.cuda.get_device_properties(0).multi_processor_count


def make_kv(dtype: torch.dtype, head_dim: int, seq: int, *, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """On the CPU; ``q [batch, kv_heads, 16, head_dim]``."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    shape = (BATCH, KV_HEADS, seq, head_dim)
    return normal(BATCH, KV_HEADS, MAX_GROUP, head_dim), normal(*shape), normal(*shape)


def attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """``q [batch, kv_heads, group, head_dim]``: out of its shape and the log-sum-exp, fp64."""
    scores = q.double() @ k.double().mT / math.sqrt(q.shape[-1])
    lse = scores.logsumexp(-1)
    return (scores - lse.unsqueeze(-1)).exp() @ v.double(), lse


def on_device(x: BitmapTensor) -> BitmapTensor:
    """Values stand at the start of a buffer that goes on with NaNs, in case something reads past their end."""
    room = torch.full((x.values.numel() + 4096,), math.nan, dtype=x.values.dtype, device=DEVICE)
    values = room[: x.values.numel()]
    values.copy_(x.values)
    return BitmapTensor(x.name, x.shape, x.bitmap.to(DEVICE), x.offset.to(DEVICE), values, x.keep)


class Call:
    """One decode bound to its tensors; ``q [batch, kv_heads, group, head_dim]`` on the device."""

    def __init__(self, q: Tensor, seq: int, k: BitmapTensor, v: BitmapTensor) -> None:
        self.q = q.contiguous()
        batch, kv_heads, group, head_dim = q.shape
        self.out = torch.full_like(self.q, math.nan)
        self.lse = torch.full((batch, kv_heads, group), math.nan, device=q.device)
        self._operands = (k, v)
        self.params = native.make(
            "hsb_decode_params",
            batch=batch,
            q_heads=kv_heads * group,
            kv_heads=kv_heads,
            head_dim=head_dim,
            seq=seq,
            dtype=DTYPES[q.dtype],
            scale=1 / math.sqrt(head_dim),
            q=self.q,
            out=self.out,
            lse=self.lse,
            k_bitmap=k.params(),
            v_bitmap=v.params(),
        )
        size = native.library("cuda").number("hsb_cuda_decode_bitmap_workspace", self.params)
        self._size = size
        self._workspace = torch.full((size + 256,), 0xFF, dtype=torch.uint8, device=q.device)
        self.params.workspace = self._workspace.data_ptr()

    def run(self) -> None:
        self.params.stream = stream()
        native.library("cuda").call("hsb_cuda_decode_bitmap", self.params)

    def check_guard(self) -> None:
        assert bool((self._workspace[self._size :] == 0xFF).all()), "written past the workspace"


def assert_close(call: Call, expected: tuple[Tensor, Tensor]) -> None:
    reference, reference_lse = expected
    out = call.out.cpu().double()
    error = (out - reference).norm(dim=-1) / reference.norm(dim=-1)
    assert float(error.max()) < TOLERANCE[call.q.dtype]  # a NaN is not below anything
    torch.testing.assert_close(call.lse.cpu().double(), reference_lse, rtol=1e-5, atol=1e-4)


def compressed(x: Tensor, sparsity: float) -> tuple[BitmapTensor, Tensor]:
    """On the device, and the pruned tensor on the CPU."""
    packed = compress_bitmap_torch(x, "k", sparsity)
    return on_device(packed), packed.unpack()


@pytest.mark.parametrize("seq", SEQS)
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
def test_every_group_and_sparsity(dtype: torch.dtype, head_dim: int, seq: int) -> None:
    q, k, v = make_kv(dtype, head_dim, seq)
    for key_sparsity, value_sparsity in MIXES:
        packed_k, pruned_k = compressed(k, key_sparsity)
        packed_v, pruned_v = compressed(v, value_sparsity)
        expected = attention(q, pruned_k, pruned_v)
        for group in GROUPS:
            call = Call(q[:, :, :group].to(DEVICE), seq, packed_k, packed_v)
            call.run()
            call.check_guard()
            assert_close(call, (expected[0][:, :, :group], expected[1][:, :, :group]))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
def test_degenerate_caches(dtype: torch.dtype) -> None:
    """Nothing kept; all scores alike; one score far above the rest, in the first and in the last token."""
    q, k, v = make_kv(dtype, 128, 500)
    huge = k.clone()
    huge[:, :, 0] = q[:, :, 0] * 20
    late = k.clone()
    late[:, :, -1] = q[:, :, 0] * 20
    for keys, key_sparsity in ((k, 0.999), (torch.zeros_like(k), 0.5), (huge, 0.0), (late, 0.0)):
        packed_k, pruned_k = compressed(keys, key_sparsity)
        packed_v, pruned_v = compressed(v, 0.5)
        call = Call(q[:, :, :4].to(DEVICE), 500, packed_k, packed_v)
        call.run()
        assert_close(call, attention(q[:, :, :4], pruned_k, pruned_v))


def test_values_of_nothing_are_zero() -> None:
    q, k, v = make_kv(torch.float16, 64, 100)
    packed_k, _ = compressed(k, 0.5)
    packed_v, _ = compressed(v, 0.999)
    call = Call(q.to(DEVICE), 100, packed_k, packed_v)
    call.run()
    assert bool((call.out == 0).all())


def test_a_cache_longer_than_one_look_up() -> None:
    """Each warp looks up 32 tiles of 32 tokens at a time: here it comes back for more."""
    warps = multiprocessors() * 4 * 4
    seq = warps * 42 * 32 + 5
    generator = torch.Generator(device=DEVICE).manual_seed(7)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=DEVICE).to(torch.float16)

    q, k, v = normal(1, 1, 4, 64), normal(1, 1, seq, 64), normal(1, 1, seq, 64)
    packed_k, packed_v = compress_bitmap_torch(k, "k", 0.7), compress_bitmap_torch(v, "v", 0.5)
    call = Call(q, seq, packed_k, packed_v)
    call.run()
    out, lse = attention(q, packed_k.unpack(), packed_v.unpack())
    assert_close(call, (out.cpu(), lse.cpu()))


def test_fifty_runs_are_bit_equal() -> None:
    q, k, v = make_kv(torch.float16, 128, 5000)
    packed_k, _ = compressed(k, 0.5)
    packed_v, _ = compressed(v, 0.5)
    call = Call(q[:, :, :4].to(DEVICE), 5000, packed_k, packed_v)
    call.run()
    first = (call.out.clone(), call.lse.clone())
    for _ in range(50):
        call.out.fill_(math.nan)
        call.lse.fill_(math.nan)
        call.run()
        assert torch.equal(call.out, first[0]) and torch.equal(call.lse, first[1])


def test_graph_and_side_stream() -> None:
    q, k, v = make_kv(torch.float16, 128, 3000)
    packed_k, _ = compressed(k, 0.5)
    packed_v, _ = compressed(v, 0.5)
    call = Call(q[:, :, :4].to(DEVICE), 3000, packed_k, packed_v)
    call.run()
    torch.cuda.synchronize()
    first = call.out.clone()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        call.out.fill_(math.nan)
        call.run()
    side.synchronize()
    assert torch.equal(call.out, first)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call.run()
    for _ in range(3):
        call.out.fill_(math.nan)
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(call.out, first)


@pytest.mark.parametrize(("field", "value"), [("head_dim", 96), ("dtype", 2), ("q_heads", 3), ("seq", 0)])
def test_bad_parameters_are_refused(field: str, value: Any) -> None:
    q, k, v = make_kv(torch.float16, 64, 100)
    call = Call(q.to(DEVICE), 100, compressed(k, 0.5)[0], compressed(v, 0.5)[0])
    setattr(call.params, field, value)
    with pytest.raises(native.NativeError):
        native.library("cuda").number("hsb_cuda_decode_bitmap_workspace", call.params)
    with pytest.raises(native.NativeError):
        call.run()
