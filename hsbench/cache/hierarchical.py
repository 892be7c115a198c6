"""The hierarchical cache: a block map, and pools of dense and of 2:4 pages, for K and for V.

A map entry (``block_map``) says a block's kind and its slot, slots counting within the pool of that kind. Pages of one
(batch, kv head) are contiguous in each pool and ascend with the block, so that a kernel streams them. The bytes of a
page are the device layout's (``cpu_layout``, ``cuda_layout``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from hsbench.cache import cpu_layout, cuda_layout
from hsbench.cache.block_map import BlockKind, entries_of, is_kind, slots_of
from hsbench.cache.prune import (
    BLOCK,
    BlockPlan,
    Operand,
    check_finite,
    choose_blocks,
    plan_blocks,
    raise_if_non_finite,
    split_blocks,
)
from hsbench.errors import UnavailableError, UnsupportedError
from hsbench.kernels import forks, library, memory

DTYPES = {torch.float16: library.FP16, torch.bfloat16: library.BF16}
HEAD_DIMS = (64, 128)
LAYOUTS = {"cpu": cpu_layout, "cuda": cuda_layout}
"""What the bytes of a page are, by device type."""


@dataclass
class PagedTensor:
    """K or V of shape ``[batch, kv_heads, seq, head_dim]`` as pages.

    Attributes:
        map: int32 ``[batch, kv_heads, blocks]``.
        dense: uint8 ``[batch * kv_heads * plan.dense, dense page bytes]``.
        sparse: uint8 ``[batch * kv_heads * plan.sparse, 2:4 page bytes]``.
    """

    operand: Operand
    shape: tuple[int, int, int, int]
    dtype: torch.dtype
    plan: BlockPlan
    map: Tensor
    dense: Tensor
    sparse: Tensor

    @classmethod
    def empty(cls, x: Tensor, operand: Operand, plan: BlockPlan) -> PagedTensor:
        """Uninitialised pages for a tensor like ``x``."""
        batch, kv_heads, _, head_dim = x.shape
        heads, layout = batch * kv_heads, LAYOUTS[x.device.type]

        def pool(pages: int, page_bytes: int) -> Tensor:
            return memory.empty((heads * pages, page_bytes), torch.uint8, x.device)

        return cls(
            operand,
            tuple(x.shape),
            x.dtype,
            plan,
            map=torch.empty(batch, kv_heads, plan.blocks, dtype=torch.int32, device=x.device),
            dense=pool(plan.dense, layout.dense_page_bytes(head_dim)),
            sparse=pool(plan.sparse, layout.sparse_page_bytes(head_dim)),
        )

    @property
    def layout(self) -> ModuleType:
        return LAYOUTS[self.map.device.type]

    def params(self) -> Any:
        """The ``hsb_pages`` struct that kernels take."""
        # Without a map, a CUDA kernel has one dependent load less before its first page.
        needless = self.map.is_cuda and self.plan.sparse in (0, self.plan.blocks)
        return library.make(
            "hsb_pages",
            dense=self.dense,
            sparse=self.sparse,
            map=None if needless else self.map,
            dense_page_bytes=self.dense.shape[1],
            sparse_page_bytes=self.sparse.shape[1],
        )

    def memory(self) -> dict[str, int]:
        """Bytes by component; they add up to the buffers' real sizes."""
        metadata = self.sparse.shape[0] * self.layout.metadata_bytes(self.shape[-1])
        return {
            "dense": self.dense.nbytes,
            "2:4 values": self.sparse.nbytes - metadata,
            "metadata": metadata,
            "map": self.map.nbytes,
        }

    def head(self, batch: int, kv_head: int) -> PagedTensor:
        """The pages of one (batch, kv head), as a cache of its own; only the map is copied."""
        heads = self.shape[1]
        index = batch * heads + kv_head
        first = {0: index * self.plan.dense, 1: index * self.plan.sparse}
        entries = self.map[batch, kv_head]
        is_sparse = is_kind(entries, BlockKind.SPARSE_2_4)
        slots = slots_of(entries) - torch.where(is_sparse, first[1], first[0])
        return replace(
            self,
            shape=(1, 1, *self.shape[2:]),
            map=entries_of(slots, is_sparse).view(1, 1, -1),
            dense=self.dense[first[0] : first[0] + self.plan.dense],
            sparse=self.sparse[first[1] : first[1] + self.plan.sparse],
        )

    def unpack(self) -> Tensor:
        """The pruned tensor, ``[batch, kv_heads, seq, head_dim]``."""
        with forks.torch_operations():
            return self._unpack()

    def _unpack(self) -> Tensor:
        batch, kv_heads, seq, head_dim = self.shape
        blocks = torch.empty(self.map.numel(), BLOCK, head_dim, dtype=self.dtype, device=self.map.device)
        entries = self.map.flatten()
        slots, is_sparse = slots_of(entries), is_kind(entries, BlockKind.SPARSE_2_4)
        if self.plan.dense:
            dense = self.layout.unpack_dense(self.dense, self.operand, self.dtype, head_dim)
            blocks[~is_sparse] = dense[slots[~is_sparse]]
        if self.plan.sparse:
            sparse = self.layout.unpack_sparse(self.sparse, self.operand, self.dtype, head_dim)
            blocks[is_sparse] = sparse[slots[is_sparse]]
        return blocks.view(batch, kv_heads, -1, head_dim)[:, :, :seq].contiguous()


