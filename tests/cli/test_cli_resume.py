"""``hsbench compare --resume``: what is done stays, the rest is measured, and a file of another run is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hsbench.results import read_rows, read_stored
from hsbench.results.columns import columns_of

Run = Callable[..., Any]
SWEEP = ["--seq", "1k,2k,4k", "--sparsity", "0,0.5", "--methods", "dense:16bit,hierarchical:16bit"]


def form(name: str) -> Any:
    skip = pytest.mark.skipif(name == "parquet" and not _has("pyarrow"), reason="needs pyarrow")
    return pytest.param(name, marks=skip)


def _has(module: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(module) is not None


FORMS = [form("csv"), form("json"), form("parquet")]


def stop_after(bench: Any, cells: int) -> None:
    def before(call: int) -> None:
        if call > cells:
            raise KeyboardInterrupt

    bench.before = before


def what_is_told(path: Path) -> list[dict[str, Any]]:
    return [row.to_row() for row in read_rows(path)]


@pytest.mark.parametrize("name", FORMS)
def test_the_rest_of_a_stopped_run(hsbench: Run, bench: Any, tmp_path: Path, name: str) -> None:
    whole, path = tmp_path / f"whole.{name}", tmp_path / f"r.{name}"
    hsbench("compare", *SWEEP, "--output", str(whole))
    stop_after(bench, 4 + len(bench.calls))
    assert hsbench("compare", *SWEEP, "--output", str(path)).code == 130
    assert [row.status for row in read_rows(path)] == ["ok"] * 8 + ["interrupted"] * 4
    bench.before, bench.calls = lambda call: None, []
    ran = hsbench("compare", "--resume", str(path))
    assert ran.code == 0 and len(bench.calls) == 2 and ran.out == ""
    assert f"{path}: 8 of 12 rows are done and kept, 4 are measured now" in ran.err and "warning" not in ran.err
    assert what_is_told(path) == what_is_told(whole)
    then, now = read_stored(whole), read_stored(path)
    assert [one.memory for one in now.results] == [one.memory for one in then.results]
    assert now.complete and now.manifest["run"] == then.manifest["run"] and now.ceilings == then.ceilings
    assert ran.err.count("\ndecode") == 6, "the summary has all cells"
    assert not list(tmp_path.glob(".*")), "nothing is left beside it"


@pytest.mark.parametrize("name", FORMS)
def test_what_is_done_is_in_the_file_at_every_moment(hsbench: Run, bench: Any, tmp_path: Path, name: str) -> None:
    path = tmp_path / f"r.{name}"
    stop_after(bench, 4)
    hsbench("compare", *SWEEP, "--output", str(path))
    seen: list[int] = []
    bench.before = lambda call: seen.append(sum(one.record.status == "ok" for one in read_stored(path).results))
    assert hsbench("compare", "--resume", str(path)).code == 0
    assert seen == [8, 10]


@pytest.mark.parametrize(("cut", "kept"), [(1, 3), (30, 3), (0, 4)])
def test_a_torn_last_line_is_dropped_and_said(hsbench: Run, bench: Any, tmp_path: Path, cut: int, kept: int) -> None:
    path = tmp_path / "r.csv"
    hsbench("compare", *SWEEP, "--output", str(path))
    text = "".join(path.read_text().splitlines(keepends=True)[:5])
    path.write_text(text[: len(text) - cut])
    bench.calls = []
    ran = hsbench("compare", *SWEEP, "--resume", str(path))
    assert ran.code == 0 and len(read_rows(path)) == 12 and f"{kept} of 12 rows" in ran.err
    assert ("its end is missing" in ran.err) == bool(cut)
    assert len(bench.calls) == (5 if cut else 4), "a cell of which a row is missing is measured as a whole"


def test_a_finished_row_of_a_cell_that_is_measured_again_stays(hsbench: Run, bench: Any, tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    hsbench("compare", *SWEEP, "--output", str(path))
    lines = path.read_text().splitlines(keepends=True)
    lines[3] = lines[3].replace(",1000.0,", ",1234.0,")
    path.write_text("".join(lines[:4]))
    hsbench("compare", "--resume", str(path))
    assert path.read_text().splitlines(keepends=True)[:4] == lines[:4]


def test_rows_that_cannot_run_are_done(hsbench: Run, bench: Any, tmp_path: Path) -> None:
    bench.rows = lambda workload: [("dense", "incorrect"), ("hierarchical", "oom")]
    path = tmp_path / "r.csv"
    assert hsbench("compare", *SWEEP, "--output", str(path)).code == 3
    before, bench.calls = path.read_bytes(), []
    ran = hsbench("compare", "--resume", str(path))
    assert (ran.code, bench.calls, path.read_bytes()) == (3, [], before)


def test_equal_rows_of_two_cells(hsbench: Run, bench: Any, tmp_path: Path) -> None:
    """No pruner touches a dense row: it is the same in both cells, and each keeps its own."""
    argv = ["--seq", "1k", "--pruner", "magnitude,mirror", "--methods", "dense:16bit,hierarchical:16bit"]
    path = tmp_path / "r.csv"
    hsbench("compare", *argv, "--output", str(path))
    whole = path.read_text()
    path.write_text("".join(whole.splitlines(keepends=True)[:4]))
    bench.calls = []
    hsbench("compare", "--resume", str(path))
    assert path.read_text() == whole and len(bench.calls) == 1


def test_a_kill_between_the_last_row_and_the_end_of_a_document(hsbench: Run, bench: Any, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    hsbench("compare", *SWEEP, "--output", str(path))
    document = json.loads(path.read_text())
    path.write_text(path.read_text().replace('"complete": true', '"complete": false'))
    bench.calls = []
    assert hsbench("compare", "--resume", str(path)).code == 0 and bench.calls == []
    assert json.loads(path.read_text()) == document


def test_a_document_without_its_end(hsbench: Run, bench: Any, tmp_path: Path) -> None:
    """As a pipe leaves it: `compare --format json > FILE`."""
    path = tmp_path / "r.json"
    hsbench("compare", *SWEEP, "--output", str(path))
    document = json.loads(path.read_text())
    text = path.read_text()
    path.write_text(text[: text.rindex('"seq": 4096') - 100])
    ran = hsbench("compare", "--resume", str(path))
    assert ran.code == 0 and "its end is missing" in ran.err and "11 of 12 rows" in ran.err
    assert json.loads(path.read_text())["rows"] == document["rows"]


def test_a_file_that_is_not_there_yet_is_begun(hsbench: Run, bench: Any, tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    ran = hsbench("compare", *SWEEP, "--resume", str(path))
    assert ran.code == 0 and "is not there: the run begins" in ran.err and len(read_rows(path)) == 12
    assert (tmp_path / "r.manifest.json").exists()
    path.unlink()
    ran = hsbench("compare", "--resume", str(path))
    assert ran.code == 2 and "cannot be read (No such file" in ran.err


@pytest.mark.parametrize("content", ["", "schema,bench"])
def test_a_file_with_no_row_yet(hsbench: Run, bench: Any, tmp_path: Path, content: str) -> None:
    path = tmp_path / "r.csv"
    path.write_text(content)
    assert hsbench("compare", *SWEEP, "--resume", str(path)).code == 0
    assert len(read_rows(path)) == 12


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--seq", "1k,8k", *SWEEP[2:]], "is of another run: --q-len was 1, is 1024, 2048"),
        (["--seq", "1k,8k", *SWEEP[2:]], "--seq was 1024, 2048, 4096, is 1024, 8192"),
        ([*SWEEP, "--time", "1"], "is of another run: --time was 4.0, is 1.0"),
        ([*SWEEP[:4], "--methods", "dense:16bit"], "--methods were dense, hierarchical, are dense"),
        ([*SWEEP, "--output", "x.csv"], "--output x.csv: --resume goes on in the file of the run"),
        ([*SWEEP, "--replay", "x.csv"], "--replay x.csv: --resume goes on in the file of the run"),
        ([*SWEEP, "--format", "json"], "--format json: the file of --resume is csv"),
    ],
)
def test_what_contradicts_the_file_is_refused(
    hsbench: Run, bench: Any, tmp_path: Path, argv: list[str], words: str
) -> None:
    path = tmp_path / "r.csv"
    hsbench("compare", *SWEEP, "--output", str(path))
    before, bench.calls = path.read_bytes(), []
    ran = hsbench("compare", *argv, "--resume", str(path))
    if "--q-len" in words:
        words = "is of another run"
    assert ran.code == 2 and words in ran.err and ran.err.count("\n") == 1
    assert bench.calls == [] and path.read_bytes() == before


def test_another_machine_is_refused(hsbench: Run, bench: Any, tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    hsbench("compare", *SWEEP, "--output", str(path))
    bench.environment = {"OMP_NUM_THREADS": "1"}
    ran = hsbench("compare", "--resume", str(path))
    assert ran.code == 2 and "was begun elsewhere: OMP_NUM_THREADS was unset, is 1" in ran.err


def test_without_a_manifest_rows_tell_what_they_are(hsbench: Run, bench: Any, tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text(hsbench("compare", *SWEEP).out)
    ran = hsbench("compare", "--seq", "1k,2k", *SWEEP[2:], "--resume", str(path))
    assert ran.code == 2 and "holds a row that is not of this run (seq is 4096, 1024 here)" in ran.err
    ran = hsbench("compare", *SWEEP, "--resume", str(path))
    assert ran.code == 0 and "without its manifest it cannot be told" in ran.err


def test_without_a_manifest_nobody_knows_what_to_run(hsbench: Run, bench: Any, tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text(hsbench("compare", *SWEEP).out)
    ran = hsbench("compare", "--resume", str(path))
    assert ran.code == 2 and "has no manifest beside it; give --manifest FILE, or the options of the run" in ran.err
    ran = hsbench("compare", *SWEEP, "--manifest", str(tmp_path / "m.json"), "--output", str(path))
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:5]))
    ran = hsbench("compare", "--resume", str(path), "--manifest", str(tmp_path / "m.json"))
    assert ran.code == 0 and "4 of 12 rows" in ran.err


def test_a_file_of_quality_is_refused(hsbench: Run, bench: Any, tmp_path: Path) -> None:
    from hsbench.results import Quality

    path = tmp_path / "r.csv"
    path.write_text(",".join(one.name for one in Quality.columns()) + "\nhsbench/4,quality\n")
    ran = hsbench("compare", *SWEEP, "--resume", str(path))
    assert ran.code == 2 and "neither whole CSV nor" in ran.err


# ---- The real thing, killed --------------------------------------------------------------------------------
_CHILD = """
import gc, os, random, signal, sys, time
import torch
import hsbench.report, hsbench.results, hsbench.run.measuring, hsbench.run.replay, hsbench.run.resume
from hsbench.cli.main import main

