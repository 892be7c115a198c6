"""Caches that attend by themselves: through them a model says what it says without, its own ``generate`` too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="needs pip install 'hsbench[models]'")

import torch
from transformers import AutoModelForCausalLM

from cache_standin import StandIn
from hsbench.cache.basis import Basis, BasisSource, LayerBasis
from hsbench.cache.fit import QUERIES
from hsbench.errors import UnsupportedError, UsageError
from hsbench.models import HierarchicalCache, pieces
from hsbench.models.cache import TensorLayer
from hsbench.models.fused import fuse_norms, join_projections
from hsbench.models.hook import NAME
from hsbench.models.living import DenseLayer, LivingCache
from hsbench.models.loading import open_model

Folders = Callable[[str], Path]
TOKENS = 70  # more than any window
EXACT = {"dtype": torch.float32}


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch, one_torch_thread: None) -> None:
    monkeypatch.setattr("hsbench.models.living.GrowingCache", StandIn)


def ids(count: int = TOKENS, batch: int = 1) -> torch.Tensor:
    return torch.randint(0, 256, (batch, count), generator=torch.Generator().manual_seed(2))


def stepped(model, cache, tokens: torch.Tensor, context: int) -> torch.Tensor:
    """The logits behind a prompt and each token after it, ``[batch, n, vocab]``."""
    found = [model.prompt(tokens[:, :context], cache)]
    for at in range(context, tokens.shape[1] - 1):
        positions = torch.full((len(tokens), 1), at)
        found.append(model.step(tokens[:, at : at + 1], positions, cache))
    return torch.stack(found, 1)


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral-window", "gemma2", "gemma3", "gpt-oss"])
def test_a_prompt_and_steps_give_the_models_own_logits(family: str, folders: Folders) -> None:
    model = open_model(str(folders(family)))
    expected = model.forward(ids(batch=2)[:, :-1], None)[:, 49:]
    cache = HierarchicalCache(model.hf, 2, TOKENS, attended=model.attended, **EXACT)
    torch.testing.assert_close(stepped(model, cache, ids(batch=2), 50), expected, rtol=1e-4, atol=1e-4)
    assert cache.length == TOKENS - 1
    assert [isinstance(one, TensorLayer) for one in cache.layers] == [at not in model.attended for at in range(3)]
    g = model.geometry
    dense = LivingCache([DenseLayer((2, g.kv_heads, TOKENS, g.head_dim), model.dtype, "cpu") for _ in range(3)])
    if len(model.attended) == 3:
        torch.testing.assert_close(stepped(model, dense, ids(batch=2), 50), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", [True, False])
def test_torchs_attention_takes_the_heads_of_a_group_in_either_form(rows: bool, folders: Folders) -> None:
    model = open_model(str(folders("llama")))
    layers = [DenseLayer((1, 2, TOKENS, 16), model.dtype, "cpu", rows=rows) for _ in range(3)]
    expected = model.forward(ids()[:, :-1], None)[:, 49:]
    torch.testing.assert_close(stepped(model, LivingCache(layers), ids(), 50), expected, rtol=1e-4, atol=1e-4)


def test_the_layers_that_stay_dense_are_those_of_the_configuration(folders: Folders) -> None:
    for family in ("llama", "mistral-window", "gemma2", "gemma3", "gpt-oss", "qwen2-window"):
        model = open_model(str(folders(family)))
        cache = HierarchicalCache(model.hf, 1, TOKENS)
        own = tuple(at for at, layer in enumerate(cache.layers) if not isinstance(layer, TensorLayer))
        assert own == model.attended, family


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_users_own_generate(family: str, folders: Folders) -> None:
    def load(attention: str):
        how = {"dtype": torch.float32, "attn_implementation": attention}
        return AutoModelForCausalLM.from_pretrained(folders(family), **how).eval()

    ours, theirs = load(NAME), load("sdpa")
    asked = {"input_ids": ids(batch=2), "attention_mask": torch.ones(2, TOKENS, dtype=torch.long)}
    asked |= {"max_new_tokens": 30, "do_sample": False, "pad_token_id": 0}
    cache = HierarchicalCache(ours, 2, 128, **EXACT)
    right = theirs.generate(**asked)
    assert torch.equal(ours.generate(past_key_values=cache, **asked), right) and right.shape == (2, 100)
    assert cache.length == 99
    # A conversation goes on in its cache: what is new goes through prefill.
    more = torch.cat([right, ids(20, 2)], 1)
    asked |= {"input_ids": more, "attention_mask": torch.ones_like(more), "max_new_tokens": 5}
    assert torch.equal(ours.generate(past_key_values=cache, **asked), theirs.generate(**asked))
    with pytest.raises(UnsupportedError, match="generate without beams"):
        cache.reset()
        cache.layers[0].reorder_cache(torch.tensor([0, 0]))
    assert cache.length == 0 and int(cache.layers[0].cache.lengths[0]) == 0


def test_padding_is_refused(folders: Folders) -> None:
    model = AutoModelForCausalLM.from_pretrained(folders("llama"), attn_implementation=NAME).eval()
    mask = torch.ones(1, TOKENS, dtype=torch.long)
    mask[0, :3] = 0
    with pytest.raises(UnsupportedError, match="pads its input"):
        cache = HierarchicalCache(model, 1, 128, **EXACT)
        model.generate(input_ids=ids(), attention_mask=mask, max_new_tokens=2, past_key_values=cache, pad_token_id=0)


def test_another_attention_is_refused(folders: Folders) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(folders("llama"), attn_implementation="sdpa").eval()
    with pytest.raises(UsageError, match='attn_implementation="hsbench"'):
        HierarchicalCache(theirs, 1, 128)
    # And where it is changed after that: new tokens alone would be seen, in silence.
    model = open_model(str(folders("llama")))
    cache = HierarchicalCache(model.hf, 1, 128, **EXACT)
    with torch.no_grad(), pytest.raises(UnsupportedError, match='load it with attn_implementation="hsbench"'):
        theirs(input_ids=ids(), **{model._cache_argument: cache}, use_cache=True)


def test_what_a_layer_is_asked_to_be(folders: Folders) -> None:
    model = open_model(str(folders("llama")))
    draw = torch.Generator().manual_seed(0)
    layers = {at: LayerBasis(*torch.rand(3, 2, 16, generator=draw)) for at in range(3)}
    basis = Basis(BasisSource("m", "i", {}, "t", 1), layers)
    shares = [(0.0, 0.5), (0.25, 0.0), (0.5, 0.5)]
    cache = HierarchicalCache(model.hf, 1, 128, shares=shares, basis=basis, pruner="calibrated:hd", sink=7)
    for at, layer in enumerate(cache.layers):
        how = layer.cache.how
        assert (how["key_sparsity"], how["value_sparsity"]) == shares[at]
        assert how["pruner"] == "calibrated:hd" and how["sink"] == 7
        assert torch.equal(how["basis"].query_rms, layers[at].query_rms)
    assert HierarchicalCache(model.hf, 1, 128).layers[0].cache.how["pruner"] == "attentive:hd"
    assert HierarchicalCache(model.hf, 1, 128, elements="int4").layers[0].cache.how["pruner"] == "attentive:hd"
    assert cache.layers[0].dtype == torch.float16  # the model's is fp32
    model.prompt(ids(100), cache)
    assert cache.layers[0].cache.queries.shape == (1, 4, QUERIES, 16)
    # fp16, 2 tensors of 2 heads x 16 and 3 layers
    assert cache.memory() == ({"dense": 3 * 2 * 128 * 2 * 16 * 2}, {"dense": 3 * 2 * 100 * 2 * 16 * 2})


def test_feed_forward_layers_in_pieces_say_the_same(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_model(str(folders("llama")))
    expected = model.forward(ids(batch=2), None)
    whole = model.pass_bytes(1000)
    monkeypatch.setattr(pieces, "PIECE", 33)
    seen: list[int] = []
    handle = model.hf.model.layers[0].mlp.gate_proj.register_forward_hook(lambda m, x, y: seen.append(len(x[0])))
    torch.testing.assert_close(model.forward(ids(batch=2), None), expected, rtol=1e-5, atol=1e-5)
    handle.remove()
    assert seen == [33, 33, 33, 33, 8]
    monkeypatch.setattr(model, "_piece", 33)
    assert model.pass_bytes(1000) < whole


@pytest.mark.parametrize(("family", "fused"), [("llama", 7), ("qwen3", 13), ("gemma", 0), ("gemma3", 0)])
def test_norms_by_one_kernel_say_the_same(family: str, fused: int, folders: Folders) -> None:
    model = open_model(str(folders(family)), dtype="bf16", for_speed=True)
    assert model.forward(ids(), None, logits="last").dtype == torch.float32  # of a head in 16 bits
    wide = open_model(str(folders(family)), dtype="bf16")
    expected = wide.forward(ids(), None)
    assert fuse_norms(model.hf) == fused
    torch.testing.assert_close(model.forward(ids(), None), expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(("family", "layers"), [("llama", 3), ("qwen2", 3), ("gemma3", 3), ("phi3", 0)])
def test_projections_by_one_product_say_the_same(family: str, layers: int, folders: Folders) -> None:
    model = open_model(str(folders(family)))
    names = {name: value.clone() for name, value in model.hf.state_dict().items()}
    expected = model.forward(ids(batch=2), None)
    assert join_projections(model.hf) == layers
    torch.testing.assert_close(model.forward(ids(batch=2), None), expected, rtol=1e-5, atol=1e-5)
    after = model.hf.state_dict()
    assert list(after) == list(names) and all(torch.equal(after[name], value) for name, value in names.items())
    if layers:  # asked out of turn, each answers for itself
        attention, x = model.hf.model.layers[0].self_attn, torch.randn(1, 2, model.hf.config.hidden_size)
        attention.q_proj(torch.zeros_like(x))
        torch.testing.assert_close(attention.v_proj(x), torch.nn.Linear.forward(attention.v_proj, x))
