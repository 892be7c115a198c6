"""``hsbench quality``."""

from __future__ import annotations

from hsbench.cli import model_options as m
from hsbench.cli import options as o


def quality(
    model: m.ModelName,
    text: m.TextFile = None,
    context: o.Context = None,
    score: o.Score = None,
    windows: o.Windows = None,
    when: o.When = None,
    chunk: o.ChunkSize = None,
    sparsity: o.ManySparsities = None,
    key_sparsity: o.ManyKeySparsities = None,
    value_sparsity: o.ManyValueSparsities = None,
    pruner: o.Pruners = None,
    evict: o.ModelEvict = None,
    basis: o.Basis = None,
    plan: o.LayerPlan = None,
    sink: o.ModelSink = None,
    local: o.ModelLocal = None,
    methods: o.QualityMethods = None,
    elements: o.StoredElements = None,
    key_elements: o.KeyElements = None,
    value_elements: o.ValueElements = None,
    weights: o.Weights = None,
    dtype: o.CacheDtype = None,
    device: o.Device = None,
    seed: o.RunSeed = None,
    needle: o.Needle = False,
    depths: o.Depths = None,
    per_layer: o.PerLayer = False,
    plan_for: o.PlanFor = None,
    plan_output: o.PlanOutput = None,
    format: o.Format = None,
    output: o.Output = None,
    manifest: o.Manifest = None,
) -> int:
    """Measure what pruning the KV cache costs a model: each setting beside the model's own dense run, token by token.

    KL: how far the next token's distribution moves from the dense run's, mean, in nats; 0 is none.
    perplexity: exp of the mean -log p of the text's tokens; the change against dense is noise below a few percent.
    top-1: share of tokens whose likeliest successor is still the same.
    KV: how many times smaller the stored cache is than dense 16-bit.
    passkey nats: -log p of a number that was hidden in the context, asked for after it, mean; found: greedily, exactly.
    95 %: intervals over windows of the text, paired with the dense run; over stretches of 64 tokens for fewer than 4.
    ~ behind a name: no kernel can run it, so its attention is simulated; all others run ours, checked against fp32.

    Example: hsbench quality model.gguf --text book.txt --context 4k --pruner magnitude,mirror
    """
    from hsbench.cli.quality_task import QualityRequest, run_quality

    return run_quality(
        QualityRequest(
            model=model,
            text=text,
            context=context,
            score=score,
            windows=windows,
            when=when,
            chunk=chunk,
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
            elements=elements,
            key_elements=key_elements,
            value_elements=value_elements,
            weights=weights,
            dtype=dtype,
            device=device,
            seed=seed,
            needle=needle,
            depths=depths,
            per_layer=per_layer,
            plan_for=plan_for,
            plan_output=plan_output,
            format=format,
            output=output,
            manifest=manifest,
        )
    )
