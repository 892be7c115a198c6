"""tools/elements_apart.py says where it cannot run."""

from __future__ import annotations

import sys

import pytest

pytest.importorskip("torch")

import elements_apart


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["elements_apart.py"])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="needs an NVIDIA GPU"):
        elements_apart.main()
