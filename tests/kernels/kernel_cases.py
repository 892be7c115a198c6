"""What the kernels' tests on every device share: cases, their exact results, and how close to those a kernel must come.

Pages are packed by the torch definition into random slots of larger pools, whose other slots are poisoned: what is read
by mistake shows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hsbench.cache import e4m3
from hsbench.cache.bitmap import BitmapTensor, compress_bitmap_torch
from hsbench.cache.block_map import entries_of, is_kind, slots_of
from hsbench.cache.fit import Fit, channel_order
from hsbench.cache.packing import compress_tensor_torch, pack_torch
from hsbench.cache.paged import PagedTensor
from hsbench.cache.prune import Operand, choose_blocks, plan_blocks, prune_hierarchical
from hsbench.cache.pruner import Axis, Order
from hsbench.problem.elements import STORED_FP8, STORED_INT4, StoredElements
from hsbench.run.check import TOLERANCE

Change = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""Makes other q, k and v of the random ones."""


Operands = PagedTensor | BitmapTensor

Pack = Callable[[Tensor, Operand, float], tuple[Operands, Tensor]]
"""K or V as kernels read it, of a sparsity, and the pruned tensor that it holds: ``scattered`` or ``padded_bitmap``."""


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    rows: Tensor | None = None,
    tokens: Tensor | None = None,
    seq: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Causal attention in fp64, one kv head at a time; the last query sees all tokens.

    Args:
        q: ``[batch, kv_heads, group, q_len, head_dim]``.
        k, v: ``[batch, kv_heads, seq, head_dim]``.
        scale: of the scores; ``1 / sqrt(head_dim)`` if None.
        rows: int64 ``[n]``: only these queries.
        tokens: int64 ``[batch, kv_heads, tokens of k]``: which of ``seq`` tokens these are; the others are evicted.

    Returns:
        ``out [batch, kv_heads, group, n, head_dim]`` and ``lse [batch, kv_heads, group, n]``, natural log; of a query
        that sees no token 0 and -infinity.
    """
    q_len, seq = q.shape[3], k.shape[2] if seq is None else seq
    rows = torch.arange(q_len, device=q.device) if rows is None else rows
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    every = torch.arange(seq, device=q.device).expand(*k.shape[:2], seq) if tokens is None else tokens
    lse = torch.empty(*q.shape[:3], len(rows), dtype=torch.float64, device=q.device)
    out = torch.empty(*lse.shape, q.shape[-1], dtype=torch.float64, device=q.device)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            scores = q[b, h][:, rows].double() @ k[b, h].double().mT * scale
            scores.masked_fill_(every[b, h] > (rows + seq - q_len).unsqueeze(-1), -math.inf)
            lse[b, h] = scores.logsumexp(-1)
            weights = (scores - lse[b, h].unsqueeze(-1)).exp_()
            out[b, h] = weights.masked_fill_(lse[b, h].unsqueeze(-1) == -math.inf, 0.0) @ v[b, h].double()
    return out, lse


def scattered(
    x: Tensor, operand: Operand, sparsity: float, *, value_axis: Axis = "tokens"
) -> tuple[PagedTensor, Tensor]:
    """Pages in random slots of pools twice as large, all ones (NaNs) elsewhere; and the pruned tensor they hold."""
    fit = Fit(operand, value_axis=value_axis if operand == "v" else "tokens")
    return _scattered(compress_tensor_torch(x, operand, plan_blocks(x.shape[2], sparsity), fit))


def scattered_narrow(
    x: Tensor,
    operand: Operand,
    sparsity: float,
    *,
    elements: StoredElements,
    order: Order = "adjacent",
    sink: int = 0,
    local: int = 0,
    value_axis: Axis = "tokens",
) -> tuple[PagedTensor, Tensor]:
    """The same of elements that have a scale, without any shift, and of fp16 where blocks stay wide; all ones are NaN
    there, too, or scales that are. ``order``: of the channels of ``x``."""
    plan = plan_blocks(x.shape[2], sparsity, sink=sink, local=local)
    fit = Fit(operand, value_axis=value_axis if operand == "v" else "tokens")
    chosen = choose_blocks(x, fit.groups, plan)
    scale = e4m3.scale_of(x.abs().amax(2))[..., channel_order(order, x.shape[-1]).argsort().to(x.device)]
    of_scale = {"scale": scale.contiguous(), "order": order}
    pages = PagedTensor.empty(x, operand, plan, elements, value_axis=fit.value_axis, **of_scale)
    pack_torch(prune_hierarchical(x, fit.groups, chosen), pages, chosen)
    return _scattered(pages)


scattered_fp8 = partial(scattered_narrow, elements=STORED_FP8)
scattered_int4 = partial(scattered_narrow, elements=STORED_INT4)


scattered_wide_ends = partial(scattered_fp8, sink=64, local=130)
"""Of e4m3 with wide blocks at both ends, or, of up to 200 tokens, with none but wide ones."""

scattered_int4_wide_ends = partial(scattered_int4, sink=64, local=130)

ALONG_HEAD_DIM: dict[str, Pack] = {
    f"{name}, V along head_dim": partial(pack, value_axis="head_dim")
    for name, pack in {"16bit": scattered, "fp8": scattered_fp8, "fp8 with wide ends": scattered_wide_ends}.items()
}
"""The same with V in groups along head_dim."""

INT4_ALONG_HEAD_DIM: dict[str, Pack] = {
    "int4, V along head_dim": partial(scattered_int4, value_axis="head_dim"),
    "int4 with wide ends, V along head_dim": partial(scattered_int4_wide_ends, value_axis="head_dim"),
}
"""And of int4, in whose sums q and probabilities are rounded on the CPU (:data:`WHOLE`)."""


def _apart(key: Pack, value: Pack) -> Pack:
    return lambda x, operand, sparsity: (key if operand == "k" else value)(x, operand, sparsity)


_PACKS = {"16bit": scattered, "fp8": scattered_wide_ends, "int4": scattered_int4_wide_ends}

ELEMENTS_APART: dict[str, Pack] = {
    f"{key}/{value}, V along {axis}": _apart(_PACKS[key], partial(_PACKS[value], value_axis=axis))
    for key, value, axis in (
        ("16bit", "fp8", "tokens"),
        ("16bit", "int4", "head_dim"),
        ("fp8", "16bit", "head_dim"),
        ("fp8", "int4", "tokens"),
        ("int4", "16bit", "tokens"),
        ("int4", "fp8", "head_dim"),
    )
}
"""Every pair of elements of K and of V that differ, half of them with V in groups along head_dim: narrow ones with wide
blocks at both ends."""


def _scattered(pages: PagedTensor) -> tuple[PagedTensor, Tensor]:
    pruned = pages.unpack()
    generator = torch.Generator().manual_seed(1)
    entries = pages.map.flatten()
    for kind, old in list(pages.pools.items()):
        if not len(old):
            continue
        new = torch.full((2 * len(old) + 1, old.shape[1]), 0xFF, dtype=torch.uint8, device=old.device)
        slots = torch.randperm(len(new), generator=generator)[: len(old)].to(old.device)
        new[slots] = old
        pages.pools[kind] = new
        of_kind = is_kind(entries, kind)
        entries[of_kind] = entries_of(slots[slots_of(entries[of_kind])], kind)
    return pages, pruned


def padded_bitmap(x: Tensor, operand: Operand, sparsity: float) -> tuple[BitmapTensor, Tensor]:
    """With its values at the start of a buffer that goes on with NaNs; and the pruned tensor."""
    packed = compress_bitmap_torch(x, operand, sparsity)
    room = torch.full((packed.values.numel() + 4096,), math.nan, dtype=x.dtype, device=x.device)
    values = room[: packed.values.numel()].copy_(packed.values)
    return BitmapTensor(packed.name, packed.shape, packed.bitmap, packed.offset, values, packed.keep), packed.unpack()


def struct_of(operand: Operands) -> Any:
    """An operand's struct; pages with their map, for they lie in random slots, whatever their kinds."""
    struct = operand.params()
    if isinstance(operand, PagedTensor):
        struct.map = operand.map.data_ptr()
    return struct


