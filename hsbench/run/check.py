"""Correct first: an output against the fp32 reference, on the method's own pruned K and V."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hsbench.attention.reference import attend_head, attend_heads
from hsbench.cache.prune import BLOCK
from hsbench.errors import UnsupportedError
from hsbench.problem.elements import INPUTS, Element
from hsbench.problem.inputs import Inputs

TOLERANCE = {e.torch_dtype: e.tolerance for e in INPUTS.values() if e.tolerance is not None}
"""Largest relative error, ||out - reference|| / ||reference||, that passes, by the output's dtype."""

LSE_TOLERANCE = 1e-3
"""Largest difference of a log-sum-exp, absolute below 1 and relative above."""

SAMPLED_ROWS = 64
"""Query rows of each head that are checked where q_len is longer than that."""

Pruned = Callable[[int, int], tuple[Tensor, Tensor] | None]
Left = Callable[[int, int], Tensor | None]
"""Gives which tokens those of a (batch, kv head) are, int64 ``[n]``, where some are evicted."""


def _all_left(batch: int, kv_head: int) -> None:
    return None


@dataclass(frozen=True)
class Expected:
    """What an output must be on the checked query rows.

    Attributes:
        rows: int64 ``[n]``, ascending.
        out: fp32 ``[batch, q_heads, n, head_dim]``.
        lse: fp32 ``[batch, q_heads, n]``.
        blind: bool ``[batch, q_heads, q_len]``: queries that see no token, since all up to theirs are evicted, and so
            must give out 0 and a log-sum-exp of -infinity; None where there are none.
    """

    rows: Tensor
    out: Tensor
    lse: Tensor
    blind: Tensor | None = None


@dataclass(frozen=True)
class Verdict:
    """How an output compares: ``reason`` is None if it passed."""

    rel_error: float
    reason: str | None


class DisagreementError(Exception):
    """The output of a kernel is not what fp32 attention over its own cache gives."""


