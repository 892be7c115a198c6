"""A sample is one number for all ranks."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from hsbench.distributed.clock import GroupClock
from hsbench.kernels.device import CPU
from hsbench.measure import ClockError, Retake


def clock(others: Callable[..., tuple[float, ...]] = lambda *own: own) -> GroupClock:
    """Of a rank whose group answers with the largest of its own values and of another's."""
    group: Any = SimpleNamespace(device=CPU, meet=lambda: None, largest=others)
    return GroupClock(group)


def test_the_slowest_rank_s_time_is_all_ranks() -> None:
    slow = clock(lambda state, whole, part: (state, max(whole, 5.0), max(part, 4.0)))
    assert slow.time(lambda: None) == 5.0 and slow.part_s == 4.0


def test_the_part_ends_where_it_is_split() -> None:
    own = clock()

    def run() -> None:
        time.sleep(0.01)
        own.split()
        time.sleep(0.03)

    whole = own.time(run)
    assert 0.01 <= own.part_s <= whole - 0.03
    whole = own.time(lambda: time.sleep(0.01))  # one without a collective
    assert own.part_s == whole


@pytest.mark.parametrize(("state", "error"), [(1.0, Retake), (2.0, ClockError)])
def test_what_is_void_on_one_rank_is_void_on_all(state: float, error: type[Exception]) -> None:
    with pytest.raises(error):
        clock(lambda own, whole, part: (max(own, state), whole, part)).time(lambda: None)
