"""``hsbench compare``."""

from __future__ import annotations

from hsbench.cli import options as o
from hsbench.cli.request import Request, plan_sweep
from hsbench.cli.run import run
from hsbench.run.replay import plan_replay


def compare(
    phase: o.Phases = None,
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
    sink: o.Sink = None,
    local: o.Local = None,
    methods: o.Methods = None,
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
    profile: o.Profile = False,
    profiler: o.Profiler = None,
    profile_dir: o.ProfileDir = None,
) -> int:
    """Measure the cross product of lists: one row per phase, method, shape and sparsity.

    CSV goes to stdout as rows finish, unless --format says otherwise; the summary to stderr at the end.
    With --replay, the cells, methods and settings are those of an earlier run.

    Example: hsbench compare --seq 8k,32k,128k --sparsity 0,0.25,0.5 > sweep.csv
    """
    request = Request(**locals())  # the parameters are its fields

    from hsbench.report import render_sweep

    plan = plan_sweep(request) if request.replay is None else plan_replay(request)
    return run(plan, render_sweep)
