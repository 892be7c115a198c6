"""``--pruner`` and ``--basis``: what is asked for reaches every cell, row and manifest; mistakes are one line."""

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

from hsbench.cache.basis import Basis, BasisSource, LayerBasis
from hsbench.cache.pruner import PRUNERS

Run = Callable[..., Any]

HEADS = ["--q-heads", "4", "--kv-heads", "2", "--head-dim", "64"]
SHAPE = [*HEADS, "--seq", "200"]


def make_basis(path: Path, layers: tuple[int, ...] = (0, 3), kv_heads: int = 2, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    geometry = {"layers": 9, "q_heads": 2 * kv_heads, "kv_heads": kv_heads, "head_dim": 64}
    made = {i: LayerBasis(*(torch.rand(kv_heads, 64) for _ in range(3))) for i in layers}
    Basis(BasisSource("A", "1234", geometry, "ab", 7), made).save(path)
    return path


@pytest.fixture
def basis(tmp_path: Path) -> Path:
    return make_basis(tmp_path / "b.safetensors")


@pytest.fixture
def kv(tmp_path: Path) -> Path:
    """Layer 3, with several queries."""
    path = tmp_path / "kv.safetensors"
    shapes = {"q": (1, 4, 8, 64), "k": (1, 2, 200, 64), "v": (1, 2, 200, 64)}
    save_file({f"layers.3.{name}": torch.randn(shape).half() for name, shape in shapes.items()}, path)
    return path


def test_the_papers_unless_asked(hsbench: Run, bench: Any) -> None:
    assert hsbench("decode").code == hsbench("prefill", "--seq", "1k").code == hsbench("compare").code == 0
    assert {workload.pruner for workload in bench.workloads} == {"magnitude"}
    ran = hsbench("decode", "--pruner", "Mirror")
    assert bench.workloads[-1].pruner == "mirror" and "· mirror" in ran.out
    assert "magnitude" not in hsbench("decode").out


def test_an_axis_of_a_sweep(hsbench: Run, bench: Any) -> None:
    bench.rows = lambda workload: [(name, "ok") for name in ("dense", "hierarchical", "unstructured")]
    ran = hsbench("compare", "--seq", "1k,2k", "--pruner", "magnitude, mirror,centered")
    names = ["magnitude", "mirror", "centered"]
    assert [(w.seq, w.pruner) for w in bench.workloads] == [(seq, name) for seq in (1024, 2048) for name in names]
    rows = list(csv.DictReader(io.StringIO(ran.out)))
    for method, expected in (("hierarchical", names * 2), ("dense", names[:1] * 6), ("unstructured", names[:1] * 6)):
        assert [row["pruner"] for row in rows if row["method"] == method] == expected
    assert "pruner" in ran.err and "centered" in ran.err


def test_auto_takes_v_s_axis_by_what_reads_the_cache(hsbench: Run, bench: Any) -> None:
    assert hsbench("decode", "--pruner", "auto").code == hsbench("prefill", "--seq", "1k", "--pruner", "Auto").code == 0
    assert [workload.pruner for workload in bench.workloads] == ["attentive:hd", "attentive"]
    assert hsbench("compare", "--phase", "decode,prefill", "--seq", "1k", "--pruner", "magnitude,auto").code == 0
    assert [workload.pruner for workload in bench.workloads[2:]] == [
        "magnitude", "attentive:hd", "magnitude", "attentive"
    ]  # fmt: skip


def test_calibrated_takes_the_layer_of_its_tensors(hsbench: Run, bench: Any, basis: Path, kv: Path) -> None:
    calibrated = ["--pruner", "calibrated", "--basis", str(basis)]
    for argv, layer in (
        (["decode", *SHAPE, *calibrated], 0),
        (["decode", *SHAPE, *calibrated, "--layer", "3"], 3),
        (["prefill", "--kv", str(kv), *calibrated], 3),
    ):
        assert hsbench(*argv).code == 0
        assert (bench.calls[-1]["basis"].path, bench.calls[-1]["basis"].layer) == (basis, layer)
    assert hsbench("compare", *SHAPE, "--pruner", "mirror,calibrated", "--basis", str(basis)).code == 0
    assert [call["basis"] is not None for call in bench.calls[-2:]] == [False, True]


def test_a_manifest_names_the_basis(hsbench: Run, bench: Any, basis: Path, tmp_path: Path) -> None:
    then = tmp_path / "then.json"
    argv = [*SHAPE, "--pruner", "calibrated", "--basis", str(basis), "--layer", "3"]
    assert hsbench("decode", *argv, "--manifest", str(then)).code == 0
    (cell,) = json.loads(then.read_text())["run"]["cells"]
    assert (cell["basis"]["path"], cell["basis"]["layer"]) == (str(basis), 3) and len(cell["basis"]["sha256"]) == 64
    assert cell["workload"]["pruner"] == "calibrated"
    ran = hsbench("compare", "--replay", str(then))
    assert ran.code == 0 and "warning" not in ran.err and bench.calls[0]["workload"] == bench.calls[1]["workload"]
    assert bench.calls[0]["basis"] == bench.calls[1]["basis"]
    make_basis(basis, seed=1)
    assert "b.safetensors is another basis" in hsbench("compare", "--replay", str(then)).err
    make_basis(basis, layers=(0,))
    assert "its basis cannot be had" in hsbench("compare", "--replay", str(then)).err
    basis.unlink()
    ran = hsbench("compare", "--replay", str(then))
    assert ran.code == 2 and f"--replay {then}: its basis cannot be had" in ran.err and ran.err.count("\n") == 1


def make_plan(path: Path) -> Path:
    layers = [{"key_sparsity": 0.5, "value_sparsity": 0.25}, *({"key_sparsity": 0.0, "value_sparsity": 0.5},) * 3]
    model = {"name": "A", "identity": "1234"}
    path.write_text(
        json.dumps({"schema": "hsbench-layers/1", "model": model, "pruner": "balanced", "kl": 0.01, "layers": layers})
    )
    return path


def test_a_plan_of_layers_brings_sparsities_and_pruner(hsbench: Run, bench: Any, kv: Path, tmp_path: Path) -> None:
    plan = ["--plan", str(make_plan(tmp_path / "plan.json"))]
    for argv, expected in (
        (["decode", *SHAPE, *plan], (0.5, 0.25, "balanced")),
        (["prefill", *SHAPE, *plan, "--layer", "1"], (0.0, 0.5, "balanced")),
        (["decode", "--kv", str(kv), *plan], (0.0, 0.5, "balanced")),
        (["compare", *SHAPE, *plan, "--pruner", "mirror"], (0.5, 0.25, "mirror")),
    ):
        assert hsbench(*argv).code == 0
        workload = bench.workloads[-1]
        assert (workload.key_sparsity, workload.value_sparsity, workload.pruner) == expected


@pytest.mark.parametrize(
    ("argv", "what"),
    [
        (["--plan", "PLAN", "--sparsity", "0.5"], "--sparsity 0.5: --plan brings the sparsities; leave"),
        (["--plan", "PLAN", "--layer", "4"], "has the layers 0 to 3; give one of these"),
        (["--plan", "none"], "--plan none: cannot be read"),
        (["--plan", "PLAN", "--output", "PLAN", "--format", "csv"], "is the file of --plan; give another"),
        (["--pruner", "mirorr"], "--pruner mirorr: unknown (did you mean mirror?); one of magnitude, mirror,"),
        (["--pruner", ""], '--pruner "": '),
        (["--pruner", "mirror,centered"], "--pruner mirror,centered: takes one value here"),
        (["--pruner", "calibrated"], "make one with `hsbench calibrate`, give it as --basis"),
        (["--pruner", "calibrated:hd"], "--pruner calibrated:hd: needs a calibration"),
        (["--basis", "BASIS"], "only a pruner such as calibrated takes it; add --pruner calibrated"),
        (["--basis", "BASIS", "--pruner", "balanced"], "only a pruner such as calibrated takes it"),
        (["--basis", "none", "--pruner", "calibrated"], "--basis none: no such file"),
        (["--basis", "KV", "--pruner", "calibrated"], "not a hsbench-basis/1 file"),
        (["--basis", "BASIS", "--pruner", "calibrated", "--layer", "7"], "has no layer 7"),
        (["--basis", "OTHER", "--pruner", "calibrated"], "is for 8 kv heads x 64 (A), not for 2 x 64"),
        (["--basis", "BASIS", "--pruner", "calibrated", "--output", "BASIS"], "--output"),
        (["--layer", "3"], "--layer 3: only a file of captured tensors has layers"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_before_any_work(
    hsbench: Run, bench: Any, basis: Path, kv: Path, tmp_path: Path, argv: list[str], what: str
) -> None:
    files = {
        "BASIS": basis,
        "KV": kv,
        "PLAN": make_plan(tmp_path / "plan.json"),
        "OTHER": make_basis(tmp_path / "other.safetensors", kv_heads=8),
    }
    before = basis.read_bytes()
    ran = hsbench("decode", *SHAPE, *(str(files.get(word, word)) for word in argv))
    assert ran.code == 2 and ran.out == "" and ran.err.count("\n") == 1 and not bench.calls
    assert what in ran.err and basis.read_bytes() == before


def test_mistakes_of_a_list_name_the_one(hsbench: Run, bench: Any) -> None:
    ran = hsbench("compare", "--pruner", "mirror,Nope,centered")
    assert ran.code == 2 and "--pruner Nope: unknown" in ran.err and not bench.calls


def test_a_name_is_refused_before_torch() -> None:
    import subprocess
    import sys

    code = """
import sys
from hsbench.cli.main import main
assert main(["decode", "--pruner", "none"]) == main(["decode", "--pruner", "calibrated"]) == 2
assert "torch" not in sys.modules
"""
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60, capture_output=True).returncode == 0


# ---- For real ------------------------------------------------------------------------------------------------
def rows_of(path: Path) -> dict[tuple[str, str], dict[str, str]]:
    return {(row["method"], row["pruner"]): row for row in csv.DictReader(path.open())}


@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_every_pruner_for_real(
    phase: str, basis: Path, kv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No mock: captured tensors of several queries have all that a pruner may need."""
    from hsbench.cli.main import main

    out = tmp_path / "rows.csv"
    how = ["--methods", "dense,hierarchical", "--time", "0.02", "--device", "cpu", "--cache", "warm"]
    names = [*PRUNERS, "mirror:hd"]
    argv = ["compare", "--phase", phase, "--kv", str(kv), "--pruner", ",".join(names), "--basis", str(basis)]
    assert main([*argv, *how, "--key-sparsity", "0.3", "--output", str(out)]) == 0
    rows = rows_of(out)
    for name in PRUNERS:
        row = rows["hierarchical", name]
        assert row["status"] == "ok" and float(row["rel_error"]) < 1e-3, row["reason"]
        shift = 2 * 2 * 64 * 4 if PRUNERS[name].key_shift else 0
        assert int(row["kv_bytes"]) == int(rows["hierarchical", "magnitude"]["kv_bytes"]) + shift
    along = rows["hierarchical", "mirror:hd"]
    if phase == "decode":
        assert along["status"] == "ok" and float(along["rel_error"]) < 1e-3, along["reason"]
    else:
        assert along["status"] == "unsupported" and "prefill reads V in groups along tokens alone" in along["reason"]
    assert rows["dense", "magnitude"]["status"] == "ok"
    methods = [row["method"] for row in csv.DictReader(out.open())]
    assert methods.count("dense") == methods.count("hierarchical") == len(names), "each cell has its own"
    capsys.readouterr()


def test_attentive_without_queries_is_a_row_that_says_so(
    kv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from hsbench.cli.main import main

    lone = tmp_path / "lone.safetensors"
    shapes = {"q": (1, 4, 1, 64), "k": (1, 2, 200, 64), "v": (1, 2, 200, 64)}
    save_file({f"layers.3.{name}": torch.randn(shape).half() for name, shape in shapes.items()}, lone)
    how = ["--methods", "dense,hierarchical", "--time", "0.02", "--device", "cpu", "--cache", "warm"]
    for at, source in enumerate((["--kv", str(lone)], SHAPE)):
        out = tmp_path / f"{at}.csv"
        assert main(["decode", *source, "--pruner", "attentive", *how, "--output", str(out)]) == 0
        rows = rows_of(out)
        assert rows["hierarchical", "attentive"]["status"] == "unsupported"
        assert "needs the context's last queries: give --kv" in rows["hierarchical", "attentive"]["reason"]
        assert rows["dense", "magnitude"]["status"] == "ok"
    capsys.readouterr()
