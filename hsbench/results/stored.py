"""A file of results with all that it knows, and the reports that it was written from."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hsbench.errors import UsageError
from hsbench.methods import PRUNER_FAMILIES
from hsbench.problem.phase import PHASES
from hsbench.problem.workload import PAPER_PRUNER, Workload
from hsbench.results.attention import AttentionCase, Record
from hsbench.results.reading import parse_row, read_content
from hsbench.results.report import MeasuredCeiling, ModelReport, R, Report, Result
from hsbench.results.row import SCHEMA, Row

_MANIFEST = "hsbench-manifest/"

#: Of a case, what a workload has by the same name and all methods of a cell share.
_SHAPE = (
    "batch", "q_heads", "kv_heads", "head_dim", "dtype", "q_len", "seq", "key_sparsity", "value_sparsity", "tensors",
    "seed",
)  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """A file of results.

    Attributes:
        path: where it is.
        format: `csv`, `json` or `parquet`.
        results: its rows, with their memory by component where the file tells.
        manifest: what the run depended on; of a CSV, the one beside it. None where there is none.
        machine: facts, as of `Report`; from the manifest where the file has none itself.
        ceilings: what the probes reached, in the order of the file; a CSV tells none.
        complete: false where the process was killed before it closed the file, as far as the file tells.
        torn: whether a row was cut short, which is not among the results.
        older: whether rows are of an older schema.
    """

    path: Path
    format: str
    results: list[Result[Any]]
    manifest: dict[str, Any] | None = None
    machine: dict[str, Any] = field(default_factory=dict)
    ceilings: tuple[MeasuredCeiling, ...] = ()
    complete: bool = True
    torn: bool = False
    older: bool = False

    @property
    def rows(self) -> list[Row[Any, Any]]:
        """The rows, in order."""
        return [result.record for result in self.results]

    @property
    def started(self) -> str | None:
        """When the run was started, UTC, ISO 8601; None where nothing tells."""
        told = (self.manifest or {}).get("started")
        return None if told is None else str(told)

    def of(self, kind: type[Row[Any, Any]]) -> list[Result[Any]]:
        """The results whose rows are of a kind."""
        return [result for result in self.results if isinstance(result.record, kind)]


def read_stored(path: Path, option: str = "FILE", manifest: Path | None = None) -> Stored:
    """A file that `--output` wrote, CSV, JSON or Parquet, as far as it was written.

    Args:
        option: what the user gave the path to, for the messages.
        manifest: the one of a CSV, where it is not beside it.

    Raises:
        UsageError: no such file, no results, of a schema that is not read, or damaged elsewhere than at its end.
        UnavailableError: it is Parquet, and pyarrow is not there.
    """
    content = read_content(path, option)
    rows = [parse_row(row, at, path, option) for at, row in enumerate(content.rows, start=1)]
    document = content.document
    memory = {one["row"]: one for one in _dicts(document.get("memory")) if isinstance(one.get("row"), int)}
    told = document.get("manifest") or _beside(path if manifest is None else manifest, given=manifest is not None)
    return Stored(
        path,
        content.format,
        [Result(row, _components(memory.get(at, {}))) for at, row in enumerate(rows)],
        told if isinstance(told, dict) else None,
        _facts(document.get("machine"), told),
        tuple(_ceilings(document.get("ceilings") or document.get("peaks"))),
        bool(document.get("complete", True)),
        content.torn,
        any(row.get("schema") != SCHEMA for row in content.rows),
    )


def read_filled(path: Path, option: str = "FILE") -> Stored:
    """The same, of a file that has a row.

    Raises:
        UsageError: as `read_stored`, or it has none.
    """
    stored = read_stored(path, option)
    if not stored.results:
        raise UsageError(option, path, "holds no rows; give what --output wrote")
    return stored


def reports_of(stored: Stored) -> list[Report]:
    """The reports of an attention benchmark, one per cell, as they were when they were written.

    Rows of one cell stand together and differ in nothing that is not a method's own. What a file does not tell is as
    if it had not been: the memory by component and the notes of a CSV.

    Raises:
        UsageError: a row is of a shape that there cannot be.
    """
    groups: list[list[Result[Record]]] = []
    for result in stored.of(Record):
        if not (groups and _goes_with(result.record.case, [one.record.case for one in groups[-1]])):
            groups.append([])
        groups[-1].append(result)
    return [_report(group, stored) for group in groups]


def model_report_of(stored: Stored, kind: type[R]) -> ModelReport[R]:
    """The report of a run of a command that runs a model, of rows of a kind, without its notes, which no file holds."""
    results = stored.of(kind)
    interrupted = any(result.record.status == "interrupted" for result in results)
    return ModelReport(results, stored.machine, {}, interrupted=interrupted)


def ceiling_of(record: Record) -> MeasuredCeiling | None:
    """What the probe of a row's cell reached, which its rate and its percentage tell."""
    rate, m = PHASES[record.case.phase].rate, record.measures
    reached = getattr(m, rate.column)
    if m.ceiling is None or not m.percent_of_ceiling or reached is None:
        return None
    return MeasuredCeiling(m.ceiling, 100 * reached / m.percent_of_ceiling, rate.unit)


