"""``hsbench compare --replay``: the same run again, what has changed since, and manifests that are none."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from hsbench.kernels.device import CPU, CUDA
from hsbench.methods import find_methods
from hsbench.problem.phase import DECODE

Run = Callable[..., object]


@pytest.fixture
def recorded(hsbench: Run, bench: object, tmp_path: Path) -> Callable[..., Path]:
    """Runs a command, and gives its manifest's path; the mock forgets the run."""

    def run(*argv: str) -> Path:
        path = tmp_path / "then.json"
        assert hsbench(*argv, "--manifest", str(path)).code == 0
        run.calls, bench.calls = bench.calls, []
        return path

    return run


def replay(hsbench: Run, path: Path, *argv: str) -> Any:
    return hsbench("compare", "--replay", str(path), *argv)


@pytest.mark.parametrize(
    "argv",
    [
        ["decode"],
        ["decode", "--workload", "qwen3-8b", "--seq", "8k", "--sink", "64", "--local", "128", "--dtype", "bf16"],
        ["decode", "--q-heads", "8", "--kv-heads", "2", "--head-dim", "64", "--seq", "300"],  # a custom shape
        ["prefill", "--seq", "2k", "--q-len", "256", "--cache", "warm", "--time", "0.25", "--seed", "9"],
        ["prefill", "--seq", "2k", "--sustain", "0.3"],
        ["compare", "--phase", "decode,prefill", "--seq", "1k,2k", "--sparsity", "0,0.1,0.5", "--batch", "1,8"],
        ["compare", "--seq", "1k", "--pruner", "mirror,magnitude,centered:hd"],
        ["compare", "--tensors", "outliers", "--key-sparsity", "0", "--methods", "dense,sdpa:flash"],
    ],
)
def test_the_same_run(hsbench: Run, bench: object, recorded: Any, argv: list[str]) -> None:
    path = recorded(*argv)
    then = recorded.calls
    ran = replay(hsbench, path)
    assert ran.code == 0 and "warning" not in ran.err
    for was, now in zip(then, bench.calls, strict=True):
        assert was["workload"] == now["workload"] and was["settings"] == now["settings"]
        assert was["device"] == now["device"] and was["captured"] is now["captured"] is None
    held = json.loads(path.read_text())["run"]["cells"]
    assert [call["methods"] for call in bench.calls] == [cell["methods"] for cell in held]
    rows = list(csv.DictReader(io.StringIO(ran.out)))
    assert len(rows) == 2 * len(then), "CSV on stdout, as compare gives it"


def test_a_replay_can_be_replayed(hsbench: Run, bench: object, recorded: Any, tmp_path: Path) -> None:
    path = recorded("prefill", "--seq", "1k")
    assert replay(hsbench, path, "--output", str(tmp_path / "again.csv")).code == 0
    again = tmp_path / "again.manifest.json"
    assert replay(hsbench, again).code == 0
    assert json.loads(again.read_text())["run"] == json.loads(path.read_text())["run"]
    assert bench.workloads[0] == bench.workloads[1] and bench.workloads[0].phase.name == "prefill"


def test_a_document_of_schema_3_is_still_good(hsbench: Run, bench: object, recorded: Any) -> None:
    path = recorded("decode", "--seq", "1k", "--sink", "64")
    manifest = json.loads(path.read_text()) | {"rows_schema": "hsbench/3"}
    path.write_text(json.dumps({"schema": "hsbench/3", "manifest": manifest, "rows": [], "peaks": []}))
    ran = replay(hsbench, path)
    assert ran.code == 0 and "warning" not in ran.err
    assert bench.workloads == [call["workload"] for call in recorded.calls] and bench.workloads[0].sink == 64


def test_one_from_before_sustain_is_still_good(hsbench: Run, bench: object, recorded: Any) -> None:
    path = recorded("decode", "--seq", "1k", "--time", "0.25")
    manifest = json.loads(path.read_text())
    manifest["rows_schema"] = "hsbench/2"
    del manifest["run"]["settings"]["sustain_s"]
    path.write_text(json.dumps(manifest))
    ran = replay(hsbench, path)
    assert ran.code == 0 and "warning" not in ran.err
    assert bench.calls[0]["settings"] == recorded.calls[0]["settings"] and bench.calls[0]["settings"].sustain_s == 0


def test_a_json_of_results_is_as_good(hsbench: Run, bench: object, tmp_path: Path) -> None:
    hsbench("compare", "--seq", "1k,2k", "--output", str(tmp_path / "r.json"))
    assert replay(hsbench, tmp_path / "r.json", "--format", "json", "--output", str(tmp_path / "s.json")).code == 0
    assert bench.workloads[:2] == bench.workloads[2:]


