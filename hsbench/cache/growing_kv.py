"""K and V of a cache that grows: fitted to a first chunk, which is compressed at once, and then appended to.

What comes in here has been checked (:mod:`hsbench.attention.growing`).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from hsbench.cache.fit import Fit, fit_pruner
from hsbench.cache.growing import JUDGED, SPARSE, GrowingTensor
from hsbench.cache.growing_torch import block_losses
from hsbench.cache.growth import Growth
from hsbench.cache.packing import PageCompressor
from hsbench.cache.prune import BlockPlan, Operand, plan_blocks, split_blocks
from hsbench.cache.pruner import Pruner, check_sources
from hsbench.cache.storage import Shape
from hsbench.errors import NonFiniteError, UsageError
from hsbench.kernels import library
from hsbench.problem.elements import CacheElements, StoredElements, element_by

_ALIKE = 1.02
"""The longest of sequences over their mean, up to which they are alike: what is for any lengths takes 2 % longer."""


class GrowingKV:
    """K and V of one layer.

    Args:
        shape: ``(batch, kv_heads, capacity, head_dim)``.
        ratios: share of judged blocks that become 2:4, of K and of V, 0 to 1.
        query_rms: see :func:`hsbench.cache.fit.fit_key`.

    Attributes:
        k, v: the pages.
        lengths: int32 ``[batch]``, on the device.
        known: the same as far as it is known without asking the device: no more than it is.
        are_alike: whether sequences are about as long as one another, as far as that is known: for what is faster then.
    """

    def __init__(
        self,
        shape: Shape,
        dtype: torch.dtype,
        device: torch.device,
        *,
        growth: Growth,
        ratios: tuple[float, float],
        pruner: Pruner,
        elements: CacheElements,
        query_rms: Tensor | None = None,
    ) -> None:
        self._shape, self._dtype, self._device, self._growth = shape, dtype, device, growth
        self._pruner, self._elements, self._query_rms = pruner, elements, query_rms
        self.k = self._tensor("k", ratios[0], elements.key)
        self.v = self._tensor("v", ratios[1], elements.value)
        self.lengths = torch.zeros(shape[0], dtype=torch.int32, device=device)
        self._non_finite = torch.full((2,), -1, dtype=torch.int64, device=device)
        self._overflow = torch.zeros(shape[0], dtype=torch.int32, device=device)
        self.known = [0] * shape[0]
        self.are_alike = True
        self._operation = self._append_operation()

    def _tensor(self, operand: Operand, ratio: float, elements: StoredElements) -> GrowingTensor:
        pruner, is_key = self._pruner, operand == "k"
        fit = Fit("k", pruner.order) if is_key else Fit("v", fold=pruner.fold, value_axis=pruner.value_axis)
        return GrowingTensor.empty(
            operand,
            self._shape,
            self._dtype,
            self._device,
            growth=self._growth,
            ratio=ratio,
            elements=elements,
            fit=fit,
            shifts=pruner.key_shift if is_key else pruner.value_shift,
            weighs=is_key and pruner.key_weights != "none",
        )

    def _append_operation(self) -> library.Operation:
        batch, kv_heads, capacity, head_dim = self._shape
        params = library.make(
            "hsb_append_params",
            batch=batch,
            kv_heads=kv_heads,
            head_dim=head_dim,
            dtype=element_by(self._dtype).code,
            seq=capacity,
            tokens=1,  # of each call its own; scratch does not depend on it
            sink=self._growth.sink,
            local=self._growth.local,
            chunk=self._growth.chunk,
            lengths=self.lengths,
            non_finite=self._non_finite,
            overflow=self._overflow,
            key=self.k.growing(),
            value=self.v.growing(),
            **library.on_device(self._device),
        )
        return library.Operation("append", self._device, params)

    @property
    def capacity(self) -> int:
        """Tokens that a sequence may have."""
        return self._shape[2]

    def memory(self, *, used: bool) -> dict[str, int]:
        """Bytes by component: all that was taken, or what is in use now, which asks the device."""
        parts = self.k.memory(used=used), self.v.memory(used=used)
        found = {name: sum(part.get(name, 0) for part in parts) for name in {**parts[0], **parts[1]}}
        found["growth"] += self.lengths.nbytes + self._overflow.nbytes + self._non_finite.nbytes
        return found

    def judged_blocks(self) -> tuple[int, int]:
        """Of all sequences and heads, K and V together: 2:4 ones, and all that were judged. Asks the device."""
        counts = [tensor.state.sum((0, 1)).tolist() for tensor in (self.k, self.v)]
        return sum(count[SPARSE] for count in counts), sum(count[JUDGED] for count in counts)

    def unpack(self) -> tuple[Tensor, Tensor]:
        """What is stored, in the original basis: ``[batch, kv_heads, longest length, head_dim]``, zero behind shorter
        sequences' ends; in the input's dtype, or in fp32 where there is a shift or a scale. Asks the device."""
        lengths = self.lengths.tolist()
        return self._unpack(self.k, lengths), self._unpack(self.v, lengths)

    def _unpack(self, tensor: GrowingTensor, lengths: list[int]) -> Tensor:
        batch, kv_heads, _, head_dim = self._shape
        fit = replace(tensor.fit, shift=tensor.shift)
        dtype = self._dtype if tensor.shift is None and tensor.scale is None else torch.float32
        out = torch.zeros(batch, kv_heads, max(lengths), head_dim, dtype=dtype, device=self._device)
        for sequence, length in enumerate(lengths):
            shift = None if tensor.shift is None else tensor.shift[sequence : sequence + 1]
            stored = tensor.unpack(sequence, length).unsqueeze(0)
            out[sequence, :, :length] = replace(fit, shift=shift).restored(stored)[0]
        return out

    def begins(self, counts: list[int]) -> list[bool]:
        """Of which sequences this is the first chunk."""
        return [not length and count > 0 for length, count in zip(self.known, counts, strict=True)]

    def append(self, k: Tensor, v: Tensor, counts: list[int], queries: Tensor | None) -> None:
        """Appends, the first chunks of sequences that have none yet by compressing them.

        Args:
            k, v: ``[batch, kv_heads, n, head_dim]``, finite as far as it is known; of first chunks for certain.
            counts: how many of the n each sequence gets, for which it has room.
            queries: of all n, or, where all get as many, of the last of them.
        """
        begins = self.begins(counts)
        if all(begins) and len(set(counts)) == 1:
            self._begin(slice(0, len(counts)), k[:, :, : counts[0]], v[:, :, : counts[0]], queries)
        else:
            for sequence in (i for i, is_first in enumerate(begins) if is_first):
                one, count = slice(sequence, sequence + 1), counts[sequence]
                self._begin(one, k[one, :, :count], v[one, :, :count], _last(queries, one, count, k.shape[2]))
        later = [0 if is_first else count for is_first, count in zip(begins, counts, strict=True)]
        if any(later):
            most = max(later)
            alike = min(later) == most
            tensor = None if alike else torch.tensor(later, dtype=torch.int32, device="cpu").to(self._device)
            self.append_later(k[:, :, :most], v[:, :, :most], tensor)
        self.known = [length + count for length, count in zip(self.known, counts, strict=True)]
        self.are_alike = max(self.known) * len(self.known) <= _ALIKE * sum(self.known)

    def append_counted(self, k: Tensor, v: Tensor, counts: Tensor) -> None:
        """As :meth:`append_later`, by counts that the device alone knows."""
        self.are_alike = len(self.known) == 1
        self.append_later(k, v, counts)

    def append_later(self, k: Tensor, v: Tensor, counts: Tensor | None) -> None:
        """Appends to sequences that have tokens; ``counts`` int32 ``[batch]``, or None for all."""
        k, v = k.contiguous(), v.contiguous()
        params = self._operation.params
        params.tokens = k.shape[2]
        params.k, params.v = k.data_ptr(), v.data_ptr()
        params.counts = None if counts is None else counts.data_ptr()
        self._operation.run()

    def _begin(self, which: slice, k: Tensor, v: Tensor, queries: Tensor | None) -> None:
        """The first chunk of some sequences: fits the pruner and compresses."""
        k, v = k.contiguous(), v.contiguous()
        self._store(which, k, v, self._fitted(k, v, queries, self._growth))

    def _fitted(self, k: Tensor, v: Tensor, queries: Tensor | None, growth: Growth) -> tuple[Fit, Fit]:
        """The pruner fitted to a first chunk, of which blocks are open as ``growth`` says."""
        check_sources(self._pruner, calibration=self._query_rms is not None, queries=queries is not None)
        plan = plan_blocks(k.shape[2], 0.5, sink=growth.sink, local=growth.window(k.shape[2]))
        return fit_pruner(
            self._pruner,
            k,
            v,
            [plan] * 2,
            query_rms=self._query_rms,
            queries=queries,
            elements=self._elements,
        )

    def _store(self, which: slice, k: Tensor, v: Tensor, fits: tuple[Fit, Fit]) -> None:
        """The first tokens of some sequences, none or more, contiguous; what is fitted stays for these."""
        tokens = k.shape[2]
        for tensor, x, fit in zip((self.k, self.v), (k, v), fits, strict=True):
            for own, fitted in (
                (tensor.shift, fit.shift),
                (tensor.scale, fit.scale),
                (tensor.weights, fit.channel_weights),
            ):
                if own is not None and fitted is not None:
                    own[which] = fitted.to(own.dtype)
            if tokens:
                sink, local = self._growth.sink, self._growth.window(tokens)
                self._compress(which, tensor, x, fit, plan_blocks(tokens, tensor.ratio / 2, sink=sink, local=local))
        self.lengths[which] = tokens

    def _compress(self, which: slice, tensor: GrowingTensor, x: Tensor, fit: Fit, plan: BlockPlan) -> None:
        pages = tensor.of_sequences(which.start, which.stop, plan, x.shape[2])
        room = {f"{page.pool}_pages": tensor.pages_of(kind) for kind, page in tensor.layout.items()}
        compressor = PageCompressor(
            x, tensor.operand, plan, fit, tensor.elements, pages=pages, map_blocks=self._growth.blocks, **room
        )
        compressor.run()
        losses = None
        if tensor.losses is not None and plan.eligible:
            scores = split_blocks(fit.scores(fit.stored(x)))[:, :, plan.first : plan.last]
            losses = block_losses(scores, fit.groups)
        tensor.compressed(which.start, which.stop, plan, losses)

    def check(self) -> None:
        """Says what append could not without asking the device.

        Raises:
            UsageError: a sequence was full; what did not fit was not written.
            NonFiniteError: something appended was not finite, with its place among all elements of that append;
                :meth:`reset` the cache.
        """
        if bool(self._overflow.any()):
            full = self._overflow.nonzero().flatten().tolist()
            self._overflow.zero_()
            remedy = f"what did not fit was not written; make the cache with a capacity of more than {self.capacity}"
            raise UsageError("k", f"of sequences {full}", remedy)
        for name, flat in zip("kv", self._non_finite.tolist(), strict=True):
            if flat >= 0:
                raise NonFiniteError(name, (flat,))

    def reset(self) -> None:
        """Back to no tokens; the pruner is fitted anew to what then comes first."""
        for tensor in (self.k, self.v):
            tensor.reset()
        self.lengths.zero_()
        self._non_finite.fill_(-1)
        self._overflow.zero_()
        self.known = [0] * len(self.known)
        self.are_alike = True


def _last(queries: Tensor | None, which: slice, count: int, tokens: int) -> Tensor | None:
    """The queries of the ``count`` tokens that a sequence gets of ``tokens``."""
    if queries is None or count == tokens:
        return None if queries is None else queries[which]
    if queries.shape[2] != tokens:
        raise UsageError(
            "queries", f"of {queries.shape[2]} tokens", f"sequences get fewer than the {tokens}; give those of all"
        )
    return queries[which, :, :count]
