"""The calibrated basis: the file, and what it is refused for. What it is good for: test_fit.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hsbench.cache.basis import Basis, BasisSource, LayerBasis
from hsbench.errors import UsageError

GEOMETRY = {"layers": 2, "q_heads": 4, "kv_heads": 2, "head_dim": 64, "max_positions": 99, "vocab": 9}
SOURCE = BasisSource("A", "1234", GEOMETRY, "ab", 7)


@pytest.fixture
def basis() -> Basis:
    layer = LayerBasis(torch.randn(2, 64), torch.randn(2, 64), torch.rand(2, 64))
    return Basis(SOURCE, {0: layer, 1: replace(layer, key_mean=torch.zeros(2, 64))})


def test_a_file_comes_back(basis: Basis, tmp_path: Path) -> None:
    path = tmp_path / "b.safetensors"
    basis.save(path)
    again = Basis.load(path)
    assert again.source == SOURCE and again.layers.keys() == {0, 1}
    for i in (0, 1):
        for name, tensor in vars(basis.layer(i)).items():
            assert torch.equal(getattr(again.layer(i), name), tensor)
    assert [file.name for file in tmp_path.iterdir()] == ["b.safetensors"]
    assert again.check_model("A", "1234") is None and again.check_heads(2, 64) is None


def test_another_models_or_geometrys_is_refused(basis: Basis, tmp_path: Path) -> None:
    basis.save(tmp_path / "b")
    basis = Basis.load(tmp_path / "b")
    with pytest.raises(UsageError, match="^basis .*b: is of A, not of this B; hsbench calibrate makes one for it$"):
        basis.check_model("B", "5678")
    with pytest.raises(UsageError, match=r"is for 2 kv heads x 64 \(A\), not for 8 x 128"):
        basis.check_heads(8, 128)
    with pytest.raises(UsageError, match="has no layer 2"):
        basis.layer(2)


def test_what_is_no_basis_is_refused(basis: Basis, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a basis")
    save_file({"layers.0.k": torch.zeros(2)}, tmp_path / "other", {"format": "hsbench-capture/1"})
    basis.save(tmp_path / "cut")
    (tmp_path / "cut").write_bytes((tmp_path / "cut").read_bytes()[:-100])
    kind = {"format": "hsbench-basis/1", "source": "{}"}
    save_file({"layers.0.query_rms": torch.zeros(2)}, tmp_path / "lacking", kind)
    odd = replace(basis.layer(0), query_rms=torch.ones(2, 32))
    replace(basis, layers={0: odd}).save(tmp_path / "odd")
    replace(basis, layers={}).save(tmp_path / "empty")
    for name, what in (
        ("none", "no such file"),
        ("text", "not a hsbench-basis/1 file, but something else"),
        ("other", "not a hsbench-basis/1 file, but hsbench-capture/1"),
        ("cut", "not a hsbench-basis/1 file"),
        ("lacking", "damaged"),
        ("odd", r"damaged \(its tensors are not \[2, 64\]\)"),
        ("empty", "damaged"),
    ):
        with pytest.raises(UsageError, match=what) as caught:
            Basis.load(tmp_path / name)
        assert caught.value.option == "basis" and "hsbench calibrate" in str(caught.value)
