"""What append does to a cache that grows, in torch: the definition, written to be read (``hsb_append_params``).

Native kernels leave the same bytes in the same pages.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hsbench.cache.block_map import entries_of, slots_of
from hsbench.cache.fit import Fit
from hsbench.cache.growing import JUDGED, NARROW, OPEN, SPARSE, GrowingTensor
from hsbench.cache.growth import becomes_sparse
from hsbench.cache.prune import (
    BLOCK,
    BlockKind,
    Operand,
    contraction_dim,
    judged_kind,
    keep_2_of_4,
    prune_hierarchical,
)


def append_torch(tensor: GrowingTensor, x: Tensor, lengths: list[int], counts: list[int]) -> None:
    """Appends to each sequence, and judges the blocks that have left the window. The lengths are the caller's to raise.

    Args:
        x: ``[batch, kv_heads, n, head_dim]``, finite.
        lengths: tokens that each sequence has.
        counts: how many of the n it gets, the first ones; one that they would make longer than the capacity gets none.
    """
    for sequence, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        if 0 < count <= tensor.shape[2] - length:
            for head in range(tensor.shape[1]):
                _Head(tensor, sequence, head).append(x[sequence, head, :count], length)


def block_losses(scores: Tensor, operand: Operand) -> Tensor:
    """The loss that blocks are judged by while a cache grows: fp64, of ``scores [..., 64, head_dim]``, the sum of the
    magnitudes that 2:4 drops, by halves."""
    dropped = ~keep_2_of_4(scores, contraction_dim(operand))
    left = (scores.double().abs() * dropped).flatten(-2)
    while left.shape[-1] > 1:
        half = left.shape[-1] // 2
        left = left[..., :half] + left[..., half:]
    return left.squeeze(-1)


class _Head:
    """One (sequence, kv head)."""

    def __init__(self, tensor: GrowingTensor, sequence: int, head: int) -> None:
        self._tensor, self._at = tensor, (sequence, head)
        self._index = sequence * tensor.shape[1] + head
        self._map, self._state = tensor.map[self._at], tensor.state[self._at]
        rows = (_one(x, self._at) for x in (tensor.shift, tensor.scale, tensor.weights))
        self._fit: Fit = tensor.fit.with_rows(**dict(zip(("shift", "scale", "weights"), rows, strict=True)))

    def append(self, tokens: Tensor, length: int) -> None:
        """``tokens [n, head_dim]``, behind those that it has."""
        end = length + len(tokens)
        judged_end = self._tensor.growth.judged_end(end, len(tokens))
        stored = self._fit.stored(tokens[None, None])[0, 0]
        for block in range(length // BLOCK, -(-end // BLOCK)):
            begin, stop = max(length, block * BLOCK), min(end, (block + 1) * BLOCK)
            if begin == block * BLOCK:
                self._open(block)
            self._write(block, begin - block * BLOCK, stored[begin - length : stop - length])
            while self._next() < min(judged_end, stop // BLOCK):
                self._judge(self._next())
        while self._next() < min(judged_end, end // BLOCK):
            self._judge(self._next())

    def _next(self) -> int:
        return self._tensor.growth.first + int(self._state[JUDGED])

    def _take(self, kind: BlockKind, page: int) -> int:
        """The entry of a page of the head's own."""
        slot = torch.tensor(self._index * self._tensor.pages_of(kind) + page, device="cpu")
        return int(entries_of(slot, kind))

    def _open(self, block: int) -> None:
        taken = int(self._state[OPEN])
        entry = self._take(self._tensor.open_kind, int(self._tensor.free[self._at][taken]))
        self._map[block] = entry
        self._state[OPEN] = taken + 1
        self._page(entry, self._tensor.open_kind).zero_()

    def _page(self, entry: int, kind: BlockKind) -> Tensor:
        return self._tensor.pools[kind][int(slots_of(torch.tensor(entry, device="cpu")))]

    def _write(self, block: int, row: int, stored: Tensor) -> None:
        tensor, kind = self._tensor, self._tensor.open_kind
        page, form = self._page(int(self._map[block]), kind), tensor.layout[kind]
        values = form.unpack(page[None], tensor.operand, tensor.dtype, tensor.shape[3])[0]
        scale = tensor.placed_scale
        units = stored if scale is None else stored.float() / scale[self._at]
        values[row : row + len(stored)] = units
        page.copy_(form.pack(values[None], tensor.operand, None)[0])

    def _judge(self, block: int) -> None:
        tensor, fit = self._tensor, self._fit
        entry, kind = int(self._map[block]), tensor.open_kind
        values = tensor.layout[kind].unpack(
            self._page(entry, kind)[None], tensor.operand, tensor.dtype, tensor.shape[3]
        )
        scale = tensor.placed_scale
        stored = values if scale is None else (values * scale[self._at]).to(tensor.dtype)
        scores = fit.scores(stored[None])[0]
        sparse = self._chooses(scores)
        self._state[JUDGED] += 1
        if not sparse and not tensor.elements.has_scale:
            return
        chosen = torch.full((1, 1, 1), sparse, device=stored.device)
        pruned = prune_hierarchical(stored[None], fit.groups, chosen, scores=scores[None], fold=fit.fold)[0]
        becomes, counter = judged_kind(is_sparse=sparse), SPARSE if sparse else NARROW
        taken = int(self._state[counter])
        self._map[block] = self._take(becomes, taken)
        self._state[counter] = taken + 1
        units = pruned if scale is None else pruned.float() / scale[self._at]
        packed = tensor.layout[becomes].pack(units, tensor.operand, scores)
        self._page(int(self._map[block]), becomes).copy_(packed[0])
        self._free(entry)

    def _free(self, entry: int) -> None:
        page = int(slots_of(torch.tensor(entry, device="cpu"))) - self._index * self._tensor.pages_of(
            self._tensor.open_kind
        )
        self._state[OPEN] -= 1
        self._tensor.free[self._at][int(self._state[OPEN])] = page

    def _chooses(self, scores: Tensor) -> bool:
        tensor = self._tensor
        if tensor.losses is None:
            return tensor.ratio > 0.0
        judged, loss = int(self._state[JUDGED]), block_losses(scores, self._fit.groups)[0]
        losses = tensor.losses[self._at]
        losses[judged] = loss
        at_most = int((losses[:judged] <= loss).sum())
        return becomes_sparse(tensor.ratio, judged, int(self._state[SPARSE]), at_most)


def _one(x: Tensor | None, at: tuple[int, int]) -> Tensor | None:
    sequence, head = at
    return None if x is None else x[sequence : sequence + 1, head : head + 1]
