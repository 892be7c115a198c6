"""Rows of what pruning costs a model: a setting over a text, beside the same model's dense run on the same tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hsbench.problem.elements import SIXTEEN_BIT
from hsbench.results.columns import about, columns_of, measure
from hsbench.results.identity import Case
from hsbench.results.row import Row

KEPT = ("rel_error", "simulated", "seconds", "windows_done")
"""Measures of a row whose check failed: nothing else of it may be quoted."""


@dataclass(frozen=True, kw_only=True)
class QualityCase(Case):
    """What a model's loss depends on, as far as it was asked for.

    Model and text are named and told apart by a hash each; where they lie is in the manifest.
    """

    model: str = field(metadata=about("its folder or file, by name", "name"))
    model_hash: str = field(metadata=about("12 digits of a digest of its configuration and weights", "name"))
    text: str = field(metadata=about("file of the text that is scored, by name", "name"))
    text_hash: str = field(metadata=about("the first 12 digits of its SHA-256", "name"))
    device: str = field(metadata=about("`cpu` or `cuda`", "name"))
    weights: str = field(metadata=about("element type of the model's weights", "name"))
    dtype: str = field(metadata=about("element type of q, K and V in the cache: `fp16` or `bf16`", "name"))
    when: str = field(metadata=about("when K and V are pruned: `decode`, `chunked` or `whole`", "setting"))
    chunk: int | None = field(metadata=about("tokens of a chunk, where they are pruned between chunks", "setting"))
    context: int = field(metadata=about("tokens before those that are scored", "shape"))
    score: int = field(metadata=about("tokens scored per window", "shape"))
    windows: int = field(metadata=about("stretches of the text, asked for", "shape"))
    method: str = field(metadata=about("how K and V are stored", "name"))
    elements: str = field(metadata=about("what the stored values are: `16bit`, `fp8`, `int4`, or K's/V's", "setting"))
    pruner: str | None = field(metadata=about("what decides which elements are pruned", "setting"))
    basis: str | None = field(metadata=about("file of a calibrated basis, by name", "setting"))
    plan: str | None = field(metadata=about("file of a plan of layers, by name; sparsities are then means", "setting"))
    key_sparsity: float = field(metadata=about("of K, asked for: share pruned among eligible blocks", "setting"))
    value_sparsity: float = field(metadata=about("the same of V", "setting"))
    evict: float = field(metadata=about("share of eligible blocks to be evicted, by attention mass", "setting"))
    sink: int = field(metadata=about("first tokens, whose blocks stay dense", "setting"))
    local: int = field(metadata=about("last tokens, whose blocks stay dense", "setting"))
    layer: int | None = field(metadata=about("the one layer that is pruned; empty: all", "setting"))
    head: int | None = field(metadata=about("the query head that `output_error` is of; empty: all", "setting"))
    depths: str | None = field(metadata=about("where passkeys were hidden, in shares of the context", "setting"))
    seed: int = field(metadata=about("of passkeys, and of which passes are checked", "setting"))
    threads: int | None = field(metadata=about("of torch and of our CPU kernels; empty on a GPU", "setting"))
    isa: str | None = field(metadata=about("instruction set of our CPU kernels; empty on a GPU", "setting"))

    @property
    def label(self) -> str:
        share = f"K {self.key_sparsity:g} V {self.value_sparsity:g}"
        parts = [
            f"quality {self.model}",
            self.text,
            f"{self.windows} x {self.context} + {self.score} tokens",
            self.when if self.chunk is None else f"{self.when} {self.chunk}",
            f"{self.dtype} cache, {self.weights} weights",
            self.elements * (self.elements != SIXTEEN_BIT.name),
            f"sparsity {self.key_sparsity:g}" if self.key_sparsity == self.value_sparsity else f"sparsity {share}",
            self.pruner,
            f"evict {self.evict:.4g}" * bool(self.evict),
            self.basis and f"basis {self.basis}",
            self.plan and f"plan {self.plan}",
            f"sink {self.sink}, local {self.local}",
            None if self.layer is None else f"layer {self.layer}",
            None if self.head is None else f"head {self.head}",
            self.depths and f"passkeys at {self.depths}",
            f"seed {self.seed}" * (self.seed != 0),
            self.device,
            None if self.threads is None else f"{self.threads} threads",
            self.isa,
        ]
        return f"{self.method}: {', '.join(filter(None, parts))}"


@dataclass(kw_only=True)
class QualityMeasures:
    """What is measured of a setting; all of it None in a row that did not run."""

    windows_done: int | None = measure("windows that the figures are of", "count")
    kl: float | None = measure("mean KL(dense || setting) per scored token, nats", "quality")
    kl_lo: float | None = measure("lower end of its 95 % interval", "quality")
    kl_hi: float | None = measure("upper end of its 95 % interval", "quality")
    dense_perplexity: float | None = measure("of the dense run, on the same tokens", "quality")
    perplexity: float | None = measure("exp of the mean -log p of the scored tokens", "quality")
    perplexity_change: float | None = measure("against the dense run's, paired by token", "quality", "%")
    perplexity_change_lo: float | None = measure("lower end of its 95 % interval", "quality", "%")
    perplexity_change_hi: float | None = measure("upper end of its 95 % interval", "quality", "%")
    top1: float | None = measure("share of tokens whose likeliest successor is the dense run's", "quality")
    top1_lo: float | None = measure("lower end of its 95 % interval", "quality")
    top1_hi: float | None = measure("upper end of its 95 % interval", "quality")
    interval_over: str | None = measure("what the intervals are over: `windows`, or `stretches` of 64 tokens", "state")
    interval_n: int | None = measure("how many of them", "count")
    needles: int | None = measure("passkeys that were hidden", "count")
    needle_nll: float | None = measure("mean over passkeys of -log p of the whole number, nats", "quality")
    needle_dense_nll: float | None = measure("the same in the dense run", "quality")
    needle_found: float | None = measure("share of passkeys that greedy decoding gives back", "quality")
    needle_dense_found: float | None = measure("the same in the dense run", "quality")
    output_error: float | None = measure(
        "norm(out - dense) / norm(dense) of a layer's or head's attention, on the model's own tensors", "quality"
    )
    kv_bytes: int | None = measure("what the attended layers store at the last pass of a window", "memory", "bytes")
    kv_ratio: float | None = measure("dense 16-bit bytes over stored bytes", "ratio")
    achieved_sparsity: float | None = measure("share of elements pruned among eligible blocks of K and V", "ratio")
    achieved_evict: float | None = measure("share of eligible blocks that are evicted, from K and V alike", "ratio")
    simulated: float | None = measure("share of layers where fp32 attention stood in for a kernel", "state")
    rel_error: float | None = measure("the largest of the checked passes, against fp32 on the stored K and V", "state")
    seconds: float | None = measure("what the setting took, all windows, the dense run not counted", "time", "s")


class Quality(Row[QualityCase, QualityMeasures]):
    """A row of ``quality``."""

    benchmark = "quality"
    case_type = QualityCase
    measures_type = QualityMeasures

    def to_row(self) -> dict[str, Any]:
        row = super().to_row()
        if self.status == "incorrect":
            row |= {one.name: None for one in columns_of(QualityMeasures) if one.name not in KEPT}
        return row
