"""The hook against what transformers makes of the same model itself, for each family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="needs pip install 'hsbench[models]'")

import torch
from transformers import AutoModelForCausalLM

from hsbench.models.dense import dense_attend
from hsbench.models.loading import open_model
from hsbench.models.model import Model
from tiny_models import FAMILIES

Folders = Callable[[str], Path]
TOKENS = 70  # more than any window


def ids(count: int = TOKENS, batch: int = 1) -> torch.Tensor:
    return torch.randint(0, 256, (batch, count), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_the_models_own(family: str, folders: Folders) -> None:
    # Soft caps and sinks are known to eager alone.
    own = "eager" if family in ("gemma2", "gpt-oss") else "sdpa"
    theirs = AutoModelForCausalLM.from_pretrained(folders(family), attn_implementation=own, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = theirs(input_ids=ids(batch=2)).logits
    model = open_model(str(folders(family)))
    assert expected.std() > 0.05  # it says something
    whole = model.forward(ids(batch=2), None)
    torch.testing.assert_close(whole, expected, rtol=1e-4, atol=1e-4)
    cache, parts = model.new_cache(2, TOKENS), []
    for first, last in ((0, 40), (40, 41), (41, TOKENS)):
        parts.append(model.forward(ids(batch=2)[:, first:last], cache))
    assert cache.length == TOKENS
    torch.testing.assert_close(torch.cat(parts, 1), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_attend_sees_what_the_model_wants(family: str, folders: Folders) -> None:
    """q, K and V as handed out give the model's own logits, under whatever scaling it has."""
    model = open_model(str(folders(family)))
    seen: list[tuple[int, tuple[int, ...], tuple[int, ...]]] = []

    def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        seen.append((layer, tuple(q.shape), tuple(k.shape)))
        return dense_attend(q, k, v)

    cache = model.new_cache(1, TOKENS)
    expected = model.forward(ids(), None)
    model.forward(ids()[:, :50], cache, attend, logits="none")
    got = model.forward(ids()[:, 50:], cache, attend)
    torch.testing.assert_close(got, expected[:, 50:], rtol=1e-4, atol=1e-4)
    shape = model.geometry
    q, k = (1, shape.q_heads, 20, shape.head_dim), (1, shape.kv_heads, TOKENS, shape.head_dim)
    assert seen[len(seen) // 2 :] == [(layer, q, k) for layer in model.attended]


@pytest.mark.parametrize(
    ("family", "attended", "notes"),
    [
        ("llama", (0, 1, 2), ()),
        ("mistral-window", (), ("layers 0-2 slide over 24 tokens: they stay dense",)),
        ("qwen2-window", (0,), ("layers 1-2 slide over 24 tokens: they stay dense",)),
        ("gemma2", (), ("layers 0-2 cap their scores: they stay dense",)),
        ("gemma3", (1,), ("layers 0, 2 slide over 24 tokens: they stay dense",)),
        ("gpt-oss", (), ("layers 0-2 have a learned sink: they stay dense",)),
    ],
)
def test_what_stays_dense(family: str, attended: tuple[int, ...], notes: tuple[str, ...], folders: Folders) -> None:
    model = open_model(str(folders(family)))
    assert (model.attended, model.notes) == (attended, notes)


def test_a_window_as_long_as_the_context_is_none(folders: Folders) -> None:
    model = open_model(str(folders("mistral-window")), context=24)
    assert (model.attended, model.notes) == ((0, 1, 2), ())
    cache = model.new_cache(1, 32)
    attend = lambda layer, q, k, v: dense_attend(q, k, v)  # noqa: E731
    model.forward(ids(24), cache, attend)
    with pytest.raises(Exception, match="layer 0 is to see 25 tokens, but has a window of 24"):
        model.forward(ids(1), cache, attend)


def test_geometry_and_tokens(folders: Folders) -> None:
    model: Model = open_model(str(folders("qwen3")))
    shape = model.geometry
    assert (shape.layers, shape.q_heads, shape.kv_heads, shape.head_dim) == (3, 4, 2, 32)
    assert (shape.max_positions, shape.vocab) == (512, 300)
    text = "Größe: 3\n"
    assert model.tokens(text).dtype == torch.int64 and len(model.tokens(text)) == len(text.encode())
    assert model.text(model.tokens(text)) == text
