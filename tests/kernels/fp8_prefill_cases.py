"""What tests of prefill with queries and probabilities in e4m3 share: exact results for queries as the kernel rounds
them, and how far from these the other roundings may take an output.

The bound is of each row, whatever the scores (docs/kernels/cuda-prefill-sm90.md). To first order an output moves by the
sum of p_i (r_i v_i + ds_i (v_i - out)): r_i is what the rounding takes of p_i, up to 2^-4 of it where it is a normal
number, 2^-10 of the least reference's unit where it is not, while the sum that divides is of probabilities before they
are rounded; ds_i is what sums of products in 14 bits do to its score. Tokens are rounded each by itself, so the squares
of these add up; twice that is the bound. Where all pages are 2:4, head_dim 128, a third of the queries have
exponentials that are off by up to LINEAR, and divide by the sum of the same: p_i e_i (v_i - out).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hsbench.cache import e4m3
from hsbench.cache.block_map import entries_of, is_kind, slots_of
from hsbench.cache.paged import PagedTensor
from hsbench.cache.prune import BLOCK
from hsbench.problem.elements import FP8
from kernel_cases import Case, attention

MEAN_ERROR = 0.045
"""Of all rows in the mean, where scores vary by about a nat; 0.0375 to 0.0390 is expected."""

LINEAR = 0.04
"""How far a line is from 2^f in an octave, less its mean: -0.0391 to 0.0200 of it."""

LARGEST_POWER = 8
"""A group's largest value is in [2^7, 2^8)."""


def rounded_queries(q: Tensor, key_scale: Tensor, scale: float, group_queries: int) -> Tensor:
    """fp64, q's shape: what ``q [batch, kv_heads, group, q_len, head_dim]`` stands for once it is rounded, for a
    product with K that is the score in nats. ``key_scale [batch, kv_heads, head_dim]``."""
    log2 = torch.tensor(max(abs(scale), 1e-30)).float() * 1.44269504
    by = log2.to(q.device) * (-1 if scale < 0 else 1)
    factor = key_scale.float()[:, :, None, None]
    wanted = q.float() * factor
    length = q.shape[3]
    rounded = torch.empty(q.shape, dtype=torch.float64, device=q.device)
    for first in range(0, length, group_queries):
        rows = slice(first, first + group_queries)
        largest = (wanted[:, :, :, rows] * by).abs().amax((-2, -1), keepdim=True)
        power = (largest.frexp().exponent - LARGEST_POWER).clamp(-100, 100).float()
        back = torch.exp2(-power.double()).float()
        stored = e4m3.from_bytes(e4m3.to_bytes(wanted[:, :, :, rows] * (by * back)))
        rounded[:, :, :, rows] = stored.double() * torch.exp2(power.double()) * math.log(2)
    return rounded / factor.double()


def sparse_alone(pages: PagedTensor) -> bool | None:
    """Whether all blocks are 2:4 (True) or none is (False); None where some are."""
    sparse = pages.plan.sparse
    return None if 0 < sparse < pages.plan.blocks else sparse > 0


def narrowed(pages: PagedTensor) -> Tensor:
    """fp64, what pages hold once their wide blocks are rounded to e4m3, which changes nothing of the others."""
    assert pages.placed_scale is not None
    scale, entries, pools = pages.placed_scale.unsqueeze(2), pages.map.flatten(), {}
    numbered = entries.clone()
    for kind, pool in pages.pools.items():  # without the poisoned slots
        of_kind = is_kind(entries, kind)
        pools[kind] = pool[slots_of(entries[of_kind])]
        numbered[of_kind] = entries_of(torch.arange(len(pools[kind]), device=entries.device), kind)
    alone = replace(pages, map=numbered.view(pages.map.shape), pools=pools)
    return (e4m3.from_bytes(e4m3.to_bytes(alone.unpack() / scale)) * scale).double()


@dataclass
class Fp8Results:
    """For queries as the kernel rounds them, in fp64.

    Attributes:
        out, lse: exact.
        room: lse's shape: how far, in norm, a row of ``out`` may be.
        lse_room: likewise of ``lse``.
    """

    out: Tensor
    lse: Tensor
    room: Tensor
    lse_room: Tensor


