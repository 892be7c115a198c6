"""The phases of inference whose attention is measured: everything that differs between them stands in one table.

A phase is a value: code asks it (``phase.causal``, ``phase.rate.unit``) and never compares names.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from hsbench.errors import UsageError


@dataclass(frozen=True)
class Rate:
    """What is told of a method's speed beside its time: work over time.

    Attributes:
        column: the measure's name in a record.
        unit: as it is shown.
        work: what counts as work: stored bytes that a call must read, or dense-equivalent FLOPs.
        per_unit: work of one unit.
    """

    column: str
    unit: str
    work: Literal["read_bytes", "flops"]
    per_unit: float


@dataclass(frozen=True)
class Phase:
    """One phase.

    Attributes:
        name: as typed and reported; also the kernels' operation.
        causal: whether many queries attend, each up to itself; else one query sees all of the cache.
        rate: what of its speed is reported.
        ceiling: the probe of what bounds it: ``read`` or ``gemm``.
        on_request: families of methods that run in it only when they are asked for.
    """

    name: str
    causal: bool
    rate: Rate
    ceiling: Literal["read", "gemm"]
    on_request: frozenset[str] = field(default_factory=frozenset)

    def q_len(self, asked: int | None, seq: int) -> int:
        """Queries of a workload over ``seq`` tokens; ``asked`` None: as many as the phase has by itself.

        Raises:
            UsageError: more than there are tokens, or not the one that the phase has.
        """
        if asked is None:
            return seq if self.causal else 1
        if not self.causal and asked != 1:
            raise UsageError("q_len", asked, f"{self} has one query; leave it out, or run prefill")
        if asked > seq:
            raise UsageError("q_len", asked, f"more queries than the {seq} tokens of `seq`; give at most {seq}")
        return asked

    def __str__(self) -> str:
        return self.name


DECODE = Phase("decode", causal=False, rate=Rate("gb_per_s", "GB/s", "read_bytes", 1e9), ceiling="read")
# One run of the fp32 reference takes minutes in prefill, and the check runs it on sampled rows anyway.
PREFILL = Phase(
    "prefill",
    causal=True,
    rate=Rate("tflop_per_s", "TFLOP/s", "flops", 1e12),
    ceiling="gemm",
    on_request=frozenset({"reference"}),
)

PHASES = {phase.name: phase for phase in (DECODE, PREFILL)}
"""By name, the one to take where nobody asks first."""
