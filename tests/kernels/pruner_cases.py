"""What tests of kernels share on every device for caches of a pruner that stores K in another order, or K or V less a
vector: cases, their exact results on what the pages stand for, and how close to those a kernel must come.

K and V lie far from zero beside their noise, and queries along K's mean, so that what a kernel has to give back is
hundreds of times what it computes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hsbench.cache.fit import Fit, fit_key, fit_value
from hsbench.cache.paged import PagedTensor
from hsbench.cache.prune import plan_blocks
from hsbench.cache.pruner import CENTERED, MAGNITUDE, MIRROR, Pruner
from hsbench.kernels import library
from hsbench.problem.elements import SIXTEEN_BIT, CacheElements, StoredElements
from hsbench.run.check import TOLERANCE
from kernel_cases import Case, attention, scattered, scattered_narrow

PARTS = {
    "order": MIRROR,
    "K's shift": replace(MAGNITUDE, key_shift=True),
    "V's shift": replace(MAGNITUDE, value_shift=True),
    "order and shifts": CENTERED,
}
"""Each part that a kernel has to know of by itself, and all of them."""

MEAN = 50.0


@dataclass
class PrunerCase(Case):
    """A case, whose exact results are of K and V in their own order and place.

    Attributes:
        fields: what a kernel's struct has of the pruner, for ``library.make``. The case keeps the tensors alive.
        value_shift: fp32 ``[batch, kv_heads, head_dim]``, zeros where nothing was taken.
        taken: fp64, lse's shape: the sum of the magnitudes that add up to what lse gets back.
    """

    fields: dict[str, Any]
    value_shift: Tensor
    taken: Tensor

    def assert_close(self, got: tuple[Tensor, Tensor], *, message: str = "") -> None:
        """``got``: ``out`` and ``lse`` of the first heads of each group. Each row of ``out`` within the tolerance that
        every method must keep, of what is left without V's shift, and within a rounding of the sum; ``lse`` within
        fp32's, of what is summed."""
        group = got[0].shape[2]
        out, lse, taken = (x[:, :, :group] for x in (self.out, self.lse, self.taken))
        rest = out - self.value_shift.double()[:, :, None, None]
        half_step = 0.51 * torch.finfo(got[0].dtype).eps
        room = TOLERANCE[got[0].dtype] * rest.norm(dim=-1) + half_step * out.norm(dim=-1)
        error = (got[0].double() - out).norm(dim=-1)
        worst = f"{(error / room).max():.2f} of what may be, NaN is {error.isnan().any()}"
        assert (error <= room).all(), f"{message}: out: {worst}"
        room = 5e-5 + 1e-5 * (lse.abs() - taken).clamp_min(0) + 5e-7 * taken
        error = (got[1].double() - lse).abs()
        worst = f"{(error / room).max():.2f} of what may be, NaN is {error.isnan().any()}"
        assert (error <= room).all(), f"{message}: lse: {worst}"


def make_pruner_case(
    dtype: torch.dtype,
    head_dim: int,
    seq: int,
    pruner: Pruner,
    *,
    device: str,
    q_len: int = 1,
    batch: int = 1,
    kv_heads: int = 2,
    group: int = 4,
    mix: tuple[float, float] = (0.5, 0.5),
    scale: float | None = None,
    elements: CacheElements = SIXTEEN_BIT,
) -> PrunerCase:
    """``mix`` is the sparsity of K and of V. What a pruner weighs or folds is nothing to a kernel, and left out."""
    generator = torch.Generator(device).manual_seed(seq + head_dim)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    means = MEAN * normal(2, batch, kv_heads, 1, head_dim).sign() * (1 + 0.3 * normal(2, batch, kv_heads, 1, head_dim))
    q = normal(batch, kv_heads, group, q_len, head_dim) + 0.5 * means[0].sign().unsqueeze(2)
    k, v = (means[i] + normal(batch, kv_heads, seq, head_dim) for i in range(2))
    q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)

    key = fit_key(k, pruner, plan_blocks(seq, mix[0]))
    value = replace(fit_value(v, pruner, plan_blocks(seq, mix[1])), fold=0.0)

    def pack(x: Tensor, fit: Fit, sparsity: float, stored: StoredElements) -> tuple[PagedTensor, Tensor]:
        if stored.has_scale:
            how = {"elements": stored, "order": fit.order, "sink": 1, "local": 65}
            return scattered_narrow(fit.stored(x), fit.operand, sparsity, **how)
        return scattered(fit.stored(x), fit.operand, sparsity)

    stored_k, pruned_k = pack(k, key, mix[0], elements.key)
    stored_v, pruned_v = pack(v, value, mix[1], elements.value)
    results = attention(q, key.restored(pruned_k), value.restored(pruned_v), scale=scale)

    none = torch.zeros(batch, kv_heads, head_dim, device=device)
    key_shift, value_shift = (none if fit.shift is None else fit.shift.contiguous() for fit in (key, value))
    scale = 1 / math.sqrt(head_dim) if scale is None else scale
    taken = abs(scale) * (q.double().abs() * key_shift.double().abs()[:, :, None, None]).sum(-1)
    fields: dict[str, Any] = {}
    if pruner.order != "adjacent":
        fields["key_order"] = library.constants()[f"HSB_ORDER_{pruner.order.upper()}"]
    if key.shift is not None:
        fields["key_shift"] = key_shift
    if value.shift is not None:
        fields["value_shift"] = value_shift
    return PrunerCase(q, stored_k, stored_v, *results, fields, value_shift, taken)
