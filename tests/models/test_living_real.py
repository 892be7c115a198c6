"""SmolLM2-135M through a cache that lives: at sparsity 0 it says what HuggingFace's own cache lets it say."""

from __future__ import annotations

import pydoc_data.topics
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="needs pip install 'hsbench[models]'")

import torch

from hsbench.models import HierarchicalCache
from hsbench.models.hook import NAME
from hsbench.models.loading import open_model
from hsbench.models.model import Model
from hsbench.models.sources import find_source

pytestmark = pytest.mark.slow

NEW = 256


@pytest.fixture(scope="module")
def model(gguf_path: Path) -> Iterator[Model]:
    before = torch.get_num_threads()
    torch.set_num_threads(min(2, before))
    yield open_model(str(gguf_path))
    torch.set_num_threads(before)


def test_greedy_tokens_at_sparsity_0_are_huggingface_s_own(model: Model, gguf_path: Path) -> None:
    # A question: a text alone it would only repeat. No likeliest token is nearer than 0.008 to the next one.
    before, behind = find_source(str(gguf_path)).tokenizer.frame()
    words = f"Explain to a child, in many words, what this says:\n{pydoc_data.topics.topics['objects'][:1200]}"
    ids = model.tokens(before + words + behind)[None]
    capacity = ids.shape[1] + NEW
    asked = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "max_new_tokens": NEW, "do_sample": False}
    asked |= {"eos_token_id": None, "pad_token_id": 0}
    model.hf.set_attn_implementation("sdpa")
    theirs = model.hf.generate(**asked)[0, -NEW:]
    model.hf.set_attn_implementation(NAME)
    cache = HierarchicalCache(model.hf, 1, capacity, sparsity=0.0, pruner="magnitude", sink=0, local=64)
    ours = model.hf.generate(past_key_values=cache, **asked)[0, -NEW:]
    assert cache.length == capacity - 1 and ours.unique().numel() > 25
    assert torch.equal(ours, theirs), model.text(ours)
