"""The unstructured rival's format, as MUSTAFAR (arXiv 2505.22913) stores it.

Per token and 64 elements: a 64-bit bitmap of what is kept, an offset, and the kept values in ascending order, padded
with zeros to a multiple of 8. Offsets count in units of 8 values, in row-major order of (batch, kv head, token, 64
elements).
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hsbench.cache.compressor import PairCompressor, TensorCompressor
from hsbench.cache.prune import check_finite, keep_unstructured, kept_per_token
from hsbench.cache.storage import Shape, StoredKV
from hsbench.kernels import forks, library, memory

CHUNK = 64
PAD = 8


@dataclass
class BitmapTensor:
    """K or V of shape ``[batch, kv_heads, seq, head_dim]``.

    Attributes:
        bitmap: int64 ``[batch, kv_heads, seq, head_dim / 64]``; bit i is element i.
        offset: int32, same shape: first kept value in units of 8 values (an unsigned 32-bit number).
        values: ``[total]`` in the tensor's dtype.
        keep: elements kept per token.
    """

    name: str
    shape: Shape
    bitmap: Tensor
    offset: Tensor
    values: Tensor
    keep: int

    @property
    def dtype(self) -> torch.dtype:
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        return self.bitmap.device

    def params(self) -> ctypes.Structure:
        """The ``hsb_bitmaps`` struct that kernels take."""
        return library.make("hsb_bitmaps", bitmap=self.bitmap, offset=self.offset, values=self.values)

    def memory(self) -> dict[str, int]:
        """Bytes by component; values include their padding."""
        return {"values": self.values.nbytes, "bitmap": self.bitmap.nbytes, "offset": self.offset.nbytes}

    def head(self, batch: int, kv_head: int) -> BitmapTensor:
        """One (batch, kv head) as a cache of its own; a view."""
        one = (slice(batch, batch + 1), slice(kv_head, kv_head + 1))
        return replace(self, shape=(1, 1, *self.shape[2:]), bitmap=self.bitmap[one], offset=self.offset[one])

    def unpack(self) -> Tensor:
        """The pruned tensor, ``[batch, kv_heads, seq, head_dim]``."""
        with forks.torch_operations():
            return self._unpack()

    def _unpack(self) -> Tensor:
        keep = (self.bitmap.unsqueeze(-1) >> torch.arange(CHUNK, device=self.bitmap.device) & 1).bool()
        rank = keep.cumsum(-1) - 1
        first = (self.offset.to(torch.int64) & 0xFFFFFFFF).unsqueeze(-1) * PAD
        index = torch.where(keep, first + rank, 0)
        source = self.values if self.values.numel() else self.values.new_zeros(1)
        return torch.where(keep, source[index], 0).view(self.shape)


@dataclass
class BitmapKV(StoredKV[BitmapTensor]):
    """An unstructured-sparse KV cache."""

    @property
    def achieved_sparsity(self) -> float:
        """Share of elements pruned, K and V together."""
        return 1 - (self.k.keep + self.v.keep) / (2 * self.k.shape[-1])


class BitmapCompressor(TensorCompressor):
    """One tensor bound to the bitmaps that it becomes. The first ``run`` counts, allocates the values and fills them;
    later ones do the same work without allocating.

    Raises:
        UnavailableError: there is no native library for the device.
    """

    def __init__(self, x: Tensor, name: str, sparsity: float) -> None:
        batch, kv_heads, seq, head_dim = x.shape
        chunks = (batch, kv_heads, seq, head_dim // CHUNK)
        self._bitmap = memory.empty(chunks, torch.int64, x.device)
        self._offset = memory.empty(chunks, torch.int32, x.device)
        self._values: Tensor | None = None
        self._keep = kept_per_token(sparsity, head_dim)
        self._total = torch.zeros(1, dtype=torch.int64, device=x.device)
        outputs = dict(bitmap=self._bitmap, offset=self._offset, total=self._total)
        super().__init__("compress_bitmap", x, name, keep=self._keep, **outputs)

    def run(self) -> None:
        """Prunes and packs."""
        self._operation.params.values = None
        self._operation.run()
        if self._values is None:
            self.check()
            self._values = memory.empty((int(self._total),), self._x.dtype, self._x.device)
        if self._values.numel():
            self._operation.params.values = self._values.data_ptr()
            self._operation.run()

    @property
    def result(self) -> BitmapTensor:
        """What the runs fill; there is none before the first."""
        if self._values is None:
            raise RuntimeError("nothing is packed before the first run")
        return BitmapTensor(self._name, _shape(self._x), self._bitmap, self._offset, self._values, self._keep)


class BitmapKVCompressor(PairCompressor):
    """A KV cache bound to the bitmaps that it becomes, see :class:`BitmapCompressor`."""

    def __init__(self, k: Tensor, v: Tensor, *, key_sparsity: float, value_sparsity: float) -> None:
        self._key = BitmapCompressor(k, "k", key_sparsity)
        self._value = BitmapCompressor(v, "v", value_sparsity)
        super().__init__(self._key, self._value)

    @property
    def kv(self) -> BitmapKV:
        """What the runs fill; there is none before the first."""
        return BitmapKV(self._key.result, self._value.result)


def compress_bitmap(x: Tensor, name: str, sparsity: float) -> BitmapTensor:
    """Prunes each token of ``x`` to its largest magnitudes and packs it; raises as :class:`BitmapCompressor` does."""
    compressor = BitmapCompressor(x, name, sparsity)
    compressor.run()
    return compressor.result


def compress_bitmap_torch(x: Tensor, name: str, sparsity: float) -> BitmapTensor:
    """The definition of :func:`compress_bitmap`: the same bytes, in torch, slowly."""
    check_finite(name, x)
    keep = keep_unstructured(x, sparsity).unflatten(-1, (-1, CHUNK))
    bitmap = (keep.to(torch.int64) << torch.arange(CHUNK, device=x.device)).sum(-1)
    padded = (keep.sum(-1) + PAD - 1) // PAD
    ends = padded.flatten().cumsum(0).view_as(padded)
    offset = ends - padded
    values = torch.zeros(int(ends.flatten()[-1]) * PAD, dtype=x.dtype, device=x.device)
    index = offset.unsqueeze(-1) * PAD + keep.cumsum(-1) - 1
    values[index[keep]] = x.unflatten(-1, (-1, CHUNK))[keep]
    return BitmapTensor(name, _shape(x), bitmap, offset.to(torch.int32), values, kept_per_token(sparsity, x.shape[-1]))


def _shape(x: Tensor) -> Shape:
    batch, kv_heads, seq, head_dim = x.shape
    return batch, kv_heads, seq, head_dim
