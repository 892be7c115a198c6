"""``hsbench compare``."""

from __future__ import annotations

from hsbench.cli import model_options as m
from hsbench.cli import options as o
from hsbench.cli.generate_sweep import sweep_generate, sweeps_generate
from hsbench.cli.ranks import follow, follows, leads, resumed_ranks, start
from hsbench.cli.request import Request
from hsbench.cli.resuming import resume_task
from hsbench.cli.run import run
from hsbench.cli.tasks import replay_task, sweep_task


def compare(
    phase: o.Phases = None,
    model: m.SweptModel = None,
    text: m.SweptText = None,
    new_tokens: m.SweptTokens = None,
    workload: o.Workloads = None,
    seq: o.Seqs = None,
    batch: o.Batches = None,
    q_heads: o.QHeads = None,
    kv_heads: o.KvHeads = None,
    head_dim: o.HeadDim = None,
    dtype: o.Dtypes = None,
    q_len: o.QLen = None,
    sparsity: o.Sparsities = None,
    key_sparsity: o.KeySparsity = None,
    value_sparsity: o.ValueSparsity = None,
    pruner: o.Pruners = None,
    evict: o.Evicts = None,
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
    replay: o.Replay = None,
    resume: o.Resume = None,
    profile: o.Profile = False,
    profiler: o.Profiler = None,
    profile_dir: o.ProfileDir = None,
) -> int:
    """Measure the cross product of lists: one row per phase, method, shape and sparsity.

    CSV goes to stdout as rows finish, unless --format says otherwise; the summary to stderr at the end.
    With --replay, the cells, methods and settings are those of an earlier run. With --resume, a run that was killed or
    stopped goes on in its own file: finished rows are kept, the rest is measured.

    With --phase generate, rows are those of hsbench generate, for each of --seq as its context.

    Example: hsbench compare --seq 8k,32k,128k --sparsity 0,0.25,0.5 > sweep.csv
    """
    request = Request(
        phase=phase,
        model=model,
        text=text,
        new_tokens=new_tokens,
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
        replay=replay,
        resume=resume,
        profile=profile,
        profiler=profiler,
        profile_dir=profile_dir,
    )
    if sweeps_generate(request):
        return sweep_generate(request)
    if follows():
        return follow()

    from hsbench.report import render_sweep

    if resume is not None:
        # What was begun by ranks is of their machine, their threads among it: they look whether this is the same.
        several, where = resumed_ranks(request, resume)
        if several > 1 and not leads():
            return start(several, where or "auto")
        task = resume_task(request, resume)
    else:
        task = sweep_task(request) if replay is None else replay_task(request, replay)
    return run(task, render_sweep)
