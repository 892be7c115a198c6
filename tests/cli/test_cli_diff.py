"""``hsbench diff``: its formats, its exit codes, its mistakes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

Run = Callable[..., Any]
SWEEP = ["--seq", "1k,2k", "--methods", "dense:16bit,hierarchical:16bit"]


@pytest.fixture
def files(hsbench: Run, tmp_path: Path) -> tuple[Path, Path]:
    """Two runs; in the second, one row is a third slower, and one has failed."""
    base, new = tmp_path / "base.csv", tmp_path / "new.csv"
    for path in (base, new):
        hsbench("compare", *SWEEP, "--output", str(path))
    lines = new.read_text().splitlines(keepends=True)
    lines[2] = (
        lines[2].replace(",1000.0,990.0,1010.0,", ",1333.0,1330.0,1336.0,").replace(",1.0,0.9,1.1,", ",0.7,0.69,0.71,")
    )
    new.write_text("".join(lines))
    return base, new


@pytest.mark.parametrize("name", ["base.csv", "base.json"])
def test_a_file_and_itself(hsbench: Run, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    hsbench("compare", *SWEEP, "--output", str(path))
    ran = hsbench("diff", str(path), str(path))
    assert (ran.code, ran.out) == (0, "")
    assert ran.err == "hsbench: 4 rows compared by time: none worse by more than 5 %\n"


def test_a_regression(hsbench: Run, files: tuple[Path, Path]) -> None:
    ran = hsbench("diff", *map(str, files))
    assert ran.code == 3 and ran.err == ""
    head, line, _, told = ran.out.splitlines()
    assert line.startswith("WORSE  1.00 ms  1.33 ms  +33.3 %  [+") and "hierarchical: decode Llama-3.1-8B, 1024" in line
    assert head.split() == ["base", "new", "change", "95", "%", "row"]
    assert told == "4 rows compared by time: 1 worse by more than 5 %"
    assert hsbench("diff", *map(str, files), "--fail-over", "50%").code == 0
    assert hsbench("diff", *map(str, reversed(files))).code == 0
    assert "better" in hsbench("diff", *map(str, reversed(files))).out


def test_another_metric(hsbench: Run, files: tuple[Path, Path]) -> None:
    assert hsbench("diff", *map(str, files), "--metric", "kv_bytes").code == 0
    ran = hsbench("diff", *map(str, files), "--metric", "quality")
    assert ran.code == 0 and "4 without a figure in both" in ran.err


def test_json(hsbench: Run, files: tuple[Path, Path]) -> None:
    ran = hsbench("diff", *map(str, files), "--format", "json")
    document = json.loads(ran.out)
    assert ran.code == 3 and document["schema"] == "hsbench-diff/1" and document["regressions"] == 1
    assert [row["verdict"] for row in document["rows"]] == ["same", "regression", "same", "same"]
    worse = document["rows"][1]
    assert (worse["base"], worse["new"], worse["ratio"]) == (1000.0, 1333.0, 1.333)
    assert worse["ratio_lo"] < 1.333 < worse["ratio_hi"] and worse["case"]["seq"] == 1024 and worse["unit"] == "us"


def test_markdown_and_junit_by_their_endings(hsbench: Run, files: tuple[Path, Path], tmp_path: Path) -> None:
    ran = hsbench("diff", *map(str, files), "--output", str(tmp_path / "d.md"))
    assert ran.code == 3 and ran.out == "" and "1 worse by more than 5 %" in ran.err
    text = (tmp_path / "d.md").read_text()
    assert (
        text.startswith("**hsbench diff**: 4 rows compared by time: 1 worse") and "| WORSE | 1.00 ms | 1.33 ms" in text
    )
    hsbench("diff", *map(str, files), "--output", str(tmp_path / "d.xml"))
    suite = ElementTree.parse(tmp_path / "d.xml").getroot()
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("4", "1", "0")
    (failed,) = [case for case in suite if case.find("failure") is not None]
    assert "hierarchical: decode" in str(failed.get("name"))
    assert "time 1.00 ms to 1.33 ms, +33.3 %" in str(failed.find("failure").get("message"))


def test_what_else_differs_is_named_first(hsbench: Run, bench: Any, tmp_path: Path) -> None:
    base, new = tmp_path / "base.csv", tmp_path / "new.json"
    hsbench("compare", *SWEEP, "--output", str(base))
    bench.environment = {"OMP_NUM_THREADS": "2"}
    bench.rows = lambda workload: [("dense", "ok"), ("hierarchical", "incorrect"), ("evict", "ok")]
    hsbench("compare", *SWEEP, "--output", str(new))
    ran = hsbench("diff", str(base), str(new))
    assert ran.code == 3 and ran.out.startswith("differs    OMP_NUM_THREADS was unset, is 2\n")
    assert ran.out.count("was ok, is incorrect: made to be incorrect") == 2
    assert ran.out.count("only new   evict: decode") == 2 and "2 only in new" in ran.out


def on_gpu(path: Path, name: str) -> None:
    document = json.loads(path.read_text())
    document["machine"]["gpu"] = {"name": name}
    path.write_text(json.dumps(document))


def test_another_gpu_is_refused_for_times(hsbench: Run, tmp_path: Path) -> None:
    base, new = tmp_path / "base.json", tmp_path / "new.json"
    for path, name in ((base, "NVIDIA H100"), (new, "NVIDIA H200")):
        hsbench("compare", *SWEEP, "--output", str(path))
        on_gpu(path, name)
    ran = hsbench("diff", str(base), str(new))
    assert ran.code == 2 and ran.out == ""
    assert f"NEW {new}: is of another machine than {base} (gpu was NVIDIA H100, is NVIDIA H200)" in ran.err
    assert hsbench("diff", str(base), str(new), "--across-machines").code == 0
    assert hsbench("diff", str(base), str(new), "--metric", "kv_bytes").code == 0


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--fail-over", "5"], "--fail-over 5: give a share such as 5% or 0.05"),
        (["--fail-over", "nan%"], "--fail-over nan%: give a share such as 5% or 0.05"),
        (["--metric", "speed"], "--metric speed: unknown; one of time, token_time, kv_bytes, error, quality"),
        (["--format", "csv"], "--format csv: unknown; one of table, json, markdown, junit"),
        (["--output", "d.csv"], "--output d.csv: end it in .txt, .json, .md or .xml"),
    ],
)
def test_mistakes(hsbench: Run, files: tuple[Path, Path], argv: list[str], words: str) -> None:
    ran = hsbench("diff", *map(str, files), *argv)
    assert ran.code == 2 and words in ran.err and ran.err.count("\n") == 1


def test_files_that_cannot_be_compared(hsbench: Run, files: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_text("")
    ran = hsbench("diff", str(files[0]), str(tmp_path / "empty.csv"))
    assert ran.code == 2 and f"NEW {tmp_path / 'empty.csv'}: holds no rows" in ran.err
    ran = hsbench("diff", str(tmp_path / "none.csv"), str(files[0]))
    assert ran.code == 2 and "BASE " in ran.err and "cannot be read" in ran.err
    hsbench("compare", "--seq", "4k", "--output", str(tmp_path / "other.csv"))
    ran = hsbench("diff", str(files[0]), str(tmp_path / "other.csv"))
    assert ran.code == 2 and "has no row in common with" in ran.err and "(seq " in ran.err
    ran = hsbench("diff", *map(str, files), "--output", str(files[0]), "--format", "json")
    assert ran.code == 2 and "is the file of BASE" in ran.err
    assert hsbench("diff", str(files[0])).code == 2
