"""The public Python API: what a notebook uses. CPU and CUDA tensors alike.

Tensors are plain strided ones: a subclass, a sparse, nested or quantised tensor is refused. There is no backward: while
gradients are recorded, a tensor that requires one is refused rather than its gradient lost in silence; detach it, or
call under ``torch.no_grad()``. Lazy negation is resolved, and what is not contiguous is copied. After ``fork()`` all of
it works in the child, on CPU tensors.
"""

from __future__ import annotations

from torch import Tensor

from hsbench.attention import arguments, calls
from hsbench.attention.growing import Cache
from hsbench.cache.basis import LayerBasis
from hsbench.cache.fitted import compress_kv
from hsbench.cache.hierarchical import HierarchicalKV
from hsbench.cache.paged import check_kv
from hsbench.cache.pruner import DEFAULT_PRUNER, Pruner, check_sources
from hsbench.problem.elements import SIXTEEN_BIT, CacheElements, StoredElements

__all__ = ["Cache", "HierarchicalKV", "compress", "decode", "prefill"]


def compress(
    k: Tensor,
    v: Tensor,
    sparsity: float = 0.5,
    *,
    key_sparsity: float | None = None,
    value_sparsity: float | None = None,
    sink: int = 0,
    local: int = 0,
    evict: float = 0.0,
    pruner: str | Pruner = DEFAULT_PRUNER,
    elements: str | CacheElements = SIXTEEN_BIT,
    key_elements: str | StoredElements | None = None,
    value_elements: str | StoredElements | None = None,
    queries: Tensor | None = None,
    basis: LayerBasis | None = None,
) -> HierarchicalKV:
    """Prunes K and V to hierarchical 2:4 sparsity and packs them (HieraSparse, arXiv 2604.16864).

    Args:
        k: ``[batch, kv_heads, seq, head_dim]``, fp16 or bf16, head_dim 64 or 128, finite.
        v: as ``k``: same shape, dtype and device.
        sparsity: share of elements pruned among eligible blocks that are left, 0 (all dense) to 0.5 (all 2:4), for K
            and V.
        key_sparsity: overrides ``sparsity`` for K.
        value_sparsity: overrides ``sparsity`` for V.
        sink: blocks that touch the first ``sink`` tokens stay dense, in 16 bits.
        local: blocks that touch the last ``local`` tokens stay dense, in 16 bits.
        evict: share of the eligible blocks that are dropped from K and V, 0 to 1: their tokens take no part in the
            softmax. Per kv head those of least attention mass of the ``queries``, where these are given; else those of
            largest key norm (:mod:`hsbench.cache.evict`).
        pruner: what decides what stays, by name: ``magnitude`` is the paper's, ``mirror``, ``centered``, ``balanced``,
            ``attentive`` and ``calibrated`` cost a model less and a kernel the same (:mod:`hsbench.cache.pruner`). K is
            expected behind half-split RoPE by all but ``magnitude``.
        elements: what the cache's values are: ``16bit``, those of k and v themselves; ``fp8``, e4m3 with a scale for
            each channel; or ``int4``, with a scale for each channel of a block of K and each 64 channels of a token of
            V. Before fp8 and int4 the means of K and of V are taken off, whatever the pruner; what may not be pruned
            stays fp16. CUDA decode alone reads int4, and prefill there fp8 as :func:`prefill` says.
        key_elements: overrides ``elements`` for K. On CUDA decode alone reads K and V of different elements.
        value_elements: overrides ``elements`` for V.
        queries: ``[batch, q_heads, n, head_dim]``, of the last n tokens, which ``attentive`` and ``evict`` look at.
        basis: of the layer, from a file of ``hsbench calibrate``, which ``calibrated`` takes.

    Returns:
        The compressed cache, on the device of ``k``.

    Raises:
        UsageError: k, v or queries is no plain tensor or requires a gradient; a sparsity is no number from 0 to 0.5;
            evict is none from 0 to 1; sink or local is no whole number from 0 on; there is no such pruner, or it lacks
            queries or a basis; the basis is of other heads; there are no such elements. Names the argument and the
            remedy.
        UnsupportedError: shapes or dtypes that the formats do not hold, queries that do not fit k, tensors on different
            devices, or a pruner or elements that no kernel can read yet.
        NonFiniteError: K or V holds a NaN or an infinity; names the tensor and the first index.
        UnavailableError: the native library for the device is missing, or the device cannot be used in a forked
            process; the message has the remedy.
    """
    k, v = arguments.tensor("k", k), arguments.tensor("v", v)
    check_kv(k, v)
    chosen = arguments.pruner("pruner", pruner)
    if queries is not None:
        queries = arguments.tensor("queries", queries)
        batch, kv_heads, seq, head_dim = k.shape
        calls.check_query(queries, (batch, kv_heads, seq, head_dim), k.dtype, k.device, name="queries")
    check_sources(chosen, calibration=basis is not None, queries=queries is not None)
    return compress_kv(
        k,
        v,
        key_sparsity=_share("key_sparsity", key_sparsity, sparsity),
        value_sparsity=_share("value_sparsity", value_sparsity, sparsity),
        sink=arguments.tokens("sink", sink),
        local=arguments.tokens("local", local),
        evict=arguments.share("evict", evict),
        pruner=chosen,
        elements=arguments.cache_elements(elements, key_elements, value_elements),
        queries=queries,
        query_rms=None if basis is None else arguments.basis("basis", basis, k.shape[1], k.shape[3]),
    )