def ceilings_of(results: Iterable[Result[Record]], told: Sequence[MeasuredCeiling] = ()) -> dict[str, MeasuredCeiling]:
    """What the probes of a cell reached, by name, from its rows.

    Args:
        told: of the document, to the last digit.
    """
    found: dict[str, MeasuredCeiling] = {}
    for result in results:
        if (one := ceiling_of(result.record)) is not None:
            found[one.name] = _as_told(one, told)
        elif (name := result.record.measures.ceiling) is not None:
            alike = [other for other in told if other.name == name]
            found |= {name: alike[0]} if len(alike) == 1 else {}
    return found


def _goes_with(case: AttentionCase, group: list[AttentionCase]) -> bool:
    """Whether a row is of the cell that those before it are of."""
    first = group[0]
    if any(one.method == case.method for one in group) or _shape(case) != _shape(first):
        return False
    asked = {one.pruner for one in (*group, case) if one.family in PRUNER_FAMILIES}
    return len(asked) <= 1


def _shape(case: AttentionCase) -> tuple[Any, ...]:
    names = ("phase", "workload", "device", "sink", "local", *_SHAPE)
    return tuple(getattr(case, name) for name in names)


def _report(group: list[Result[Record]], stored: Stored) -> Report:
    case = group[0].record.case
    pruned = [one.record.case for one in group if one.record.family in PRUNER_FAMILIES]
    evicts = [one.evict for one in pruned if one.evict]
    values = {name: getattr(case, name) for name in _SHAPE}
    values |= {"phase": case.phase, "name": case.workload, "sink": case.sink or 0, "local": case.local or 0}
    values |= {"pruner": pruned[0].pruner if pruned else PAPER_PRUNER, "evict": evicts[0] if evicts else None}
    try:
        workload = Workload.from_dict(values)
    except (UsageError, KeyError) as error:
        raise UsageError("FILE", stored.path, f"holds a row of no shape that there is ({error})") from error
    found = ceilings_of(group, stored.ceilings)
    interrupted = any(result.record.status == "interrupted" for result in group)
    return Report(workload, group, stored.machine, found, interrupted)


def _as_told(ceiling: MeasuredCeiling, told: Iterable[MeasuredCeiling]) -> MeasuredCeiling:
    """The one of a document that a row's is, but for the digits that a percentage lost."""
    alike = (one for one in told if (one.name, one.unit) == (ceiling.name, ceiling.unit))
    return next((one for one in alike if math.isclose(one.value, ceiling.value, rel_tol=1e-4)), ceiling)


def _beside(path: Path, *, given: bool) -> dict[str, Any] | None:
    """The manifest of a file of rows."""
    try:
        found = json.loads((path if given else path.with_suffix(".manifest.json")).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        if given:
            raise UsageError("manifest", path, "cannot be read; give the manifest of the run") from None
        return None
    ours = isinstance(found, dict) and str(found.get("schema")).startswith(_MANIFEST)
    if given and not ours:
        raise UsageError("manifest", path, "is no manifest of hsbench; give the one of the run")
    return found if ours else None


def _facts(machine: Any, manifest: Any) -> dict[str, Any]:
    if isinstance(machine, dict) and machine:
        return machine
    told = manifest if isinstance(manifest, dict) else {}
    facts = told.get("machine")
    if not isinstance(facts, dict):
        return {}
    return {**facts, "versions": told.get("versions")}


def _ceilings(told: Any) -> Iterable[MeasuredCeiling]:
    for one in _dicts(told):
        if isinstance(one.get("value"), (int, float)):
            yield MeasuredCeiling(str(one.get("name")), float(one["value"]), str(one.get("unit")))


def _components(memory: dict[str, Any]) -> dict[str, int]:
    return {name: size for name, size in memory.items() if name != "row" and isinstance(size, int)}


def _dicts(values: Any) -> list[dict[str, Any]]:
    return [one for one in values if isinstance(one, dict)] if isinstance(values, list) else []
