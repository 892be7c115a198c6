"""SmolLM2-135M through all of it: a model that says something, from a GGUF file."""

from __future__ import annotations

import pydoc_data.topics
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="needs pip install 'hsbench[models]'")

import torch

from hsbench.cache.fit import fit_key
from hsbench.cache.prune import choose_blocks, plan_blocks, prune_hierarchical
from hsbench.cache.pruner import MIRROR
from hsbench.models import HierarchicalCache
from hsbench.models.dense import dense_attend, soft_attend
from hsbench.models.hook import NAME
from hsbench.models.loading import open_model
from hsbench.models.model import Model
from hsbench.models.sources import find_source
from hsbench.models.statistics import calibrate
from hsbench.models.text import Text, read_text

pytestmark = pytest.mark.slow

NEW = 256
"""Tokens of an answer."""


@pytest.fixture(scope="module")
def model(gguf_path: Path) -> Iterator[Model]:
    before = torch.get_num_threads()
    torch.set_num_threads(min(2, before))
    yield open_model(str(gguf_path))
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Text:
    """Prose of the standard library."""
    path = tmp_path_factory.mktemp("text") / "topics.txt"
    path.write_text("\n".join(pydoc_data.topics.topics[name] for name in ("compound", "objects")))
    return read_text(path)


def test_what_it_is(model: Model) -> None:
    shape = model.geometry
    assert (shape.layers, shape.q_heads, shape.kv_heads, shape.head_dim) == (30, 9, 3, 64)
    assert (shape.max_positions, shape.vocab) == (8192, 49152)
    assert model.attended == tuple(range(30)) and model.notes == () and model.element.name == "fp16"
    assert model.name.startswith("SmolLM2-135M-Instruct")
    # No token is put in front: its file says so, which some versions of transformers ignore.
    assert model.text(model.tokens("def f(x):\n    return")) == "def f(x):\n    return"


def test_it_understands_text_in_one_pass_and_in_parts(model: Model, text: Text) -> None:
    ids = model.tokens(text.text)[None, :513]
    cache = model.new_cache(1, 513)
    whole = model.forward(ids[:, :-1], None)
    nll = torch.nn.functional.cross_entropy(whole[0], ids[0, 1:])
    assert 1.5 < float(nll) < 3.5  # a wrong RoPE base, or heads in a wrong order, give 6 and more
    model.forward(ids[:, :448], cache, logits="none")
    parts = model.forward(ids[:, 448:512], cache)
    torch.testing.assert_close(parts, whole[:, 448:], rtol=1e-3, atol=1e-3)
    cache.rewind(448)
    ours = model.forward(ids[:, 448:512], cache, lambda layer, q, k, v: soft_attend(q, k, v))
    torch.testing.assert_close(ours, whole[:, 448:], rtol=1e-3, atol=1e-3)


def test_it_goes_on_sensibly(model: Model) -> None:
    ids = model.tokens("The capital of France is")[None]
    cache, said = model.new_cache(1, 32), []
    for _ in range(6):
        ids = model.forward(ids, cache, logits="last").argmax(-1)
        said.append(int(ids))
    assert "Paris" in model.text(torch.tensor(said))


def test_its_basis(model: Model, text: Text) -> None:
    """Weighed by the queries of a text, the channels of K that stay leave scores of another part closer."""
    basis = calibrate(model, text, model.tokens(text.text)[:768])
    plan = plan_blocks(256, 0.5)
    centered = replace(MIRROR, key_shift=True)
    pruners = {"mirror": centered, "weighed": replace(centered, key_weights="calibration")}
    lost: dict[str, list[float]] = {name: [] for name in pruners}

    def attend(number: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        queries, keys = q[0].unflatten(0, (3, 3)), k.half()
        scores = queries @ k[0][:, None].mT
        for name, pruner in pruners.items():
            fit = fit_key(keys, pruner, plan, query_rms=basis.layer(number).query_rms)
            stored = fit.stored(keys)
            chosen = choose_blocks(stored, "k", plan)
            kept = fit.restored(prune_hierarchical(stored, "k", chosen, scores=fit.scores(stored)))
            ours = queries @ kept[0].float()[:, None].mT
            off = ours - scores
            off = off - off.mean(-1, keepdim=True)  # what all tokens get is nothing to attention
            lost[name].append(float(off.norm() / (scores - scores.mean(-1, keepdim=True)).norm()))
        return dense_attend(q, k, v)

    model.forward(model.tokens(text.text)[None, 1000:1256], None, attend, logits="none")  # text that it was not made of
    mirror, weighed = (sum(errors) / len(errors) for errors in lost.values())
    assert weighed < 0.8 * mirror


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
