"""Host facts from made-up /proc and /sys trees, and from this machine."""

from __future__ import annotations

import pytest

from hsbench.measure import cpu as cpu_module
from hsbench.measure.cpu import cpu_facts


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(cpu_module, "usable_cpus", lambda: [2, 3])

    def write(**files: str):
        for path, text in files.items():
            target = tmp_path / path.replace("__", "/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
        return tmp_path

    return write


def put(root, path: str, text: str) -> None:
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)


def test_facts_of_a_virtual_machine(root):
    tree = root(
        proc__cpuinfo="model name\t: AMD EPYC 9454\nflags\t\t: fpu hypervisor avx\nmodel name\t: x\n",
        proc__meminfo="MemTotal:  1000 kB\nMemFree:  1 kB\nMemAvailable:  600 kB\n",
    )
    put(tree, "sys/devices/system/cpu/cpu2/cpufreq/scaling_governor", "powersave\n")
    facts = cpu_facts(tree)
    assert facts.model == "AMD EPYC 9454"
    assert facts.hypervisor is True and facts.governor == "powersave" and facts.usable_cores == 2
    assert facts.memory_total_bytes == 1000 * 1024
    assert facts.quota_cores is None and facts.memory_limit_bytes is None


def test_an_empty_system_is_all_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(cpu_module.platform, "processor", lambda: "")
    monkeypatch.setattr(cpu_module.platform, "machine", lambda: "aarch64")
    facts = cpu_facts(tmp_path)
    assert facts.model == "aarch64"
    for field in ("quota_cores", "governor", "memory_total_bytes", "memory_limit_bytes", "hypervisor"):
        assert getattr(facts, field) is None


def test_bare_metal_is_told_from_unknown(root):
    assert cpu_facts(root(proc__cpuinfo="flags : fpu avx\n")).hypervisor is False
    assert cpu_facts(root(proc__cpuinfo="Features : fp asimd\n")).hypervisor is None


def test_cgroup_v2_takes_the_smallest_limit_on_the_way_up(root):
    tree = root(proc__self__cgroup="0::/a/b\n", proc__meminfo="MemTotal: 100000000 kB\n")
    put(tree, "sys/fs/cgroup/a/b/cpu.max", "max 100000\n")
    put(tree, "sys/fs/cgroup/a/cpu.max", "150000 100000\n")
    put(tree, "sys/fs/cgroup/cpu.max", "800000 100000\n")
    put(tree, "sys/fs/cgroup/a/memory.max", "4294967296\n")
    facts = cpu_facts(tree)
    assert facts.quota_cores == 1.5 and facts.memory_limit_bytes == 4 << 30


def test_cgroup_v1_and_its_no_limit(root):
    tree = root(proc__self__cgroup="4:memory:/x\n2:cpu,cpuacct:/x\n")
    put(tree, "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us", "-1\n")
    put(tree, "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_period_us", "100000\n")
    assert cpu_facts(tree).quota_cores is None
    put(tree, "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us", "250000\n")
    assert cpu_facts(tree).quota_cores == 2.5


def test_a_container_sees_its_limit_at_the_mount(root):
    tree = root(proc__self__cgroup="0::/kubepods/of/the/host\n")
    put(tree, "sys/fs/cgroup/cpu.max", "200000 100000\n")
    assert cpu_facts(tree).quota_cores == 2


def test_no_memory_limit_is_written_as_a_huge_one(root):
    tree = root(proc__self__cgroup="4:memory:/\n", proc__meminfo="MemTotal: 1000 kB\n")
    put(tree, "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    assert cpu_facts(tree).memory_limit_bytes is None


@pytest.mark.parametrize("text", ["", "banana\n", "max\n", "1 0\n", "x 100000\n"])
def test_a_malformed_quota_is_no_quota(root, text):
    tree = root(proc__self__cgroup="0::/\nnonsense\n")
    put(tree, "sys/fs/cgroup/cpu.max", text)
    assert cpu_facts(tree).quota_cores is None


def test_this_machine():
    facts = cpu_facts()
    assert facts.model and facts.usable_cores >= 1
    assert facts.memory_total_bytes is None or facts.memory_total_bytes > 1 << 28
