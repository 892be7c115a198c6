"""Control groups: the memory and the CPU time that they leave this process, versions 1 and 2, also side by side.

A limit holds for all that is below it, so each question goes to every level from this process's own group up to the
mount, and the tightest answer counts. Which folder that is takes two files:

    /proc/self/cgroup      4:memory:/docker/9f/job       the path within the hierarchy (version 2: 0::/docker/9f/job)
    /proc/self/mountinfo   ... /docker/9f /sys/fs/cgroup/memory ... - cgroup ... memory    what of it is mounted where

Each function takes the folder in which /proc and /sys are; another one in tests.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from . import procfs

ROOT = Path("/")

# The files of a limit and of what counts towards it. Beyond memory.high a group is not refused memory but stalled until
# it gives some back, which ends a measurement as surely. Version 1 also limits memory and swap together.
_LIMITS = (
    (("memory.max", "memory.high"), "memory.current"),
    (("memory.limit_in_bytes",), "memory.usage_in_bytes"),
    (("memory.memsw.limit_in_bytes",), "memory.memsw.usage_in_bytes"),
)


@dataclass(frozen=True)
class Throttling:
    """What the CPU quotas of all levels did so far: how often they stopped a group, and for how long.

    Attributes:
        count: periods in which a group had used up its quota.
        seconds: that its threads waited, summed over the cores they were to run on.
    """

    count: int
    seconds: float


def memory_limit(root: Path = ROOT) -> int | None:
    """Bytes that the tightest limit allows; None without a limit. Version 1 writes none as a huge number."""
    return min((limit for limit, _ in _memory(root)), default=None)


def memory_left(root: Path = ROOT) -> int | None:
    """Bytes that may still be taken before a limit is met; None without a limit.

    Of what a group uses, file pages that nobody touched lately do not count: the kernel drops them when asked for more.
    """
    return min((max(limit - used, 0) for limit, used in _memory(root)), default=None)


def quota_cores(root: Path = ROOT) -> float | None:
    """How many cores at a time the tightest CPU quota allows, fractions possible; None without a quota."""
    return min((cores for _, cores in _quotas(root)), default=None)


def throttling(root: Path = ROOT) -> Throttling | None:
    """What the quotas did so far; None without a quota, and where the system does not tell."""
    found = [_fields(folder / "cpu.stat") for folder, _ in _quotas(root)]
    found = [fields for fields in found if "nr_throttled" in fields]
    if not found:
        return None
    seconds = sum(f.get("throttled_usec", 0) * 1e-6 + f.get("throttled_time", 0) * 1e-9 for f in found)
    return Throttling(sum(fields["nr_throttled"] for fields in found), seconds)


def _memory(root: Path) -> Iterator[tuple[int, int]]:
    """Each limit with the bytes used of it."""
    for folder in _folders(root, "memory"):
        for limits, usage in _LIMITS:
            limit = min((n for name in limits if (n := _number(folder / name)) is not None), default=None)
            if limit is not None:
                stat = _fields(folder / "memory.stat")
                # Version 1 counts a group's children in its usage, and in the "total" fields of its statistics.
                droppable = stat.get("total_inactive_file", stat.get("inactive_file", 0))
                yield limit, max((_number(folder / usage) or 0) - droppable, 0)


def _quotas(root: Path) -> Iterator[tuple[Path, float]]:
    """Each level that has a CPU quota, with its cores."""
    for folder in _folders(root, "cpu"):
        quota, period = ((procfs.text(folder / "cpu.max")).split() + ["", ""])[:2]
        if not quota:
            quota, period = procfs.text(folder / "cpu.cfs_quota_us"), procfs.text(folder / "cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal() and int(period):  # "max" and -1 are no limit
            yield folder, int(quota) / int(period)


def _folders(root: Path, controller: str) -> Iterator[Path]:
    """This process's groups that may limit a resource, innermost first, each hierarchy up to its mount.

    A path that is not below what is mounted (a container that sees the host's) leads nowhere: the mount itself then has
    the limit, which is why the walk always ends there.
    """
    paths = list(_paths(root, controller))
    seen: set[Path] = set()
    for mount, top, version in _mounts(root, controller):
        for path in (path for path, of in paths if of == version):
            inside = PurePosixPath(path)
            if inside.is_relative_to(top):
                inside = inside.relative_to(top)
            folder = mount / str(inside).lstrip("/")
            for level in (folder, *(up for up in folder.parents if up.is_relative_to(mount))):
                if level not in seen and level.is_dir():
                    seen.add(level)
                    yield level


def _paths(root: Path, controller: str) -> Iterator[tuple[str, int]]:
    """This process's path in the hierarchy of a controller and in that of version 2, with the version."""
    for line in procfs.text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, colon, path = rest.partition(":")
        if colon and not controllers:
            yield path, 2
        elif controller in controllers.split(","):
            yield path, 1


def _mounts(root: Path, controller: str) -> Iterator[tuple[Path, str, int]]:
    """Where hierarchies are mounted: the folder, the path within the hierarchy that it shows, the version. Where the
    system does not list its mounts, the usual places."""
    listed = False
    for line in procfs.text(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) < 5 or len(kind) < 3 or kind[0] not in ("cgroup", "cgroup2"):
            continue
        listed = True
        top, mount = (_unescaped(field) for field in fields[3:5])
        if kind[0] == "cgroup2":
            yield root / mount.lstrip("/"), top, 2
        elif controller in kind[2].split(","):
            yield root / mount.lstrip("/"), top, 1
    if not listed:
        usual = root / "sys/fs/cgroup"
        yield from ((place, "/", 2) for place in (usual, usual / "unified"))
        yield from ((place, "/", 1) for place in sorted(usual.glob(f"*{controller}*")) if _is_for(place, controller))


def _is_for(place: Path, controller: str) -> bool:
    """Whether a folder such as "cpu,cpuacct" is where a controller is usually mounted."""
    return controller in place.name.split(",")


def _unescaped(path: str) -> str:
    r"""A path of /proc/self/mountinfo, which writes a blank as \040."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path)


def _number(path: Path) -> int | None:
    """The number in a file; None for "max" and where there is none."""
    text = procfs.text(path)
    return int(text) if text.isdecimal() else None


def _fields(path: Path) -> dict[str, int]:
    """The lines "name value" of a file."""
    pairs = (line.split() for line in procfs.text(path).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}
