"""``--evict``: what is asked for reaches every cell, row and manifest; mistakes are one line; the real thing runs."""

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

Run = Callable[..., Any]

SHAPE = ["--q-heads", "4", "--kv-heads", "2", "--head-dim", "64", "--seq", "1000"]


def test_nobody_evicts_unless_asked(hsbench: Run, bench: Any) -> None:
    assert hsbench("decode").code == hsbench("prefill", "--seq", "1k").code == hsbench("compare").code == 0
    assert {workload.evict for workload in bench.workloads} == {None}
    ran = hsbench("decode", "--evict", "0.50")
    assert bench.workloads[-1].evict == 0.5 and "· evict 0.5" in ran.out


def test_an_axis_of_a_sweep(hsbench: Run, bench: Any) -> None:
    bench.rows = lambda workload: [(name, "ok") for name in ("dense", "hierarchical", "evict", "unstructured")]
    ran = hsbench("compare", "--seq", "1k,2k", "--evict", "0, 0.25,1")
    assert [(w.seq, w.evict) for w in bench.workloads] == [(s, e) for s in (1024, 2048) for e in (0.0, 0.25, 1.0)]
    rows = list(csv.DictReader(io.StringIO(ran.out)))
    for method, expected in (("hierarchical", ["0.0", "0.25", "1.0"]), ("dense", ["0.0"] * 3), ("evict", None)):
        shares = [row["evict"] for row in rows if row["method"] == method]
        assert shares == 2 * (expected or ["0.0", "0.25", "1.0"])
    assert "evict" in ran.err and "0.25" in ran.err


def test_a_row_of_its_own_has_a_share_where_none_is_asked_for(hsbench: Run, bench: Any) -> None:
    bench.rows = lambda workload: [("hierarchical", "ok"), ("evict", "ok")]
    ran = hsbench("compare", "--sparsity", "0,0.25,0.5")
    rows = [row for row in csv.DictReader(io.StringIO(ran.out)) if row["method"] == "evict"]
    shares = [float(row["evict"]) for row in rows]
    assert shares[0] == 0 and shares[2] == pytest.approx(2 * shares[1], abs=1e-5) and 0.43 < shares[2] < 0.46


@pytest.mark.parametrize("command", ["decode", "prefill", "compare"])
@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("1.5", "--evict 1.5: must be 0 to 1"),
        ("-0.1", "--evict -0.1: must be 0 to 1"),
        ("half", "--evict half: not a number"),
        ("nan", "--evict nan: not a number"),
        ("", '--evict "": '),
    ],
)
def test_mistakes(hsbench: Run, command: str, typed: str, message: str) -> None:
    ran = hsbench(command, "--evict", typed)
    assert ran.code == 2 and message in ran.err and len(ran.err.strip().splitlines()) == 1
    assert not ran.out


# ---- For real ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_every_share_for_real(phase: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No mock: by the queries of captured tensors where there are several, else by the norms of keys."""
    from hsbench.cli.main import main

    how = ["--methods", "dense,hierarchical,evict", "--time", "0.02", "--device", "cpu", "--cache", "warm"]
    kv = tmp_path / "kv.safetensors"
    shapes = {"q": (1, 4, 8, 64), "k": (1, 2, 1000, 64), "v": (1, 2, 1000, 64)}
    save_file({f"layers.3.{name}": torch.randn(shape).half() for name, shape in shapes.items()}, kv)
    for rule, source in (("attention mass", ["--kv", str(kv)]), ("key norm", SHAPE)):
        out = tmp_path / f"{rule}.csv"
        asked = ["--evict", "0,0.5,1", "--output", str(out), "--manifest", str(tmp_path / "m.json")]
        assert main(["compare", "--phase", phase, *source, *asked, *how]) == 0
        rows = {(row["method"], row["evict"]): row for row in csv.DictReader(out.open())}
        assert {row["status"] for row in rows.values()} == {"ok"}, [row["reason"] for row in rows.values()]
        assert all(float(row["rel_error"]) < 1e-3 for row in rows.values())
        for method in ("hierarchical", "evict"):
            half, everything = rows[method, "0.5"], rows[method, "1.0"]
            assert half["evict_by"] == everything["evict_by"] == rule and not rows[method, "0.0"]["evict_by"]
            assert float(half["achieved_evict"]) == pytest.approx(8 / 15) and float(everything["achieved_evict"]) == 1
            assert int(everything["kv_bytes"]) < int(half["kv_bytes"]) < int(rows[method, "0.0"]["kv_bytes"])
        assert not rows["dense", "0.0"]["achieved_evict"]
        page = 64 * 64 * 2
        maps, position = 2 * 2 * 8 * 4, 2 * 8 * 4
        assert int(rows["evict", "0.5"]["kv_bytes"]) == 2 * 2 * 8 * page + maps + position
    assert [cell["workload"]["evict"] for cell in json.loads((tmp_path / "m.json").read_text())["run"]["cells"]] == [
        0.0, 0.5, 1.0,
    ]  # fmt: skip
    capsys.readouterr()


def test_the_same_memory_for_real(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from hsbench.cli.main import main

    shape = [*SHAPE[:-1], "6400"]
    how = ["--methods", "hierarchical:16bit,evict", "--time", "0.02", "--device", "cpu", "--cache", "warm"]
    assert main(["decode", *shape, *how, "--output", str(tmp_path / "a.csv")]) == 0
    ratios = [float(row["kv_ratio"]) for row in csv.DictReader((tmp_path / "a.csv").open())]
    assert ratios[1] == pytest.approx(ratios[0], rel=0.015) and ratios[0] > 1.8
    told = capsys.readouterr().err
    assert "by key norm" in told and "achieved" not in told, "what only evicts prunes nothing"
