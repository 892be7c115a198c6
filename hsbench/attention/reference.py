"""Attention in fp32: what every kernel's result is checked against."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

SCORES = 1 << 24  # fp32 scores alive at a time: 64 MiB


def attend_head(
    q: Tensor, k: Tensor, v: Tensor, rows: Tensor, q_len: int, *, tokens: Tensor | None = None, seq: int | None = None
) -> tuple[Tensor, Tensor]:
    """Attention of one kv head's group in fp32: ``softmax(q K^T / sqrt(head_dim)) V`` and its log-sum-exp.

    Args:
        q: ``[group, n, head_dim]``, the queries that ``rows`` names.
        k, v: ``[seq, head_dim]``.
        rows: int64 ``[n]``, ascending, out of ``q_len``: causal, and the last of q_len sees all of seq.
        tokens: int64 ``[len(k)]``, ascending: which of the ``seq`` tokens k and v are, where some are evicted.

    Returns:
        fp32 ``out [group, n, head_dim]`` and ``lse [group, n]``, natural log. Of a query that sees no token out is 0
        and lse -infinity.
    """
    left, head_dim = k.shape
    seq = left if seq is None else seq
    at = torch.arange(left, device=q.device) if tokens is None else tokens
    keys, values = k.float(), v.float()
    out = torch.empty(*q.shape, dtype=torch.float32, device=q.device)
    lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
    step = max(1, SCORES // (q.shape[0] * seq))
    for first in range(0, len(rows), step):
        part = slice(first, first + step)
        # Tokens after the last query's are hidden from all of this part; on a GPU, reading that back would wait for it.
        last = seq - q_len + rows[part]
        seen = left if rows.is_cuda else int(torch.searchsorted(at, last[-1], right=True))
        scores = q[:, part].float() @ keys[:seen].T / math.sqrt(head_dim)
        hidden = at[:seen] > last.unsqueeze(-1)
        scores.masked_fill_(hidden, float("-inf"))
        lse[:, part] = scores.logsumexp(-1)
        weights = scores.softmax(-1)
        if tokens is not None:
            weights.masked_fill_(hidden.all(-1, keepdim=True), 0.0)
        out[:, part] = weights @ values[:seen]
    return out, lse


def attend_heads(
    q: Tensor,
    kv_heads: int,
    kv_head: Callable[[int, int], tuple[Tensor, Tensor]],
    rows: Tensor | None = None,
    *,
    left: Callable[[int, int], Tensor | None] = lambda batch, kv_head: None,
    seq: int | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`attend_head` over all heads, one at a time.

    Args:
        q: ``[batch, q_heads, q_len, head_dim]``.
        kv_heads: how many there are.
        kv_head: gives K and V ``[seq, head_dim]`` of a (batch, kv head).
        rows: int64 ``[n]``, ascending: only these queries; all of them if None.
        left: gives which of ``seq`` tokens those of a (batch, kv head) are, see :func:`attend_head`.

    Returns:
        fp32 ``out [batch, q_heads, n, head_dim]`` and ``lse [batch, q_heads, n]``.
    """
    batch, q_heads, q_len, head_dim = q.shape
    group = q_heads // kv_heads
    picked = torch.arange(q_len, device=q.device) if rows is None else rows
    out = torch.empty(batch, q_heads, len(picked), head_dim, dtype=torch.float32, device=q.device)
    lse = torch.empty(batch, q_heads, len(picked), dtype=torch.float32, device=q.device)
    for b in range(batch):
        for h in range(kv_heads):
            heads = slice(h * group, (h + 1) * group)
            queries = q[b, heads] if rows is None else q[b, heads][:, rows]
            k, v = kv_head(b, h)
            out[b, heads], lse[b, heads] = attend_head(queries, k, v, picked, q_len, tokens=left(b, h), seq=seq)
    return out, lse


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, tokens: Tensor | None = None, seq: int | None = None
) -> tuple[Tensor, Tensor]:
    """:func:`attend_heads` over ``k, v [batch, kv_heads, seq, head_dim]``, all queries; ``tokens [batch, kv_heads, n]``
    and ``seq`` as of :func:`attend_head`."""

    def left(batch: int, kv_head: int) -> Tensor | None:
        return None if tokens is None else tokens[batch, kv_head]

    return attend_heads(q, k.shape[1], lambda b, h: (k[b, h], v[b, h]), left=left, seq=seq)
