"""``hsbench generate``."""

from __future__ import annotations

from hsbench.cli import model_options as m
from hsbench.cli import options as o


def generate(
    model: m.ModelName,
    prompt: m.PromptWords = None,
    text: m.TextFile = None,
    context: m.Contexts = None,
    new_tokens: m.NewTokens = None,
    batch: m.GenerateBatch = None,
    temperature: m.Temperature = None,
    methods: m.GenerateMethods = None,
    elements: m.GenerateElements = None,
    sparsity: o.Sparsity = None,
    key_sparsity: o.KeySparsity = None,
    value_sparsity: o.ValueSparsity = None,
    pruner: m.GeneratePruner = None,
    basis: o.Basis = None,
    plan: o.LayerPlan = None,
    sink: m.GenerateSink = None,
    local: m.GenerateLocal = None,
    weights: o.Weights = None,
    dtype: o.CacheDtype = None,
    device: o.Device = None,
    seed: m.GenerateSeed = None,
    eager: m.Eager = False,
    show_text: m.ShowText = False,
    format: o.Format = None,
    output: o.Output = None,
    manifest: o.Manifest = None,
) -> int:
    """Let a model generate, and measure what a token takes by each way to keep K and V.

    ms/token: of a step, which gives each sequence a token: median, and 95th percentile.
    speedup: against the fastest dense 16-bit method, torch's (sdpa) or ours (dense).
    first token: from the prompt on; the prompt is attended to dense by all methods, then stored.
    KV: bytes in use at the last token, and reserved for the whole capacity; ratio: dense 16-bit over those in use.
    break-even: tokens after which compressing the prompt has paid.

    Example: hsbench generate model.gguf --text book.txt --context 8k --new-tokens 128
    """
    from hsbench.cli.generate_task import GenerateRequest, run_generate

    return run_generate(
        GenerateRequest(
            model=model,
            prompt=prompt,
            text=text,
            context=context,
            new_tokens=new_tokens,
            batch=batch,
            temperature=temperature,
            methods=methods,
            elements=elements,
            sparsity=sparsity,
            key_sparsity=key_sparsity,
            value_sparsity=value_sparsity,
            pruner=pruner,
            basis=basis,
            plan=plan,
            sink=sink,
            local=local,
            weights=weights,
            dtype=dtype,
            device=device,
            seed=seed,
            eager=eager,
            show_text=show_text,
            format=format,
            output=output,
            manifest=manifest,
        )
    )
