"""``hsbench quality``, with a model of two layers in place of a real one."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hsbench.cli.main import main
from hsbench.errors import UnavailableError
from hsbench.measure import FreeMemory
from hsbench.results import Quality, read_rows
from two_layers import TinyModel

SMALL = ("--context", "448", "--score", "64", "--windows", "1", "--local", "128")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What models were opened, and how."""
    found: list[dict[str, Any]] = []

    def open_model(source: Any, **how: Any) -> TinyModel:
        found.append({"spec": source.name, **how})
        return TinyModel()

    def find_source(spec: str) -> SimpleNamespace:
        if spec == "missing":
            raise UnavailableError("transformers missing: pip install 'hsbench[models]'")

        def encode(words: str) -> list[int]:
            return TinyModel().tokens(words).tolist()

        tokenizer = SimpleNamespace(encode=encode, frame=lambda: ("", ""))
        return SimpleNamespace(name=spec, identity="abc123", layers=2, max_positions=4096, tokenizer=tokenizer)

    monkeypatch.setattr("hsbench.models.loading.open_model", open_model)
    monkeypatch.setattr("hsbench.models.sources.find_source", find_source)
    return found


@pytest.fixture
def words(tmp_path: Path) -> Path:
    path = tmp_path / "words.txt"
    draw = torch.Generator().manual_seed(3)
    path.write_text("".join(chr(97 + int(one)) for one in torch.randint(0, 26, (3000,), generator=draw)))
    return path


@pytest.fixture
def quality(
    opened: object, words: Path, capsys: pytest.CaptureFixture[str], one_torch_thread: None
) -> Callable[..., tuple[int, str, str]]:
    def run(*argv: str, text: Path | None = words, model: str = "tiny") -> tuple[int, str, str]:
        code = main(["quality", model, *(() if text is None else ("--text", str(text))), *argv])
        streams = capsys.readouterr()
        return code, streams.out, streams.err

    return run


def test_a_table(quality, opened):
    code, out, err = quality(*SMALL)
    assert code == 0, err
    assert opened == [{"spec": "tiny", "device": "cpu", "dtype": "fp32", "context": 512}]
    for piece in (
        "quality tiny",
        "words.txt",
        "1 window of 448 + 64 tokens",
        "dense",
        "hierarchical:attentive",
        "KL nats",
    ):
        assert piece in out
    assert err.startswith("hsbench: about ") and err.count("\n") == 1


