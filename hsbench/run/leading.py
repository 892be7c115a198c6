"""Rank 0 leads: it tells the others which cell comes next, until there is none. What runs is its plan; what it has on
disk, what is resumed and what is written is its business alone."""

from __future__ import annotations

from hsbench.distributed.group import Group, RankLostError
from hsbench.results import Report
from hsbench.run.observer import Observer
from hsbench.run.plan import Plan
from hsbench.run.ranked import measure_over_ranks


class Leader:
    """Rank 0's side.

    Attributes:
        lost: whom it lost, once it has.
    """

    def __init__(self, plan: Plan, group: Group) -> None:
        self._plan, self._group = plan, group
        self.lost: RankLostError | None = None
        group.tell(plan.to_dict())

    def measure(self, at: int, observer: Observer) -> Report:
        """Measures a cell of the plan with all ranks."""
        self._group.tell(at)
        report, self.lost = measure_over_ranks(self._plan.cells[at], self._plan.settings, observer, self._group)
        return report

    def end(self, code: int) -> None:
        """Lets the others go, with the exit code of the run."""
        if self.lost is None and code < 128:
            self._group.tell(-1 - code)


def follow(group: Group) -> int:
    """The side of the other ranks; returns the exit code of the run.

    Raises:
        RankLostError: a rank is gone.
    """
    plan = Plan.from_dict(group.tell() or {})
    while (told := int(group.tell() or 0)) >= 0:
        report, lost = measure_over_ranks(plan.cells[told], plan.settings, Observer(), group)
        if lost is not None:
            raise lost
        if report.interrupted:
            raise KeyboardInterrupt
    return -1 - told
