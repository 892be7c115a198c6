"""What shape is measured: a frozen :class:`Workload`, which is valid or cannot be made.

This module imports no torch, so that a command line can be checked before anything heavy is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from hsbench.errors import UsageError, unknown
from hsbench.problem.elements import DEFAULT_INPUT, INPUTS, Element
from hsbench.problem.phase import PHASES, Phase
from hsbench.problem.shapes import find_shape

TENSORS = ("gaussian", "outliers")
HEAD_DIMS = (64, 128)
MAX_GROUP = 16
MAX_SPARSITY = 0.5

DEFAULT_WORKLOAD = "Llama-3.1-8B"
DEFAULT_SEQ = 32 * 1024
DEFAULT_BATCH = 1
DEFAULT_SPARSITY = 0.5
DEFAULT_DTYPE = DEFAULT_INPUT.name
DEFAULT_TENSORS = TENSORS[0]
PAPER_PRUNER = "magnitude"
"""The paper's. The others, and what they need, are in ``cache/pruner.py``."""

# Kernels count tokens and heads in 32 bits, so a larger size is a typing error, not a benchmark.
MAX_SIZE = 2**31 - 1

_NAMED = ("phase", "element")  # written by name
_LEAST = {
    "batch": 1,
    "q_heads": 1,
    "kv_heads": 1,
    "head_dim": 1,
    "q_len": 1,
    "seq": 1,
    "sink": 0,
    "local": 0,
    "seed": 0,
}
_CAPTURED = re.compile(r".+#layers\.\d+", re.DOTALL)


@dataclass(frozen=True)
class Workload:
    """One attention problem: phase, shape, dtype, what is pruned, and where the tensors come from.

    ``q`` is ``[batch, q_heads, q_len, head_dim]``; ``k`` and ``v`` are ``[batch, kv_heads, seq, head_dim]``.

    Attributes:
        phase: one of :data:`hsbench.problem.phase.PHASES`.
        name: a model's, see ``shapes``; ``custom`` where the heads are no model's, or ``captured``.
        element: of q, k and v: one of :data:`hsbench.problem.elements.INPUTS`.
        q_len: queries; 1 in decode. The last query sees all of ``seq``.
        seq: tokens in the KV cache.
        key_sparsity, value_sparsity: share of the elements of eligible blocks that are pruned, 0 to 0.5.
        sink, local: tokens at the start and at the end whose blocks stay dense.
        tensors: ``gaussian``, ``outliers``, or ``FILE.safetensors#layers.N`` for captured tensors.
        seed: seed of the synthetic tensors.
        pruner: by name: how K and V are pruned where a method has the choice.
        evict: share of eligible blocks that are evicted, 0 to 1, by the methods that do; None where nobody asked: none
            beside 2:4, and where nothing else is done to K and V, as many as make the cache as small as 2:4 does.

    Raises:
        UsageError: names the field, the value and the remedy.
    """

    phase: Phase
    name: str
    batch: int
    q_heads: int
    kv_heads: int
    head_dim: int
    element: Element
    q_len: int
    seq: int
    key_sparsity: float
    value_sparsity: float
    sink: int
    local: int
    tensors: str
    seed: int
    pruner: str = PAPER_PRUNER  # which workloads written down before there was another lack
    evict: float | None = None  # likewise

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            check_size(name, getattr(self, name), least)
        if not (isinstance(self.name, str) and self.name):
            raise UsageError("name", repr(self.name), "must be a name, such as Llama-3.1-8B or custom")
        if not (isinstance(self.pruner, str) and self.pruner):
            raise UsageError("pruner", repr(self.pruner), f"must be a name, such as {PAPER_PRUNER}")
        check_geometry(self.q_heads, self.kv_heads, self.head_dim)
        for name in ("key_sparsity", "value_sparsity"):
            object.__setattr__(self, name, check_sparsity(name, getattr(self, name)))
        if self.evict is not None:
            object.__setattr__(self, "evict", check_evict("evict", self.evict))
        if not (isinstance(self.tensors, str) and (self.tensors in TENSORS or _CAPTURED.fullmatch(self.tensors))):
            raise unknown("tensors", self.tensors, TENSORS)
        self.phase.q_len(self.q_len, self.seq)  # refuses what is not the phase's

    @property
    def group(self) -> int:
        """Query heads that share one KV head (GQA)."""
        return self.q_heads // self.kv_heads

    @property
    def dense_kv_bytes(self) -> int:
        """Bytes of K and V uncompressed."""
        return 2 * self.element.nbytes(self.batch * self.kv_heads * self.seq * self.head_dim)

    @property
    def query_bytes(self) -> int:
        """Bytes of q, which are those of an output, too."""
        return self.element.nbytes(self.batch * self.q_heads * self.q_len * self.head_dim)

    @property
    def dtype(self) -> str:
        """The element's name."""
        return self.element.name

    @property
    def is_synthetic(self) -> bool:
        """Whether its tensors are made, not captured."""
        return self.tensors in TENSORS

    @property
    def is_chunk(self) -> bool:
        """Whether it is a part of a prefill: fewer queries than there are tokens."""
        return self.phase.causal and self.q_len != self.seq

    @property
    def mean_sparsity(self) -> float:
        """Mean of the key and the value sparsity; K and V have the same number of elements."""
        return (self.key_sparsity + self.value_sparsity) / 2

    @property
    def pairs(self) -> int:
        """(query, key) pairs under the causal mask, of one query head; the last query sees all keys."""
        return self.q_len * self.seq - self.q_len * (self.q_len - 1) // 2

    @property
    def flops(self) -> int:
        """Dense-equivalent FLOPs: a multiply and an add, in two products, per pair and head dimension."""
        return 4 * self.batch * self.q_heads * self.head_dim * self.pairs

    def to_dict(self) -> dict[str, Any]:
        """Every field, as JSON can hold it; phase and element by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            "dtype" if name == "element" else name: str(value) if name in _NAMED else value
            for name, value in values.items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Workload:
        """The inverse of :meth:`to_dict`.

        Raises:
            KeyError, TypeError, UsageError: a field is missing, unknown, or of the wrong kind or value.
        """
        rest = {name: value for name, value in values.items() if name not in ("phase", "dtype")}
        return cls(phase=PHASES[values["phase"]], element=INPUTS[values["dtype"]], **rest)


def check_size(name: str, value: object, least: int = 1) -> None:
    """Check a count of tokens, heads, sequences or such.

    Raises:
        UsageError: not a whole number, below ``least``, or 2³¹ and more; it names ``name``.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise UsageError(name, repr(value), "not a whole number; give one such as 4096")
    if value < least:
        raise UsageError(name, value, f"must be at least {least}; give a size such as {max(least, 64)}")
    if value > MAX_SIZE:
        raise UsageError(name, value, f"must be at most {MAX_SIZE}; give a size such as 128k")


