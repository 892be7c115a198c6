"""Facts about the host: processor, cores, memory. Each is None where the system does not tell."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from . import cgroup, procfs
from .cache import usable_cpus


@dataclass(frozen=True)
class CpuFacts:
    """The processor and the share of it that this process has.

    Attributes:
        model: the processor's name.
        logical_cores: of the machine.
        usable_cores: that the scheduler may put this process on (its affinity).
        quota_cores: that a cgroup lets it use at a time, fractions possible; None without a limit.
        governor: frequency policy of the first usable core, such as "performance".
        memory_total_bytes: of the machine.
        memory_limit_bytes: that a cgroup allows; None without a limit below the total.
        hypervisor: True in a virtual machine.
    """

    model: str | None
    logical_cores: int | None
    usable_cores: int
    quota_cores: float | None
    governor: str | None
    memory_total_bytes: int | None
    memory_limit_bytes: int | None
    hypervisor: bool | None


def cpu_facts(root: Path = Path("/")) -> CpuFacts:
    """Read the facts.

    Args:
        root: where /proc and /sys are; another folder in tests.
    """
    cpus = usable_cpus()
    cpuinfo = procfs.fields(root / "proc/cpuinfo")
    total = procfs.kib_fields(root / "proc/meminfo").get("MemTotal")
    limit = cgroup.memory_limit(root)
    flags = cpuinfo.get("flags")
    return CpuFacts(
        model=cpuinfo.get("model name") or platform.processor() or platform.machine() or None,
        logical_cores=os.cpu_count(),
        usable_cores=len(cpus),
        quota_cores=cgroup.quota_cores(root),
        governor=procfs.text(root / f"sys/devices/system/cpu/cpu{cpus[0]}/cpufreq/scaling_governor") or None,
        memory_total_bytes=total,
        memory_limit_bytes=limit if limit is not None and (total is None or limit < total) else None,
        hypervisor=None if flags is None else "hypervisor" in flags.split(),
    )
