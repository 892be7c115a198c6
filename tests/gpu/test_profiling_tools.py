"""--profile with the real tools, where they are: a report that holds our kernels, by method."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from hsbench.profiling import PROFILERS

pytestmark = pytest.mark.gpu


def profile(tmp_path: Path, name: str, *argv: str) -> subprocess.CompletedProcess[str]:
    if reason := PROFILERS[name]().missing():
        pytest.skip(reason)
    command = [sys.executable, "-m", "hsbench", "decode", "--seq", "4k", "--time", "0.1", "--device", "cuda"]
    return subprocess.run(
        [*command, "--profiler", name, *argv],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=600,
        check=False,
    )


def rows(err: str) -> list[list[str]]:
    """The summary's rows: method, kernel, calls, share, and more; a method stands in each of its rows."""
    found, method = [], ""
    for line in err.splitlines():
        if match := re.fullmatch(r" {11}(\S*) +(\S.*?)  +(\d+) +(\S.*)", line):
            method = match[1] or method
            found.append([method, *match.groups()[1:]])
    return found


def check_kernels(err: str) -> None:
    kernels = [(method, kernel) for method, kernel, *_ in rows(err)]
    decoding = {method for method, kernel in kernels if kernel in ("decode_kernel", "decode_head_kernel")}
    assert {"dense", "hierarchical"} <= decoding, err  # and those of other elements
    names = {kernel for _, kernel in kernels}
    assert not any("spin" in name or "FillFunctor" in name for name in names), "only the methods' own kernels"


@pytest.mark.parametrize(("name", "suffix"), [("nsys", "nsys-rep"), ("torch", "trace.json")])
def test_a_time_line_has_the_kernels_of_each_method(tmp_path: Path, name: str, suffix: str) -> None:
    ran = profile(tmp_path, name, "--methods", "dense,hierarchical")
    assert ran.returncode == 0, ran.stderr
    check_kernels(ran.stderr)
    assert (tmp_path / "profiles" / "out" / f"decode-Llama-3.1-8B-4k-b1-fp16-s0.5.{suffix}").stat().st_size > 1000


def test_ncu_has_the_counters_of_each_method(tmp_path: Path) -> None:
    ran = profile(tmp_path, "ncu", "--methods", "dense,hierarchical")
    if ran.returncode == 4 and "NVreg_RestrictProfilingToAdminUsers" in ran.stderr:
        pytest.skip("the driver keeps its performance counters for administrators")
    said = "\n".join(line for line in ran.stderr.splitlines() if line.startswith("  | "))
    assert ran.returncode == 0, f"exit code {ran.returncode}; ncu said last:\n{said}\nall of stderr:\n{ran.stderr}"
    check_kernels(ran.stderr)
    assert "DRAM" in ran.stderr and "registers" in ran.stderr
    for method in ("dense", "hierarchical"):
        report = tmp_path / "profiles" / "out" / f"decode-Llama-3.1-8B-4k-b1-fp16-s0.5-{method}.ncu-rep"
        assert report.stat().st_size > 1000
