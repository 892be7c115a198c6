"""Calls of the native attention kernels: checks, workspace, parameters. Shared by the public API and the methods."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from hsbench.cache.bitmap import BitmapKV
from hsbench.cache.growing import GrowingTensor
from hsbench.cache.hierarchical import HierarchicalKV
from hsbench.cache.layouts import why_decode_only
from hsbench.cache.paged import HEAD_DIMS
from hsbench.cache.pruner import ALONG_HEAD_DIM, Axis
from hsbench.cache.storage import Shape
from hsbench.errors import UnsupportedError
from hsbench.kernels import architectures, forks, library
from hsbench.kernels.device import Device
from hsbench.problem.elements import FP8, CacheElements, Element, element_by, elements_of

MAX_GROUP = 16
"""Query heads per kv head that the kernels take."""


def check_query(q: Tensor, kv_shape: Shape, dtype: torch.dtype, device: torch.device, *, name: str = "q") -> None:
    """Raises :class:`UnsupportedError` unless ``q [batch, q_heads, q_len, head_dim]`` fits the cache; says ``name``."""
    batch, kv_heads, seq, head_dim = kv_shape
    if q.device != device:
        raise UnsupportedError(f"{name} is on {q.device}, but the cache on {device}: give {name}.to('{device}')")
    if q.dtype != dtype:
        raise UnsupportedError(f"{name} is {q.dtype}, but the cache {dtype}: give {name}.to({dtype})")
    if q.ndim != 4 or q.shape[0] != batch or q.shape[3] != head_dim:
        raise UnsupportedError(f"{name} is {list(q.shape)}: this cache needs [{batch}, q_heads, q_len, {head_dim}]")
    if q.shape[1] % kv_heads or not 1 <= q.shape[1] // kv_heads <= MAX_GROUP:
        raise UnsupportedError(f"{name} has {q.shape[1]} heads: give 1 to {MAX_GROUP} times the {kv_heads} kv heads")
    if not 1 <= q.shape[2] <= seq:
        raise UnsupportedError(f"{name} has {q.shape[2]} queries: the last one sees all of seq, so give 1 to {seq}")


def why_not_shape(head_dim: int, group: int) -> str | None:
    """Shapes that our kernels do not take, with what they do take; None for one that they take."""
    if head_dim not in HEAD_DIMS:
        return f"head_dim {head_dim}: the kernels take 64 and 128"
    if group > MAX_GROUP:
        return f"{group} query heads per kv head: the kernels take 1 to {MAX_GROUP}"
    return None


class EmptyCall:
    """Attention over nothing, all blocks being evicted: the output is 0 and the log-sum-exp -infinity.

    Attributes:
        out, lse, products: see :class:`NativeCall`.
    """

    products: Element | None = None

    def __init__(self, q: Tensor) -> None:
        self.out = torch.empty_like(q, memory_format=torch.contiguous_format)
        self.lse = torch.empty(q.shape[:-1], dtype=torch.float32, device=q.device)

    def write_to(self, out: Tensor, lse: Tensor) -> None:
        """See :meth:`NativeCall.write_to`."""
        self.out, self.lse = out, lse

    def run(self) -> None:
        """Writes ``out`` and ``lse``."""
        with forks.torch_operations():
            self.out.zero_()
            self.lse.fill_(-math.inf)


class NativeCall:
    """One attention operation bound to its tensors: workspace and outputs are made once, ``run()`` only computes.

    Args:
        operation, struct: names in csrc/api.h and csrc/params.h.
        operands: K and V, by the names of their fields.
        fields: what only this operation's struct has.

    Attributes:
        out: ``[batch, q_heads, q_len, head_dim]`` in q's dtype, written by each run.
        lse: fp32 ``[batch, q_heads, q_len]``, natural log.
        products: the type that q and the probabilities are rounded to for the products, where it is coarser than q's.
    """

    products: Element | None = None

    def __init__(
        self,
        operation: str,
        struct: str,
        q: Tensor,
        kv_shape: Shape,
        operands: dict[str, Any],
        **fields: Any,
    ) -> None:
        self._q = q.contiguous()
        self._alive = operands, fields  # pools and tensors, whose addresses the struct holds
        self._more: dict[str, Any] = {}  # likewise, of the last call of anew()
        batch, q_heads, q_len, head_dim = q.shape
        self.out = torch.empty_like(self._q)
        self.lse = torch.empty(batch, q_heads, q_len, dtype=torch.float32, device=q.device)
        params = library.make(
            struct,
            batch=batch,
            q_heads=q_heads,
            kv_heads=kv_shape[1],
            head_dim=head_dim,
            seq=kv_shape[2],
            dtype=element_by(q.dtype).code,
            scale=1.0 / math.sqrt(head_dim),
            q=self._q,
            out=self.out,
            lse=self.lse,
            **library.on_device(q.device),
            **fields,
            **{name: operand.params() for name, operand in operands.items()},
        )
        self._native = library.Operation(operation, q.device, params)

    def write_to(self, out: Tensor, lse: Tensor) -> None:
        """From now on runs write there: contiguous tensors as ``out`` and ``lse`` are, which they become."""
        self.out, self.lse = out, lse
        self._native.params.out, self._native.params.lse = out.data_ptr(), lse.data_ptr()

    def run(self) -> None:
        """Computes ``out`` and ``lse``."""
        self._native.run()

    def anew(self, q: Tensor, to: tuple[Tensor, Tensor] | None = None, **fields: Any) -> tuple[Tensor, Tensor]:
        """``out`` and ``lse`` of another q of the same shape, in tensors of their own, or in ``to``, as of
        :meth:`write_to`; ``fields`` of the struct too, which the next call does not keep."""
        before = dict.fromkeys(self._more)
        self._q, self._more = q.contiguous(), fields
        self.out, self.lse = to or (torch.empty_like(self._q), torch.empty_like(self.lse))
        for name, x in {"q": self._q, "out": self.out, "lse": self.lse, **before, **fields}.items():
            setattr(self._native.params, name, None if x is None else x.data_ptr())
        self.run()
        return self.out, self.lse


Call = NativeCall | EmptyCall


def _paged_call(operation: str, struct: str, q: Tensor, kv: HierarchicalKV, shape: Shape, **fields: Any) -> Call:
    if kv.k.shape[2] == 0:
        return EmptyCall(q)
    key, value = kv.key_fit, kv.value_fit
    order = library.constants()[f"HSB_ORDER_{key.order.upper()}"]
    fit = {"key_order": order, "key_shift": key.shift, "value_shift": value.shift}
    return NativeCall(operation, struct, q, shape, {"k": kv.k, "v": kv.v}, **fit, **fields)


def decode_call(q: Tensor, kv: HierarchicalKV) -> Call:
    """Decode over pages; ``q [batch, q_heads, 1, head_dim]``. It sees all that is stored, wherever it stood."""
    check_query(q, kv.shape, kv.dtype, kv.device)
    if q.shape[2] != 1:
        raise UnsupportedError(f"q has {q.shape[2]} queries: decode takes one; use prefill for more")
    return _paged_call("decode", "hsb_decode_params", q, kv, kv.k.shape)


def growing_decode_call(
    q: Tensor, k: GrowingTensor, v: GrowingTensor, lengths: Tensor, alike: bool = False
) -> NativeCall:
    """Decode over a cache that grows.

    Args:
        lengths: int32 ``[batch]``, read as it runs.
        alike: whether they are about the same; only time depends on it.
    """
    how = {"alike": int(alike), **_growing_fields(k, v, lengths)}
    return NativeCall("decode", "hsb_decode_params", q, k.shape, {"k": k, "v": v}, **how)


def growing_prefill_call(
    q: Tensor, k: GrowingTensor, v: GrowingTensor, lengths: Tensor, path: str = "auto"
) -> NativeCall:
    """Prefill of the last tokens of a cache that grows; see :func:`growing_decode_call`, and :func:`prefill_call` for
    ``path``."""
    how = {"q_len": q.shape[2], "path": library.PATHS[path], **_growing_fields(k, v, lengths)}
    return NativeCall("prefill", "hsb_prefill_params", q, k.shape, {"k": k, "v": v}, **how)


def _growing_fields(k: GrowingTensor, v: GrowingTensor, lengths: Tensor) -> dict[str, Any]:
    order = library.constants()[f"HSB_ORDER_{k.fit.order.upper()}"]
    return {"key_order": order, "key_shift": k.shift, "value_shift": v.shift, "lengths": lengths}


def decode_bitmap_call(q: Tensor, kv: BitmapKV) -> NativeCall:
    """Decode over bitmaps; ``q [batch, q_heads, 1, head_dim]``."""
    return NativeCall("decode_bitmap", "hsb_decode_params", q, kv.k.shape, {"k_bitmap": kv.k, "v_bitmap": kv.v})


def why_not_prefill(elements: CacheElements, device: Device, axis: Axis = "tokens") -> str | None:
    """Why no prefill kernel reads such values on a device, with V's groups along ``axis``, with the remedy; None if one
    does, or if there is no such device, which is said elsewhere."""
    if reason := why_not_prefill_along(axis) or why_decode_only(elements, device):
        return reason
    if not (device.is_cuda and elements.has_scale and torch.cuda.is_available()):
        return None
    reason = _why_not_sm90("take elements 16bit")
    return reason and f"prefill reads {elements} pages by the sm90 kernel alone: {reason}"


def why_not_prefill_along(axis: Axis) -> str | None:
    """Why no device's prefill kernel reads V in groups along ``axis``, with the remedy; None if they do."""
    if axis == "tokens":
        return None
    wants = "prefill reads V in groups along tokens alone, which sparse tensor cores contract"
    return f"{wants}: take a pruner without {ALONG_HEAD_DIM}"