@dataclass
class Case:
    """Inputs, as what they are stored, and the exact result for the largest group; smaller groups take the first
    heads."""

    q: Tensor  # [batch, kv_heads, group, q_len, head_dim]
    k: Operands
    v: Operands
    out: Tensor  # fp64, q's shape
    lse: Tensor  # fp64, q's shape without head_dim

    @property
    def operands(self) -> dict[str, Operands]:
        """K and V by the names of their fields in a kernel's struct."""
        suffix = "_bitmap" if isinstance(self.k, BitmapTensor) else ""
        return {f"k{suffix}": self.k, f"v{suffix}": self.v}


def make_case(
    dtype: torch.dtype,
    head_dim: int,
    seq: int,
    *,
    device: str,
    q_len: int = 1,
    batch: int = 1,
    kv_heads: int = 2,
    group: int = 4,
    mix: tuple[float, float] = (0.5, 0.5),
    scale: float | None = None,
    change: Change | None = None,
    pack: Pack = scattered,
) -> Case:
    """``mix`` is the sparsity of K and of V; ``change`` comes before pruning; ``pack`` makes what is stored."""
    generator = torch.Generator(device).manual_seed(seq + head_dim)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device).to(dtype)

    q = normal(batch, kv_heads, group, q_len, head_dim)
    k, v = normal(batch, kv_heads, seq, head_dim), normal(batch, kv_heads, seq, head_dim)
    if change:
        q, k, v = change(q, k, v)
    (stored_k, pruned_k), (stored_v, pruned_v) = pack(k, "k", mix[0]), pack(v, "v", mix[1])
    return Case(q, stored_k, stored_v, *attention(q, pruned_k, pruned_v, scale=scale))


