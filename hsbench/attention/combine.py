"""From attention over parts of a sequence to attention over all of it.

Of a query, part r gives ``out_r`` and ``lse_r``, the log of its sum of exponentials; over all parts these are

    lse = log(sum_r exp(lse_r))        out = sum_r exp(lse_r - lse) out_r

in fp32, sums from part 0 on: whoever combines the same parts gets the same bits. A part without tokens has lse
-infinity and weighs nothing; where all are without, lse is -infinity and out 0. This is how splits of a decode are
combined within a kernel, too (FlashDecoding). On a GPU all of it is one launch.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from hsbench.cache.paged import HEAD_DIMS
from hsbench.kernels import library
from hsbench.kernels.device import Device
from hsbench.problem.elements import element_by, element_of

_LEAST = torch.finfo(torch.float32).min  # in place of -infinity, from which -infinity cannot be taken


class Combination(Protocol):
    """The combination of parts, bound to its tensors.

    Attributes:
        out: ``[batch, q_heads, q_len, head_dim]``, written by each run.
        lse: fp32 ``[batch, q_heads, q_len]``, natural log.
        may_lack: whether a query may see no token in any part.
    """

    out: Tensor
    lse: Tensor
    may_lack: bool

    def run(self) -> None:
        """Only computes, and waits for nothing."""

    def renew(self) -> None:
        """From now on runs write to other tensors: what ``out`` and ``lse`` were is the caller's."""


def combination(outs: Tensor, lses: Tensor, dtype: torch.dtype, *, may_lack: bool = True) -> Combination:
    """By a kernel where there is one for these tensors: on CUDA, if parts have the type that is asked for.

    Args:
        outs: ``[parts, batch, q_heads, q_len, head_dim]``, of any type that fp32 holds exactly.
        lses: fp32 ``[parts, batch, q_heads, q_len]``, natural log.
        dtype: of ``out``: combined in fp32, then rounded once.
        may_lack: see :class:`Combination`.
    """
    is_whole = outs[0].is_contiguous() and lses[0].is_contiguous() and _apart(outs, lses) is not None
    is_known = outs.dtype == dtype and element_of(dtype) is not None and outs.shape[-1] in HEAD_DIMS
    if outs.is_cuda and is_whole and is_known and library.why_cannot("combine", Device.of(outs.device)) is None:
        return KernelCombination(outs, lses)
    return TorchCombination(outs, lses, dtype, may_lack=may_lack)


class KernelCombination:
    """By the kernel ``hsb_cuda_combine``; arguments as of :func:`combination`, with parts as far apart in both."""

    def __init__(self, outs: Tensor, lses: Tensor) -> None:
        self.may_lack = True  # it makes no difference here
        self._parts = outs, lses  # stay alive
        self.out = torch.empty(outs.shape[1:], dtype=outs.dtype, device=outs.device)
        self.lse = torch.empty(lses.shape[1:], dtype=torch.float32, device=outs.device)
        params = library.make(
            "hsb_combine_params",
            rows=self.lse.numel(),
            head_dim=outs.shape[-1],
            dtype=element_by(outs.dtype).code,
            parts=len(outs),
            part_bytes=_apart(outs, lses),
            outs=outs,
            lses=lses,
            out=self.out,
            lse=self.lse,
        )
        self._operation = library.Operation("combine", outs.device, params)

    def run(self) -> None:
        """See :class:`Combination`."""
        self._operation.run()

    def renew(self) -> None:
        """See :class:`Combination`."""
        self.out, self.lse = torch.empty_like(self.out), torch.empty_like(self.lse)
        self._operation.params.out, self._operation.params.lse = self.out.data_ptr(), self.lse.data_ptr()


def _apart(outs: Tensor, lses: Tensor) -> int | None:
    """Bytes from a part to the next; None where they are not the same of both, or no multiple of 4."""
    if len(outs) == 1:
        return 0
    of_outs, of_lses = (x.stride(0) * x.element_size() for x in (outs, lses))
    return of_outs if of_outs == of_lses and of_outs % 4 == 0 else None


class TorchCombination:
    """By torch, of any types; arguments as of :func:`combination`. Where it is known that a query sees some token, one
    operation is saved, and the bits are the same."""

    def __init__(self, outs: Tensor, lses: Tensor, dtype: torch.dtype, *, may_lack: bool = True) -> None:
        self._outs, self._lses, self.may_lack = outs, lses, may_lack
        self._weights = torch.empty(lses.shape, dtype=torch.float32, device=lses.device)
        self._sum = torch.empty(outs.shape[1:], dtype=torch.float32, device=outs.device)
        self._finite = torch.empty_like(self._weights[0])
        self.out = torch.empty_like(self._sum, dtype=dtype)
        self.lse = torch.empty_like(self._weights[0])

    def renew(self) -> None:
        """See :class:`Combination`."""
        self.out, self.lse = torch.empty_like(self.out), torch.empty_like(self.lse)

    def run(self) -> None:
        """See :class:`Combination`. There are as few operations as can be."""
        lse, weights = self.lse, self._weights.unsqueeze(-1)
        first, *others = self._lses
        if not others:
            lse.copy_(first)
        for other in others:
            torch.logaddexp(first, other, out=lse)
            first = lse
        finite = torch.clamp(lse, min=_LEAST, out=self._finite) if self.may_lack else lse
        torch.sub(self._lses, finite, out=self._weights).exp_()
        total, last = self._sum, len(self._outs) - 1
        for at, (out, weight) in enumerate(zip(self._outs, weights, strict=True)):
            to = self.out if at == last else self._sum
            if at == 0:
                torch.mul(out, weight, out=to)
            else:
                torch.addcmul(total, out, weight, out=to)


def combine(outs: Tensor, lses: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """``out`` and ``lse`` over all parts, see :func:`combination`."""
    found = combination(outs, lses, dtype)
    found.run()
    return found.out, found.lse
