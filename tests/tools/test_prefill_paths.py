"""tools/prefill_paths.py: its grid, and what it says where it cannot run."""

from __future__ import annotations

import sys

import pytest
import torch

import prefill_paths


def test_the_grid_has_no_shape_twice_and_each_is_a_problem() -> None:
    shapes = prefill_paths.shapes()
    assert len(set(shapes)) == len(shapes) == 300
    assert all(shape.q_len <= shape.seq and shape.q_heads % shape.kv_heads == 0 for shape in shapes)
    assert str(shapes[0]).count(",") == prefill_paths.HEADER.count(",")
    living = prefill_paths.living_shapes()
    assert len(set(living)) == len(living) == 198 and all(shape.q_len <= shape.seq for shape in living)


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["prefill_paths.py"])
    with pytest.raises(SystemExit, match="needs an NVIDIA GPU"):
        prefill_paths.main()
