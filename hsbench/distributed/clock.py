"""How long a run over ranks takes: the slowest rank's time, its collective included, on the device's own clock.

    rank 0   spin ........... | meet | start | its part | split | all-gather, combine | end |
    rank 1   spin ............... | meet | start | its part .... | split | all-gather, combine | end |

All ranks begin a sample together: on a CPU behind a meeting on the host, on a GPU behind a small collective that is
queued before the first event, since streams are released each at its own moment. A sample is one number, agreed on by
all ranks: so all stop sampling in the same round. A void sample is void for all.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from hsbench.distributed.group import Group
from hsbench.measure import Clock, ClockError, CudaClock, HostClock, Retake

_VOID, _REFUSED = 1.0, 2.0


class GroupClock:
    """The clock of a group of ranks.

    Attributes:
        part_s: seconds that the slowest rank's own part of the last run took, before its collective: what came before
            :meth:`split`, which a run calls between the two; all of it, if the run does not.
    """

    def __init__(self, group: Group) -> None:
        self._group = group
        self.part_s = 0.0
        self._clock: Clock = CudaClock(first=group.queue_meeting) if group.device.is_cuda else HostClock()
        self._began = self._split = 0.0
        self._event: Any = None
        self._has_split = False

    def split(self) -> None:
        """The rank's own part ends here."""
        self._has_split = True
        if isinstance(self._clock, CudaClock):
            self._clock.mark()
        else:
            self._split = time.perf_counter()

    def time(self, run: Callable[[], None]) -> float:
        """Runs once and returns the seconds that the slowest rank took.

        Raises:
            Retake, ClockError: on any rank.
            RankLostError: one is gone.
        """
        group, why = self._group, None
        seconds = part = 0.0
        self._has_split = False
        group.meet()
        self._began = time.perf_counter()
        try:
            seconds = self._clock.time(run)
        except ClockError as error:
            why = error
        else:
            part = self._part_of(seconds)
        state = 0.0 if why is None else _VOID if isinstance(why, Retake) else _REFUSED
        state, seconds, self.part_s = group.largest(state, seconds, part)
        if state == _REFUSED:
            raise why if why is not None and not isinstance(why, Retake) else ClockError("another rank cannot time it")
        if state == _VOID:
            raise why or Retake("void on another rank")
        return seconds

    def _part_of(self, seconds: float) -> float:
        if not self._has_split:
            return seconds
        if isinstance(self._clock, CudaClock):
            return self._clock.marked_s()
        return self._split - self._began
