"""``hsbench calibrate``: the file it writes fits the model's own tensors, and is told from others."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="needs pip install 'hsbench[models]'")

import torch

from hsbench.cache.basis import Basis
from hsbench.cli.main import main
from hsbench.models.dense import dense_attend
from hsbench.models.loading import open_model
from tiny_models import make_folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("model"), "qwen3")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"{i * i % 977} " for i in range(200)))
    return path


def test_it_is_the_basis_of_the_models_own_tensors(
    model: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "b.safetensors"
    monkeypatch.setattr("hsbench.models.statistics.CHUNK", 64)
    words = ["calibrate", str(model), "--text", str(text), "--seq", "500", "--device", "cpu", "--output", str(path)]
    assert main(words) == 0
    streams = capsys.readouterr()
    assert streams.out == "" and "a basis of 3 layers from 500 tokens" in streams.err
    basis, opened = Basis.load(path), open_model(str(model))
    basis.check_model(opened.name, opened.identity)
    assert basis.source.geometry == opened.geometry.to_dict() and basis.source.tokens == 500
    seen = 0

    def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        nonlocal seen
        one = basis.layer(layer)
        torch.testing.assert_close(one.key_mean, k[0].mean(1), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(one.value_mean, v[0].mean(1), rtol=1e-3, atol=1e-4)
        expected = torch.zeros(2, q.shape[-1])
        for h in range(2):
            sums, count = torch.zeros(q.shape[-1], dtype=torch.float64), 0.0
            for head, at in itertools.product((2 * h, 2 * h + 1), range(500)):
                paid = (k[0, h, : at + 1] @ q[0, head, at] / q.shape[-1] ** 0.5).softmax(-1)
                weight = float(paid[64 : max(64, at - 256 + 1)].sum()) + 1e-4  # of what is neither first nor near
                sums, count = sums + weight * q[0, head, at].double().square(), count + weight
            expected[h] = (sums / count).sqrt()
        torch.testing.assert_close(one.query_rms, expected, rtol=1e-3, atol=1e-6)
        seen += 1
        return dense_attend(q, k, v)

    opened.forward(opened.tokens(text.read_text())[None, :500], None, attend)
    assert seen == 3


def test_moments_do_not_depend_on_the_pieces(model: Path, text: Path) -> None:
    from hsbench.models.statistics import measure_moments

    opened = open_model(str(model))
    ids = opened.tokens(text.read_text())[:200]
    done: list[int] = []
    one = measure_moments(opened, ids, chunk=200)
    other = measure_moments(opened, ids, chunk=64, progress=done.append)
    assert done == [64, 128, 192, 200]
    for layer in range(3):
        assert one[layer].tokens == other[layer].tokens == 200
        for name in ("query_square", "query_weight", "key", "value"):
            torch.testing.assert_close(getattr(one[layer], name), getattr(other[layer], name), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("words", "code", "what"),
    [
        (["--seq", "1k"], 2, "--seq 1k: "),
        (["--seq", "600"], 2, "positions; give at most that"),
        (["--output", "text.txt"], 2, "--output text.txt: is the file of --text; give another"),
        (["--output", "other.bin"], 2, "holds something that is not hsbench-basis/1"),
        (["--queries", "4"], 2, "--queries: no such option"),
    ],
)
def test_mistakes_are_one_line(
    model: Path, text: Path, tmp_path: Path, words: list[str], code: int, what: str,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.bin").write_bytes(b"precious")
    given = {"--text": "text.txt", "--seq": "100", "--output": "b", "--device": "cpu"}
    given |= dict(zip(words[::2], words[1::2], strict=True))
    assert main(["calibrate", str(model), *(word for pair in given.items() for word in pair)]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert what in line and sorted(path.name for path in tmp_path.iterdir()) == ["other.bin", "text.txt"]
