"""Rows of one attention call: a method over a cache of a given shape, timed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hsbench.kernels.device import Device
from hsbench.methods import DENSE_FAMILIES, PRUNER_FAMILIES, evict_of
from hsbench.problem.elements import STORED
from hsbench.problem.workload import PAPER_PRUNER
from hsbench.results.columns import about, measure
from hsbench.results.identity import Case
from hsbench.results.row import Row

if TYPE_CHECKING:
    from hsbench.problem.workload import Workload


@dataclass(frozen=True, kw_only=True)
class AttentionCase(Case):
    """What an attention call's time, memory and error depend on, as far as it was asked for.

    ``threads`` and ``isa`` are in it because they are chosen (``OMP_NUM_THREADS``, ``HSBENCH_ISA``). A row of torch's
    has ``isa`` too: its speedup is against a baseline that may be ours. Which cores or which GPU is the machine's.
    A file of captured tensors is named, not described: the manifest has its SHA-256.
    """

    phase: str = field(metadata=about("`decode` or `prefill`", "name"))
    method: str = field(metadata=about("`family` or `family:variant`", "name"))
    dense: bool = field(metadata=about("whether the method attends to all of K and V", "name"), compare=False)
    device: str = field(metadata=about("`cpu` or `cuda`", "name"))
    workload: str = field(metadata=about("the model whose shape it is, `custom`, or `captured`", "name"))
    batch: int = field(metadata=about("sequences", "shape"))
    q_heads: int = field(metadata=about("query heads", "shape"))
    kv_heads: int = field(metadata=about("key and value heads", "shape"))
    head_dim: int = field(metadata=about("elements of a head", "shape"))
    dtype: str = field(metadata=about("element type of q, k and v: `fp16` or `bf16`", "name"))
    q_len: int = field(metadata=about("query tokens; 1 in decode, fewer than `seq` in a chunk of a prefill", "shape"))
    seq: int = field(metadata=about("tokens in the KV cache", "shape"))
    key_sparsity: float = field(metadata=about("of K, asked for: share pruned among eligible blocks", "setting"))
    value_sparsity: float = field(metadata=about("the same of V", "setting"))
    pruner: str = field(metadata=about("what decides which elements are pruned, see below", "setting"))
    evict: float = field(metadata=about("share of eligible blocks to be evicted, see below", "setting"))
    sink: int | None = field(metadata=about("first tokens, whose blocks stay dense", "setting"))
    local: int | None = field(metadata=about("last tokens, whose blocks stay dense", "setting"))
    tensors: str = field(metadata=about("`gaussian`, `outliers`, or `FILE#layers.N`", "name"))
    seed: int = field(metadata=about("of the synthetic tensors and of the order of the samples", "setting"))
    cache: str | None = field(metadata=about("the device's own caches before a sample: `cold` or `warm`", "setting"))
    sustain_s: float | None = field(
        metadata=about("how long a method ran, alone and untimed, before each of its samples", "setting", "s")
    )
    threads: int | None = field(metadata=about("of the CPU methods; empty on a GPU", "setting"))
    isa: str | None = field(metadata=about("instruction set of our CPU kernels; empty on a GPU", "setting"))
    ranks: int = field(metadata=about("processes that the sequence is sharded over, each on its device", "setting"))

    @property
    def family(self) -> str:
        """The method without its variant."""
        return self.method.partition(":")[0]

    @property
    def label(self) -> str:
        parts = [
            f"{self.phase} {self.workload}, {self.seq} tokens",
            f"the last {self.q_len} as queries" * (self.q_len not in (1, self.seq)),
            f"batch {self.batch}" * (self.batch != 1),
            f"{self.q_heads}/{self.kv_heads}x{self.head_dim}" * (self.workload in ("custom", "captured")),
            self.dtype,
            f"sparsity {self.key_sparsity:g}" if self.key_sparsity == self.value_sparsity
            else f"sparsity K {self.key_sparsity:g} V {self.value_sparsity:g}",
            self.pruner * (self.pruner != PAPER_PRUNER),
            f"evict {self.evict:.4g}" * bool(self.evict),
            f"sink {self.sink}" * bool(self.sink),
            f"local {self.local}" * bool(self.local),
            self.tensors * (self.tensors != "gaussian"),
            f"seed {self.seed}" * (self.seed != 0),
            "warm" * (self.cache == "warm"),
            f"sustained {self.sustain_s or 0:g} s" * bool(self.sustain_s),
            self.device,
            f"{self.ranks} ranks" * (self.ranks != 1),
            f"{self.threads} threads" * (self.threads is not None),
            self.isa or "",
        ]  # fmt: skip
        return f"{self.method}: {', '.join(filter(None, parts))}"


@dataclass(kw_only=True)
class AttentionMeasures:
    """What is measured of an attention call; all of it None in a row that did not run."""

    achieved_sparsity: float | None = measure("share of elements pruned among eligible blocks of K and V", "ratio")
    achieved_evict: float | None = measure("share of eligible blocks that are evicted, from K and V alike", "ratio")
    evict_by: str | None = measure(
        "what chose them: `attention mass` or `key norm`; empty where there are none", "state"
    )
    time_us: float | None = measure("median of the samples", "time", "us")
    time_us_p25: float | None = measure("lower quartile", "time", "us")
    time_us_p75: float | None = measure("upper quartile", "time", "us")
    samples: int | None = measure("how many there are", "count")
    stop: str | None = measure("why there are no more: `converged`, `budget`, `max_samples`, `interrupted`", "state")
    speedup: float | None = measure("the baseline's time over this time", "ratio", ok_only=True)
    speedup_lo: float | None = measure("lower end of its 95 % interval", "ratio", ok_only=True)
    speedup_hi: float | None = measure("upper end of its 95 % interval", "ratio", ok_only=True)
    baseline: str | None = measure("the fastest dense method that ran", "state")
    kv_bytes: int | None = measure("stored KV cache: values, metadata, block map, padding", "memory", "bytes")
    kv_ratio: float | None = measure("dense bytes over stored bytes", "ratio")
    read_bytes: int | None = measure("what the method must read per call", "memory", "bytes")
    gb_per_s: float | None = measure("decode: `read_bytes` over the time, in 10^9 bytes", "rate", "GB/s")
    tflop_per_s: float | None = measure("prefill: dense-equivalent work over the time", "rate", "TFLOP/s")
    ceiling: str | None = measure("the probe, taken in this run, that the next column is against", "state")
    percent_of_ceiling: float | None = measure("the rate over the probe's; sparse may pass 100", "rate", "%")
    rel_error: float | None = measure("norm(out - reference) / norm(reference), on the method's own K and V", "quality")
    cold_by: str | None = measure("what made the caches cold: `working set` or `flushed`; empty when warm", "state")
    sm_clock_mhz: float | None = measure("GPU: median over the method's samples", "state", "MHz")
    memory_clock_mhz: float | None = measure("GPU: the same", "state", "MHz")
    power_w: float | None = measure("GPU: the same", "state", "W")
    temperature_c: float | None = measure("GPU: the same", "state", "C")
    throttled: bool | None = measure("whether any sample had clocks held down or threads stopped by a quota", "state")
    throttle_reasons: str | None = measure("its names: NVML's joined by `+`, or `cpu_quota`", "state")
    throttled_share: float | None = measure("in which share of the samples", "state")
    shared: bool | None = measure("whether others used the device meanwhile; empty where that cannot be told", "state")
    estimated_bytes: int | None = measure("memory beyond q, k and v, before anything was allocated", "memory", "bytes")
    peak_bytes: int | None = measure(
        "the same as it came: torch's allocator on a GPU, resident memory on a CPU", "memory", "bytes"
    )
    gpu_used_bytes: int | None = measure("NVML's count of the whole GPU after the method's check", "memory", "bytes")
    shard_tokens: int | None = measure("over ranks: tokens of the largest shard", "shape")
    device_kv_bytes: int | None = measure("over ranks: `kv_bytes` of the device that holds most", "memory", "bytes")
    collective_us: float | None = measure(
        "over ranks: the time behind the slowest rank's own part: its collective, and the combination", "time", "us"
    )
    part_us: float | None = measure("over ranks: the time without that, of the slowest rank", "time", "us")
    efficiency: float | None = measure(
        "over ranks: one rank's time over `ranks` times this time; see the next column", "ratio"
    )
    efficiency_by: str | None = measure(
        "what one rank's time is: `one rank`, measured in this run over all tokens, or `part`: `ranks` times "
        "`part_us`, where they do not fit one device",
        "state",
    )


class Record(Row[AttentionCase, AttentionMeasures]):
    """A row of ``decode``, ``prefill`` and ``compare``."""

    benchmark = "attention"
    case_type = AttentionCase
    measures_type = AttentionMeasures

    @classmethod
    def of(
        cls,
        workload: Workload,
        *,
        method: str,
        device: Device | str,
        cache: str,
        sustain_s: float,
        status: str,
        reason: str | None = None,
        machine: Mapping[str, Any] | None = None,
        ranks: int = 1,
        **measures: Any,
    ) -> Record:
        """A record of a workload.

        Args:
            cache: "cold" or "warm", as asked for.
            sustain_s: as asked for.
            machine: the facts of `Report.machine`; on a CPU, its threads and instruction set are part of the case.
            ranks: processes that the sequence is sharded over.
            measures: by name.

        Raises:
            TypeError: a measure that there is not.
        """
        kind = Device.of(device).kind
        cpu = (machine or {}).get("cpu") if kind == "cpu" else None
        pruner = workload.pruner if method.partition(":")[0] in PRUNER_FAMILIES else PAPER_PRUNER
        case = AttentionCase(
            phase=str(workload.phase), method=method, dense=is_dense(method), device=kind, workload=workload.name,
            batch=workload.batch, q_heads=workload.q_heads, kv_heads=workload.kv_heads, head_dim=workload.head_dim,
            dtype=workload.dtype, q_len=workload.q_len, seq=workload.seq, key_sparsity=workload.key_sparsity,
            value_sparsity=workload.value_sparsity, pruner=pruner,
            evict=evict_of(method, workload, Device.of(device)), sink=workload.sink, local=workload.local,
            tensors=workload.tensors, seed=workload.seed, cache=cache, sustain_s=sustain_s,
            threads=(cpu or {}).get("threads"), isa=(cpu or {}).get("isa"), ranks=ranks,
        )  # fmt: skip
        return cls(case, AttentionMeasures(**measures), status, reason)

    @property
    def method(self) -> str:
        """``family`` or ``family:variant``."""
        return self.case.method

    @property
    def family(self) -> str:
        """The method without its variant."""
        return self.case.family

    @property
    def marks(self) -> str:
        """Signs behind a name or a time that ask for care: "*" throttled, "+" shared."""
        return "*" * bool(self.measures.throttled) + "+" * bool(self.measures.shared)


def is_dense(method: str) -> bool:
    """Whether a method, by name, attends to all of K and V, as they are."""
    family, *variants = method.split(":")
    return family in DENSE_FAMILIES and not any(name in STORED and STORED[name].has_scale for name in variants)


COLUMNS = tuple(column.name for column in Record.columns())
