"""What a run measures, resolved: cells with the rows that run, the device, the settings.

It is resolved once, here, whoever asks, and written down as JSON: the "run" part of a manifest, which ``--replay``
reads, and what a run under a profiler is given. Where results go is no part of it.

    {"schema": "hsbench-plan/2", "device", "methods" (asked for, or null), "settings",
     "ranks" (where the sequence is sharded over several),
     "cells": [{"workload": {every field}, "methods": [rows], "captured": null or {"path", "layer", "sha256"},
                "basis": the same, where the pruner takes one}]}

A plan without "schema" is of version 1, which may name families in a cell's methods. Workloads of before there was a
choice of pruners do not name theirs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hsbench.cache.basis import BasisLayer
from hsbench.cache.pruner import check_sources, pruner_of
from hsbench.distributed.shards import Shard, shards_of
from hsbench.errors import UsageError
from hsbench.kernels.device import KINDS, Device
from hsbench.machine.hardware import resolve_device
from hsbench.methods import check_methods, find_methods
from hsbench.problem.captured import Captured, open_captured
from hsbench.problem.workload import PAPER_PRUNER, Workload, check_size
from hsbench.run.settings import Settings

if TYPE_CHECKING:
    from hsbench.problem.phase import Phase

SCHEMA = "hsbench-plan/2"
_NAME, _, _VERSION = SCHEMA.partition("/")

#: What of captured tensors must be what the workload says.
_SHAPE = ("batch", "q_heads", "kv_heads", "head_dim", "dtype", "q_len", "seq")

Problem = tuple[Workload, Captured | None]
"""A workload, and its tensors where they are captured."""


class TensorsGoneError(UsageError):
    """Captured tensors or the basis of a plan cannot be had any more, or have another shape."""


class MethodsGoneError(UsageError):
    """The methods that were asked for are not there on another device."""


@dataclass(frozen=True)
class Cell:
    """One workload of a plan: the rows that run, by name, its tensors where they are captured, and the basis that its
    pruner takes."""

    workload: Workload
    methods: tuple[str, ...]
    captured: Captured | None = None
    basis: BasisLayer | None = None

    @property
    def label(self) -> str:
        """What tells a cell from its neighbours, for the progress bar."""
        w = self.workload
        sparsity = f"{w.key_sparsity:g}" if w.key_sparsity == w.value_sparsity else "mixed"
        pruner = f" {w.pruner}" if w.pruner != PAPER_PRUNER else ""
        evict = f" evict {w.evict:g}" if w.evict is not None else ""
        return f"{w.phase} {w.name} seq {w.seq} batch {w.batch} {w.dtype} sparsity {sparsity}{pruner}{evict}"

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it, captured tensors by where they are and what they hold."""
        captured, basis = {"captured": _source(self.captured)}, {"basis": _source(self.basis)} if self.basis else {}
        return {"workload": self.workload.to_dict(), "methods": list(self.methods), **captured, **basis}


@dataclass(frozen=True)
class Plan:
    """What to run; everything in it is checked.

    Attributes:
        cells: in the order they run, none twice.
        methods: names asked for; None for all that suit a cell's phase.
        device: where they run.
        settings: how to measure.
        ranks: processes that a cell's sequence is sharded over.
    """

    cells: tuple[Cell, ...]
    methods: tuple[str, ...] | None
    device: Device
    settings: Settings
    ranks: int = 1

    def __post_init__(self) -> None:
        for cell in self.cells:
            check_ranks(cell.workload, self.ranks)

    def of(self, cell: Cell, rows: Sequence[str]) -> Plan:
        """The plan of one cell alone, and of some of its rows, in one process: over ranks, of the first rank's part."""
        workload = part_of(cell.workload, shards_of(cell.workload.seq, self.ranks)[0])
        return Plan((replace(cell, workload=workload, methods=tuple(rows)),), tuple(rows), self.device, self.settings)

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it.

        Raises:
            UsageError, UnavailableError: captured tensors cannot be read.
        """
        return {
            "schema": SCHEMA,
            "device": self.device.kind,
            "methods": None if self.methods is None else list(self.methods),
            "settings": self.settings.to_dict(),
            **({"ranks": self.ranks} if self.ranks != 1 else {}),
            "cells": [cell.to_dict() for cell in self.cells],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], device: str | None = None) -> Plan:
        """The inverse of :meth:`to_dict`: every field is checked, and captured tensors are looked for.

        Args:
            device: where to run it in place of its own device: ``auto``, ``cpu`` or ``cuda``. On another one, a cell's
                rows are those of the methods that were asked for.

        Raises:
            KeyError, TypeError, ValueError, AttributeError, UsageError: it is damaged, or a newer version's.
            TensorsGoneError, MethodsGoneError, UnavailableError: it is sound, but what it needs is not there.
        """
        _check_version(values)
        asked = None if values["methods"] is None else tuple(check_methods(_names(values["methods"])))
        own = values["device"]
        if own not in KINDS:
            raise ValueError(f"device {own!r}")
        settings = Settings.from_dict(values["settings"])
        entries = values["cells"]
        workloads = [Workload.from_dict(entry["workload"]) for entry in entries]
        if not workloads:
            raise ValueError("no cells")
        recorded = [tuple(check_methods(_names(entry["methods"]))) for entry in entries]
        tensors = [
            _captured(entry.get("captured"), workload) for entry, workload in zip(entries, workloads, strict=True)
        ]
        bases = [_basis(entry.get("basis"), workload) for entry, workload in zip(entries, workloads, strict=True)]
        now_on = resolve_device(own if device is None else device)
        cells = []
        for workload, names, captured, basis in zip(workloads, recorded, tensors, bases, strict=True):
            if now_on.kind == own:
                rows = row_names(names, workload.phase, now_on, recorded=True)
            else:
                try:
                    rows = row_names(asked, workload.phase, now_on)
                except UsageError as error:
                    raise MethodsGoneError("device", device, str(error)) from error
            cells.append(Cell(workload, rows, captured, basis))
        ranks = values.get("ranks", 1)
        check_size("ranks", ranks)
        return cls(tuple(cells), asked, now_on, settings, ranks)


def make_plan(
    problems: Iterable[Problem],
    methods: Sequence[str] | None,
    device: Device | None,
    settings: Settings | None = None,
    basis: BasisLayer | None = None,
    ranks: int = 1,
) -> Plan:
    """Resolves what to run.

    Args:
        problems: workloads, each of which becomes one cell however often it is there.
        methods: ``family`` or ``family:variant`` names; None for all that suit a cell's phase.
        device: where; None takes the GPU where there is one.
        settings: how to measure.
        basis: for the cells whose pruner takes one.
        ranks: processes that a cell's sequence is sharded over.

    Raises:
        UsageError: an unknown method or pruner, a variant that is not there in one of the cells, no basis where one is
            needed, or one for other heads; a sequence that cannot be sharded so.
    """
    where = resolve_device("auto") if device is None else device
    asked = None if methods is None else tuple(check_methods(methods))
    distinct = dict.fromkeys(problems)
    # Which rows a name stands for depends on phase and device; a sweep must not find out in its last cell.
    rows = {phase: row_names(asked, phase, where) for phase in dict.fromkeys(w.phase for w, _ in distinct)}
    cells = tuple(
        Cell(workload, rows[workload.phase], captured, basis_for(workload, basis)) for workload, captured in distinct
    )
    return Plan(cells, asked, where, settings or Settings(), ranks)


def part_of(workload: Workload, shard: Shard) -> Workload:
    """A rank's part of a workload, as one of its own."""
    sink, local = shard.sink(workload.sink), shard.local(workload.local)
    return replace(workload, seq=shard.tokens, sink=sink, local=local)