def assert_close(got: tuple[Tensor, Tensor], out: Tensor, lse: Tensor, *, message: str = "") -> None:
    """Each row of ``out`` within the tolerance that every method must keep, ``lse`` within fp32's."""
    tolerance = TOLERANCE[got[0].dtype]
    error = (got[0].double() - out).norm(dim=-1) / out.norm(dim=-1).clamp_min(1e-30)
    nan = error.isnan().any()
    assert (error <= tolerance).all(), f"{message}: relative error up to {error.max():.2e}, NaN is {nan}"
    torch.testing.assert_close(got[1].double(), lse, rtol=1e-5, atol=5e-5, msg=lambda text: f"{message}: lse: {text}")


WHOLE = 32
"""How many times as far off as sums of fp32 are those of decode over int4 on the CPU, at most: q and probabilities are
16 bits of the largest of 64 there. 27 where a block of K has one token that is 50 times the others, 8 elsewhere."""


def assert_rounded(got: tuple[Tensor, Tensor], out: Tensor, lse: Tensor, *, times: float = 1) -> None:
    """Each element of ``out`` within half a step of its dtype, plus fp32 sums whose error follows the largest terms;
    these may be so many ``times`` as large."""
    step = torch.finfo(got[0].dtype).eps
    scale = out.abs().amax(-1, keepdim=True)
    assert ((got[0].double() - out).abs() <= 0.51 * step * out.abs() + times * 2e-5 * scale + 1e-7).all()
    torch.testing.assert_close(got[1].double(), lse, rtol=times * 2e-6, atol=times * 2e-5)


