"""Ranks that fail: one clear line on stderr, an exit code, nobody left over, and rows that were done kept.

Faults come from ``faults/sitecustomize.py``. Each test starts two ranks, some 5 s of two cores.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from hsbench.kernels import library
from hsbench.results import read_rows

pytestmark = pytest.mark.slow

FAULTS = Path(__file__).with_name("faults")
RUN = ["compare", "--device", "cpu", "--seq", "1k,2k", "--methods", "dense:16bit", "--time", "0.02", "--cache", "warm"]
RUN += ["--q-heads", "4", "--kv-heads", "1", "--head-dim", "64"]


@dataclass
class Ended:
    """How a run ended: its code, what stderr says went wrong, line by line, its rows, and processes left over."""

    code: int
    errors: list[str]
    rows: list[tuple[int, str]]
    left: list[int]


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join([str(library.LIB.parents[1]), str(FAULTS)])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


def ranks_of(launcher: int) -> list[int]:
    """Processes that a launcher started, found by what is in their environment, whoever their parent is by now."""
    mark, found = f"HSBENCH_LAUNCHER={launcher}".encode(), []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            is_rank = mark in (entry / "environ").read_bytes().split(b"\0") and entry.name != str(launcher)
        except OSError:
            continue
        if is_rank:
            found.append(int(entry.name))
    return found


def run(tmp_path: Path, *words: str, **more: str) -> Ended:
    output = tmp_path / "rows.csv"
    command = [sys.executable, "-m", "hsbench", *RUN, "--ranks", "2", "--output", str(output), *words]
    process = subprocess.Popen(command, env=environment(**more), stderr=subprocess.PIPE, text=True)
    _, said = process.communicate(timeout=100)
    rows = [] if not output.exists() else [(row.case.seq, row.status) for row in read_rows(output)]
    errors = [line for line in said.splitlines() if re.match("hsbench: (?!warning|to draw)|Traceback|terminate", line)]
    return Ended(process.returncode, errors, rows, ranks_of(process.pid))


@pytest.mark.parametrize(
    ("fault", "rank", "rows"),
    [
        pytest.param("1 kill hsbench.distributed.handshake:_meet 1", 1, [], id="while they meet"),
        pytest.param(
            "1 kill hsbench.distributed.group:Group.tell 3",
            1,
            [(1024, "interrupted"), (2048, "interrupted")],
            id="while rank 0 measures alone",
        ),
        pytest.param(
            "1 kill hsbench.distributed.clock:GroupClock.time 4",
            1,
            [(1024, "interrupted"), (2048, "interrupted")],
            id="while they are sampled",
        ),
        pytest.param("0 kill hsbench.run.stages:load 4", 0, [(1024, "ok")], id="rank 0, in the second cell"),
    ],
)
def test_a_rank_that_is_killed(tmp_path: Path, fault: str, rank: int, rows: list[tuple[int, str]]) -> None:
    ended = run(tmp_path, FAULT=fault)
    assert ended.code == 1
    (line,) = ended.errors
    assert line.startswith(f"hsbench: error: rank {rank} of 2 was killed (SIGKILL)")
    assert ended.rows == rows and ended.left == []


def test_a_rank_that_fails_says_so_itself(tmp_path: Path) -> None:
    ended = run(tmp_path, FAULT="1 fail hsbench.run.stages:load 2")
    assert ended.code == 1
    (line,) = ended.errors
    assert line.startswith("hsbench: error: rank 1: internal error: OSError: a fault that was asked for")
    assert ended.rows == [(1024, "ok"), (2048, "interrupted")] and ended.left == []


def test_a_rank_that_does_not_come(tmp_path: Path) -> None:
    ended = run(tmp_path, FAULT="1 sleep hsbench.distributed.handshake:_store 1", HSBENCH_RANK_START_S="8")
    assert ended.code == 1
    (line,) = ended.errors
    assert line.startswith("hsbench: error: rank 1 of 2 did not start within 8 s")
    assert ended.rows == [] and ended.left == []


def test_ranks_end_with_their_launcher(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hsbench", *RUN, "--ranks", "2", "--output", str(tmp_path / "rows.csv")]
    fault = "1 sleep hsbench.run.stages:load 1"
    process = subprocess.Popen(command, env=environment(FAULT=fault), stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: len(ranks_of(process.pid)) == 2)
        time.sleep(5)  # they have asked to be told of its end
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    wait_until(lambda: not ranks_of(process.pid))


def wait_until(true: object, most_s: float = 30.0) -> None:
    assert callable(true)
    end = time.monotonic() + most_s
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_port_that_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        place = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "hsbench", *RUN]
        done = subprocess.run(
            command, env=environment(**place, MASTER_PORT=port), capture_output=True, text=True, timeout=60, check=False
        )
    errors = [line for line in done.stderr.splitlines() if line.startswith("hsbench: ")]
    assert done.returncode == 1 and errors == [f"hsbench: error: MASTER_PORT {port} is taken: give another"]
