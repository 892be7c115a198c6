"""What is subtracted from every token of K or V before it is stored: a mean, or what 2:4 loses least on."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from hsbench.cache.prune import BLOCK, BlockPlan, keep_2_of_4
from hsbench.cache.statistics import mean_of

_SHIFT_FLOOR = 1e-5
"""The same, in the mean that a shift is: lower, for a mean needs no bound, and is the truer the less it is of tokens
that nothing looks at."""

_MOST_TOKENS = 1 << 13
"""Steps look at no more: all of 128k take nearly as long as a prompt's attention to them."""


def eligible_tokens(plan: BlockPlan, seq: int) -> slice:
    """The tokens of eligible blocks; where there are none yet, those that will be: all but the sinks, whose share of an
    attention would leave none to others."""
    if plan.eligible:
        return slice(plan.first * BLOCK, plan.last * BLOCK)
    return slice(plan.first * BLOCK if plan.blocks > plan.first else 0, seq)


def shift_of(
    x: Tensor, plan: BlockPlan, *, order: Tensor, weights: Tensor | None, attention: Tensor | None, steps: int
) -> Tensor:
    """What is subtracted from every token of ``x [batch, kv_heads, seq, head_dim]``; attention sinks would bend it.

    After 0 steps the mean. Otherwise, for groups of channels alone: what 2:4 drops comes back as the shift, so a step
    drops what is nearest to it, and moves it to the mean of that, channel by channel, weighed by the attention that
    each token was paid. Each half of a step lowers the weighted square of what is lost (Lloyd's iteration), and at its
    end nothing is lost on the mean: a loss that all tokens share adds up in an output over many of them, where others
    cancel. Each group starts from zero and from the mean, and takes what loses less: from zero alone, a channel that is
    constant and large would be kept for ever.

    Args:
        order: which channel stands at each place of what is stored, int64 ``[head_dim]``.
        weights: what each channel's magnitudes are multiplied by to choose, fp32 ``[batch, kv_heads, head_dim]``.
        attention: that each token was paid, fp32 ``[batch, kv_heads, seq]``, where there are steps.

    Returns:
        fp32 ``[batch, kv_heads, head_dim]``, in the tensor's own order.
    """
    where = eligible_tokens(plan, x.shape[2])
    mean = mean_of(x, where.start, where.stop)
    if not steps:
        return mean
    assert attention is not None
    eligible = x[:, :, where]
    paid = (attention[..., where] + _SHIFT_FLOOR).double().unsqueeze(-1)
    shift = torch.empty_like(mean, dtype=torch.float64)
    for b, h in itertools.product(*map(range, x.shape[:2])):  # one at a time, for what lies between takes room
        of_head = None if weights is None else weights[b, h, order].double()
        start = mean[b, h, order].double()
        starts = torch.zeros_like(start), start
        placed, of_tokens = _sampled(eligible[b, h], paid[b, h])
        placed = placed.double()[:, order]
        (zero, lost), (other, lost_other) = (_iterated(placed, begin, of_head, of_tokens, steps) for begin in starts)
        shift[b, h, order] = torch.where(lost_other < lost, other, zero)
    return shift.float()


def _sampled(tokens: Tensor, paid: Tensor) -> tuple[Tensor, Tensor]:
    """Of more than :data:`_MOST_TOKENS` tokens, those that were paid most, and evenly some of the others, which stand
    for all of these; and what they weigh, ``[tokens, 1]``."""
    if len(tokens) <= _MOST_TOKENS:
        return tokens, paid
    by_paid = paid.squeeze(-1).argsort(descending=True, stable=True)
    most, others = by_paid[: _MOST_TOKENS // 2], by_paid[_MOST_TOKENS // 2 :].sort().values
    some = others[:: -(-len(others) // (_MOST_TOKENS - len(most)))]
    return tokens[torch.cat([most, some])], torch.cat([paid[most], paid[some] * (len(others) / len(some))])


def _iterated(placed: Tensor, shift: Tensor, weights: Tensor | None, paid: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """A shift after some steps of :func:`shift_of`, and of each channel's group the weighted square of what it loses.

    Args:
        placed: fp64 ``[tokens, head_dim]``, in the order of what is stored; and so what else is of channels.
        paid: ``[tokens, 1]``.
    """
    for step in range(steps + 1):
        scores = placed - shift
        if weights is not None:
            scores *= weights
        mass = paid * ~keep_2_of_4(scores, -1)
        if step < steps:
            total = mass.sum(0)
            # A channel that nothing is dropped of stays where it is.
            shift = torch.where(total > 0, (mass * placed).sum(0) / total, shift)
    lost = (mass * scores.square()).sum(0).unflatten(-1, (-1, 4)).sum(-1, keepdim=True)
    return shift, lost.expand(-1, 4).flatten()
