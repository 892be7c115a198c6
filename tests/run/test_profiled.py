"""A cell under a profiler: the same stages, and nothing of it timed or sustained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from hsbench import measure
from hsbench.kernels.device import CPU
from hsbench.problem.workload import make_workload
from hsbench.run.plan import make_plan
from hsbench.run.profiled import profile_cell
from hsbench.run.settings import Settings


def test_few_samples_no_times_nothing_sustained(monkeypatch: pytest.MonkeyPatch) -> None:
    sustained: list[float] = []
    monkeypatch.setattr(measure, "sustain", lambda run, seconds, device: sustained.append(seconds))
    log: list[str] = []

    @contextmanager
    def recording() -> Iterator[None]:
        log.append("opened")
        yield
        log.append("closed")

    workload = make_workload("decode", seq=300, q_heads=4, kv_heads=2, head_dim=64)
    plan = make_plan([(workload, None)], ["sdpa:flash", "sdpa:math"], CPU, Settings(cache="warm", sustain_s=0.3))
    with measure.recorder() as seen:
        report = profile_cell(plan.cells[0], CPU, plan.settings, recording(), 2)
    assert log == ["opened", "closed"]
    assert set(sustained) == {0.0}, "whatever the plan says: that is for clocks of what is timed"
    paths = seen.opened()
    assert [paths.count(f"workload/{name}/sample") for name in ("sdpa:flash", "sdpa:math")] == [2, 2]
    assert not any("probe" in path for path in paths), "no ceiling: a profile is of the methods alone"
    assert [result.record.status for result in report.results] == ["ok", "ok"] and not report.ceilings
    for result in report.results:
        assert result.record.measures.time_us is None and result.note == "profiled run, no timing"
