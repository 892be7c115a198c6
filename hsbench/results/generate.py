"""Rows of a model that generates: a way to keep its K and V, a prompt, and what a token then takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hsbench.results.columns import about, columns_of, measure
from hsbench.results.identity import Case
from hsbench.results.row import Row

KEPT = ("rel_error",)
"""Measures of a row whose check failed: nothing else of it may be quoted."""


@dataclass(frozen=True, kw_only=True)
class GenerateCase(Case):
    """What a token's time depends on, as far as it was asked for.

    Model and text are named and told apart by a hash each; where they lie is in the manifest.
    """

    model: str = field(metadata=about("its folder or file, by name", "name"))
    model_hash: str = field(metadata=about("12 digits of a digest of its configuration and weights", "name"))
    text: str = field(metadata=about("file of the prompt, by name; `prompt` where it was typed, or `drawn`", "name"))
    text_hash: str = field(metadata=about("the first 12 digits of its SHA-256", "name"))
    device: str = field(metadata=about("`cpu` or `cuda`", "name"))
    weights: str = field(metadata=about("element type of the model's weights", "name"))
    dtype: str = field(metadata=about("element type of q, K and V in the cache", "name"))
    context: int = field(metadata=about("tokens of a prompt", "shape"))
    batch: int = field(metadata=about("sequences at a time", "shape"))
    new_tokens: int = field(metadata=about("tokens generated, of each sequence", "shape"))
    method: str = field(metadata=about("how K and V are kept, with what their values are where not of 16 bits", "name"))
    pruner: str | None = field(metadata=about("what decides which elements are pruned", "setting"))
    basis: str | None = field(metadata=about("file of a calibrated basis, by name", "setting"))
    plan: str | None = field(metadata=about("file of a plan of layers, by name; sparsities are then means", "setting"))
    key_sparsity: float = field(metadata=about("of K, asked for: share pruned among judged blocks", "setting"))
    value_sparsity: float = field(metadata=about("the same of V", "setting"))
    sink: int | None = field(metadata=about("first tokens, whose blocks stay open", "setting"))
    local: int | None = field(metadata=about("last tokens, whose blocks stay open", "setting"))
    temperature: float = field(metadata=about("of sampling; 0 takes the likeliest token", "setting"))
    seed: int = field(
        metadata=about("of sampling, of prompts that are drawn, and of which layers are checked", "setting")
    )
    eager: bool = field(metadata=about("whether a step's kernels were asked to be launched one by one", "setting"))
    threads: int | None = field(metadata=about("of torch and of our CPU kernels; empty on a GPU", "setting"))
    isa: str | None = field(metadata=about("instruction set of our CPU kernels; empty on a GPU", "setting"))

    @property
    def label(self) -> str:
        share = f"K {self.key_sparsity:g} V {self.value_sparsity:g}"
        parts = [
            f"generate {self.model}",
            self.text,
            f"{self.batch} x {self.context} + {self.new_tokens} tokens",
            f"{self.dtype} cache, {self.weights} weights",
            f"sparsity {self.key_sparsity:g}" if self.key_sparsity == self.value_sparsity else f"sparsity {share}",
            self.pruner,
            self.basis and f"basis {self.basis}",
            self.plan and f"plan {self.plan}",
            None if self.sink is None else f"sink {self.sink}, local {self.local}",
            f"temperature {self.temperature:g}" * bool(self.temperature),
            f"seed {self.seed}" * (self.seed != 0),
            "eager" * self.eager,
            self.device,
            None if self.threads is None else f"{self.threads} threads",
            self.isa,
        ]
        return f"{self.method}: {', '.join(filter(None, parts))}"


@dataclass(kw_only=True)
class GenerateMeasures:
    """What is measured of a method; all of it None in a row that did not run."""

    stepping: str | None = measure("how a step was launched: `graph`, `a graph per step` or `eager`", "state")
    backend: str | None = measure("of torch's attention, the fastest that was found for `sdpa`", "state")
    first_token_ms: float | None = measure("from the prompt to its first token; taken once", "time", "ms")
    fill_ms: float | None = measure(
        "of that, storing the prompt's K and V: compression, where there is any", "time", "ms"
    )
    token_ms: float | None = measure("of a step, which gives each sequence a token: median", "time", "ms")
    token_ms_p25: float | None = measure("lower quartile", "time", "ms")
    token_ms_p75: float | None = measure("upper quartile", "time", "ms")
    token_ms_p95: float | None = measure("95th percentile", "time", "ms")
    samples: int | None = measure("steps that were timed", "count")
    tokens_per_s: float | None = measure("of all sequences: batch over the mean time of a step", "rate", "1/s")
    baseline: str | None = measure("the fastest dense 16-bit method that ran", "name")
    speedup: float | None = measure("the baseline's median step over this one's", "ratio", ok_only=True)
    speedup_lo: float | None = measure("lower end of its 95 % interval", "ratio", ok_only=True)
    speedup_hi: float | None = measure("upper end of its 95 % interval", "ratio", ok_only=True)
    break_even_tokens: float | None = measure(
        "steps after which what filling the cache took more than the baseline's is made up for", "count", ok_only=True
    )
    attention_share: float | None = measure("of a step, in a pass of its own: attention to the cache", "ratio")
    append_share: float | None = measure("storing K and V, and compressing what leaves the window", "ratio")
    projection_share: float | None = measure("what else attention layers do: q, K, V and their output, RoPE", "ratio")
    mlp_share: float | None = measure("feed-forward layers", "ratio")
    norm_share: float | None = measure("norms outside of attention layers, and residual sums that are theirs", "ratio")
    head_share: float | None = measure("the last layer, from hidden states to logits", "ratio")
    other_share: float | None = measure("the rest: embedding, other residual sums, choosing a token", "ratio")
    kv_reserved_bytes: int | None = measure("what K and V of all layers have for their capacity", "memory", "bytes")
    kv_bytes: int | None = measure("of that, in use at the last token", "memory", "bytes")
    kv_ratio: float | None = measure("dense 16-bit bytes of the tokens over bytes in use", "ratio")
    peak_bytes: int | None = measure("memory at most, beyond the model's weights", "memory", "bytes")
    tokens_equal: float | None = measure("share of tokens that are those of `dense`, place by place", "quality")
    tokens_until_other: int | None = measure(
        "tokens before the first that is not, the least of all sequences", "quality"
    )
    rel_error: float | None = measure(
        "the largest of the checked layers, against fp32 on what their caches hold", "state"
    )
    completion: str | None = measure("what the first sequence said, where asked for; line breaks as \\n", "state")


class Generated(Row[GenerateCase, GenerateMeasures]):
    """A row of ``generate``."""

    benchmark = "generate"
    case_type = GenerateCase
    measures_type = GenerateMeasures

    def to_row(self) -> dict[str, Any]:
        row = super().to_row()
        if self.status == "incorrect":
            row |= {one.name: None for one in columns_of(GenerateMeasures) if one.name not in KEPT}
        return row
