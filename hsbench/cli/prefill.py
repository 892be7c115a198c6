"""``hsbench prefill``."""

from __future__ import annotations

from hsbench.cli import options as o
from hsbench.cli.ranks import follow, follows
from hsbench.cli.request import Request
from hsbench.cli.run import run
from hsbench.cli.tasks import one_task
from hsbench.problem.phase import PREFILL


def prefill(
    workload: o.Workload = None,
    seq: o.Seq = None,
    batch: o.Batch = None,
    q_heads: o.QHeads = None,
    kv_heads: o.KvHeads = None,
    head_dim: o.HeadDim = None,
    dtype: o.Dtype = None,
    q_len: o.QLen = None,
    sparsity: o.Sparsity = None,
    key_sparsity: o.KeySparsity = None,
    value_sparsity: o.ValueSparsity = None,
    pruner: o.Pruner = None,
    evict: o.Evict = None,
    basis: o.Basis = None,
    plan: o.LayerPlan = None,
    sink: o.Sink = None,
    local: o.Local = None,
    methods: o.Methods = None,
    ranks: o.Ranks = None,
    device: o.Device = None,
    kv: o.Kv = None,
    layer: o.Layer = None,
    tensors: o.Tensors = None,
    seed: o.Seed = None,
    cache: o.Cache = None,
    time: o.Time = None,
    sustain: o.Sustain = None,
    format: o.Format = None,
    output: o.Output = None,
    manifest: o.Manifest = None,
    profile: o.Profile = False,
    profiler: o.Profiler = None,
    profile_dir: o.ProfileDir = None,
) -> int:
    """Measure prefill attention: causal, the last query sees the whole KV cache.

    Example: hsbench prefill --seq 8k --sparsity 0.5
    """
    request = Request(
        workload=workload,
        seq=seq,
        batch=batch,
        q_heads=q_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        dtype=dtype,
        q_len=q_len,
        sparsity=sparsity,
        key_sparsity=key_sparsity,
        value_sparsity=value_sparsity,
        pruner=pruner,
        evict=evict,
        basis=basis,
        plan=plan,
        sink=sink,
        local=local,
        methods=methods,
        ranks=ranks,
        device=device,
        kv=kv,
        layer=layer,
        tensors=tensors,
        seed=seed,
        cache=cache,
        time=time,
        sustain=sustain,
        format=format,
        output=output,
        manifest=manifest,
        profile=profile,
        profiler=profiler,
        profile_dir=profile_dir,
    )
    if follows():
        return follow()

    from hsbench.report import render

    return run(one_task(PREFILL, request), render)
