"""``--resume``: which rows of a plan a file holds already, and which are to be measured.

A row is finished where the run came to its end, whatever that was: `ok`, `incorrect`, or a reason why it cannot run.
What the user stopped (`interrupted`) is not. The methods of a cell are sampled in turn and compared with each other, so
a cell of which rows are missing is measured as a whole, and its finished rows stay as they are.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hsbench.errors import UsageError
from hsbench.results import Record, Report, Result, Stored, ceilings_of, key, reports_of
from hsbench.run import accounting
from hsbench.run.plan import Cell, Plan

_UNFINISHED = "interrupted"
_FIELDS = {"name": "workload"}  # of a workload, whose option has another name
_MOST = 6  # differences that are named


@dataclass(frozen=True)
class Resumed:
    """A file that a run goes on with.

    Attributes:
        stored: the file as it was; None where there is none.
        kept: the finished rows of each cell of the plan, in its order.
        methods: how many rows each cell has.
    """

    stored: Stored | None
    kept: tuple[tuple[Result[Record], ...], ...]
    methods: tuple[int, ...]

    @property
    def reports(self) -> list[Report]:
        """What is kept, a report per cell, in the order of the file."""
        rows = [result for cell in self.kept for result in cell]
        return [] if self.stored is None else reports_of(dataclasses.replace(self.stored, results=rows))

    @property
    def counts(self) -> tuple[int, int]:
        """How many rows are kept, and how many there are in all."""
        return sum(map(len, self.kept)), sum(self.methods)

    def is_done(self, at: int) -> bool:
        """Whether all rows of a cell are there."""
        return self.stored is not None and len(self.kept[at]) == self.methods[at]

    def has(self, at: int, result: Result[Any]) -> bool:
        """Whether a row of a cell is there."""
        return any(one.record.method == result.record.method for one in self.kept[at])

    @property
    def is_whole(self) -> bool:
        """Whether nothing is missing at the end of the file."""
        return self.stored is None or (self.stored.complete and not self.stored.torn)

    def done(self, plan: Plan, at: int) -> Report:
        """The report of a cell whose rows are all there."""
        assert self.stored is not None
        found = ceilings_of(self.kept[at], self.stored.ceilings)
        return Report(plan.cells[at].workload, list(self.kept[at]), self.stored.machine, found)

    def new_of(self, at: int, report: Report) -> Report:
        """The report of a cell that was measured, without the rows that are there."""
        return dataclasses.replace(report, results=[one for one in report.results if not self.has(at, one)])

    def whole(self, at: int, report: Report) -> Report:
        """The report of a cell with what is kept of it."""
        return dataclasses.replace(report, results=[*self.kept[at], *self.new_of(at, report).results])


def nothing(plan: Plan) -> Resumed:
    """What is done of a plan that begins."""
    return Resumed(None, tuple(() for _ in plan.cells), tuple(len(cell.methods) for cell in plan.cells))


def resume(plan: Plan, stored: Stored, machine: Mapping[str, Any]) -> Resumed:
    """What of a plan a file holds.

    Args:
        machine: facts of this machine; on a CPU, its threads and instruction set are part of a row's identity.

    Raises:
        UsageError: a row is not one of the plan's; says what differs.
    """
    if stored.older:
        raise _refused(stored, "is of an older schema; run the command anew")
    found: dict[Any, list[Result[Record]]] = {}
    for result in stored.results:
        if not isinstance(result.record, Record):
            raise _refused(stored, f"holds rows of {result.record.benchmark}; only those of compare are resumed")
        if result.record.status != _UNFINISHED:
            found.setdefault(key(result.record.case), []).append(result)
    expected = [[_expected(plan, cell, name, machine) for name in cell.methods] for cell in plan.cells]
    order = {id(result): at for at, result in enumerate(stored.results)}
    kept = []
    for cell in expected:
        mine = [rows.pop(0) for one in cell if (rows := found.get(key(one.case)))]
        kept.append(tuple(sorted(mine, key=lambda result: order[id(result)])))
    for rows in found.values():
        for result in rows:
            what = _what_differs(result.record, [one for cell in expected for one in cell])
            raise _refused(stored, f"holds a row that is not of this run ({what}); give its own options")
    return Resumed(stored, tuple(kept), tuple(len(cell.methods) for cell in plan.cells))


def check_plan(stored: Stored, then: Plan, now: Plan) -> None:
    """Refuse a file of another plan.

    Args:
        then: what the file's manifest tells.

    Raises:
        UsageError: they differ; says in what.
    """
    if found := list(_plan_differences(_plain(then), _plain(now))):
        raise _refused(stored, f"is of another run: {_some(found)}; give its options, or none, or another --output")


def check_machine(stored: Stored, changed: Sequence[str]) -> None:
    """Refuse a file of another machine, or of another state of it: its rows are to be comparable.

    Args:
        changed: what differs, in words.

    Raises:
        UsageError: something does.
    """
    if changed:
        raise _refused(stored, f"was begun elsewhere: {_some(list(changed))}; go on there, or run the command anew")


def _refused(stored: Stored, why: str) -> UsageError:
    return UsageError("resume", stored.path, why)


def _some(words: list[str]) -> str:
    more = f" and {len(words) - _MOST} more" if len(words) > _MOST else ""
    return "; ".join(words[:_MOST]) + more


def _expected(plan: Plan, cell: Cell, method: str, machine: Mapping[str, Any]) -> Record:
    """The row of a method as it would be if it were stopped before it began: its case is that of any end."""
    return accounting.record(
        cell.workload, method, plan.device, plan.settings, _UNFINISHED, None, machine, {}, ranks=plan.ranks
    )


def _what_differs(row: Record, expected: list[Record]) -> str:
    """In what a row differs from the one of the plan that is most like it."""

    def differing(other: Record) -> list[str]:
        pairs = zip(key(row.case), key(other.case), strict=True)
        return [f"{name} is {here}, {there} here" for (name, here), (_, there) in pairs if here != there]

    nearest = min((differing(one) for one in expected), key=len)
    return _some(nearest) if nearest else f"{row.case.label} is there twice"


def _plain(plan: Plan) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(json.dumps(plan.to_dict()))
    return values


def _plan_differences(then: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    yield from _fields({"device": then["device"]}, {"device": now["device"]})
    yield from _fields({"ranks": then.get("ranks", 1)}, {"ranks": now.get("ranks", 1)})
    yield from _fields(then["settings"], now["settings"])
    before, after = ([cell["workload"] for cell in plan["cells"]] for plan in (then, now))
    if before != after:
        axes = list(dict.fromkeys(name for cell in (*before, *after) for name in cell))
        then_has, now_has = ({name: _listed(c.get(name) for c in cells) for name in axes} for cells in (before, after))
        found = list(_fields(then_has, now_has))
        yield from found or ["its cells are others, or in another order"]
    elif [cell["methods"] for cell in then["cells"]] != [cell["methods"] for cell in now["cells"]]:
        rows = (_listed(name for cell in plan["cells"] for name in cell["methods"]) for plan in (then, now))
        yield "`methods` were {}, are {}".format(*rows)
    elif then["cells"] != now["cells"]:
        yield "its captured tensors, or its basis, are others"


def _fields(then: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    for name in then:
        if then[name] != now.get(name):
            yield f"`{_FIELDS.get(name, name)}` was {then[name]}, is {now.get(name)}"


def _listed(values: Iterator[Any]) -> str:
    return ", ".join(dict.fromkeys(map(str, values)))
