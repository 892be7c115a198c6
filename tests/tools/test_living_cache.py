"""tools/living_cache.py: what it compares, and what it says where it cannot run."""

from __future__ import annotations

import sys

import pytest

pytest.importorskip("torch")

import living_cache


def test_ragged_batches_have_the_tokens_of_the_even_one() -> None:
    pages = {name: sum(-(-length // 64) for length in lengths) for name, lengths in living_cache.RAGGED.items()}
    even = sum(living_cache.EVEN) // 64
    assert pages == {name: pytest.approx(even, rel=0.02) for name in pages}


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["living_cache.py"])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="needs an NVIDIA GPU"):
        living_cache.main()
