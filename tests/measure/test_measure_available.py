"""How much memory can be had: the least of what all who limit it leave; a GPU's with what torch keeps of it."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from hsbench.kernels.device import CPU, CUDA
from hsbench.measure import available as module
from hsbench.measure.available import FreeMemory, free_memory, release_memory, thread_bytes

MIB, GIB = 1 << 20, 1 << 30


@pytest.fixture
def unlimited(monkeypatch: pytest.MonkeyPatch) -> None:
    none = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(module, "resource", SimpleNamespace(**vars(resource) | {"getrlimit": lambda kind: none}))


def put(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def test_the_system_alone(tmp_path: Path, unlimited: None) -> None:
    assert free_memory(CPU, tmp_path) is None
    lines = "MemTotal: 9000000 kB\nMemAvailable:  3145728 kB\nCommitLimit: 7 kB\nHugePages_Total: 3\n"
    put(tmp_path, "proc/meminfo", lines)
    assert free_memory(CPU, tmp_path) == FreeMemory(3 * GIB)


def test_a_group_that_has_used_most_of_its_limit(tmp_path: Path, unlimited: None) -> None:
    put(tmp_path, "proc/meminfo", "MemAvailable: 33554432 kB\n")
    put(tmp_path, "proc/self/cgroup", "0::/\n")
    put(tmp_path, "sys/fs/cgroup/memory.max", f"{4 * GIB}\n")
    put(tmp_path, "sys/fs/cgroup/memory.current", f"{3 * GIB}\n")
    assert free_memory(CPU, tmp_path) == FreeMemory(GIB, "the memory limit of the control group")
    put(tmp_path, "proc/meminfo", f"MemAvailable: {MIB // 2} kB\n")
    assert free_memory(CPU, tmp_path) == FreeMemory(GIB // 2)


def test_strict_overcommit(tmp_path: Path, unlimited: None) -> None:
    put(tmp_path, "proc/meminfo", "MemAvailable: 2097152 kB\nCommitLimit: 2097152 kB\nCommitted_AS: 1048576 kB\n")
    put(tmp_path, "proc/sys/vm/overcommit_memory", "0\n")
    assert free_memory(CPU, tmp_path) == FreeMemory(2 * GIB)
    put(tmp_path, "proc/sys/vm/overcommit_memory", "2\n")
    assert free_memory(CPU, tmp_path) == FreeMemory(GIB, "vm.overcommit_memory=2")


_LIMITED = """
import json, mmap, resource, sys
from hsbench.kernels.device import CPU
from hsbench.measure import free_memory
kind, size = getattr(resource, sys.argv[1]), int(sys.argv[2])
resource.setrlimit(kind, (size, resource.RLIM_INFINITY))
free = free_memory(CPU)
below, above = free.nbytes - (4 << 20), free.nbytes + (4 << 20)
try:
    mmap.mmap(-1, above, flags=mmap.MAP_PRIVATE)
    refused = False
except OSError:
    refused = True
taken = mmap.mmap(-1, below, flags=mmap.MAP_PRIVATE)
print(json.dumps([free.nbytes, free.limit, refused, free_memory(CPU).nbytes]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(("kind", "name"), [("RLIMIT_AS", "ulimit -v"), ("RLIMIT_DATA", "ulimit -d")])
def test_limits_of_the_process_are_met_where_they_are_said_to_be(kind: str, name: str) -> None:
    """A little less than what is said to be free can be mapped, a little more cannot."""
    done = subprocess.run([sys.executable, "-c", _LIMITED, kind, str(700 * MIB)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    nbytes, limit, refused, after = json.loads(done.stdout)
    assert 100 * MIB < nbytes < 700 * MIB and limit == name
    assert refused and after <= 4 * MIB


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A GPU of 140 GiB whose memory torch took, used and kept."""
    torch = pytest.importorskip("torch")
    state = SimpleNamespace(total=140 * GIB, reserved=0, allocated=0)

    def empty_cache() -> None:
        state.reserved = state.allocated

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (state.total - state.reserved, state.total))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device=None: state.reserved)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device=None: state.allocated)
    monkeypatch.setattr(torch.cuda, "empty_cache", empty_cache)
    return state


def test_what_torch_keeps_of_a_gpu_is_free(card: SimpleNamespace) -> None:
    assert free_memory(CUDA) == FreeMemory(140 * GIB)
    card.reserved, card.allocated = 42 * GIB, 2 * GIB
    assert free_memory(CUDA) == FreeMemory(138 * GIB)
    release_memory(CPU)
    assert card.reserved == 42 * GIB, "a CPU's run leaves the GPU alone"
    release_memory(CUDA)
    assert card.reserved == 2 * GIB and free_memory(CUDA) == FreeMemory(138 * GIB)


def test_stacks_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"soft": 1 << 20}
    fake = vars(resource) | {"getrlimit": lambda kind: (limits["soft"], resource.RLIM_INFINITY)}
    monkeypatch.setattr(module, "resource", SimpleNamespace(**fake))
    assert thread_bytes(3) == 3 << 20
    limits["soft"] = resource.RLIM_INFINITY
    assert thread_bytes(2) == 16 << 20