BAD_DECODE_SHAPES = (
    ({"head_dim": 96}, "head_dim must be 64 or 128"),
    ({"q_heads": 3}, "q_heads must be"),
    ({"q_heads": 34}, "q_heads must be"),
    ({"seq": 0}, "sizes must be positive"),
    ({"dtype": 2}, "dtype must be"),
)
"""What is changed of a sound shape, and what is said of it."""


# ---- Inputs that are hard on a running maximum ------------------------------------------------------------------
def with_peak(q: Tensor, k: Tensor, token: int) -> Tensor:
    """One key with a huge score for the last query of a group's first head."""
    k = k.clone()
    k[:, :, token] = 60 * q[:, :, 0, -1].sign()
    return k


def along_ramp(q: Tensor, k: Tensor, v: Tensor, *, sign: int) -> tuple[Tensor, Tensor, Tensor]:
    """Every block raises the maximum of all queries, or every block lowers it."""
    ramp = torch.linspace(0, 2 * sign, k.shape[2], device=k.device).view(1, 1, -1, 1)
    return q.abs() + 1, ramp.expand_as(k).to(k.dtype), v


DEGENERATE: dict[str, Change] = {
    "queries are zero": lambda q, k, v: (torch.zeros_like(q), k, v),
    "keys are zero": lambda q, k, v: (q, torch.zeros_like(k), v),
    "values are the most negative": lambda q, k, v: (q, k, torch.full_like(v, -torch.finfo(v.dtype).max)),
    "scores are huge and equal": lambda q, k, v: (torch.full_like(q, 65504), torch.full_like(k, -65504), v),
    "one score is huge, early": lambda q, k, v: (q, with_peak(q, k, 0), v),
    "one score is huge, in the middle": lambda q, k, v: (q, with_peak(q, k, k.shape[2] // 2), v),
    "one score is huge, in the tail": lambda q, k, v: (q, with_peak(q, k, k.shape[2] - 1), v),
    "scores rise": partial(along_ramp, sign=1),
    "scores fall": partial(along_ramp, sign=-1),
}


def extreme(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Signs times fp16's largest. They tie in many tokens, and rounding tells such scores apart: of a result, only
    that it is finite can be asked."""
    return q.sign() * 65504, k.sign() * 65504, v.sign() * 65504


# ---- Values whose sums could overflow ---------------------------------------------------------------------------
def near_the_largest() -> Iterator[tuple[str, Change]]:
    """V the largest that its type has, of one sign or of both, under scores that a lazy maximum meets in many ways: the
    output is finite, for it is a mean; sums that are not yet divided need not be."""

    def direction(q: Tensor) -> Tensor:
        return q[:, :, 0, :1].sign()

    def ramp(k: Tensor, begin: float, end: float) -> Tensor:
        return torch.linspace(begin, end, k.shape[2], device=k.device).view(1, 1, -1, 1).to(k.dtype)

    def changed(score: Any, sign: Any, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k = score(q, k)
        return q, k, sign(v) * torch.finfo(v.dtype).max

    scores = {
        "any": lambda q, k: (q, k),
        "equal": lambda q, k: (torch.zeros_like(q), k),
        "rising": lambda q, k: (q, direction(q) * ramp(k, 0, 20)),
        "falling": lambda q, k: (q, direction(q) * ramp(k, 20, 0)),
        # 2^30 times head_dim, beside which a few powers of 2 vanish
        "huge and equal": lambda q, k: (torch.full_like(q, 2.0**15), torch.full_like(k, 2.0**15)),
        "hugely negative": lambda q, k: (torch.full_like(q, 2.0**15), torch.full_like(k, -(2.0**15))),
    }
    values = {"positive": torch.ones_like, "negative": lambda v: -torch.ones_like(v), "mixed": torch.sign}
    for (of_scores, score), (of_values, sign) in itertools.product(scores.items(), values.items()):
        yield f"scores {of_scores}, values {of_values}", partial(changed, score, sign)


def small_values(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where room is made for the largest values, it is not taken from the small ones."""
    return q, k, v * 2.0**-80
