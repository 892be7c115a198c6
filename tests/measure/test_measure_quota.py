"""A CPU quota: which samples it stopped, from made-up counters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hsbench.measure import QuotaWatch, TelemetrySummary


@pytest.fixture
def counters(tmp_path: Path) -> Callable[..., Path]:
    def put(quota: str = "25000 100000", count: int | None = 0, usec: int = 0) -> Path:
        folder = tmp_path / "sys/fs/cgroup"
        folder.mkdir(parents=True, exist_ok=True)
        (tmp_path / "proc/self").mkdir(parents=True, exist_ok=True)
        (tmp_path / "proc/self/cgroup").write_text("0::/\n")
        (folder / "cpu.max").write_text(f"{quota}\n")
        told = "" if count is None else f"nr_throttled {count}\nthrottled_usec {usec}\n"
        (folder / "cpu.stat").write_text(f"usage_usec 9\n{told}")
        return tmp_path

    return put


def test_samples_that_were_stopped_by_whose_they_are(counters: Callable[..., Path]) -> None:
    watch = QuotaWatch(counters(count=7))
    assert watch.cores == 0.25
    for count, name in ((7, "a"), (9, "b"), (9, "a"), (10, "a")):
        watch.before()
        counters(count=count)
        watch.after(name)
        counters(count=count + 100)  # between samples: a flush, another's work
        watch.before()
        counters(count=count)
    assert watch.summary("a") == TelemetrySummary(throttled=True, reasons=("cpu_quota",), throttled_share=1 / 3)
    assert watch.summary("b").throttled_share == 1 and watch.summary().throttled_share == 0.5
    assert watch.summary("c") == TelemetrySummary()


def test_a_quota_that_is_never_met(counters: Callable[..., Path]) -> None:
    watch = QuotaWatch(counters(quota="200000 100000", count=3))
    watch.before()
    watch.after("a")
    assert watch.summary("a") == TelemetrySummary(throttled=False, throttled_share=0.0)


@pytest.mark.parametrize("absent", [{"quota": "max 100000"}, {"count": None}], ids=["no quota", "no counters"])
def test_unknown_is_not_no(counters: Callable[..., Path], absent: dict[str, object]) -> None:
    watch = QuotaWatch(counters(**absent))
    watch.before()
    watch.after("a")
    assert watch.summary("a") == watch.summary() == TelemetrySummary()


def test_a_sample_without_a_beginning_is_not_counted(counters: Callable[..., Path]) -> None:
    watch = QuotaWatch(counters(count=3))
    watch.after("a")
    assert watch.summary() == TelemetrySummary()