@dataclass
class HierarchicalKV:
    """A compressed KV cache, as :func:`hsbench.compress` returns it."""

    k: PagedTensor
    v: PagedTensor

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """``(batch, kv_heads, seq, head_dim)``."""
        return self.k.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.k.dtype

    @property
    def device(self) -> torch.device:
        return self.k.map.device

    @property
    def nbytes(self) -> int:
        """Everything that a kernel reads: values, metadata, map, padding. Bytes."""
        return sum(self.memory().values())

    @property
    def achieved_sparsity(self) -> float:
        """Share of elements pruned among the eligible blocks of K and V together, 0 to 0.5."""
        pruned = 0.5 * (self.k.plan.sparse + self.v.plan.sparse)
        eligible = self.k.plan.eligible + self.v.plan.eligible
        return pruned / eligible if eligible else 0.0

    def memory(self) -> dict[str, int]:
        """Bytes by component: dense, 2:4 values, metadata, map."""
        key, value = self.k.memory(), self.v.memory()
        return {component: key[component] + value[component] for component in key}

    def unpack(self) -> tuple[Tensor, Tensor]:
        """The pruned K and V, the shapes and dtype of what was compressed."""
        return self.k.unpack(), self.v.unpack()


def check_kv(k: Tensor, v: Tensor) -> None:
    """Raises :class:`UnsupportedError` unless k and v are an fp16 or bf16 pair, ``[batch, kv_heads, seq, 64|128]``,
    and :class:`UnavailableError` on a device that no library is for."""
    if k.device != v.device:
        raise UnsupportedError(f"k is on {k.device}, but v on {v.device}: give v.to('{k.device}')")
    if k.ndim != 4 or k.shape != v.shape or k.dtype != v.dtype:
        raise UnsupportedError(
            f"k {list(k.shape)} {k.dtype} and v {list(v.shape)} {v.dtype} must be alike: "
            "[batch, kv_heads, seq, head_dim], one dtype"
        )
    if k.device.type not in LAYOUTS:
        raise UnavailableError(f"hsbench has no kernels for {k.device.type} tensors: move k and v to cpu or cuda")
    if k.dtype not in DTYPES:
        raise UnsupportedError(f"k and v are {k.dtype}: convert them to torch.float16 or torch.bfloat16")
    if k.shape[-1] not in HEAD_DIMS or 0 in k.shape:
        raise UnsupportedError(f"k is {list(k.shape)}: head_dim must be 64 or 128 and no size may be 0")