def check_sparsity(name: str, value: object) -> float:
    """A share of pruned elements, 0 to 0.5, as a float.

    Raises:
        UsageError: not a number, NaN, or outside the range; it names ``name``.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        shown = value if isinstance(value, float) else repr(value)
        raise UsageError(name, shown, "not a number; give a share from 0 to 0.5")
    if value < 0:
        raise UsageError(name, value, "must be 0 to 0.5; give 0 to keep every block dense")
    if value > MAX_SPARSITY:
        remedy = "must be 0 to 0.5; 2:4 prunes half of a block at most, so 0.5 makes every eligible block 2:4"
        raise UsageError(name, value, remedy)
    return value + 0.0  # -0.0 and 0.0 are the same cell of a sweep and must print alike


def check_evict(name: str, value: object) -> float:
    """A share of evicted blocks, 0 to 1, as a float.

    Raises:
        UsageError: not a number, NaN, or outside the range; it names ``name``.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        shown = value if isinstance(value, float) else repr(value)
        raise UsageError(name, shown, "not a number; give a share from 0 to 1")
    if not 0 <= value <= 1:
        raise UsageError(name, value, "must be 0 to 1; 0.5 drops half of the blocks, 1 all but --sink and --local")
    return value + 0.0


def check_geometry(q_heads: int, kv_heads: int, head_dim: int) -> None:
    """Check what every method needs of the heads.

    Raises:
        UsageError: the query heads are no multiple of the KV heads, the group is above 16, or the head
            dimension is neither 64 nor 128.
    """
    if head_dim not in HEAD_DIMS:
        raise UsageError("head_dim", head_dim, f"must be {' or '.join(map(str, HEAD_DIMS))}")
    if q_heads % kv_heads:
        raise UsageError("q_heads", q_heads, f"must be a multiple of `kv_heads` {kv_heads}")
    if (group := q_heads // kv_heads) > MAX_GROUP:
        what = f"{q_heads} query heads over {kv_heads} kv heads is a group of {group}"
        raise UsageError("q_heads", q_heads, f"{what}; give at most {MAX_GROUP * kv_heads}, or more `kv_heads`")


def make_workload(
    phase: Phase | str,
    *,
    workload: str = DEFAULT_WORKLOAD,
    seq: int = DEFAULT_SEQ,
    batch: int = DEFAULT_BATCH,
    q_heads: int | None = None,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    dtype: str = DEFAULT_DTYPE,
    q_len: int | None = None,
    sparsity: float = DEFAULT_SPARSITY,
    key_sparsity: float | None = None,
    value_sparsity: float | None = None,
    sink: int = 0,
    local: int = 0,
    tensors: str = DEFAULT_TENSORS,
    seed: int = 0,
    pruner: str = PAPER_PRUNER,
    evict: float | None = None,
) -> Workload:
    """Build a workload from a model's shape and overrides.

    Args:
        phase: or its name.
        workload: a model's name, in any case. Where the heads differ from the model's, the name is ``custom``.
        q_heads, kv_heads, head_dim: None for the model's.
        q_len: None for as many as the phase has by itself: one in decode, every token in prefill.
        sparsity: of K and V where ``key_sparsity`` or ``value_sparsity`` does not say otherwise.

    Raises:
        UsageError: names the field, the value and the remedy.
    """
    if isinstance(phase, str):
        if phase not in PHASES:
            raise unknown("phase", phase, PHASES)
        phase = PHASES[phase]
    if dtype not in INPUTS:
        raise unknown("dtype", dtype, INPUTS)
    shape = find_shape(workload)
    usual = (shape.q_heads, shape.kv_heads, shape.head_dim)
    asked = (q_heads, kv_heads, head_dim)
    heads = tuple(own if given is None else given for given, own in zip(asked, usual, strict=True))
    both = check_sparsity("sparsity", sparsity)
    check_size("seq", seq)
    return Workload(
        phase=phase,
        name=shape.name if heads == usual else "custom",
        batch=batch,
        q_heads=heads[0],
        kv_heads=heads[1],
        head_dim=heads[2],
        element=INPUTS[dtype],
        q_len=phase.q_len(None, seq) if q_len is None else q_len,
        seq=seq,
        key_sparsity=both if key_sparsity is None else key_sparsity,
        value_sparsity=both if value_sparsity is None else value_sparsity,
        sink=sink,
        local=local,
        tensors=tensors,
        seed=seed,
        pruner=pruner,
        evict=evict,
    )
