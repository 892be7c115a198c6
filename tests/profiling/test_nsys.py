"""--profiler nsys with the real Nsight Systems, on the CPU: what it records, and what is made of it.

Tried with 2022.4.2 and 2023.4.4, Debian's.
"""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from hsbench.kernels.device import CPU
from hsbench.machine.software import find_tool
from hsbench.measure.ranges import DOMAIN
from hsbench.profiling import Job, Nsys
from hsbench.profiling.base import ProfilerError, run_tool

SHAPE = ("--seq", "1k", "--q-heads", "4", "--kv-heads", "2", "--head-dim", "64", "--device", "cpu", "--time", "0.05")
METHODS = ("sdpa:flash", "sdpa:math")


@pytest.fixture(autouse=True)
def nsys() -> Nsys:
    if find_tool("nsys") is None:
        pytest.skip("Nsight Systems is not installed: tests/tools/install_nsys does that on Debian, without a GPU")
    return Nsys()


def test_a_report_of_a_run_on_the_cpu_holds_our_ranges(nsys: Nsys, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hsbench", "prefill", *SHAPE, "--methods", ",".join(METHODS)]
    ran = subprocess.run(
        [*command, "--profile", "--profiler", "nsys"],
        capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    summary = ran.stderr[ran.stderr.index("profile    ") :]
    for method in METHODS:
        assert re.search(rf"{method} +\S.* +\d+ +\d+%\n", summary), summary
    assert "OS call" in summary and "profiled run, no timing" in summary
    (report,) = (tmp_path / "profiles" / "out").iterdir()
    assert report.name == "prefill-custom-h4x2x64-1k-b1-fp16-s0.5.nsys-rep"

    export = tmp_path / "export.sqlite"
    options = ["--type=sqlite", f"--output={export}"]
    subprocess.run([nsys.path, "export", *options, report], check=True, capture_output=True, timeout=120)
    ranges = """
        SELECT name.value, event.int64Value, domain.text
        FROM NVTX_EVENTS AS event JOIN StringIds AS name ON name.id = event.textId
        JOIN NVTX_EVENTS AS domain ON domain.eventType = 75 AND domain.domainId = event.domainId
        WHERE event.eventType = 59
    """
    with closing(sqlite3.connect(export)) as database:
        found = list(database.execute(ranges))
    assert Counter(name for name, _, domain in found if domain == DOMAIN) == {
        "profiled": 1, "sdpa:flash": 3, "sdpa:math": 3, "prepare": 6, "sample": 6,
    }, "from the first sample to the last, and nothing before"  # fmt: skip
    assert sorted(payload for name, payload, _ in found if name == METHODS[0]) == [0, 1, 2], "the rounds"


def test_a_run_whose_ranges_do_not_arrive_is_an_error(nsys: Nsys, tmp_path: Path) -> None:
    job = Job((sys.executable, "-c", "pass"), tmp_path / "nothing-s0.5", nsys.suffix, ("dense",), CPU)
    with pytest.raises(ProfilerError, match="none of hsbench's ranges reached it") as caught:
        nsys.make(job)
    assert str(job.report) in str(caught.value)


def test_a_report_without_our_ranges_is_an_error(nsys: Nsys, tmp_path: Path) -> None:
    job = Job((sys.executable, "-c", "pass"), tmp_path / "others-s0.5", nsys.suffix, ("dense",), CPU)
    options = ["--trace=nvtx,osrt", "--sample=none", "--cpuctxsw=none", f"--output={job.stem}"]
    command = [nsys.path, "profile", *options, *job.command]
    code, output = run_tool(command)  # not into a pipe: nsys leaves a service running that would hold it open
    assert code == 0, output
    with pytest.raises(ProfilerError, match="holds none of hsbench's ranges"):
        nsys.lines(job)
