"""Manifests: where they are written, when, and what is in them."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hsbench.problem.workload import Workload
from hsbench.results import SCHEMA

Run = Callable[..., object]


def test_beside_every_csv(hsbench: Run, bench: object, tmp_path: Path) -> None:
    for name in ("a.csv", "b.out"):
        argv = ["--output", str(tmp_path / name), "--format", "csv"]
        assert hsbench("compare", "--seq", "1k,2k", *argv).code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "a.manifest.json", "b.manifest.json", "b.out"]
    manifest = json.loads((tmp_path / "a.manifest.json").read_text())
    assert manifest["schema"] == "hsbench-manifest/1" and manifest["rows_schema"] == SCHEMA
    assert manifest["command"] == [
        "hsbench", "compare", "--seq", "1k,2k", "--output", str(tmp_path / "a.csv"), "--format", "csv",
    ]  # fmt: skip
    assert manifest["git"] == {"commit": "0123456789abcdef", "dirty": False}
    assert manifest["machine"]["cpu"]["model"] == "Test CPU" and manifest["libraries"]["cpu"] == "c" * 64
    assert manifest["started"].endswith("+00:00")


def test_only_where_there_is_a_place(hsbench: Run, bench: object, tmp_path: Path, monkeypatch: object) -> None:
    monkeypatch.chdir(tmp_path)
    for argv in (
        ["decode"],
        ["decode", "--format", "csv"],
        ["decode", "--output", "a.md"],
        ["decode", "--output", "a.txt"],
        ["decode", "--output", "/dev/null", "--format", "csv"],
    ):
        assert hsbench(*argv).code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.md", "a.txt"]


@pytest.mark.parametrize("format", ["csv", "table", "json", "markdown"])
@pytest.mark.parametrize("command", ["decode", "prefill", "compare"])
def test_placed_by_hand(hsbench: Run, bench: object, tmp_path: Path, command: str, format: str) -> None:
    path = tmp_path / "m"
    ran = hsbench(command, "--seq", "1k", "--format", format, "--manifest", str(path))
    assert ran.code == 0 and ran.out and "manifest/1" in path.read_text()
    assert list(tmp_path.iterdir()) == [path]
    csv_path = tmp_path / "r.csv"
    hsbench(command, "--seq", "1k", "--manifest", str(path), "--output", str(csv_path))
    assert sorted(tmp_path.iterdir()) == [path, csv_path]


def test_in_every_json_document(hsbench: Run, bench: object, tmp_path: Path) -> None:
    document = json.loads(hsbench("decode", "--seq", "1k", "--format", "json").out)
    placed = tmp_path / "m.json"
    hsbench("decode", "--seq", "1k", "--output", str(tmp_path / "r.json"), "--manifest", str(placed))
    beside = json.loads((tmp_path / "r.json").read_text())["manifest"]
    assert beside == json.loads(placed.read_text())
    assert document["manifest"]["run"] == beside["run"]


def test_what_ran_is_written_in_full(hsbench: Run, bench: object, tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    hsbench(
        "compare", "--phase", "decode,prefill", "--seq", "1k", "--sparsity", "0,0.5", "--time", "0.5", "--seed", "3",
        "--cache", "warm", "--sustain", "0.3", "--methods", "sdpa:flash,dense", "--manifest", str(path),
    )  # fmt: skip
    run = json.loads(path.read_text())["run"]
    assert [Workload.from_dict(cell["workload"]) for cell in run["cells"]] == bench.workloads
    assert run["settings"] == dataclasses.asdict(bench.calls[0]["settings"])
    assert (run["settings"]["budget_s"], run["settings"]["cache"], run["device"]) == (0.5, "warm", "cpu")
    assert run["settings"]["sustain_s"] == 0.3
    assert run["methods"] == ["sdpa:flash", "dense"]
    rows = ["sdpa:flash", "dense", "dense:fp8", "dense:int4"]
    assert all(cell["methods"] == rows and cell["captured"] is None for cell in run["cells"])


def test_methods_are_named_where_nobody_did(hsbench: Run, bench: object, tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    hsbench("compare", "--phase", "decode,prefill", "--seq", "1k", "--manifest", str(path))
    run = json.loads(path.read_text())["run"]
    decode, prefill = (cell["methods"] for cell in run["cells"])
    assert run["methods"] is None
    assert "reference" in decode and "reference" not in prefill and "sdpa:flash" in prefill
    assert [call["methods"] for call in bench.calls] == [decode, prefill], "what runs"


def test_families_are_written_as_the_rows_that_run(hsbench: Run, bench: object, tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    hsbench("prefill", "--seq", "1k", "--methods", "sdpa,dense", "--manifest", str(path))
    run = json.loads(path.read_text())["run"]
    assert run["methods"] == ["sdpa", "dense"]
    assert run["cells"][0]["methods"] == ["sdpa:flash", "sdpa:math", "dense", "dense:fp8", "dense:int4"]


def test_captured_tensors_are_known_by_what_they_hold(hsbench: Run, bench: object, tmp_path: Path) -> None:
    digests = []
    for value in (0.0, 1.0):
        file = tmp_path / f"kv{value}.safetensors"
        named = {f"layers.2.{name}": torch.full((1, 2, 96, 64), value).bfloat16() for name in "qkv"}
        save_file(named | {"layers.3.q": torch.zeros(1)}, file)
        path = tmp_path / "m.json"
        assert hsbench("decode", "--kv", str(file), "--manifest", str(path)).code == 0
        captured = json.loads(path.read_text())["run"]["cells"][0]["captured"]
        assert (captured["path"], captured["layer"]) == (str(file), 2)
        digests.append(captured["sha256"])
    assert len(set(digests)) == 2 and all(len(digest) == 64 for digest in digests)


def test_written_before_the_first_row(hsbench: Run, bench: object, tmp_path: Path) -> None:
    """So that an interrupted or killed run has it too."""
    path = tmp_path / "r.csv"
    manifest = tmp_path / "r.manifest.json"
    seen: list[tuple[bool, bool]] = []

    def look(call: int) -> None:
        seen.append((path.exists(), manifest.exists() and json.loads(manifest.read_text())["run"] is not None))
        if call == 2:
            raise KeyboardInterrupt

    bench.before = look
    argv = ("--seq", "1k,2k,4k", "--methods", "dense:16bit,hierarchical:16bit", "--output", str(path))
    assert hsbench("compare", *argv).code == 130
    assert seen == [(False, False), (True, True)]
    assert len(json.loads(manifest.read_text())["run"]["cells"]) == 3
    with path.open() as file:
        assert len(list(csv.DictReader(file))) == 6


def test_a_run_that_fails_at_once_leaves_the_old_one(hsbench: Run, bench: object, tmp_path: Path) -> None:
    def fail(call: int) -> None:
        raise ZeroDivisionError

    bench.before = fail
    (tmp_path / "r.manifest.json").write_text("earlier")
    assert hsbench("decode", "--output", str(tmp_path / "r.csv")).code == 1
    assert (tmp_path / "r.manifest.json").read_text() == "earlier" and not (tmp_path / "r.csv").exists()


def test_a_disk_that_is_full_is_named(hsbench: Run, bench: object) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    ran = hsbench("decode", "--manifest", "/dev/full")
    assert ran.code == 1
    assert ran.err.startswith("hsbench: error: --manifest /dev/full: cannot be written (No space left on device)")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--manifest", "{}/folder"], "--manifest {}/folder: is a directory"),
        (["--manifest", "{}/none/m.json"], "--manifest {}/none/m.json: there is no directory"),
        (["--output", "{}/r.csv", "--manifest", "{}/r.csv"], "--manifest {}/r.csv: is the file of --output"),
        (["--output", "{}/r.csv", "--manifest", "{}/folder/../r.csv"], "is the file of --output"),
        (["--kv", "{}/kv", "--manifest", "{}/kv"], "--manifest {}/kv: is the file of --kv"),
        (["--output", "{}/taken.csv"], "--output {}/taken.csv: its manifest {}/taken.manifest.json is a directory"),
    ],
)
def test_bad_places_are_found_before_any_work(
    hsbench: Run, bench: object, tmp_path: Path, argv: list[str], words: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "taken.manifest.json").mkdir()
    save_file({f"layers.0.{name}": torch.zeros(1, 1, 4, 64).half() for name in "qkv"}, tmp_path / "kv")
    held = (tmp_path / "kv").read_bytes()
    ran = hsbench("decode", *(word.replace("{}", str(tmp_path)) for word in argv))
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert words.replace("{}", str(tmp_path)) in ran.err
    assert not bench.calls and (tmp_path / "kv").read_bytes() == held
