"""Control groups in made-up trees: both versions, side by side, in containers, every level up to the mount."""

from __future__ import annotations

from pathlib import Path

import pytest

from hsbench.measure import cgroup

GIB = 1 << 30
V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"


def put(root: Path, **files: object) -> Path:
    """Files by path, "__" for "/"."""
    for path, text in files.items():
        target = root / path.replace("__", "/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(f"{text}\n")
    return root


def group(root: Path, folder: str, **files: object) -> None:
    """Files of one group; "memory_max" is memory.max."""
    for name, text in files.items():
        target = root / folder / name.replace("_", ".", 1)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(f"{text}\n")


def v2(root: Path, path: str, mountinfo: str = V2) -> Path:
    return put(root, proc__self__cgroup=f"0::{path}", proc__self__mountinfo=mountinfo)


# ---- Memory ------------------------------------------------------------------------------------------------
def test_what_the_group_uses_does_not_count_as_left(tmp_path: Path) -> None:
    """4 GiB of which a neighbour in the group holds 3, and a quarter is a cache of files."""
    root = v2(tmp_path, "/job")
    group(root, "sys/fs/cgroup/job", memory_max=4 * GIB, memory_current=13 * GIB // 4)
    assert cgroup.memory_left(root) == 3 * GIB // 4
    group(root, "sys/fs/cgroup/job", memory_stat=f"anon {3 * GIB}\ninactive_file {GIB // 4}\nactive_file 1")
    assert cgroup.memory_left(root) == GIB
    assert cgroup.memory_limit(root) == 4 * GIB


def test_a_parent_may_be_tighter(tmp_path: Path) -> None:
    root = v2(tmp_path, "/a/b/c")
    group(root, "sys/fs/cgroup/a/b/c", memory_max=8 * GIB, memory_current=GIB)
    group(root, "sys/fs/cgroup/a/b", memory_max="max", memory_current=5 * GIB)
    group(root, "sys/fs/cgroup/a", memory_max=10 * GIB, memory_current=9 * GIB)
    assert (cgroup.memory_left(root), cgroup.memory_limit(root)) == (GIB, 8 * GIB)


def test_high_counts_where_it_is_lower(tmp_path: Path) -> None:
    root = v2(tmp_path, "/a")
    group(root, "sys/fs/cgroup/a", memory_max=8 * GIB, memory_high=3 * GIB, memory_current=GIB)
    assert (cgroup.memory_left(root), cgroup.memory_limit(root)) == (2 * GIB, 3 * GIB)
    group(root, "sys/fs/cgroup/a", memory_max=2 * GIB)
    assert cgroup.memory_left(root) == GIB
    group(root, "sys/fs/cgroup/a", memory_max="max", memory_high="max")
    assert cgroup.memory_left(root) is None


def test_a_group_over_its_limit_leaves_nothing(tmp_path: Path) -> None:
    root = v2(tmp_path, "/a")
    group(root, "sys/fs/cgroup/a", memory_high=GIB, memory_current=2 * GIB)
    assert cgroup.memory_left(root) == 0


def v1(root: Path, path: str, top: str = "/") -> Path:
    mounts = f"35 31 0:32 {top} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    return put(root, proc__self__cgroup=f"4:memory:{path}\n1:name=systemd:/x", proc__self__mountinfo=mounts)


def test_version_1(tmp_path: Path) -> None:
    root = v1(tmp_path, "/job")
    folder = "sys/fs/cgroup/memory/job"
    stat = f"inactive_file 5\ntotal_inactive_file {GIB}"
    group(root, folder, memory_limit_in_bytes=4 * GIB, memory_usage_in_bytes=3 * GIB, memory_stat=stat)
    group(root, "sys/fs/cgroup/memory", memory_limit_in_bytes=(1 << 63) - 4096, memory_usage_in_bytes=9 * GIB)
    assert (cgroup.memory_left(root), cgroup.memory_limit(root)) == (2 * GIB, 4 * GIB)
    (root / folder / "memory.memsw.limit_in_bytes").write_text(f"{5 * GIB}\n")
    (root / folder / "memory.memsw.usage_in_bytes").write_text(f"{11 * GIB // 2}\n")  # 2.5 GiB of it in swap
    assert cgroup.memory_left(root) == GIB // 2


@pytest.mark.parametrize("top", ["/docker/9f", "/elsewhere"])
def test_a_container_that_sees_the_hosts_path(tmp_path: Path, top: str) -> None:
    """The mount shows the container's own group as its top; a group within it is found below that."""
    root = v1(tmp_path, "/docker/9f/job", top)
    group(root, "sys/fs/cgroup/memory", memory_limit_in_bytes=8 * GIB, memory_usage_in_bytes=GIB)
    group(root, "sys/fs/cgroup/memory/job", memory_limit_in_bytes=2 * GIB, memory_usage_in_bytes=GIB)
    assert cgroup.memory_left(root) == (GIB if top == "/docker/9f" else 7 * GIB)


def test_a_hybrid_has_the_controller_where_it_is(tmp_path: Path) -> None:
    """systemd's hybrid: version 2 holds the processes and no controller; memory and CPU are version 1's."""
    mounts = (
        "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
        "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
        "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
        "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    )
    put(tmp_path, proc__self__cgroup="4:memory:/m\n2:cpu,cpuacct:/c\n0::/u", proc__self__mountinfo=mounts)
    group(tmp_path, "sys/fs/cgroup/memory/m", memory_limit_in_bytes=2 * GIB, memory_usage_in_bytes=GIB)
    group(tmp_path, "sys/fs/cgroup/cpu,cpuacct/c", cpu_cfs_quota_us=50000, cpu_cfs_period_us=100000)
    group(tmp_path, "sys/fs/cgroup/unified/u", cgroup_procs="7")
    assert (cgroup.memory_left(tmp_path), cgroup.quota_cores(tmp_path)) == (GIB, 0.5)
    # A machine may also have given the memory controller to version 2: what is there counts, wherever it is.
    group(tmp_path, "sys/fs/cgroup/unified/u", memory_max=GIB, memory_current=GIB // 4)
    assert cgroup.memory_left(tmp_path) == GIB * 3 // 4


def test_mounts_elsewhere_and_with_blanks(tmp_path: Path) -> None:
    root = v2(tmp_path, "/a", "30 23 0:26 / /mnt/control\\040groups rw shared:4 - cgroup2 none rw\n")
    group(root, "mnt/control groups/a", memory_max=GIB, memory_current=0)
    assert cgroup.memory_left(root) == GIB


def test_without_a_list_of_mounts_the_usual_places(tmp_path: Path) -> None:
    put(tmp_path, proc__self__cgroup="4:memory:/m\n2:cpuacct,cpu:/c\n0::/u")
    group(tmp_path, "sys/fs/cgroup/memory/m", memory_limit_in_bytes=2 * GIB)
    group(tmp_path, "sys/fs/cgroup/cpu,cpuacct/c", cpu_cfs_quota_us=50000, cpu_cfs_period_us=100000)
    group(tmp_path, "sys/fs/cgroup/cpuset/c", cpu_cfs_quota_us=1, cpu_cfs_period_us=100000)  # another controller
    assert (cgroup.memory_left(tmp_path), cgroup.quota_cores(tmp_path)) == (2 * GIB, 0.5)


@pytest.mark.parametrize("text", ["", "banana", "-1", "max"])
def test_nothing_readable_is_no_limit(tmp_path: Path, text: str) -> None:
    assert cgroup.memory_left(tmp_path) is cgroup.quota_cores(tmp_path) is cgroup.throttling(tmp_path) is None
    root = v2(tmp_path, "/a", f"nonsense\n1 2 - cgroup2\n{V2}")
    group(root, "sys/fs/cgroup/a", memory_max=text, cpu_max=text, cpu_stat=text)
    assert cgroup.memory_left(root) is cgroup.quota_cores(root) is cgroup.throttling(root) is None


# ---- Throttling --------------------------------------------------------------------------------------------
def test_throttling_counts_every_level_with_a_quota(tmp_path: Path) -> None:
    root = v2(tmp_path, "/a/b")
    group(root, "sys/fs/cgroup/a/b", cpu_max="max 100000", cpu_stat="nr_throttled 50\nthrottled_usec 7")
    assert cgroup.throttling(root) is None, "no quota, so nothing that one did"
    group(root, "sys/fs/cgroup/a/b", cpu_max="25000 100000")
    group(root, "sys/fs/cgroup/a", cpu_max="400000 100000")
    stat = "usage_usec 9\nnr_periods 8\nnr_throttled 3\nthrottled_usec 250000"
    group(root, "sys/fs/cgroup/a", cpu_stat=stat)
    assert cgroup.throttling(root) == cgroup.Throttling(53, pytest.approx(0.250007))
    assert cgroup.quota_cores(root) == 0.25


def test_throttling_of_version_1_is_in_nanoseconds(tmp_path: Path) -> None:
    mounts = "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
    put(tmp_path, proc__self__cgroup="2:cpu:/c", proc__self__mountinfo=mounts)
    stat = "nr_periods 9\nnr_throttled 4\nthrottled_time 500000000"
    group(tmp_path, "sys/fs/cgroup/cpu/c", cpu_cfs_quota_us=25000, cpu_cfs_period_us=100000, cpu_stat=stat)
    assert cgroup.throttling(tmp_path) == cgroup.Throttling(4, 0.5)
