"""A pruner fitted to a cache: how K and V are stored under it, how its choice is weighted, and the way back.

What is fitted to the first tokens stays as it is while the cache grows, so that later tokens can join the earlier ones:
order and shift are the same for every token of a cache, 2:4 or dense.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hsbench.cache import e4m3
from hsbench.cache.prune import BlockPlan, Operand
from hsbench.cache.pruner import Axis, Order, Pruner, check_sources
from hsbench.cache.shift import eligible_tokens, shift_of
from hsbench.cache.statistics import has_kernel, squared_norms, squared_norms_torch
from hsbench.problem.elements import SIXTEEN_BIT, CacheElements

QUERIES = 64
"""The last queries of a context whose attention is looked at."""

_ATTENTION_FLOOR = 1e-4
"""A token that the last queries did not look at may be looked at later: no weight falls below this mass's."""


_WEIGHT_RANGE = 2.0**8
"""Weights lie within this factor of 1, so that weighted magnitudes stay within fp16."""


def channel_order(order: Order, head_dim: int) -> Tensor:
    """Which channel stands at each place of a stored key, int64 ``[head_dim]``."""
    if order == "adjacent":
        return torch.arange(head_dim, device="cpu")
    half = head_dim // 2
    groups = [[g, half - 1 - g, g + half, head_dim - 1 - g] for g in range(half // 2)]
    return torch.tensor(groups, device="cpu").flatten()


@dataclass(frozen=True)
class Fit:
    """One of K and V under a pruner.

    Attributes:
        operand: which.
        order: of the channels, see :func:`channel_order`.
        shift: fp32 ``[batch, kv_heads, head_dim]``, contiguous, in the tensor's own order of channels.
        fold: see :class:`Pruner`.
        channel_weights: fp32 ``[batch, kv_heads, head_dim]``, in the tensor's own order.
        norm_power, squared_norm: V: a token's weight is ``(squared_norm / |v| ** 2) ** (norm_power / 2)``; squared_norm
            is fp64 ``[batch, kv_heads, 1]``.
        token_weights: V: what the weights of the first tokens are multiplied by, fp32 ``[batch, kv_heads, known]``: the
            attention that was paid them, in units of an even share, to the power of attention_power.
        scale: of elements that have one: fp32 ``[batch, kv_heads, head_dim]``, contiguous, in the tensor's own order.
        value_axis: V: along which groups run, see :class:`Pruner`.
    """

    operand: Operand
    order: Order = "adjacent"
    shift: Tensor | None = None
    fold: float = 0.0
    channel_weights: Tensor | None = None
    norm_power: float = 0.0
    squared_norm: Tensor | None = None
    token_weights: Tensor | None = None
    attention_power: float = 0.0
    scale: Tensor | None = None
    value_axis: Axis = "tokens"

    @property
    def groups(self) -> Operand:
        """The operand whose groups these are: V's along head_dim are as K's."""
        return "k" if self.value_axis == "head_dim" else self.operand

    @property
    def is_plain(self) -> bool:
        """Whether the tensor is stored and chosen from as it is."""
        return self.stores_plain and self.fold == 0.0 and not self.weighs

    @property
    def stores_plain(self) -> bool:
        """Whether what is stored is in the tensor's own order and place."""
        return self.order == "adjacent" and self.shift is None

    @property
    def weighs(self) -> bool:
        """Whether what stays is chosen by anything but magnitude."""
        return self.channel_weights is not None or self.squared_norm is not None

    @property
    def nbytes(self) -> int:
        """Bytes that a kernel reads because of it."""
        return 0 if self.shift is None else self.shift.nbytes

    def stored(self, x: Tensor) -> Tensor:
        """What the cache stores of ``x [batch, kv_heads, seq, head_dim]`` before it is pruned, in the dtype of ``x``.

        Finite stays finite: what a shift moves out of the dtype's range saturates.
        """
        if self.stores_plain:
            return x
        out = x
        if self.shift is not None:
            largest = torch.finfo(x.dtype).max
            moved = x.float() - self.shift.unsqueeze(2)
            out = torch.where(torch.isfinite(x), moved.clamp(-largest, largest), moved).to(x.dtype)
        return self.placed(out)

    def scaled_to(self, x: Tensor) -> Fit:
        """With the scale of each channel that puts what is stored of the first tokens ``x`` in e4m3's range, what folds
        add included; itself if it has one: the scale stays as the cache grows."""
        if self.scale is not None:
            return self
        # What is stored rises with what it is of: its extremes are theirs.
        largest = self.stored(torch.stack([x.amin(2), x.amax(2)], 2)).abs().amax(2)
        scale = e4m3.scale_of(largest.double() * (1.0 + self.fold), x.dtype)
        if self.order != "adjacent":
            scale = scale[..., channel_order(self.order, x.shape[-1]).argsort().to(x.device)]
        return replace(self, scale=scale.contiguous())

    def restored(self, stored: Tensor) -> Tensor:
        """The way back of :meth:`stored`: fp32 where a shift is added, for the dtype could not hold the sum."""
        out = stored
        if self.order != "adjacent":
            out = stored[..., channel_order(self.order, stored.shape[-1]).argsort().to(stored.device)]
        return out if self.shift is None else out.float() + self.shift.unsqueeze(2)

    def scores(self, stored: Tensor) -> Tensor:
        """What 2:4 chooses by, of the shape and dtype of what is stored: it, weighted and rounded to its dtype."""
        if not self.weighs:
            return stored
        weights = self.weights(stored).float()
        weights = self.placed(weights).unsqueeze(2) if self.operand == "k" else weights.unsqueeze(-1)
        return (stored.float() * weights).to(stored.dtype)

    def weights(self, stored: Tensor) -> Tensor:
        """What magnitudes are multiplied by, in the dtype of what is stored: for K of each channel, in the tensor's own
        order, ``[batch, kv_heads, head_dim]``; for V of each token, ``[batch, kv_heads, seq]``."""
        if self.channel_weights is not None:
            return self.channel_weights.to(stored.dtype)
        return self._token_weights(*squared_norms_torch(stored)).to(stored.dtype)

    def placed(self, x: Tensor) -> Tensor:
        """Channels in the order of what is stored."""
        return x if self.order == "adjacent" else x[..., channel_order(self.order, x.shape[-1]).to(x.device)]

    def weights_of(self, x: Tensor) -> Tensor:
        """The :meth:`weights` of ``x`` as it is stored, bit for bit, with no pass over it in torch where there is a
        native kernel for it."""
        if self.channel_weights is not None:
            return self.channel_weights.to(x.dtype)
        return self._token_weights(*_stored_norms(x, self)).to(x.dtype)

    def _token_weights(self, squares: Tensor, largest: Tensor) -> Tensor:
        """Of each token of V, fp32 ``[batch, kv_heads, seq]``; arguments as of :func:`squared_norms_torch`."""
        assert self.squared_norm is not None
        tiny = torch.finfo(torch.float32).tiny
        # By squares: a root would be torch's, which on the CPU is MKL's and not the nearest number.
        weights = (self.squared_norm / squares.clamp(min=tiny**2)) ** (self.norm_power / 2)
        if self.token_weights is not None:
            known = min(self.token_weights.shape[-1], weights.shape[-1])
            weights[..., :known] *= self.token_weights[..., :known]
        # The largest weighted magnitude must not overflow; a factor for all of a head changes no choice.
        weights = weights.clamp(1 / _WEIGHT_RANGE, _WEIGHT_RANGE)
        most = largest.amax(-1).double() * weights.amax(-1)
        room = torch.finfo(largest.dtype).max / 2
        scale = torch.exp2(-torch.ceil(torch.log2((most / room).clamp(min=1.0))))
        return (weights * scale.unsqueeze(-1)).float()

    def extended(self, attention: Tensor) -> Fit:
        """The fit of a cache that has grown: tokens that it knows keep their weights.

        Args:
            attention: see :func:`pooled_attention`, of all tokens that there are now.
        """
        if self.token_weights is None:
            return self
        later = _attention_weights(attention, self.attention_power)[..., self.token_weights.shape[-1] :]
        return replace(self, token_weights=torch.cat([self.token_weights, later], -1))

    def at(self, tokens: Tensor, seq: int) -> Fit:
        """The fit of some of the tokens that it was fitted to.

        Args:
            tokens: int64 ``[batch, kv_heads, n]``, ascending: which of the sequence's ``seq``.
        """
        if self.token_weights is None:
            return self
        later = max(0, seq - self.token_weights.shape[-1])  # which it does not know
        weights = torch.nn.functional.pad(self.token_weights, (0, later), value=1.0)
        return replace(self, token_weights=weights.gather(-1, tokens))

    def with_rows(self, *, shift: Tensor | None, scale: Tensor | None, weights: Tensor | None) -> Fit:
        """With what belongs to heads: ``weights`` of channels, in any dtype."""
        return replace(
            self, shift=shift, scale=scale, channel_weights=None if weights is None else weights.float().contiguous()
        )

    def head(self, batch: int, kv_head: int) -> Fit:
        """Of one (batch, kv head), as a fit of its own."""

        def one(x: Tensor | None) -> Tensor | None:
            return None if x is None else x[batch : batch + 1, kv_head : kv_head + 1]

        return replace(
            self,
            shift=one(self.shift),
            channel_weights=one(self.channel_weights),
            squared_norm=one(self.squared_norm),
            token_weights=one(self.token_weights),
            scale=one(self.scale),
        )


def fit_pruner(
    pruner: Pruner,
    k: Tensor,
    v: Tensor,
    plans: Sequence[BlockPlan],
    *,
    query_rms: Tensor | None = None,
    queries: Tensor | None = None,
    elements: CacheElements = SIXTEEN_BIT,
) -> tuple[Fit, Fit]:
    """A pruner fitted to K and V.

    Args:
        k, v: ``[batch, kv_heads, seq, head_dim]``.
        plans: of the blocks of K and of V.
        query_rms: see :func:`fit_key`; of a calibration.
        queries: ``[batch, q_heads, n, head_dim]``, of the last n tokens, for a pruner that looks at their attention.
        elements: what is stored; with the scales of these, where they have some.

    Raises:
        UsageError: the pruner needs a calibration or queries, which are not given.
    """
    check_sources(pruner, calibration=query_rms is not None, queries=queries is not None)
    attention = None
    if pruner.needs_queries and queries is not None:
        paid = attention_of(queries, k)
        attention = paid.mean((2, 3))
        if pruner.key_weights == "queries":
            query_rms = query_rms_of(queries, paid, plans[0])
    key = fit_key(k, pruner, plans[0], query_rms=query_rms, attention=attention)
    value = fit_value(v, pruner, plans[1], attention=attention)
    return (
        key.scaled_to(k) if elements.key.has_scale else key,
        value.scaled_to(v) if elements.value.has_scale else value,
    )


def fit_key(
    k: Tensor, pruner: Pruner, plan: BlockPlan, *, query_rms: Tensor | None = None, attention: Tensor | None = None
) -> Fit:
    """Fits a pruner to K.

    Args:
        k: ``[batch, kv_heads, seq, head_dim]``.
        query_rms: fp32 ``[kv_heads, head_dim]``, or one for each of the batch: the root mean square of each channel of
            the group's queries, for a pruner that weighs by it.
        attention: fp32 ``[batch, kv_heads, seq]``, see :func:`pooled_attention`, for a pruner whose shift looks at it.
    """
    weights = None
    if pruner.key_weights != "none":
        assert query_rms is not None
        tiny = torch.finfo(torch.float32).tiny  # what no query reads has a rms of 0
        largest = query_rms.amax(-1, keepdim=True).clamp(min=tiny)
        weights = (query_rms / largest).to(k.device).expand(k.shape[0], -1, -1)
    fit = Fit("k", pruner.order, channel_weights=weights)
    if not pruner.key_shift:
        return fit
    return replace(fit, shift=_shift(k, fit, plan, attention, pruner.key_shift_steps))


def fit_value(v: Tensor, pruner: Pruner, plan: BlockPlan, *, attention: Tensor | None = None) -> Fit:
    """Fits a pruner to V.

    Args:
        v: ``[batch, kv_heads, seq, head_dim]``.
        attention: fp32 ``[batch, kv_heads, seq]``, see :func:`pooled_attention`, for a pruner that weighs by it, or
            whose shift looks at it.
    """
    fit = Fit("v", fold=pruner.fold, value_axis=pruner.value_axis)
    if pruner.value_shift:
        fit = replace(fit, shift=_shift(v, fit, plan, attention, pruner.value_shift_steps))
    if pruner.value_weights == "none":
        return fit
    squared_norm = _stored_norms(v, fit)[0].median(-1, keepdim=True).values
    weights = None
    if pruner.value_weights == "attention":
        assert attention is not None
        weights = _attention_weights(attention, pruner.attention_power)
    return replace(
        fit,
        squared_norm=squared_norm,
        norm_power=pruner.norm_power,
        token_weights=weights,
        attention_power=pruner.attention_power,
    )


def _attention_weights(attention: Tensor, power: float) -> Tensor:
    return ((attention + _ATTENTION_FLOOR) * attention.shape[-1]) ** power


def query_rms_of(q: Tensor, paid: Tensor, plan: BlockPlan) -> Tensor:
    """The root mean square of each channel of a group's queries, fp32 ``[batch, kv_heads, head_dim]``: each query as
    much as it looks at what may be pruned, for what one loses that looks at the rest costs nothing. The two channels
    that RoPE turns together get their mean: where the queries stand now says nothing of where later ones will.

    Args:
        q: ``[batch, q_heads, n, head_dim]``, the last n of the context; at most :data:`QUERIES` of them are looked at.
        paid: see :func:`attention_of`.
        plan: of the blocks of K.
    """
    last = q[:, :, -QUERIES:].float().unflatten(1, (paid.shape[1], -1))
    weights = paid[..., eligible_tokens(plan, paid.shape[-1])].sum(-1) + _ATTENTION_FLOOR
    squares = (last.square() * weights.unsqueeze(-1)).sum((2, 3)) / weights.sum((2, 3)).unsqueeze(-1)
    halves = squares.unflatten(-1, (2, -1))  # of half-split RoPE: channels c and c + head_dim / 2
    return halves.mean(-2, keepdim=True).expand_as(halves).flatten(-2).sqrt()


def attention_of(q: Tensor, k: Tensor, *, hidden: Tensor | None = None) -> Tensor:
    """What each of the last queries of a context paid each token: fp32 ``[batch, kv_heads, group, n, seq]``, each
    query's sum 1 unless it sees nothing, and so pays nothing.

    Args:
        q: ``[batch, q_heads, n, head_dim]``, the last n of the context; at most :data:`QUERIES` of them are looked at.
        k: ``[batch, kv_heads, seq, head_dim]``.
        hidden: bool ``[batch, kv_heads, seq]``: tokens that no query sees, beside those after its own.
    """
    batch, kv_heads, seq, head_dim = k.shape
    last = q[:, :, -QUERIES:].float()
    n = last.shape[2]
    rows = last.reshape(batch, kv_heads, -1, head_dim)
    scores = (rows @ k.float().mT / math.sqrt(head_dim)).view(batch, kv_heads, -1, n, seq)
    unseen = torch.arange(seq, device=k.device) > seq - n + torch.arange(n, device=k.device).unsqueeze(-1)
    if hidden is None:
        return scores.masked_fill(unseen, float("-inf")).softmax(-1)
    unseen = unseen | hidden[:, :, None, None]
    return scores.masked_fill(unseen, float("-inf")).softmax(-1).masked_fill(unseen, 0.0)


def pooled_attention(q: Tensor, k: Tensor, *, hidden: Tensor | None = None) -> Tensor:
    """What the last queries of a context paid each token, mean over the queries and the group: fp32
    ``[batch, kv_heads, seq]``, each head's sum 1 unless a query sees nothing. Arguments as of :func:`attention_of`."""
    return attention_of(q, k, hidden=hidden).mean((2, 3))


def _stored_norms(x: Tensor, fit: Fit) -> tuple[Tensor, Tensor]:
    """:func:`squared_norms_torch` of what a fit stores of V."""
    return squared_norms(x, fit.shift) if has_kernel("token_norms", x) else squared_norms_torch(fit.stored(x))


def _shift(x: Tensor, fit: Fit, plan: BlockPlan, attention: Tensor | None, steps: int) -> Tensor:
    """Of a fit without one yet, see :func:`hsbench.cache.shift.shift_of`."""
    order = channel_order(fit.order, x.shape[-1]).to(x.device)
    return shift_of(x, plan, order=order, weights=fit.channel_weights, attention=attention, steps=steps)
