"""Everything about one workload's run: its records, and what they are seen against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from hsbench.results.attention import Record
from hsbench.results.generate import Generated
from hsbench.results.quality import Quality
from hsbench.results.row import Row

if TYPE_CHECKING:
    from hsbench.problem.workload import Workload


R = TypeVar("R", bound=Row[Any, Any])


@dataclass
class Result(Generic[R]):
    """A row with what does not fit a column.

    Args:
        memory: stored bytes of the KV cache by component, such as ``{"2:4 values": ..., "metadata": ...}``.
        note: one line that a reader of the table should see.
    """

    record: R
    memory: dict[str, int] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class MeasuredCeiling:
    """What a probe reached on this machine in this run; `unit` is "GB/s" or "TFLOP/s"."""

    name: str  # "read", "copy", "gemm fp32", ...
    value: float
    unit: str


class Reported(Protocol):
    """What writers ask of a report, whatever its rows are of."""

    @property
    def results(self) -> Sequence[Result[Any]]: ...
    @property
    def machine(self) -> dict[str, Any]: ...
    @property
    def ceilings(self) -> dict[str, MeasuredCeiling]: ...


@dataclass
class Report:
    """Everything about one workload.

    Args:
        machine: facts, nested by string keys. The tables show `cpu` (model, cores, threads, isa, governor),
            `gpu` (name, driver, power limit, ECC, MIG, persistence) or None, `versions` (name to version),
            `missing` (remedies) and `warnings` (lists of lines), and plain values at the top. The JSON holds all
            of it.
        ceilings: by the name that the records' `ceiling` uses.
        interrupted: the user stopped the run; rows not reached have status "interrupted".
    """

    workload: Workload
    results: list[Result[Record]] = field(default_factory=list)
    machine: dict[str, Any] = field(default_factory=dict)
    ceilings: dict[str, MeasuredCeiling] = field(default_factory=dict)
    interrupted: bool = False


@dataclass
class ModelReport(Generic[R]):
    """Everything about one run of a command that runs a model.

    Args:
        machine, interrupted: as of `Report`.
        notes: label and line, of the model.
    """

    results: list[Result[R]] = field(default_factory=list)
    machine: dict[str, Any] = field(default_factory=dict)
    ceilings: dict[str, MeasuredCeiling] = field(default_factory=dict)
    notes: list[tuple[str, str]] = field(default_factory=list)
    interrupted: bool = False


QualityReport = ModelReport[Quality]
GenerateReport = ModelReport[Generated]
