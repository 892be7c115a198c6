"""Facts about the host: processor, cores, memory. Each is None where the system does not tell."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from . import cgroup
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
    cpuinfo = _fields(root / "proc/cpuinfo")
    meminfo = _fields(root / "proc/meminfo")
    total = _kib(meminfo.get("MemTotal"))
    limit = cgroup.memory_limit(root)
    flags = cpuinfo.get("flags")
    return CpuFacts(
        model=cpuinfo.get("model name") or platform.processor() or platform.machine() or None,
        logical_cores=os.cpu_count(),
        usable_cores=len(cpus),
        quota_cores=cgroup.quota_cores(root),
        governor=_text(root / f"sys/devices/system/cpu/cpu{cpus[0]}/cpufreq/scaling_governor"),
        memory_total_bytes=total,
        memory_limit_bytes=limit if limit is not None and (total is None or limit < total) else None,
        hypervisor=None if flags is None else "hypervisor" in flags.split(),
    )


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip() or None
    except (OSError, ValueError):
        return None


def _fields(path: Path) -> dict[str, str]:
    """The lines "name : value" of a file, the first of each name."""
    found: dict[str, str] = {}
    for line in (_text(path) or "").splitlines():
        name, colon, value = line.partition(":")
        if colon:
            found.setdefault(name.strip(), value.strip())
    return found


def _kib(value: str | None) -> int | None:
    try:
        return None if value is None else int(value.split()[0]) * 1024
    except (ValueError, IndexError):
        return None