def test_who_asked_for_nothing_is_not_told_that_it_is_unavailable(hsbench: Run, bench: object, recorded: Any) -> None:
    """The methods are all named in the manifest; the exit code is that of the run, where nobody named them."""
    bench.rows = lambda workload: [("dense", "ok"), ("hierarchical", "unavailable")]
    assert replay(hsbench, recorded("decode")).code == 0
    bench.rows = lambda workload: [("dense", "ok"), ("hierarchical", "ok")]
    path = recorded("decode", "--methods", "dense,hierarchical")
    bench.rows = lambda workload: [("dense", "ok"), ("hierarchical", "unavailable")]
    assert replay(hsbench, path).code == 4


def test_what_has_changed_is_one_warning(hsbench: Run, bench: object, recorded: Any) -> None:
    bench.environment = {"OMP_NUM_THREADS": "4", "HSBENCH_ISA": "avx2"}
    path = recorded("decode")
    manifest = json.loads(path.read_text())
    manifest["versions"] |= {"torch": "2.11.0"}
    manifest["git"] = {"commit": "f" * 40, "dirty": True}
    manifest["libraries"]["cpu"] = "b" * 64
    manifest["machine"]["cpu"]["threads"] = 8
    path.write_text(json.dumps(manifest))
    bench.environment = {"OMP_NUM_THREADS": "2"}
    ran = replay(hsbench, path)
    (line,) = [line for line in ran.err.splitlines() if "warning" in line]
    assert line.startswith(f"hsbench: warning: --replay {path}: not all is as it was: ")
    for words in (
        "torch was 2.11.0, is 2.13.0",
        "commit was ffffffffffff with changes, is 0123456789ab",
        f"libhsbench_cpu was {'b' * 12}, is {'c' * 12}",
        "cpu threads was 8, is 2",
        "OMP_NUM_THREADS was 4, is 2",
        "HSBENCH_ISA was avx2, is unset",
    ):
        assert words in line
    assert ran.code == 0 and "model" not in line


def test_another_device(hsbench: Run, bench: object, recorded: Any) -> None:
    path = recorded("decode")
    bench.cuda = True
    assert replay(hsbench, path).code == 0, "what ran on the CPU stays there"
    ran = replay(hsbench, path, "--device", "cuda")
    assert "device was cpu, is cuda" in ran.err and "gpu name was unset, is Test GPU" in ran.err
    assert [call["device"] for call in bench.calls] == [CPU, CUDA]
    suit = [method.name for method in find_methods(None, DECODE, CUDA)]
    assert bench.calls[1]["methods"] == suit, "all that suit the device, as was asked for then"
    bench.cuda = False
    ran = replay(hsbench, path, "--device", "cuda")
    assert ran.code == 4 and ran.err.startswith("hsbench: error: --device cuda: ")


def test_methods_that_another_device_lacks(hsbench: Run, bench: object, recorded: Any) -> None:
    bench.cuda = True
    path = recorded("decode", "--methods", "sdpa:cudnn")
    ran = replay(hsbench, path, "--device", "cpu")
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert f"--device cpu: the run of --replay {path} asked for methods that are not there" in ran.err


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--seq", "1k"], "--seq 1k"),
        (["--key-sparsity", "0"], "--key-sparsity 0"),
        (["--methods", "dense"], "--methods dense"),
        (["--phase", "decode"], "--phase decode"),
        (["--kv", "x.safetensors"], "--kv x.safetensors"),
        (["--time", "1"], "--time 1"),
        (["--sustain", "0"], "--sustain 0"),
        (["--seed", "1"], "--seed 1"),
    ],
)
def test_what_contradicts_it(hsbench: Run, bench: object, recorded: Any, argv: list[str], named: str) -> None:
    path = recorded("decode")
    ran = replay(hsbench, path, *argv)
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1) and not bench.calls
    assert f"error: {named}: --replay repeats a run as it was; leave one of them out" in ran.err


def damage(change: Callable[[dict[str, Any]], object]) -> Callable[[str], str]:
    def apply(text: str) -> str:
        manifest = json.loads(text)
        change(manifest)
        return json.dumps(manifest)

    return apply