class Compressor:
    """One tensor bound to the pages that it becomes: ``run()`` prunes, chooses blocks and packs, with the native
    kernels of its device, as often as it is called.

    Raises:
        UnavailableError: there is no native library for the device.
    """

    def __init__(self, x: Tensor, operand: Operand, plan: BlockPlan) -> None:
        self._x = x.contiguous()
        self.pages = pages = PagedTensor.empty(x, operand, plan)
        batch, kv_heads, seq, head_dim = x.shape
        self._non_finite = torch.full((1,), -1, dtype=torch.int64, device=x.device)
        params = library.make(
            "hsb_compress_params",
            batch=batch,
            kv_heads=kv_heads,
            head_dim=head_dim,
            operand=library.KEY if operand == "k" else library.VALUE,
            seq=seq,
            first_eligible=plan.first,
            last_eligible=plan.last,
            sparse_per_head=plan.sparse,
            dtype=DTYPES[x.dtype],
            x=self._x,
            dense=pages.dense,
            sparse=pages.sparse,
            map=pages.map,
            non_finite=self._non_finite,
            **library.on_device(x.device),
        )
        self._operation = library.Operation("compress", x.device, params)

    def run(self) -> None:
        """Fills the pages."""
        self._operation.run()

    def check(self) -> None:
        """Raises :class:`NonFiniteError` if the last run met a NaN or an infinity."""
        raise_if_non_finite(self.pages.operand, int(self._non_finite), self._x.shape)


def compress_tensor(x: Tensor, operand: Operand, plan: BlockPlan) -> PagedTensor:
    """Prunes, chooses blocks and packs one tensor; raises as :class:`Compressor` and its ``check`` do."""
    compressor = Compressor(x, operand, plan)
    compressor.run()
    compressor.check()
    return compressor.pages


def compress_tensor_torch(x: Tensor, operand: Operand, plan: BlockPlan) -> PagedTensor:
    """The definition of :func:`compress_tensor`: the same bytes, in torch, slowly."""
    check_finite(operand, x)
    batch, kv_heads, seq, head_dim = x.shape
    pages = PagedTensor.empty(x, operand, plan)
    chosen = choose_blocks(x, operand, plan)
    padded = torch.zeros(batch, kv_heads, plan.blocks * BLOCK, head_dim, dtype=x.dtype, device=x.device)
    padded[:, :, :seq] = x
    blocks = split_blocks(padded).flatten(0, 2)
    flat = chosen.flatten()
    if plan.dense:
        pages.dense.copy_(pages.layout.pack_dense(blocks[~flat], operand))
    if plan.sparse:
        pages.sparse.copy_(pages.layout.pack_sparse(blocks[flat], operand))
    slots = torch.where(flat, flat.cumsum(0), (~flat).cumsum(0)) - 1
    pages.map.copy_(entries_of(slots, flat).view_as(pages.map))
    return pages


class KVCompressor:
    """A KV cache bound to the pages that it becomes, see :class:`Compressor`."""

    def __init__(
        self, k: Tensor, v: Tensor, *, key_sparsity: float, value_sparsity: float, sink: int = 0, local: int = 0
    ) -> None:
        plans = (plan_blocks(k.shape[2], share, sink=sink, local=local) for share in (key_sparsity, value_sparsity))
        self._parts = [Compressor(x, operand, plan) for x, operand, plan in zip((k, v), ("k", "v"), plans, strict=True)]
        self.kv = HierarchicalKV(*(part.pages for part in self._parts))

    def run(self) -> None:
        """Fills ``kv``."""
        for part in self._parts:
            part.run()

    def check(self) -> None:
        """Raises :class:`NonFiniteError` if the last run met a NaN or an infinity."""
        for part in self._parts:
            part.check()


def compress_kv(k: Tensor, v: Tensor, **shares: Any) -> HierarchicalKV:
    """Compresses a KV cache, arguments as of :class:`KVCompressor`; :func:`hsbench.compress` is the public form."""
    compressor = KVCompressor(k, v, **shares)
    compressor.run()
    compressor.check()
    return compressor.kv
