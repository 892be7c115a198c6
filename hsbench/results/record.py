"""What is reported: one `Record` per (phase, method, shape, sparsity), the same columns in every format.

The field order of `Record` is the column order of the CSV and of the JSON rows, and a field's type is the type of its
column in every row; nothing else defines either. Units are in the names. A field that does not apply is None: an empty
cell in CSV, null in JSON.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

if TYPE_CHECKING:
    from hsbench.problem.workload import Workload

#: 2: what the GPU did meanwhile and the memory that was taken, behind the columns of 1. 3: `sustain_s`, behind those.
SCHEMA = "hsbench/3"

#: ok: checked and timed. incorrect: the output failed its check. oom: did not fit, or was estimated not to.
#: unsupported: the method cannot do this shape, or no method can do these tensors. unavailable: it could, with
#: something this machine lacks. interrupted: the user stopped the run before the row was done.
STATUSES = ("ok", "incorrect", "oom", "unsupported", "unavailable", "interrupted")

#: Families that attend to all of K and V.
DENSE_FAMILIES = ("reference", "sdpa", "dense")


@dataclass(kw_only=True)
class Record:
    """One row of results.

    Raises:
        ValueError: a status outside `STATUSES`, or a row that is not ok and does not say why (an interrupted
            row needs no reason).
    """

    schema: str = SCHEMA
    phase: str  # "decode" | "prefill"
    method: str  # "family" or "family:variant"
    device: str  # "cpu" | "cuda"
    workload: str  # the profile's name
    batch: int
    q_heads: int
    kv_heads: int
    head_dim: int
    dtype: str  # "fp16" | "bf16"
    q_len: int  # query tokens
    seq: int  # KV tokens
    key_sparsity: float  # requested, share of elements pruned among eligible blocks
    value_sparsity: float
    achieved_sparsity: float | None = None
    status: str
    reason: str | None = None  # one line; why the row is not ok
    time_us: float | None = None  # median
    time_us_p25: float | None = None
    time_us_p75: float | None = None
    samples: int | None = None
    stop: str | None = None  # why sampling ended
    speedup: float | None = None  # baseline time over this time
    speedup_lo: float | None = None
    speedup_hi: float | None = None
    baseline: str | None = None  # the fastest dense method that ran
    kv_bytes: int | None = None  # stored KV cache, everything a kernel reads of it
    kv_ratio: float | None = None  # dense bytes over stored bytes
    read_bytes: int | None = None  # bytes the method must read per call
    gb_per_s: float | None = None
    tflop_per_s: float | None = None  # dense-equivalent
    percent_of_peak: float | None = None
    peak: str | None = None  # the probe that percent_of_peak is against
    rel_error: float | None = None  # against the fp32 reference on the method's own pruned K and V
    cache: str | None = None
    sm_clock_mhz: float | None = None
    power_w: float | None = None
    throttled: bool | None = None
    seed: int | None = None
    tensors: str | None = None  # "gaussian" | "outliers" | "FILE#layers.N"
    memory_clock_mhz: float | None = None
    temperature_c: float | None = None
    throttle_reasons: str | None = None  # NVML's names joined by "+", or "cpu_quota"; None when nothing held it back
    throttled_share: float | None = None  # of this method's samples
    shared: bool | None = None  # others used the device while this run sampled; None where that cannot be told
    estimated_bytes: int | None = None  # memory beyond q, k and v, before anything was allocated
    peak_bytes: int | None = None  # the same as it came: torch's allocator; on a CPU, resident memory
    gpu_used_bytes: int | None = None  # NVML's count of the whole GPU right after this method's check
    sustain_s: float | None = None  # seconds that the method ran, alone and untimed, before each of its samples

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"status {self.status!r}: must be one of {', '.join(STATUSES)}")
        # One line, so that a CSV row is a line too: torch's messages span several.
        self.reason = " ".join(self.reason.split()) or None if self.reason is not None else None
        if self.reason is None and self.status not in ("ok", "interrupted"):
            raise ValueError(f"status {self.status!r} of {self.method} needs a reason")

    @classmethod
    def of(cls, workload: Workload, *, method: str, device: str, status: str, **columns: Any) -> Record:
        """A record with the workload's columns filled in; `columns` are any others by name."""
        return cls(
            phase=workload.phase.name, method=method, device=device, workload=workload.name, batch=workload.batch,
            q_heads=workload.q_heads, kv_heads=workload.kv_heads, head_dim=workload.head_dim,
            dtype=workload.dtype, q_len=workload.q_len, seq=workload.seq, key_sparsity=workload.key_sparsity,
            value_sparsity=workload.value_sparsity, seed=workload.seed, tensors=workload.tensors,
            status=status, **columns,
        )  # fmt: skip

    @property
    def marks(self) -> str:
        """Signs behind a name or a time that ask for care: "*" throttled, "+" shared."""
        return "*" * bool(self.throttled) + "+" * bool(self.shared)

    @property
    def family(self) -> str:
        """The method without its variant."""
        return self.method.partition(":")[0]

    def identity(self) -> tuple[Any, ...]:
        """What makes this row this row: equal for two records of the same method and cell."""
        return tuple(getattr(self, name) for name in _IDENTITY)

    def to_row(self) -> dict[str, Any]:
        """The columns in order, as plain Python values.

        Each has its field's type, so that a column of floats holds no int, whatever was put in. NaN and infinities
        become None (JSON has neither). A row that is not ok never carries a speedup, whoever filled it in: a result
        that failed its check must not be quoted.

        Raises:
            TypeError: a value that its field's type cannot hold, such as 1.5 where a count belongs.
        """
        row = {name: _typed(name, plain(getattr(self, name))) for name in COLUMNS}
        if self.status != "ok":
            row["speedup"] = row["speedup_lo"] = row["speedup_hi"] = None
        return row