def check_ranks(workload: Workload, ranks: int) -> None:
    """Refuses a workload that cannot be sharded over so many ranks.

    Raises:
        UsageError: there are fewer blocks than ranks; or queries whose own tokens are on several ranks.
    """
    if ranks == 1:
        return
    most = shards_of(workload.seq, ranks)[-1].tokens
    if workload.q_len > most:
        remedy = f"over {ranks} ranks, queries are those of a last chunk: give at most the last rank's {most} tokens"
        raise UsageError("q_len", workload.q_len, remedy)


def row_names(
    methods: Sequence[str] | None, phase: Phase, device: Device, *, recorded: bool = False
) -> tuple[str, ...]:
    """The rows that the names stand for, or the default ones; of names that were ``recorded``, those very rows.

    Raises:
        UsageError: an unknown family, or a variant that the family does not have on this device.
    """
    return tuple(method.name for method in find_methods(methods, phase, device, rows_alone=recorded))


def basis_for(workload: Workload, basis: BasisLayer | None) -> BasisLayer | None:
    """The basis, if the workload's pruner takes one.

    Raises:
        UsageError: an unknown pruner, no basis where one is needed, or one for other heads.
    """
    pruner = pruner_of(workload.pruner)
    check_sources(pruner, calibration=basis is not None, queries=True)
    if basis is None or not pruner.needs_calibration:
        return None
    basis.check_heads(workload.kv_heads, workload.head_dim)
    return basis


def _check_version(values: Mapping[str, Any]) -> None:
    name, _, version = str(values.get("schema", f"{_NAME}/1")).partition("/")
    if name != _NAME or not version.isdecimal() or int(version) > int(_VERSION):
        raise ValueError(f"schema {values['schema']!r}, where {SCHEMA} is the newest known")


def _names(values: object) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(name, str) for name in values):
        raise TypeError(f"methods {values!r}")
    return values


def _source(of: Captured | BasisLayer | None) -> dict[str, Any] | None:
    """Where tensors are, and what they hold."""
    return None if of is None else {"path": str(of.path.resolve()), "layer": of.layer, "sha256": of.sha256()}


def _basis(source: Mapping[str, Any] | None, workload: Workload) -> BasisLayer | None:
    """The basis that a cell had."""
    if source is None:
        return basis_for(workload, None)
    file, layer = Path(source["path"]), source["layer"]
    try:
        return basis_for(workload, BasisLayer.open(file, layer))
    except UsageError as error:
        raise TensorsGoneError("basis", file, f"its basis cannot be had ({error}); put it back") from error


def _captured(source: Mapping[str, Any] | None, workload: Workload) -> Captured | None:
    """The captured tensors that a cell had."""
    if source is None:
        if "#" in workload.tensors:
            raise ValueError(f"no file for {workload.tensors}")
        return None
    file, layer = Path(source["path"]), source["layer"]
    try:
        found = open_captured(file, layer)
        captured = found.last(workload.q_len)
    except UsageError as error:
        raise TensorsGoneError("kv", file, f"its captured tensors cannot be had ({error}); put them back") from error
    other = [name for name in _SHAPE if getattr(captured, name) != getattr(workload, name)]
    if other:
        raise TensorsGoneError("kv", file, f"{file} has another {', '.join(other)} than then; put the old file back")
    return captured