def test_csv_json_and_their_manifest(quality, tmp_path, words):
    code, out, _ = quality(*SMALL, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 0 and [row["key_sparsity"] for row in rows] == ["0.0", "0.5"]
    path = tmp_path / "rows.json"
    code, out, err = quality(*SMALL, "--output", str(path), "--needle", "--depths", "0.2,0.8")
    document = json.loads(path.read_text())
    assert code == 0 and out == "" and "passkey nats" in err and document["complete"]
    run = document["manifest"]["run"]
    assert run["text"]["path"] == str(words) and len(run["text"]["sha256"]) == 64 and run["depths"] == [0.2, 0.8]
    read = read_rows(path)
    assert all(isinstance(row, Quality) for row in read) and read[1].measures.needles == 2
    code, out, _ = quality(*SMALL, "--output", str(tmp_path / "rows.csv"))
    manifest = json.loads((tmp_path / "rows.manifest.json").read_text())
    assert manifest["run"]["schema"] == "hsbench-quality/1" and manifest["command"][1] == "quality"


def test_markdown(quality):
    code, out, _ = quality(*SMALL, "--format", "markdown", "--per-layer")
    assert code == 0 and out.startswith("### quality tiny") and "one layer at a time" in out
    assert "| hierarchical:attentive |" in out


def test_a_wrong_kernel_is_exit_code_3(quality, monkeypatch):
    from hsbench.run.quality import stores

    right = stores._Paged.attend
    monkeypatch.setattr(stores._Paged, "attend", lambda self, q: right(self, q).roll(1, 1))
    code, out, _ = quality(*SMALL)
    assert code == 3 and "INCORRECT" in out and "disagrees with its own cache" in out


def test_a_plan_is_written_and_taken(quality, tmp_path):
    plan = tmp_path / "plan.json"
    code, out, err = quality(*SMALL, "--plan-for", "0.001", "--plan-output", str(plan))
    assert code == 0 and f"the plan is in {plan}" in err
    made = json.loads(plan.read_text())
    assert made["schema"] == "hsbench-layers/1" and made["kl"] <= 0.001 and len(made["layers"]) == 2
    code, out, _ = quality(*SMALL, "--plan", str(plan))
    assert code == 0 and "plan.json" in out
    made["model"]["identity"] = "another"
    plan.write_text(json.dumps(made))
    code, _, err = quality(*SMALL, "--plan", str(plan))
    assert code == 2 and "was made for another tiny; make one with --plan-for" in err


def test_ctrl_c_keeps_what_is_done(quality, monkeypatch):
    from hsbench.run.quality import scoring

    right, calls = scoring.scored_run, []

    def impatient(*given: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return right(*given)

    monkeypatch.setattr(scoring, "scored_run", impatient)
    code, out, _ = quality(*SMALL[:4], "--windows", "3", "--local", "128", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 130 and [(row["status"], row["windows_done"]) for row in rows] == [
        ("interrupted", "2"),
        ("interrupted", "1"),
    ]


def test_8_bits_beside_16(quality, tmp_path):
    path = tmp_path / "rows.csv"
    how = ("--elements", "16bit,fp8", "--methods", "dense,hierarchical", "--pruner", "mirror", "--sparsity", "0.5")
    code, _, err = quality(*SMALL, *how, "--output", str(path))
    assert code == 0, err
    rows = {(row.case.method, row.case.elements): row for row in read_rows(path)}
    assert list(rows) == [(method, bits) for bits in ("16bit", "fp8") for method in ("dense", "hierarchical")]
    ratios = [round(row.measures.kv_ratio, 1) for row in rows.values()]
    assert ratios[0] == 1.0 and ratios[2] > 1.2 and ratios[3] > ratios[1] > 1, "half of the blocks stay wide"
    assert len({row.case for row in rows.values()}) == 4, "each has an identity of its own"
    assert rows["dense", "fp8"].measures.kl < rows["hierarchical", "fp8"].measures.kl
    code, out, _ = quality(*SMALL, *how[:4], "--sparsity", "0")
    assert code == 0 and "dense:fp8" in out


def test_k_and_v_of_other_elements(quality, tmp_path):
    path = tmp_path / "rows.csv"
    how = ("--key-elements", "int4", "--value-elements", "int4,fp8", "--methods", "hierarchical", "--pruner", "mirror")
    code, _, err = quality(*SMALL, *how, "--sparsity", "0.5", "--output", str(path))
    assert code == 0, err
    alike, apart = read_rows(path)
    assert (alike.case.elements, apart.case.elements) == ("int4", "int4/fp8")
    assert alike.measures.simulated == apart.measures.simulated == 0
    assert alike.measures.kv_ratio > apart.measures.kv_ratio > 1


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--context", "4k"], "--context 4k: with --score 1024 that is more than the model's 4,096 positions"),
        (["--context", "2k", "--windows", "2"], "has 3,000 tokens, and 2 windows of 2048 + 1024"),
        (["--context", "x"], "--context x: not a size"),
        (["--windows", "0"], "--windows 0"),
        (["--pruner", "mirrr"], "--pruner mirrr: unknown"),
        (["--pruner", "magnitude,,"], "--pruner magnitude,,: has an empty item"),
        (["--methods", "hierarchicl"], "--methods hierarchicl: unknown (did you mean hierarchical?)"),
        (["--methods", "unstructured", "--pruner", "magnitude"], "unstructured has none; leave it out"),
        (["--sparsity", "0.5,0.7"], "--sparsity 0.7"),
        (["--key-sparsity", "0.6"], "--key-sparsity 0.6"),
        (["--when", "later"], "--when later: unknown"),
        (["--chunk", "64"], "only --when chunked has chunks"),
        (["--dtype", "fp8"], "--dtype fp8: unknown"),
        (["--weights", "fp8"], "--weights fp8: unknown"),
        (["--elements", "fp9"], "--elements fp9: unknown (did you mean fp8?)"),
        (["--value-elements", "int3"], "--value-elements int3: unknown (did you mean int4?)"),
        (["--elements", "fp8", "--methods", "unstructured"], "--elements fp8: unstructured stores 16 bits only"),
        (["--methods", "dense", "--pruner", "magnitude"], "dense has none; leave it out"),
        (["--basis", "basis.safetensors"], "none of the pruners takes a basis"),
        (["--plan", "no.json"], "--plan no.json: cannot be read"),
        (["--plan-for", "0.01"], "give --plan-output FILE, too"),
        (["--plan-for", "-1", "--plan-output", "x"], "--plan-for -1: give a KL in nats above 0"),
        (["--plan-for", "1", "--plan-output", "x", "--sparsity", "0"], "prunes nothing"),
        (["--plan-output", "x"], "there is no plan without --plan-for"),
        (["--depths", "0.5,2"], "--depths 0.5,2: give shares of the context"),
        (["--context", "40", "--score", "8", "--needle"], "--context 40: too short to hide a passkey"),
    ],
)
def test_bad_input_is_one_line_before_the_model_is_loaded(quality, opened, argv, said):
    code, out, err = quality(*argv)
    assert (code, out, opened) == (2, "", []), err
    assert err.count("\n") == 1 and said in err


def test_what_is_missing(quality, tmp_path, monkeypatch):
    code, _, err = quality(text=None)
    assert code == 2 and "--text is missing: give the file of a text" in err
    code, _, err = quality(text=tmp_path / "no.txt")
    assert code == 2 and "no.txt: cannot be read" in err
    code, _, err = quality(*SMALL, model="missing")
    assert code == 4 and "pip install 'hsbench[models]'" in err
    monkeypatch.setattr("hsbench.measure.free_memory", lambda device: FreeMemory(1 << 20))
    code, out, err = quality(*SMALL)
    assert code == 4 and out == "" and "GiB is free: give less of them" in err


def test_no_file_is_written_over(quality, words, tmp_path):
    for option in ("--output", "--manifest", "--plan-output"):
        code, _, err = quality(*SMALL, option, str(words), *(["--plan-for", "1"] if option == "--plan-output" else []))
        assert code == 2 and f"{option} {words}: is the file of --text; give another" in err, err


def test_a_pruner_that_needs_a_basis(quality, tmp_path):
    from hsbench.cache.basis import Basis, BasisSource, LayerBasis

    def save(model, identity, head_dim):
        geometry = {"kv_heads": 2, "head_dim": head_dim}
        layers = {0: LayerBasis(*(torch.ones(2, head_dim) for _ in LayerBasis.__dataclass_fields__))}
        Basis(BasisSource(model, identity, geometry, "", 1), layers).save(path)

    code, _, err = quality(*SMALL, "--pruner", "magnitude,calibrated")
    assert (
        code == 2
        and "--pruner calibrated: needs a calibration; make one with hsbench calibrate and give it as --basis" in err
    )
    path = tmp_path / "basis.safetensors"
    code, _, err = quality(*SMALL, "--pruner", "calibrated", "--basis", str(path))
    assert code == 2 and "basis.safetensors: no such file; hsbench calibrate makes one" in err
    save("other", "another", 64)
    code, _, err = quality(*SMALL, "--pruner", "calibrated", "--basis", str(path))
    assert code == 2 and "is of other, not of this tiny" in err
    save("tiny", "abc123", 128)
    code, _, err = quality(*SMALL, "--pruner", "calibrated", "--basis", str(path))
    assert code == 2 and "is for 2 kv heads x 128 (tiny), not for 2 x 64" in err


@pytest.mark.parametrize("when", ["decode", "chunked", "whole"])
def test_eviction_beside_pruning(quality, when):
    """At the same memory, unless shares are asked for; through the kernels, which are checked."""
    argv = ("--methods", "hierarchical,evict", "--format", "csv", "--sparsity", "0,0.5", "--when", when, "--sink", "0")
    argv += ("--chunk", "128") if when == "chunked" else ()
    code, out, told = quality(*SMALL, *argv)
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 0, told
    assert [(row["method"], row["status"]) for row in rows] == [
        ("hierarchical", "ok"), ("hierarchical", "ok"), ("evict", "ok"),
    ]  # fmt: skip
    pruned, evicted = rows[1:]
    assert float(evicted["evict"]) == pytest.approx(0.453, abs=1e-3) and float(evicted["achieved_evict"]) > 0.45
    assert float(evicted["kv_ratio"]) >= float(pruned["kv_ratio"])  # in whole blocks, of which there are few
    assert float(evicted["kl"]) > 0 and "of least attention mass" in told
    code, out, _ = quality(*SMALL, *argv, "--evict", "0,0.5")
    shares = [(row["method"], row["key_sparsity"], row["evict"]) for row in csv.DictReader(io.StringIO(out))]
    assert code == 0 and shares[2:4] == [("hierarchical", "0.5", "0.0"), ("hierarchical", "0.5", "0.5")]
    assert shares[-1] == ("evict", "0.0", "0.5")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--evict", "2"), "--evict 2: must be 0 to 1"),
        (("--evict", "0.5,x"), "--evict x: not a number"),
        (("--evict", "0.5", "--methods", "unstructured"), "--evict 0.5: unstructured evicts nothing"),
    ],
)
def test_bad_shares_are_one_line(quality, opened, argv, said):
    code, out, told = quality(*SMALL, *argv)
    assert code == 2 and said in told and not out and not opened