from hsbench.machine import ceilings

ceilings._probe_size = lambda device: 1 << 20  # the probe has no part in this, and takes most of the time
gc.freeze()
quiet = os.open(os.devnull, os.O_WRONLY)

def child(*argv):
    pid = os.fork()
    if not pid:
        os.dup2(quiet, 2)
        os._exit(main(["compare", *argv]))
    return pid

def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

sweep, folder = sys.argv[2:], sys.argv[1]
draw = random.Random(7)
def begun(name):
    while not os.path.exists(name):
        time.sleep(0.002)
    return time.monotonic()

pid = child(*sweep, "--output", f"{folder}/whole.csv")
began = begun(f"{folder}/whole.csv")
assert ended(pid) == 0
writing = time.monotonic() - began
for at in range(20):
    name = f"{folder}/{at}.{('csv', 'json')[at % 2]}"
    pid = child(*sweep, "--resume", name)
    if at % 5:  # every fifth may be killed before it has written anything
        begun(name)
    time.sleep(draw.uniform(0, 0.9) * writing)
    os.kill(pid, signal.SIGKILL)
    print(ended(pid), flush=True)
    if os.path.exists(name):
        os.link(name, name + ".killed")
        os.rename(name, name + ".moved")
        with open(name + ".killed", "rb") as held, open(name, "wb") as copy:
            copy.write(held.read())
    assert ended(child(*sweep, "--resume", name)) == 0