def _share(name: str, own: float | None, both: float) -> float:
    """The sparsity of one tensor; what is wrong with it is said of the argument that was given."""
    return arguments.sparsity("sparsity", both) if own is None else arguments.sparsity(name, own)


def decode(q: Tensor, kv: HierarchicalKV) -> tuple[Tensor, Tensor]:
    """Attention of one query per head over a compressed cache.

    Args:
        q: ``[batch, q_heads, 1, head_dim]``, the cache's dtype and device; q_heads is 1 to 16 times kv_heads.
        kv: what :func:`compress` returned.

    Returns:
        ``out [batch, q_heads, 1, head_dim]`` in q's dtype, equal to ``softmax(q K^T / sqrt(head_dim)) V`` over the
        pruned K and V of the tokens that are left, and ``lse [batch, q_heads, 1]``, fp32, the natural log of the sum of
        exponentials; 0 and -infinity where none is left.

    Raises:
        UsageError: q is no plain tensor or requires a gradient, or kv is no compressed cache.
        UnsupportedError: q does not fit the cache in shape, dtype or device, or has more than one query.
        UnavailableError: the native library for the device is missing, or the device cannot be used in a forked
            process; the message has the remedy.
    """
    call = calls.decode_call(arguments.tensor("q", q), arguments.cache("kv", kv))
    call.run()
    return call.out, call.lse


def prefill(q: Tensor, kv: HierarchicalKV) -> tuple[Tensor, Tensor]:
    """Causal attention of ``q_len <= seq`` queries over a compressed cache; the last query sees all of it.

    Args:
        q: ``[batch, q_heads, q_len, head_dim]``, the cache's dtype and device; q_heads is 1 to 16 times kv_heads.
        kv: what :func:`compress` returned.

    Returns:
        ``out [batch, q_heads, q_len, head_dim]`` in q's dtype and ``lse [batch, q_heads, q_len]``, fp32, natural log. A
        query that sees no token, since all up to its own are evicted, has 0 and -infinity.

    Raises:
        UsageError, UnsupportedError, UnavailableError: as :func:`decode`, but for the number of queries: 1 to seq; and
            CUDA takes an fp8 cache on compute capability 9.0 alone. There q and the probabilities are rounded to e4m3,
            too.
    """
    call = calls.prefill_call(arguments.tensor("q", q), arguments.cache("kv", kv))
    call.run()
    return call.out, call.lse
