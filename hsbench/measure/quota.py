"""Did a CPU quota stop our threads during a sample?

A control group with a quota of a quarter core may run 25 ms of every 100 ms (cpu.max "25000 100000"), counted over all
its threads: two that run together are stopped after 12.5 ms and wait for 87.5. What a stopped sample took says more
about the quota than about the work, and nothing in /proc/stat tells; the group's own counters do:

    before()   read the counters     settle, then [the timed run]     after(name)   read them again: grown, so stopped
"""

from __future__ import annotations

from pathlib import Path

from . import cgroup
from .telemetry import TelemetrySummary

REASON = "cpu_quota"
"""What a summary names as the reason, beside NVML's names for a GPU."""


class QuotaWatch:
    """Watches the samples; it reads some small files, and without a quota none after the first look.

    Attributes:
        cores: that the tightest quota allows at a time; None without a quota.
    """

    def __init__(self, root: Path = cgroup.ROOT) -> None:
        self._root = root
        self.cores = cgroup.quota_cores(root)
        self._before: cgroup.Throttling | None = None
        self._stopped: dict[str, list[bool]] = {}

    def before(self) -> None:
        """A sample is about to be taken; outside the timed window."""
        self._before = None if self.cores is None else cgroup.throttling(self._root)

    def after(self, tag: str) -> None:
        """A sample of `tag` was taken; outside the timed window."""
        before, self._before = self._before, None
        now = None if before is None else cgroup.throttling(self._root)
        if before is not None and now is not None:
            self._stopped.setdefault(tag, []).append(now.count > before.count or now.seconds > before.seconds)

    def summary(self, tag: str | None = None) -> TelemetrySummary:
        """The samples of that tag, or of all, that a quota stopped; `throttled` is None where nothing can tell."""
        stopped = [s for of, samples in self._stopped.items() if tag is None or of == tag for s in samples]
        if not stopped:
            return TelemetrySummary()
        reasons = (REASON,) if any(stopped) else ()
        return TelemetrySummary(throttled=any(stopped), reasons=reasons, throttled_share=sum(stopped) / len(stopped))