def cell(**fields: object) -> Callable[[str], str]:
    return damage(lambda manifest: manifest["run"]["cells"][0]["workload"].update(fields))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: "", "is not whole JSON"),
        (lambda text: text[:-9], "is not whole JSON"),
        (lambda text: "schema,phase\nhsbench/3,decode\n", "is not whole JSON; give the FILE.manifest.json"),
        (lambda text: "[1, 2]", "is no manifest of hsbench"),
        (lambda text: "{}", "is no manifest of hsbench"),
        (lambda text: '{"schema": "hsbench/1", "rows": []}', "is no manifest of hsbench"),
        (lambda text: '{"schema": "hsbench-doctor/1"}', "is no manifest of hsbench"),
        (lambda text: text.replace("hsbench-manifest/1", "hsbench-manifest/2"), "is of a newer hsbench"),
        (damage(lambda m: m.pop("run")), "is damaged, or another version's (lacks 'run')"),
        (damage(lambda m: m["run"].pop("settings")), "lacks 'settings'"),
        (damage(lambda m: m["run"].update(schema="hsbench-plan/3")), "hsbench-plan/2 is the newest known"),
        (damage(lambda m: m["run"].update(schema=None)), "is damaged"),
        (damage(lambda m: m["run"].update(cells=[])), "is damaged"),
        (damage(lambda m: m["run"].update(cells=7)), "is damaged"),
        (damage(lambda m: m["run"].update(device="tpu")), "is damaged"),
        (damage(lambda m: m["run"].update(methods="dense")), "is damaged"),
        (damage(lambda m: m["run"]["cells"][0].update(methods=["nope"])), "is damaged"),
        (damage(lambda m: m["run"]["cells"][0].update(methods=None)), "is damaged"),
        (damage(lambda m: m["run"]["cells"][0].update(captured={})), "is damaged"),
        (damage(lambda m: m["run"]["settings"].update(budget_s="4")), "is damaged"),
        (damage(lambda m: m["run"]["settings"].update(budget_s=-1)), "is damaged"),
        (damage(lambda m: m["run"]["settings"].update(max_samples=2.5)), "is damaged"),
        (damage(lambda m: m["run"]["settings"].update(cache="hot")), "is damaged"),
        (damage(lambda m: m["run"]["settings"].update(extra=1)), "is damaged"),
        (damage(lambda m: m["run"]["settings"].update(sustain_s="0.3")), "is damaged"),
        (damage(lambda m: m["run"]["settings"].update(sustain_s=True)), "is damaged"),
        (damage(lambda m: m["run"]["settings"].update(sustain_s=-1)), "is damaged"),
        (damage(lambda m: m["run"]["settings"].update(sustain_s=61)), "is damaged"),
        (damage(lambda m: m["run"]["settings"].update(sustain_s=float("nan"))), "is damaged"),
        (cell(seq=-4), "(seq -4: must be at least 1"),
        (cell(seq="1k"), "is damaged"),
        (cell(seq=True), "is damaged"),
        (cell(key_sparsity=0.7), "must be 0 to 0.5"),
        (cell(key_sparsity="0.5"), "is damaged"),
        (cell(phase="train"), "is damaged"),
        (cell(dtype=16), "is damaged"),
        (cell(name=None), "is damaged"),
        (cell(tensors="kv.safetensors#layers.3"), "no file for kv.safetensors#layers.3"),
        (cell(more=1), "is damaged"),
        (cell(q_heads=7), "is damaged"),
    ],
)
def test_a_manifest_that_is_none(
    hsbench: Run, bench: object, recorded: Any, change: Callable[[str], str], words: str
) -> None:
    path = recorded("decode")
    assert replay(hsbench, path).code == 0
    bench.calls.clear()
    path.write_text(change(path.read_text()))
    ran = replay(hsbench, path)
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1), ran.err
    assert ran.err.startswith(f"hsbench: error: --replay {path}: ") and words in ran.err, ran.err
    assert not bench.calls