"""


@pytest.mark.slow
def test_kill_9_at_random_moments_20_times(tmp_path: Path) -> None:
    """Each time, the file is the one that an unbroken run gives, times aside; and what was done then is in it."""
    sweep = [
        "--seq", "64,128,192", "--q-heads", "4", "--kv-heads", "2", "--head-dim", "64",
        "--methods", "dense:16bit,hierarchical:16bit,unstructured", "--device", "cpu", "--time", "0.001",
        "--cache", "warm",
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _CHILD, str(tmp_path), *sweep]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240, check=False)
    assert ran.returncode == 0, ran.stderr
    assert -signal.SIGKILL in map(int, ran.stdout.split())

    def told(path: Path) -> list[list[Any]]:
        """Of each row what no clock has a part in."""
        rows = read_rows(path)
        steady = ("kv_bytes", "kv_ratio", "achieved_sparsity", "rel_error", "read_bytes", "cold_by")
        columns = [*(one.name for one in columns_of(rows[0].case_type)), "status", "reason", *steady]
        return [[row.to_row()[name] for name in columns] for row in rows]

    whole, cut_off = told(tmp_path / "whole.csv"), 0
    assert len(whole) == 9
    for at in range(20):
        path = tmp_path / f"{at}.{('csv', 'json')[at % 2]}"
        assert told(path) == whole, path
        if (killed := tmp_path / f"{path.name}.killed").exists():
            then = [row.to_row() for row in read_stored(killed).rows]
            assert [row.to_row() for row in read_rows(path)][: len(then)] == then
            cut_off += len(then) < len(whole)
    assert cut_off >= 5, "most were killed in the middle"
