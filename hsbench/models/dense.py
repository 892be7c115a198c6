"""Dense causal attention by torch, for whole prompts and for chunks, with what some models add to it."""

from __future__ import annotations

import torch
import torch.nn.functional as F

# Elements of a mask, or of scores where they have to be made, that are alive at a time.
_PIECE = 1 << 24


def dense_attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, window: int | None = None) -> torch.Tensor:
    """``softmax(q k^T / sqrt(head_dim)) v``, causal: the n queries are the last n of the m tokens.

    Args:
        q: ``[batch, q_heads, n, head_dim]``.
        k, v: ``[batch, kv_heads, m, head_dim]``.
        window: tokens that a query sees at most, itself among them; None for all before it.

    Returns:
        ``[batch, q_heads, n, head_dim]``.
    """
    batch, q_heads, n, d = q.shape
    kv_heads, m = k.shape[1:3]
    # The queries of a group over one KV head that is repeated by a stride of 0: nothing is copied, and no backend needs
    # to know grouped queries.
    grouped = q.reshape(batch * kv_heads, q_heads // kv_heads, n, d)
    keys, values = (x.reshape(batch * kv_heads, 1, m, d).expand(-1, q_heads // kv_heads, -1, -1) for x in (k, v))
    if n == m and (window is None or window >= m):
        return F.scaled_dot_product_attention(grouped, keys, values, is_causal=n > 1).reshape(q.shape)
    out = torch.empty_like(grouped)
    for first, last in _pieces(n, m):
        seen = visible(first, last, n, m, window, q.device)
        end = m - n + last
        begin = max(0, m - n + first + 1 - window) if window is not None else 0
        out[:, :, first:last] = F.scaled_dot_product_attention(
            grouped[:, :, first:last], keys[:, :, begin:end], values[:, :, begin:end],
            attn_mask=None if last - first == 1 else seen[:, begin:],
        )  # fmt: skip
    return out.reshape(q.shape)


def soft_attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """The same, for scores that no kernel of torch makes.

    Args:
        softcap: scores are ``softcap · tanh(score / softcap)``.
        sinks: ``[q_heads]``, a score of each head that takes its part of the softmax and gives nothing.
    """
    batch, q_heads, n, d = q.shape
    kv_heads, m = k.shape[1:3]
    grouped = q.reshape(batch, kv_heads, -1, n, d)
    out = torch.empty_like(grouped)
    for first, last in _pieces(n, m * q_heads * batch):
        end = m - n + last
        scores = (grouped[:, :, :, first:last] @ k[:, :, None, :end].transpose(-1, -2)).float() * d**-0.5
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        scores.masked_fill_(~visible(first, last, n, m, window, q.device), -torch.inf)
        if sinks is not None:
            extra = sinks.float().reshape(1, kv_heads, -1, 1, 1).expand(*scores.shape[:-1], 1)
            scores = torch.cat((scores, extra), dim=-1)
        share = torch.softmax(scores, dim=-1)[..., :end].to(q.dtype)
        out[:, :, :, first:last] = share @ v[:, :, None, :end]
    return out.reshape(q.shape)


def visible(
    first: int, last: int, n: int, m: int, window: int | None, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Which of m tokens some of the last n see, as queries: bool ``[last - first, m - n + last]``."""
    own = torch.arange(m - n + first, m - n + last, device=device)[:, None]
    tokens = torch.arange(m - n + last, device=device)[None]
    seen = tokens <= own
    return seen if window is None else seen & (tokens > own - window)


def _pieces(n: int, width: int) -> list[tuple[int, int]]:
    """Runs of n queries, each so long that as many rows of a width are no more than a piece."""
    step = max(1, _PIECE // width)
    return [(first, min(first + step, n)) for first in range(0, n, step)]
