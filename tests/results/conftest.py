"""Records of a made-up run on the CPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from hsbench.problem.workload import Workload, make_workload
from hsbench.results import Record

OK: dict[str, Any] = {
    "time_us": 3700.0, "time_us_p25": 3650.0, "time_us_p75": 3800.0, "samples": 41, "stop": "converged",
    "speedup": 2.0, "speedup_lo": 1.9, "speedup_hi": 2.1, "baseline": "dense", "kv_bytes": 1 << 28, "gb_per_s": 72.5,
    "ceiling": "read", "percent_of_ceiling": 79.6, "rel_error": 2.1e-4, "cold_by": "working set", "throttled": False,
}  # fmt: skip


def changed(**changes: Any) -> Workload:
    return dataclasses.replace(make_workload("decode", seq=131072), **changes)


def record(workload: Workload | None = None, status: str = "ok", reason: str | None = None, **given: Any) -> Record:
    """A record, of the usual workload unless another is given; ok ones have measures."""
    asked = {"method": "hierarchical", "device": "cpu", "cache": "cold", "sustain_s": 0.0}
    asked |= {"machine": {"cpu": {"threads": 4, "isa": "avx2"}}}
    measures = OK if status == "ok" else {}
    return Record.of(workload or changed(), status=status, reason=reason, **{**asked, **measures, **given})


@pytest.fixture(name="record")
def make_record() -> Callable[..., Record]:
    return record


@pytest.fixture
def workload() -> Callable[..., Workload]:
    return changed