COLUMNS = tuple(column.name for column in fields(Record))
#: Of each column: what is left of its field's type without None.
_TYPES: dict[str, type] = {
    name: next((part for part in get_args(hint) if part is not type(None)), hint)
    for name, hint in get_type_hints(Record).items()
}
_IDENTITY = COLUMNS[: COLUMNS.index("achieved_sparsity")] + ("seed", "tensors")


def _typed(name: str, value: Any) -> Any:
    """A plain value as the type of its column."""
    wanted = _TYPES[name]
    if value is None or type(value) is wanted:
        return value
    if type(value) in (int, float) and wanted in (int, float) and wanted(value) == value:
        return wanted(value)
    raise TypeError(f"{name} {value!r}: the column holds {wanted.__name__}")


@dataclass
class Result:
    """A record with what does not fit a column.

    Args:
        memory: stored bytes of the KV cache by component, such as ``{"2:4 values": ..., "metadata": ...}``.
        note: one line that a reader of the table should see.
    """

    record: Record
    memory: dict[str, int] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Peak:
    """A ceiling measured by a probe on this machine in this run; `unit` is "GB/s" or "TFLOP/s"."""

    name: str  # "read", "copy", "gemm fp32", ...
    value: float
    unit: str


@dataclass
class Report:
    """Everything about one workload.

    Args:
        machine: facts, nested by string keys. The tables show `cpu` (model, cores, threads, isa, governor),
            `gpu` (name, driver, power limit, ECC, MIG, persistence) or None, `versions` (name to version),
            `missing` (remedies) and `warnings` (lists of lines), and plain values at the top. The JSON holds all
            of it.
        peaks: by the name that `Record.peak` uses.
        interrupted: the user stopped the run; rows not reached have status "interrupted".
    """

    workload: Workload
    results: list[Result] = field(default_factory=list)
    machine: dict[str, Any] = field(default_factory=dict)
    peaks: dict[str, Peak] = field(default_factory=dict)
    interrupted: bool = False


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: numpy and torch scalars unwrapped, non-finite floats None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
