"""The public Python API: what a notebook uses. CPU and CUDA tensors alike."""

from __future__ import annotations

from torch import Tensor

from hsbench import attend
from hsbench.errors import UsageError
from hsbench.formats.hierarchical import HierarchicalKV, check_kv, compress_kv

__all__ = ["HierarchicalKV", "compress", "decode", "prefill"]


def compress(
    k: Tensor,
    v: Tensor,
    sparsity: float = 0.5,
    *,
    key_sparsity: float | None = None,
    value_sparsity: float | None = None,
    sink: int = 0,
    local: int = 0,
) -> HierarchicalKV:
    """Prunes K and V to hierarchical 2:4 sparsity and packs them (HieraSparse, arXiv 2604.16864).

    Args:
        k: ``[batch, kv_heads, seq, head_dim]``, fp16 or bf16, head_dim 64 or 128, finite.
        v: as ``k``: same shape, dtype and device.
        sparsity: share of elements pruned among eligible blocks, 0 (all dense) to 0.5 (all 2:4), for K and V.
        key_sparsity: overrides ``sparsity`` for K.
        value_sparsity: overrides ``sparsity`` for V.
        sink: blocks that touch the first ``sink`` tokens stay dense.
        local: blocks that touch the last ``local`` tokens stay dense.

    Returns:
        The compressed cache, on the device of ``k``.

    Raises:
        UsageError: a sparsity outside 0 to 0.5, a negative sink or local.
        UnsupportedError: shapes or dtypes that the formats do not hold.
        NonFiniteError: K or V holds a NaN or an infinity; names the tensor and the first index.
        UnavailableError: the native library for the device is missing; the message has the remedy.
    """
    check_kv(k, v)
    shares = {
        "key_sparsity": sparsity if key_sparsity is None else key_sparsity,
        "value_sparsity": sparsity if value_sparsity is None else value_sparsity,
    }
    for name, share in shares.items():
        if not 0 <= share <= 0.5:
            raise UsageError(name, share, "2:4 prunes at most half: give 0 to 0.5")
    for name, tokens in (("sink", sink), ("local", local)):
        if tokens < 0:
            raise UsageError(name, tokens, "give a number of tokens, 0 or more")
    return compress_kv(k, v, sink=sink, local=local, **shares)


def decode(q: Tensor, kv: HierarchicalKV) -> tuple[Tensor, Tensor]:
    """Attention of one query per head over a compressed cache.

    Args:
        q: ``[batch, q_heads, 1, head_dim]``, the cache's dtype and device; q_heads is 1 to 16 times kv_heads.
        kv: what :func:`compress` returned.

    Returns:
        ``out [batch, q_heads, 1, head_dim]`` in q's dtype, equal to ``softmax(q K^T / sqrt(head_dim)) V`` over the
        pruned K and V, and ``lse [batch, q_heads, 1]``, fp32, the natural log of the sum of exponentials.

    Raises:
        UnsupportedError: q does not fit the cache.
        UnavailableError: the native library for the device is missing; the message has the remedy.
    """
    call = attend.decode_call(q, kv)
    call.run()
    return call.out, call.lse


def prefill(q: Tensor, kv: HierarchicalKV) -> tuple[Tensor, Tensor]:
    """Causal attention of ``q_len <= seq`` queries over a compressed cache; the last query sees all of it.

    Args:
        q: ``[batch, q_heads, q_len, head_dim]``, the cache's dtype and device; q_heads is 1 to 16 times kv_heads.
        kv: what :func:`compress` returned.

    Returns:
        ``out [batch, q_heads, q_len, head_dim]`` in q's dtype and ``lse [batch, q_heads, q_len]``, fp32, natural log.

    Raises:
        UnsupportedError: q does not fit the cache.
        UnavailableError: the native library for the device is missing; the message has the remedy.
    """
    call = attend.prefill_call(q, kv)
    call.run()
    return call.out, call.lse