def sample_rows(q_len: int, seed: int) -> Tensor:
    """Query rows to check: all of them up to ``SAMPLED_ROWS``; else the first, the last, those on both sides of some
    block edges, and random ones. Ascending."""
    if q_len <= SAMPLED_ROWS:
        return torch.arange(q_len, device="cpu")
    generator = torch.Generator("cpu").manual_seed(seed)  # the same rows whatever the device

    def draw(low: int, high: int, count: int) -> Tensor:
        return torch.randint(low, high, (count,), generator=generator, device="cpu")

    edges = draw(1, max(q_len // BLOCK, 2), SAMPLED_ROWS // 4) * BLOCK
    spread = draw(0, q_len, SAMPLED_ROWS // 2 - 2)
    rows = torch.cat([torch.tensor([0, q_len - 1], device="cpu"), edges, edges - 1, spread])
    distinct: Tensor = rows.clamp(max=q_len - 1).unique()
    return distinct


def expect(inputs: Inputs, pruned: Pruned, seed: int, left: Left = _all_left) -> Expected:
    """Computes what attention over ``pruned(batch, kv_head)`` must give (None: over the inputs), one head at a time,
    so that no unpacked copy of a whole cache is ever alive."""
    q, k, v = inputs.q, inputs.k, inputs.v
    rows = sample_rows(q.shape[2], seed).to(q.device)
    kv_heads, seq = k.shape[1], k.shape[2] + inputs.ahead
    found = attend_heads(q, kv_heads, lambda b, h: pruned(b, h) or (k[b, h], v[b, h]), rows, left=left, seq=seq)
    return Expected(rows, *found, blind_queries(q, kv_heads, seq, left))


def blind_queries(q: Tensor, kv_heads: int, seq: int, left: Left) -> Tensor | None:
    """See :class:`Expected`; ``q [batch, q_heads, q_len, head_dim]``, the last of ``seq`` tokens."""
    batch, q_heads, q_len, _ = q.shape
    if left(0, 0) is None:
        return None
    seen = torch.arange(seq - q_len, seq, device=q.device)  # the last token that a query sees
    blind = torch.zeros(batch, kv_heads, q_len, dtype=torch.bool, device=q.device)
    for b in range(batch):
        for h in range(kv_heads):
            tokens = left(b, h)
            assert tokens is not None  # every head evicts as many
            blind[b, h] = seen < tokens[0] if len(tokens) else True
    return blind.repeat_interleave(q_heads // kv_heads, 1) if blind.any() else None


def compare(expected: Expected, out: Tensor, lse: Tensor | None, products: Element | None = None) -> Verdict:
    """Holds an output ``[batch, q_heads, q_len, head_dim]`` and its log-sum-exp against what was expected.

    Outside the checked rows the output must at least be finite: it was poisoned with NaN before the run.

    Args:
        products: the type that q and the probabilities were rounded to, where it is coarser than the output's: then its
            tolerance holds, for the log-sum-exp too.
    """
    coarse = products and products.tolerance
    tolerance, lse_tolerance = coarse or TOLERANCE[out.dtype], coarse or LSE_TOLERANCE
    # In fp64: the squares of bf16's larger values overflow fp32.
    got, wanted = out.index_select(2, expected.rows).double(), expected.out.double()
    error = float((got - wanted).norm() / wanted.norm().clamp(min=torch.finfo(torch.float32).tiny))
    if not torch.isfinite(out).all():
        return Verdict(error, "the output is not finite everywhere (or was not written)")
    if not error <= tolerance:
        return Verdict(error, f"relative error {error:.2g} against the fp32 reference, over {tolerance:g}")
    if expected.blind is not None:
        wrong = out.any(-1) if lse is None else out.any(-1) | (lse != -math.inf)
        if (wrong & expected.blind).any():
            return Verdict(error, "a query that sees no token must give 0 and a log-sum-exp of -infinity")
    if lse is not None:
        lse, right = _of_the_seeing(expected, lse)
        if not torch.isfinite(lse).all():
            return Verdict(error, "the log-sum-exp is not finite everywhere (or was not written)")
        difference = (lse.index_select(2, expected.rows) - right).abs()
        off = float((difference / right.abs().clamp(min=1.0)).max())
        if not off <= lse_tolerance:
            return Verdict(error, f"log-sum-exp off by {off:.2g} from the fp32 reference, over {lse_tolerance:g}")
    return Verdict(error, None)


def _of_the_seeing(expected: Expected, lse: Tensor) -> tuple[Tensor, Tensor]:
    """A log-sum-exp, and the expected one, with 0 where a query sees no token."""
    if expected.blind is None:
        return lse, expected.lse
    sampled = expected.blind.index_select(2, expected.rows)
    return lse.masked_fill(expected.blind, 0.0), expected.lse.masked_fill(sampled, 0.0)


def refuse_overflow(
    inputs: Inputs,
    pruned: Pruned,
    expected: Expected,
    out: Tensor,
    lse: Tensor | None,
    left: Left = _all_left,
) -> None:
    """Finds out, of an output that failed its check, whether any could have passed.

    Raises:
        UnsupportedError: attention over these tensors is not finite in fp32, so that they are to blame and not the
            method; names them, with their largest magnitudes.
    """
    seeing = None if lse is None else _of_the_seeing(expected, lse)
    right = expected.out, expected.lse if seeing is None else seeing[1]
    if _finite(*right):
        bad = ~torch.isfinite(out).all(-1)
        if seeing is not None:
            bad |= ~torch.isfinite(seeing[0])
        if not bad.any():
            return
        # Not every row was held against the reference: this one is now.
        batch, head, row = (int(index) for index in bad.nonzero()[0])
        kv_head = head // (inputs.q.shape[1] // inputs.k.shape[1])
        k, v = pruned(batch, kv_head) or (inputs.k[batch, kv_head], inputs.v[batch, kv_head])
        rows = torch.tensor([row], device=out.device)
        query = inputs.q[batch, head : head + 1].index_select(1, rows)
        tokens, seq = left(batch, kv_head), inputs.k.shape[2] + inputs.ahead
        right = attend_head(query, k, v, rows, inputs.q.shape[2], tokens=tokens, seq=seq)
        if _finite(*right):
            return
    # It is the scores: what comes after them are means of v, which fp32 has room for.
    sizes = ", ".join(f"|{name}| up to {_largest(getattr(inputs, name)):.2g}" for name in "qk")
    remedy = "scale q or k down, or capture values of a usual size"
    raise UnsupportedError(f"q k^T overflows fp32 ({sizes}), so that no output is right: {remedy}")


def _finite(*tensors: Tensor) -> bool:
    return all(bool(torch.isfinite(x).all()) for x in tensors)


def _largest(x: Tensor) -> float:
    low, high = torch.aminmax(x)
    return max(-float(low), float(high))