def test_a_file_that_cannot_be_read(hsbench: Run, bench: object, tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    for path, words in (
        (tmp_path / "none.json", "cannot be read (No such file or directory)"),
        (tmp_path, "cannot be read (Is a directory)"),
        (tmp_path / "bytes", "is not whole JSON"),
    ):
        ran = replay(hsbench, path)
        assert (ran.code, ran.err.count("\n")) == (2, 1)
        assert f"--replay {path}: {words}" in ran.err


def test_it_is_not_written_over(hsbench: Run, bench: object, recorded: Any, tmp_path: Path) -> None:
    path = recorded("decode")
    beside = path.rename(tmp_path / "r.manifest.json")
    held = beside.read_text()
    for argv in (["--manifest", str(beside)], ["--output", str(beside)], ["--output", str(tmp_path / "r.csv")]):
        ran = replay(hsbench, beside, *argv)
        assert (ran.code, ran.err.count("\n")) == (2, 1) and "the file of --replay" in ran.err
    assert beside.read_text() == held and not bench.calls


def capture(path: Path, value: float = 0.0, seq: int = 96) -> Path:
    q, kv = torch.full((1, 8, 5, 64), value).half(), torch.full((1, 2, seq, 64), value).half()
    save_file({"layers.2.q": q, "layers.2.k": kv, "layers.2.v": kv.clone()}, path)
    return path


@pytest.mark.parametrize("argv", [["decode"], ["prefill"], ["prefill", "--q-len", "2"]])
def test_captured_tensors(hsbench: Run, bench: object, recorded: Any, tmp_path: Path, argv: list[str]) -> None:
    file = capture(tmp_path / "kv.safetensors")
    path = recorded(*argv, "--kv", str(file))
    then = recorded.calls
    ran = replay(hsbench, path)
    assert ran.code == 0 and "warning" not in ran.err
    assert bench.calls[0]["workload"] == then[0]["workload"] and bench.calls[0]["captured"] == then[0]["captured"]

    capture(file, value=1.0)
    ran = replay(hsbench, path)
    assert ran.code == 0 and "kv.safetensors#layers.2 holds other tensors" in ran.err

    capture(file, seq=128)
    ran = replay(hsbench, path)
    assert ran.code == 2 and f"{file} has another seq than then" in ran.err

    file.unlink()
    ran = replay(hsbench, path)
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert f"--replay {path}: its captured tensors cannot be had" in ran.err and "no such file" in ran.err


def test_for_real(tmp_path: Path, capsys: object) -> None:
    """No mock: the rows of both runs are of the same cells and methods, by the same settings."""
    from hsbench.cli.main import main

    shape = ["--seq", "200", "--q-heads", "2", "--kv-heads", "1", "--head-dim", "64", "--cache", "warm"]
    asked = ["--methods", "sdpa:flash,reference", "--time", "0.02", "--device", "cpu"]
    assert main(["decode", *shape, *asked, "--output", str(tmp_path / "a.csv")]) == 0
    again = ["--replay", str(tmp_path / "a.manifest.json"), "--output", str(tmp_path / "b.csv")]
    assert main(["compare", *again]) == 0
    capsys.readouterr()
    first, second = (list(csv.DictReader((tmp_path / name).open())) for name in ("a.csv", "b.csv"))
    measured = ("time", "samples", "stop", "speedup", "gb_per_s", "percent", "baseline", "shared", "peak_bytes")

    def given(row: dict[str, str]) -> dict[str, str]:
        return {name: value for name, value in row.items() if not name.startswith(measured)}

    assert [given(row) for row in first] == [given(row) for row in second]
    assert [row["status"] for row in second] == ["ok", "ok"] and second[0]["rel_error"]


def test_replay_is_answered_before_torch(hsbench: Run, tmp_path: Path) -> None:
    import subprocess
    import sys

    code = f"""
import sys
from hsbench.cli.main import main
assert main(["compare", "--replay", {str(tmp_path / "none.json")!r}]) == 2
assert "torch" not in sys.modules
"""
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


BEFORE = Path(__file__).parent / "data" / "manifest-1.json"
"""What hsbench 0.1.0 of schema 3 left of ``compare --phase decode,prefill --methods sdpa,dense,hierarchical ...``."""


def test_a_manifest_of_the_version_before(hsbench: Run, bench: object, tmp_path: Path) -> None:
    """It has no version of its plan, and everything in it is still meant."""
    then = json.loads(BEFORE.read_text())["run"]
    assert "schema" not in then
    for cell in then["cells"]:
        cell["workload"] |= {"pruner": "magnitude", "evict": None}  # there was no other, and no eviction
    ran = replay(hsbench, BEFORE, "--output", str(tmp_path / "again.csv"))
    assert ran.code == 0 and ran.err.count("hsbench: warning: ") == 1 and "not all is as it was" in ran.err
    assert [call["workload"].to_dict() for call in bench.calls] == [cell["workload"] for cell in then["cells"]]
    assert [call["methods"] for call in bench.calls] == [cell["methods"] for cell in then["cells"]]
    assert {call["settings"].sustain_s for call in bench.calls} == {0.01}
    now = json.loads((tmp_path / "again.manifest.json").read_text())["run"]
    assert now.pop("schema") == "hsbench-plan/2" and now == then
