"""Files of tensors: whole or not there, read back by safetensors itself, and over nothing but our own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from hsbench.errors import UsageError
from hsbench.problem.elements import BF16, FP16
from hsbench.problem.tensor_output import Entry, TensorWriter, check_own, format_of, replacing

ENTRIES = (Entry("a", BF16, (1, 2, 3)), Entry("b", FP16, (5,)))
TENSORS = {"a": torch.arange(6).reshape(1, 2, 3).bfloat16(), "b": torch.linspace(0, 1, 5).half()}


def test_safetensors_reads_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    with path.open("wb") as file:
        writer = TensorWriter(file, ENTRIES, {"format": "x", "é": "ü"})
        for name, tensor in TENSORS.items():
            writer.write(name, tensor)
        writer.close()
    with safe_open(path, framework="pt") as read:
        assert read.metadata() == {"format": "x", "é": "ü"}
        for name, tensor in TENSORS.items():
            assert torch.equal(read.get_tensor(name), tensor)
    start = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    assert start % 8 == 0 and path.stat().st_size == start + 22


@pytest.mark.parametrize(
    ("name", "tensor"),
    [("b", TENSORS["b"]), ("a", TENSORS["a"].half()), ("a", TENSORS["a"][0])],
)
def test_what_is_not_due_is_refused(tmp_path: Path, name: str, tensor: torch.Tensor) -> None:
    with (tmp_path / "t").open("wb") as file:
        writer = TensorWriter(file, ENTRIES, {})
        with pytest.raises(ValueError, match="is due"):
            writer.write(name, tensor)


def test_a_file_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "t").open("wb") as file:
        writer = TensorWriter(file, ENTRIES, {})
        writer.write("a", TENSORS["a"])
        with pytest.raises(ValueError, match="b was not written"):
            writer.close()


def test_replacing_is_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_text("before")
    with pytest.raises(KeyboardInterrupt), replacing(path) as part:
        part.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "before" and os.listdir(tmp_path) == ["t"]
    with replacing(path) as part:
        part.write_text("after")
    assert path.read_text() == "after" and os.listdir(tmp_path) == ["t"]
    plain = tmp_path / "plain"
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode


def test_only_our_own_is_written_over(tmp_path: Path) -> None:
    ours, other, text = (tmp_path / name for name in ("ours", "other", "text"))
    save_file(TENSORS, ours, {"format": "x/1"})
    save_file(TENSORS, other)
    text.write_text("precious")
    (tmp_path / "empty").touch()
    for free in (ours, tmp_path / "empty", tmp_path / "none"):
        check_own(free, "x/1")
    for kept in (other, text):
        with pytest.raises(UsageError, match=r"^output .*holds something that is not x/1; delete it"):
            check_own(kept, "x/1")
    assert format_of(ours)[0] == "x/1" and format_of(text) == (None, {})
