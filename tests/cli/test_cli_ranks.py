"""``--ranks`` on the command line: what is refused before any rank starts; and one real run under torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hsbench.kernels import library
from hsbench.kernels.device import CPU
from hsbench.problem.workload import make_workload
from hsbench.results import Record, read_rows
from hsbench.run.plan import Plan, make_plan

TORCHRUN = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What was launched, in place of ranks."""
    calls: list[tuple[Any, ...]] = []

    def launch(*arguments: Any) -> int:
        calls.append(arguments)
        return 3

    monkeypatch.setattr("hsbench.distributed.launch.launch", launch)
    return calls


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["decode", "--ranks", "0"], "--ranks 0: must be at least 1"),
        (["decode", "--ranks", "two"], "--ranks two: not a size"),
        (["decode", "--ranks", "3", "--seq", "128"], "--ranks 3: 128 tokens are 2 blocks of 64; give at most 2"),
        (["prefill", "--ranks", "2", "--seq", "1k"], "--q-len 1024: over 2 ranks, queries are those of a last chunk"),
        (["prefill", "--ranks", "2", "--seq", "1k", "--q-len", "513"], "give at most the last rank's 512 tokens"),
        (
            ["prefill", "--ranks", "2", "--seq", "1k", "--q-len", "64", "--profiler", "torch"],
            "--ranks 2: profile one rank's part of decode, of synthetic tensors; else leave --profile out",
        ),
    ],
)
def test_what_cannot_be_sharded(hsbench: Callable[..., Any], launched: list[Any], words: list[str], line: str) -> None:
    ran = hsbench(*words)
    assert ran.code == 2 and line in ran.err and ran.err.count("\n") == 1 and launched == []


def test_ranks_are_started_with_the_same_command_line(
    hsbench: Callable[..., Any], launched: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hsbench.measure.cpu_facts", lambda: type("Facts", (), {"usable_cores": 9}))
    words = ["compare", "--seq", "1k,2k", "--ranks", "4", "--device", "cpu"]
    assert hsbench(*words).code == 3  # the launcher's
    assert launched == [(4, ["-m", "hsbench", *words], 2)]


def test_more_ranks_than_gpus(
    hsbench: Callable[..., Any], bench: Any, launched: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.cuda = True
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    ran = hsbench("decode", "--ranks", "2", "--device", "cuda")
    assert ran.code == 4 and "--ranks 2: 1 GPU to see here; give at most 1" in ran.err and launched == []


def test_one_rank_is_no_other_run(hsbench: Callable[..., Any], bench: Any, launched: list[Any]) -> None:
    assert hsbench("decode", "--ranks", "1").code == 0
    assert len(bench.calls) == 1 and launched == []


def test_ranks_that_torchrun_did_not_start(hsbench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    ran = hsbench("decode", "--ranks", "3", "--seq", "1k")
    assert ran.code == 2 and "--ranks 3: torchrun has started 2 ranks" in ran.err


def test_a_plan_knows_its_ranks() -> None:
    problem = (make_workload("decode", seq=1024), None)
    plan = make_plan([problem], ["dense"], CPU, ranks=2)
    assert plan.to_dict()["ranks"] == 2 and Plan.from_dict(plan.to_dict()) == plan
    assert "ranks" not in make_plan([problem], ["dense"], CPU).to_dict()  # as ever


def test_what_is_profiled_is_the_first_ranks_part() -> None:
    problem = (make_workload("decode", seq=1000, sink=64, local=100), None)
    plan = make_plan([problem], ["dense"], CPU, ranks=2)
    (cell,) = plan.of(plan.cells[0], ["dense"]).cells
    assert (cell.workload.seq, cell.workload.sink, cell.workload.local) == (512, 64, 0)
    alone = make_plan([problem], ["dense"], CPU)
    assert alone.of(alone.cells[0], ["dense"]).cells[0].workload == alone.cells[0].workload


def test_what_ranks_began_is_resumed_by_ranks(
    hsbench: Callable[..., Any], launched: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("hsbench.measure.cpu_facts", lambda: type("Facts", (), {"usable_cores": 4}))
    rows, manifest = tmp_path / "rows.csv", tmp_path / "rows.manifest.json"
    assert hsbench("compare", "--seq", "1k", "--output", str(rows)).code == 0
    document = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(document | {"run": document["run"] | {"ranks": 2}}))
    words = ["compare", "--resume", str(rows)]
    assert hsbench(*words).code == 3 and launched == [(2, ["-m", "hsbench", *words], 2)]


@pytest.mark.slow
def test_two_ranks_under_torchrun(tmp_path: Path) -> None:
    output = tmp_path / "rows.json"
    words = ["compare", "--phase", "decode,prefill", "--q-len", "100", "--seq", "1000", "--sparsity", "0.5"]
    words += [
        "--methods",
        "dense:16bit,hierarchical:16bit,evict",
        "--q-heads",
        "4",
        "--kv-heads",
        "2",
        "--head-dim",
        "64",
    ]
    words += ["--device", "cpu", "--time", "0.02", "--cache", "warm", "--sink", "64", "--output", str(output)]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "hsbench", *words]
    environment = os.environ | {"PYTHONPATH": str(library.LIB.parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "" and done.stderr.count("summary") == 1  # rank 0 alone
    assert json.loads(output.read_text())["manifest"]["run"]["ranks"] == 2
    rows = [row for row in read_rows(output) if isinstance(row, Record)]
    assert {(row.case.phase, row.method, row.status) for row in rows} == {
        (phase, method, "unsupported" if method == "evict" else "ok")
        for phase in ("decode", "prefill")
        for method in ("dense", "hierarchical", "evict")
    }
    assert len(rows) == 6
    for row in rows:
        assert row.case.ranks == 2
        if row.status != "ok":
            assert "over ranks: blocks to evict are chosen over the whole sequence" in (row.reason or "")
            continue
        m = row.measures
        assert m.shard_tokens == 512 and m.efficiency_by == "one rank" and m.efficiency and m.efficiency > 0
        assert m.part_us and m.collective_us and m.time_us
        assert m.device_kv_bytes and m.kv_bytes and m.kv_bytes / 2 <= m.device_kv_bytes < m.kv_bytes
        assert m.achieved_sparsity in (None, 0.5) and m.ceiling and m.ceiling.startswith("2 x ")