def fp8_results(
    case: Case,
    *,
    scale: float | None = None,
    tokens: Tensor | None = None,
    seq: int | None = None,
    alike: bool = False,
) -> Fp8Results:
    """Of a case whose K and V are pages of e4m3, in K's own order. ``scale``, ``tokens``, ``seq``: as of
    :func:`kernel_cases.attention`. ``alike``: scores are so alike that their probabilities are rounded alike, and V has
    one sign: what is off adds up."""
    assert isinstance(case.k, PagedTensor) and isinstance(case.v, PagedTensor) and case.k.scale is not None
    k, v = (narrowed(pages) for pages in (case.k, case.v))
    own_kernel = sparse_alone(case.k) is not None and sparse_alone(case.k) == sparse_alone(case.v)
    linear = LINEAR if own_kernel and sparse_alone(case.k) and case.q.shape[-1] == 128 else 0.0
    scale = 1 / math.sqrt(case.q.shape[-1]) if scale is None else scale
    q = rounded_queries(case.q, case.k.scale, scale, 72 if own_kernel else 96)
    places = {"tokens": tokens, "seq": seq}
    out, lse = attention(q, k, v, scale=1.0, **places)
    # Sums over tokens of p^2, p^2 v and p^2 v^2: of a softmax of twice the scores.
    twice, lse_of_twice = attention(q, k, v, scale=2.0, **places)
    twice_squares, _ = attention(q, k, v.square(), scale=2.0, **places)
    of_twice = (lse_of_twice - 2 * lse).exp().nan_to_num()[..., None]
    apart = (of_twice * (twice_squares - 2 * twice * out + out.square())).clamp_min(0).sqrt()
    magnitudes, _ = attention(q, k, v.abs(), scale=1.0, **places)
    # Of a score: cuts at 2^-13 of the sum so far.
    of_scores = 2.0**-9 * torch.einsum("bhgnd,bhsd->bhgns", q.abs(), k.abs()).amax(-1)
    pages = math.ceil(k.shape[2] / BLOCK)
    # A reference may be half a power of 2 low, of the linear exponentials a whole one.
    small = math.sqrt(k.shape[2]) * 2.0 ** (-12 if linear else -12.5) * v.square().mean(2).sqrt()[:, :, None, None]
    moved = min(pages, 64 + pages / 8) * 2.0**-11 * magnitudes
    rounded = 2.0**-3 * (of_twice * twice_squares).clamp_min(0).sqrt()
    if alike:
        rounded = 2.0**-4 * magnitudes
    room = (rounded + (of_scores[..., None] + 2 * linear) * apart + small + moved).norm(dim=-1)
    half_step = torch.finfo(case.q.dtype).eps * out.norm(dim=-1)
    return Fp8Results(out, lse, room + half_step, of_scores + linear + 1e-4 + 1e-5 * lse.abs())


def assert_fp8_close(got: tuple[Tensor, Tensor], right: Fp8Results, *, message: str = "") -> None:
    """Each row within its bound; of what sees nothing, exactly."""
    group = got[0].shape[2]
    out, lse, room, lse_room = (x[:, :, :group] for x in (right.out, right.lse, right.room, right.lse_room))
    blind = lse == -math.inf
    assert not got[0][blind].any() and (got[1][blind] == -math.inf).all(), f"{message}: where nothing is seen"
    error = ((got[0].double() - out).norm(dim=-1) / room.clamp_min(1e-30))[~blind]
    assert (error <= 1).all(), f"{message}: out: {error.max():.2f} of what may be, NaN is {error.isnan().any()}"
    off = ((got[1].double() - lse).abs() / lse_room)[~blind]
    assert (off <= 1).all(), f"{message}: lse: {off.max():.2f} of what may be, NaN is {off.isnan().any()}"


def assert_fp8_like_attention(got: tuple[Tensor, Tensor], out: Tensor, lse: Tensor, *, message: str = "") -> None:
    """Against attention on the queries as they are: what a user meets, where scores vary by about a nat. Rows that see
    few tokens, of which one rounding decides, are left to :func:`assert_fp8_close`."""
    error = (got[0].double() - out).norm(dim=-1) / out.norm(dim=-1)
    assert error.mean() <= MEAN_ERROR, f"{message}: {error.mean():.4f} in the mean"
    assert FP8.tolerance is not None
    assert (error <= FP8.tolerance).all(), f"{message}: up to {error.max():.4f}"
    assert ((got[1].double() - lse).abs() <= FP8.tolerance).all(), f"{message}: lse"