def prefill_products(elements: CacheElements, device: Device) -> Element | None:
    """The type that prefill rounds q and the probabilities to; None where these stay as they are."""
    return FP8 if device.is_cuda and elements.has_scale else None


def prefill_call(q: Tensor, kv: HierarchicalKV, path: str = "auto", ahead: int = 0) -> Call:
    """Causal prefill over pages; ``q [batch, q_heads, q_len, head_dim]``, the last query sees all of seq. ``path``
    names a CUDA kernel, one of :data:`hsbench.kernels.library.PATHS`; the CPU has one kernel for all. The last query is
    ``ahead`` tokens behind the cache's last, whose blocks are then whole: for the kernel, those between are evicted."""
    batch, kv_heads, held, head_dim = kv.shape
    shape = batch, kv_heads, held + ahead, head_dim
    check_query(q, shape, kv.dtype, kv.device)
    device, elements = Device.of(kv.device), elements_of(kv.k.elements, kv.v.elements)
    if reason := why_not_prefill(elements, device, kv.v.value_axis):
        raise UnsupportedError(reason)
    stored: dict[str, Any] = {}
    if kv.eviction is not None:
        stored = {"position": kv.eviction.position, "stored_blocks": kv.k.plan.blocks}
    elif ahead:
        blocks = torch.arange(kv.k.plan.blocks, dtype=torch.int32, device=kv.device)
        stored = {"position": blocks.repeat(batch, kv_heads, 1), "stored_blocks": kv.k.plan.blocks}
    how = {"q_len": q.shape[2], "path": library.PATHS[path], **stored}
    call = _paged_call("prefill", "hsb_prefill_params", q, kv, shape, **how)
    call.products = prefill_products(elements, device)
    return call


def why_not_path(path: str) -> str | None:
    """Why the current GPU cannot run a CUDA prefill kernel, with the remedy; None if it can."""
    return _why_not_sm90("ask for sm80, or name no kernel") if path == "sm90" else None


def _why_not_sm90(otherwise: str) -> str | None:
    major, minor = torch.cuda.get_device_capability()
    if major != 9:
        needs = "the sm90 kernel needs an NVIDIA GPU of compute capability 9.x (H100, H200)"
        return f"{needs}, this one has {major}.{minor}: {otherwise}"
    told = library.load("cuda").text("hsb_cuda_architectures")
    held = [] if told is None else architectures.parse(told)
    if told is not None and not any(code.feature == "a" and code.runs_on((major, minor)) for code in held):
        names = ", ".join(code.name for code in held) or "none"
        rebuild = f"CUDAARCHS={major}{minor}a-real pip install --force-reinstall --no-deps ."
        needs = f"the sm90 kernel needs code for sm_{major}{minor}a, and this library was built for {names}"
        return f"{needs}: rebuild with `{rebuild}` in hsbench's source folder, {otherwise}"
    return None
