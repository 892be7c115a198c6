"""``hsbench show``: the tables of a file as if it had just been measured; formats into one another; bad files."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hsbench.results import read_rows, read_stored
from old_schema import OLD_HEAD, OLD_ROWS

Run = Callable[..., Any]
SWEEP = ["--seq", "1k,2k", "--phase", "decode,prefill", "--sparsity", "0,0.5"]
WITH_PYARROW = pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="needs pyarrow")
FORMS = ["csv", "json", pytest.param("parquet", marks=WITH_PYARROW)]


@pytest.mark.parametrize("form", ["json", pytest.param("parquet", marks=WITH_PYARROW)])
@pytest.mark.parametrize("argv", [["decode", "--sink", "64"], ["compare", *SWEEP], ["compare", "--evict", "0.25,0.5"]])
def test_the_tables_of_a_run_are_there_again(hsbench: Run, tmp_path: Path, argv: list[str], form: str) -> None:
    path = tmp_path / f"r.{form}"
    measured = hsbench(*argv, "--format", "table")
    hsbench(*argv, "--output", str(path))
    shown = hsbench("show", str(path))
    assert shown == measured and "dense" in shown.out


def test_a_csv_tells_what_it_holds_and_its_manifest_the_machine(hsbench: Run, tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    hsbench("compare", *SWEEP, "--output", str(path))
    out = hsbench("show", str(path)).out
    assert out.count("decode Llama-3.1-8B") == out.count("prefill Llama-3.1-8B") == 4
    assert "Test CPU" in out and "torch 2.13.0" in out and "KV memory" not in out
    (tmp_path / "r.manifest.json").unlink()
    assert "Test CPU" not in hsbench("show", str(path)).out


@pytest.mark.parametrize("to", FORMS)
@pytest.mark.parametrize("form", FORMS)
def test_one_format_becomes_another(hsbench: Run, tmp_path: Path, form: str, to: str) -> None:
    path, other = tmp_path / f"r.{form}", tmp_path / f"other.{to}"
    hsbench("compare", *SWEEP, "--pruner", "magnitude,mirror", "--output", str(path))
    ran = hsbench("show", str(path), "--output", str(other))
    assert (ran.code, ran.out, ran.err) == (0, "", "")
    assert read_rows(other) == read_rows(path) and len(read_rows(path)) == 32
    assert not (tmp_path / "other.manifest.json").exists()
    if "csv" not in (form, to):
        then, now = read_stored(path), read_stored(other)
        assert (now.manifest, now.machine, now.ceilings) == (then.manifest, then.machine, then.ceilings)
        assert [one.memory for one in now.results] == [one.memory for one in then.results]


def test_failed_rows_say_why(hsbench: Run, bench: Any, tmp_path: Path) -> None:
    bench.rows = lambda workload: [("dense", "incorrect"), ("hierarchical", "oom")]
    hsbench("decode", "--output", str(tmp_path / "r.csv"))
    ran = hsbench("show", str(tmp_path / "r.csv"))
    assert ran.code == 0 and "INCORRECT: made to be incorrect" in ran.out and "oom: made to be oom" in ran.out


def test_cells_that_are_not_numbers_are_unknown(hsbench: Run, tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    hsbench("decode", "--output", str(path))
    path.write_text(path.read_text().replace(",1000.0,", ",nan,"))
    ran = hsbench("show", str(path))
    assert ran.code == 0 and "nan" not in ran.out


def test_a_file_whose_end_is_missing(hsbench: Run, tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    hsbench("compare", *SWEEP, "--output", str(path))
    path.write_text(path.read_text()[:-9])
    ran = hsbench("show", str(path))
    assert ran.code == 0 and "warning: " in ran.err and "its end is missing" in ran.err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "holds no rows"),
        ("schema,phase\n", "holds no rows"),
        ("a,b\n1,2\n", "row 1 is no result of hsbench"),
        ("schema,phase\nhsbench/9,decode\n", "row 1 is of schema 9"),
        ('{"schema": "hsbench/4"', "holds no rows"),
        ("{]", "is neither whole CSV nor whole JSON"),
        ("\xff\xfe", "is neither whole CSV nor whole JSON"),
        ("PAR1 and no more", "is neither whole CSV nor whole JSON"),
    ],
)
def test_what_is_no_result(hsbench: Run, tmp_path: Path, content: str, words: str) -> None:
    if content.startswith("PAR1") and importlib.util.find_spec("pyarrow") is None:
        pytest.skip("needs pyarrow")
    path = tmp_path / "r"
    path.write_bytes(content.encode("latin-1"))
    ran = hsbench("show", str(path))
    assert ran.code == 2 and ran.err.startswith(f"hsbench: error: FILE {path}: ") and words in ran.err
    assert ran.err.count("\n") == 1 and ran.out == ""


def test_a_file_cannot_become_itself(hsbench: Run, tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    hsbench("decode", "--output", str(path))
    ran = hsbench("show", str(path), "--output", str(path))
    assert ran.code == 2 and "is the file of FILE" in ran.err


def test_a_row_of_no_shape(hsbench: Run, tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    hsbench("decode", "--output", str(path))
    path.write_text(path.read_text().replace(",32,8,128,", ",32,8,7,"))
    ran = hsbench("show", str(path))
    assert ran.code == 2 and "of no shape that there is (head_dim 7" in ran.err


def test_parquet_is_a_file_and_needs_pyarrow(hsbench: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = hsbench("decode", "--format", "parquet")
    assert ran.code == 2 and "--output -: Parquet is a file of its own" in ran.err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    ran = hsbench("decode", "--output", str(tmp_path / "r.parquet"))
    assert ran.code == 4 and "pyarrow is missing, which Parquet needs: pip install pyarrow" in ran.err


def test_a_file_of_an_older_schema(hsbench: Run, tmp_path: Path) -> None:
    path = tmp_path / "old.csv"
    path.write_text(OLD_HEAD + OLD_ROWS)
    ran = hsbench("show", str(path))
    assert ran.code == 0 and "sdpa:flash" in ran.out and "3.51" in ran.out and "needs 34 GiB" in ran.out
    assert hsbench("diff", str(path), str(path)).code == 0
    assert hsbench("plot", str(path), "--output", str(tmp_path / "a.json")).code == 0
    ran = hsbench("compare", "--seq", "1k", "--resume", str(path))
    assert ran.code == 2 and "is of an older schema; run the command anew" in ran.err
    assert path.read_text() == OLD_HEAD + OLD_ROWS
