"""``hsbench capture``: what it writes is what the model computes and what ``--kv`` reads; mistakes are one line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="needs pip install 'hsbench[models]'")

import torch
from safetensors import safe_open

from hsbench.cli.main import main
from hsbench.kernels.device import CPU
from hsbench.models.dense import dense_attend
from hsbench.models.loading import open_model
from hsbench.problem.captured import open_captured
from tiny_models import make_folder

Run = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("model"), "llama-64")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("All happy families are alike. " * 20)  # 600 bytes, as many tokens
    return path


@pytest.fixture
def run(model: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*words: str, **options: Any) -> tuple[int, str]:
        given = {"text": str(text), "seq": "100", "device": "cpu", "output": str(tmp_path / "kv.safetensors")} | options
        typed = [word for name, value in given.items() if value is not None for word in (f"--{name}", value)]
        code = main(["capture", *(words or [str(model)]), *typed])
        streams = capsys.readouterr()
        assert streams.out == ""
        return code, streams.err

    return run


def test_it_writes_what_kv_reads(run: Run, model: Path, text: Path, tmp_path: Path) -> None:
    path = tmp_path / "kv.safetensors"
    code, said = run(queries="10")
    assert code == 0 and f"hsbench: wrote {path} (0.2 MiB): 3 layers of 100 tokens" in said
    opened = open_model(str(model))
    expected: dict[int, tuple[torch.Tensor, ...]] = {}

    def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        expected[layer] = (q[:, :, -10:].half(), k.half(), v.half())
        return dense_attend(q, k, v)

    opened.forward(opened.tokens(text.read_text())[None, :100], None, attend)
    for layer in range(3):
        captured = open_captured(path, layer)
        assert (captured.q_heads, captured.kv_heads, captured.head_dim) == (4, 2, 64)
        assert (captured.q_len, captured.seq, captured.dtype) == (10, 100, "fp16")
        inputs = captured.load(CPU)
        for got, wanted in zip((inputs.q, inputs.k, inputs.v), expected[layer], strict=True):
            torch.testing.assert_close(got, wanted)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "hsbench-capture/1" and metadata["model"] == opened.name
    assert metadata["identity"] == opened.identity
    assert metadata["text_sha256"] == hashlib.sha256(text.read_bytes()).hexdigest()
    assert (metadata["positions"], metadata["query_positions"]) == ("0-99", "90-99")
    assert json.loads(metadata["geometry"])["head_dim"] == 64


def test_layers_queries_and_type(run: Run, tmp_path: Path) -> None:
    assert run(layers="2,0", queries="all", dtype="bf16", seq="50")[0] == 0
    with safe_open(tmp_path / "kv.safetensors", framework="pt") as file:
        assert list(file.keys()) == [f"layers.{layer}.{name}" for layer in (0, 2) for name in "kqv"]
        assert file.get_tensor("layers.2.q").shape == (1, 4, 50, 64)
        assert file.get_tensor("layers.2.k").dtype == torch.bfloat16


def test_a_bf16_model_is_written_in_bf16(run: Run, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "bf16", "llama-64", dtype="bfloat16")
    assert run(str(folder))[0] == 0
    assert open_captured(tmp_path / "kv.safetensors").dtype == "bf16"


def test_the_rest_of_the_model_does_not_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    monkeypatch.setattr(
        "hsbench.models.capture.dense_attend", lambda q, k, v: (ran.append(1), dense_attend(q, k, v))[1]
    )
    assert run(layers="1")[0] == 0
    assert len(ran) == 1


def test_its_own_file_is_written_over_and_nothing_else(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "kv.safetensors"
    assert run()[0] == run()[0] == 0
    path.write_text("precious")
    code, said = run()
    assert code == 2 and "--output" in said and "holds something that is not hsbench-capture/1; delete it" in said
    assert path.read_text() == "precious"


def test_a_failure_leaves_nothing_behind(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hsbench.models.capture.dense_attend", interrupted)
    code, said = run()
    assert code == 130 and said.endswith("hsbench: interrupted\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.txt"]


def test_what_does_not_fit_fp16_is_said(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.isfinite", lambda tensor: torch.zeros((), dtype=torch.bool))
    code, said = run()
    assert code == 1 and "too large for fp16: give --dtype bf16" in said


@pytest.mark.parametrize(
    ("options", "code", "what"),
    [
        ({"text": None}, 2, "--text FILE: missing; name a text file"),
        ({"output": None}, 2, "--output FILE: missing; name the file to write"),
        ({"output": "-"}, 2, "--output -: is no file of its own"),
        ({"output": "/"}, 2, "--output /: is a directory"),
        ({"text": "/no/such"}, 2, "--text /no/such: cannot be read (No such file or directory)"),
        ({"seq": "601"}, 2, "--seq 601: m has 512 positions; give at most that"),
        ({"seq": "0"}, 2, "--seq 0: "),
        ({"seq": None}, 2, "512"),
        ({"layers": "0,3"}, 2, "--layers 3: m has the layers 0 to 2"),
        ({"layers": "0,,1"}, 2, "--layers 0,,1: has an empty item"),
        ({"layers": "x"}, 2, "--layers x: not a size"),
        ({"queries": "101"}, 2, "--queries 101: there are 100 tokens; give at most that, or all"),
        ({"dtype": "fp32"}, 2, "--dtype fp32: unknown"),
        ({"device": "tpu"}, 2, "--device tpu: unknown"),
    ],
)
def test_mistakes_are_one_line(
    run: Run, model: Path, text: Path, options: dict[str, Any], code: int, what: str, tmp_path: Path
) -> None:
    link = tmp_path / "m"
    link.symlink_to(model)
    if options == {"seq": None}:  # the default is cut to what the model can: then the text must do
        text.write_text("short")
        what = "has 5 tokens, 512 are needed"
    got, said = run(str(link), **options)
    assert got == code
    last = said.splitlines()[-1].replace(model.name, "m")
    assert last.startswith("hsbench: error: ") and what in last
    assert not (tmp_path / "kv.safetensors").exists()


def test_model_is_needed_and_named(run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["capture", "--seq", "8k"]) == 2
    assert "MODEL: missing; it stands behind the command, see hsbench capture --help" in capsys.readouterr().err
    assert main(["capture", "a", "b"]) == 2
    assert "b: not an option" in capsys.readouterr().err
    assert run("/no/such")[1].startswith("hsbench: error: MODEL /no/such: no such file or folder; give a folder")


def test_heads_that_kv_cannot_read(run: Run, tmp_path: Path) -> None:
    code, said = run(str(make_folder(tmp_path / "small", "llama")))
    assert code == 4 and "--kv cannot take its tensors, head_dim 16: must be 64 or 128" in said


def test_a_model_of_which_nothing_is_left(run: Run, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "window", "mistral-window", head_dim=64)
    code, said = run(str(folder))
    assert code == 4 and "layers 0-2 slide over 24 tokens: they stay dense; no layer is left" in said
    assert run(str(folder), layers="1")[1].splitlines()[-1].startswith("hsbench: error: --layers 1: is not attended")
