"""From attention over parts of a sequence to attention over all of it.

Of a query, part r gives ``out_r`` and ``lse_r``, the log of its sum of exponentials; over all parts these are

    lse = log(sum_r exp(lse_r))        out = sum_r exp(lse_r - lse) out_r

in fp32, sums from part 0 on: whoever combines the same parts gets the same bits. A part without tokens has lse
-infinity and weighs nothing; where all are without, lse is -infinity and out 0. This is how splits of a decode are
combined within a kernel, too (FlashDecoding).
"""

from __future__ import annotations

import torch
from torch import Tensor

_LEAST = torch.finfo(torch.float32).min  # in place of -infinity, from which -infinity cannot be taken


class Combination:
    """The combination of parts, bound to its tensors: :meth:`run` only computes, and waits for nothing.

    Args:
        outs: ``[parts, batch, q_heads, q_len, head_dim]``, of any type that fp32 holds exactly.
        lses: fp32 ``[parts, batch, q_heads, q_len]``, natural log.
        dtype: of ``out``: combined in fp32, then rounded once.
        may_lack: whether a query may see no token in any part. Where it is known that one sees some, an operation is
            saved, and the bits are the same.

    Attributes:
        out: ``[batch, q_heads, q_len, head_dim]``, written by each run.
        lse: fp32 ``[batch, q_heads, q_len]``, natural log.
    """

    def __init__(self, outs: Tensor, lses: Tensor, dtype: torch.dtype, *, may_lack: bool = True) -> None:
        self._outs, self._lses, self.may_lack = outs, lses, may_lack
        self._weights = torch.empty(lses.shape, dtype=torch.float32, device=lses.device)
        self._sum = torch.empty(outs.shape[1:], dtype=torch.float32, device=outs.device)
        self._finite = torch.empty_like(self._weights[0])
        self.out = torch.empty_like(self._sum, dtype=dtype)
        self.lse = torch.empty_like(self._weights[0])

    def run(self) -> None:
        """Computes ``out`` and ``lse``. On a GPU each operation is a launch, and little else: there are as few as can
        be."""
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
    """``out`` and ``lse`` over all parts, see :class:`Combination`."""
    combination = Combination(outs, lses, dtype)
    combination.run()
    return combination.out, combination.lse
