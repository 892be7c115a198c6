"""What MODEL may be, and what is said of what it may not: one line, before any weights are loaded."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="needs pip install 'hsbench[models]'")

import torch
from safetensors.torch import load_file, save_file

from hsbench.errors import HsbenchError, UnavailableError, UnsupportedError, UsageError
from hsbench.measure.available import FreeMemory
from hsbench.models import extra, loading, sources
from hsbench.models.gguf_file import read_header
from hsbench.models.loading import open_model
from hsbench.models.sources import find_source
from hsbench.problem.shapes import ModelShape
from tiny_models import make_folder

Folders = Callable[[str], Path]
TINY = ModelShape("Tiny", 4, 2, 16, 3, 128, "here")


@pytest.fixture
def copy(folders: Folders, tmp_path: Path) -> Path:
    """A folder that may be broken."""
    shutil.copytree(folders("llama"), tmp_path / "m")
    return tmp_path / "m"


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Opens what is refused before it is loaded; returns the message."""

    def loaded(*_: object) -> None:
        raise AssertionError("weights were to be loaded")

    monkeypatch.setattr(loading, "_loaded", loaded)

    def refuse(spec: object, kind: type[HsbenchError] = UsageError, **options: Any) -> str:
        with pytest.raises(kind) as caught:
            open_model(str(spec), **options)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return refuse


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# ---- Folders -----------------------------------------------------------------------------------------------
def test_a_folder_without_config(refused: Callable[..., str], tmp_path: Path) -> None:
    assert refused(tmp_path) == (
        f"model {tmp_path}: a folder without config.json; give the folder that holds a model's config.json"
    )
    (tmp_path / "a.gguf").touch()
    assert f"give the file {tmp_path / 'a.gguf'}" in refused(tmp_path)


@pytest.mark.parametrize(
    ("text", "what"),
    [("{", "cannot be read"), ("[]", "cannot be read"), ("{}", "names no model_type")],
)
def test_a_damaged_config(refused: Callable[..., str], copy: Path, text: str, what: str) -> None:
    (copy / "config.json").write_text(text)
    assert what in refused(copy)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "a BertForMaskedLM does not continue text"),
        ({"model_type": "bert", "architectures": ["BertModel"]}, "a BertModel does not continue text"),
        ({"architectures": ["LlamaModel"]}, "a LlamaModel does not continue text"),
        ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True}, "T5"),
    ],
)
def test_what_does_not_continue_text(
    refused: Callable[..., str], copy: Path, changes: dict[str, Any], what: str
) -> None:
    change_config(copy, **changes)
    message = refused(copy)
    assert what in message and message.endswith("give a causal language model, such as Llama, Mistral, Qwen or Gemma")


def test_an_unknown_type(refused: Callable[..., str], copy: Path) -> None:
    change_config(copy, model_type="newest", architectures=["NewestForCausalLM"])
    assert "does not continue text" in refused(copy)
    change_config(copy, architectures=None)
    assert "knows no causal language model of the type newest; update transformers" in refused(copy, UnsupportedError)


def test_weights_that_are_not_there(refused: Callable[..., str], copy: Path) -> None:
    weights = copy / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-10])
    assert f"not a whole safetensors file ({len(data) - 10} of {len(data)} bytes are there)" in refused(copy)
    weights.write_bytes(b"\xff" * 100)
    assert "not a whole safetensors file" in refused(copy)
    weights.unlink()
    assert "holds no weights (model.safetensors or pytorch_model.bin)" in refused(copy)
    index = {"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "lacks 1.safetensors and 1 more, which model.safetensors.index.json names" in refused(copy)


def test_a_part_of_a_model(refused: Callable[..., str], copy: Path) -> None:
    assert f"a part of a model; give its folder, {copy}" in refused(copy / "model.safetensors")


def test_weights_that_transformers_would_make_up(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    lost = "model.layers.1.self_attn.k_proj.weight"
    del weights[lost]
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match=f"lacks the weights {lost}; copy or download it again"):
        open_model(str(copy))


def test_a_rope_base_that_transformers_takes_for_another(copy: Path) -> None:
    """As 4.x does with a folder of 5.x; here, by a file that says another than the loaded model has."""
    source = find_source(str(copy))
    assert source.rope_base == 10_000
    with pytest.raises(UnsupportedError, match="its RoPE base is 500000, but this transformers took 10000"):
        open_model(replace(source, rope_base=500_000.0))


def test_a_folder_of_transformers_5_under_4(
    refused: Callable[..., str], copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = json.loads((copy / "config.json").read_text())
    config.pop("rope_theta", None)
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e6}
    (copy / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("hsbench.models.folder.transformers_version", lambda: (4, 57))
    assert refused(copy, UnsupportedError).endswith("pip install 'transformers>=5'")


def test_a_mask_of_the_models_own_is_refused(tmp_path: Path) -> None:
    from transformers import Llama4TextConfig

    from hsbench.models.hook import _CALL, Call, _no_mask

    config = Llama4TextConfig(
        vocab_size=99, hidden_size=32, intermediate_size=32, intermediate_size_mlp=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, head_dim=16, attention_chunk_size=8, num_local_experts=1,
        pad_token_id=0, eos_token_id=1, bos_token_id=2,
    )  # fmt: skip
    from transformers import Llama4ForCausalLM

    from hsbench.models import hook

    hook.register()
    hf = Llama4ForCausalLM._from_config(config, attn_implementation=hook.NAME).eval()
    with hook.calling(Call(None, frozenset(), frozenset())), pytest.raises(UnsupportedError, match="hides tokens"):
        hf(input_ids=torch.zeros(1, 20, dtype=torch.long), use_cache=False)
    token = _CALL.set(Call(None, frozenset(), frozenset()))
    try:
        padded = torch.tensor([[True, False]])
        with pytest.raises(UnsupportedError, match="pads its input"):
            _no_mask(1, 2, lambda b, h, q, k: k <= q, attention_mask=padded, q_length=2)
    finally:
        _CALL.reset(token)


# ---- GGUF --------------------------------------------------------------------------------------------------
def gguf_bytes(architecture: str = "llama", kind: int = 0, version: int = 3, **fields: int) -> bytes:
    """A file with one tensor of 32 elements."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    def field(key: str, value: int | str) -> bytes:
        if isinstance(value, str):
            return text(key) + struct.pack("<I", 8) + text(value)
        return text(key) + struct.pack("<II", 4, value)

    values = {"general.architecture": architecture} | {name.replace("__", "."): n for name, n in fields.items()}
    parts = [b"GGUF", struct.pack("<IQQ", version, 1, len(values))]
    parts += [field(key, value) for key, value in values.items()]
    parts += [text("t"), struct.pack("<IQIQ", 1, 32, kind, 0)]
    head = b"".join(parts)
    return head + b"\0" * (-len(head) % 32 + 128)


def test_a_header(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(gguf_bytes(llama__context_length=77))
    header = read_header(path)
    assert (header.architecture, header.parameters, header.of_architecture("context_length")) == ("llama", 32, 77)


@pytest.mark.parametrize(
    ("data", "kind", "what"),
    [
        (b"PK\3\4 something else", UsageError, "not a GGUF file"),
        (gguf_bytes()[:40], UsageError, "not a whole GGUF file (its header ends or breaks"),
        (gguf_bytes()[:-100], UsageError, "not a whole GGUF file"),
        (gguf_bytes(split__count=3), UsageError, "one part of 3; join them with llama-gguf-split --merge"),
        (gguf_bytes(version=1), UnsupportedError, "GGUF version 1"),
        (gguf_bytes("bert"), UnsupportedError, "reads no GGUF of the architecture bert; it reads"),
        (gguf_bytes("clip"), UnsupportedError, "reads no GGUF of the architecture clip"),
        (gguf_bytes(kind=9), UnsupportedError, "gguf cannot dequantise its Q8_1 tensors"),
        (gguf_bytes(kind=999), UnsupportedError, "gguf cannot dequantise its type 999 tensors"),
    ],
)
def test_a_gguf_that_cannot_be_read(
    refused: Callable[..., str], data: bytes, kind: type[HsbenchError], what: str, tmp_path: Path
) -> None:
    pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    (tmp_path / "a.gguf").write_bytes(data)
    assert what in refused(tmp_path / "a.gguf", kind)


# ---- Names, random weights, the extra, memory --------------------------------------------------------------
def test_names(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for spec in ("/no/such/model", "./m", "m.gguf", "a/b/c", ""):
        assert "no such file or folder; give a folder, a .gguf file, a name" in refused(spec)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = refused("no-one/has-this-model", UnavailableError)
    assert "nor in the local HuggingFace cache, and the hub cannot be reached" in message


def test_a_name_in_the_local_cache(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: str(folders("llama")))
    assert find_source("someone/llama").name == "someone/llama"


def test_random_weights(monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]) -> None:
    message = refused("random:llama-3")
    assert "unknown" in message and "Llama-3.1-8B" in message
    monkeypatch.undo()
    monkeypatch.setattr(sources, "find_shape", lambda name: TINY)
    models = [open_model("random:tiny", dtype=dtype) for dtype in ("fp32", "fp32", "bf16")]
    shape = models[0].geometry
    assert (shape.layers, shape.q_heads, shape.kv_heads, shape.head_dim, shape.max_positions) == (3, 4, 2, 16, 128)
    ids = models[0].tokens("some text")[None]
    one, again, narrow = (model.forward(ids, None) for model in models)
    assert torch.equal(one, again) and narrow.dtype == torch.float32
    assert models[0].text(ids[0]) == "some text" and models[0].identity == models[2].identity


def test_no_extra(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, copy: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = refused(copy, UnavailableError)
    assert message == "transformers missing, which running a model needs: pip install 'hsbench[models]'"
    (copy / "a.gguf").write_bytes(gguf_bytes())
    assert refused(copy / "a.gguf", UnavailableError).startswith("transformers and gguf and accelerate missing")


def test_an_old_transformers(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, copy: Path) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "4.56.2")
    assert "transformers 4.56.2 is too old, 4.57 or newer is needed" in refused(copy, UnavailableError)
    for text, version in (("4.57.6", (4, 57)), ("5.0.0rc1", (5, 0)), ("5.24.0", (5, 24))):
        monkeypatch.setattr(importlib.metadata, "version", lambda name, text=text: text)
        assert extra.transformers_version() == version


def test_not_enough_memory(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, copy: Path) -> None:
    monkeypatch.setattr("hsbench.measure.free_memory", lambda device: FreeMemory(200 << 20, "ulimit -v"))
    message = refused(copy, UnavailableError)
    assert message.startswith(f"MODEL {copy} in fp32 needs about 0.3 GiB, 0.2 GiB is free under ulimit -v: ")
    assert message.endswith(": give a smaller model, or raise the limit")
    assert "needs about 26.7 GiB" in refused("random:Llama-3.1-8B", UnavailableError)


def test_a_cache_or_a_pass_without_room(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_model(str(folders("llama")))
    monkeypatch.setattr("hsbench.measure.free_memory", lambda device: FreeMemory(1 << 30))
    with pytest.raises(UnavailableError, match=r"a cache of 1 x 10,000,000 tokens of .* needs about 7.4 GiB"):
        model.new_cache(1, 10_000_000)
    with pytest.raises(UnavailableError, match="a pass of 10,000,000 tokens needs about"):
        model.check_pass(10_000_000)


def test_an_unknown_dtype(refused: Callable[..., str], copy: Path) -> None:
    assert "one of fp32, fp16, bf16" in refused(copy, dtype="int8")


# ---- What tells models apart; types ------------------------------------------------------------------------
def test_identity(folders: Folders, tmp_path: Path) -> None:
    path = folders("llama")
    one = find_source(str(path))
    shutil.copytree(path, tmp_path / "elsewhere")
    assert find_source(str(tmp_path / "elsewhere")).identity == one.identity
    weights = load_file(path / "model.safetensors")
    weights = {name: tensor + 1e-3 for name, tensor in weights.items()}
    save_file(weights, tmp_path / "elsewhere" / "model.safetensors", {"format": "pt"})
    assert find_source(str(tmp_path / "elsewhere")).identity != one.identity
    assert find_source(str(folders("llama-64"))).identity != one.identity


def test_in_16_bits_logits_are_not_rounded(tmp_path: Path) -> None:
    model = open_model(str(make_folder(tmp_path / "m", "llama", dtype="bfloat16")), dtype="bf16")
    assert model.element.name == "bf16" and model.dtype == torch.bfloat16
    logits = model.forward(torch.arange(40)[None], None)
    assert logits.dtype == torch.float32
    assert float((logits.bfloat16().float() == logits).float().mean()) < 0.1


def test_logits_and_caches(folders: Folders) -> None:
    model = open_model(str(folders("llama")))
    ids = torch.arange(30)[None].expand(2, -1)
    everything = model.forward(ids, None)
    cache = model.new_cache(2, 40)
    assert model.forward(ids[:, :20], cache, logits="none").shape == (2, 0, 300)
    last = model.forward(ids[:, 20:], cache, logits="last")
    torch.testing.assert_close(last, everything[:, -1:], rtol=1e-4, atol=1e-4)
    keys, values = cache.layer(1)
    assert keys.shape == values.shape == (2, 2, 30, 16) and cache.length == 30
    cache.rewind(20)
    assert cache.layer(1)[0].shape[2] == 20
    torch.testing.assert_close(model.forward(ids[:, 20:], cache), everything[:, 20:], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="30 tokens and 11 more in a cache of 40"):
        model.forward(ids[:, :11], cache)
    with pytest.raises(ValueError, match="cannot rewind a cache of 30 tokens to 31"):
        cache.rewind(31)


def test_a_pass_that_was_interrupted_leaves_the_cache_as_it_was(folders: Folders) -> None:
    model = open_model(str(folders("llama")))
    ids = torch.arange(30)[None]
    cache = model.new_cache(1, 30)
    model.forward(ids[:, :20], cache)

    def interrupted(layer: int, *_: torch.Tensor) -> torch.Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.forward(ids[:, 20:], cache, interrupted)
    assert cache.length == 20 and cache.layer(0)[0].shape[2] == 20
    torch.testing.assert_close(
        model.forward(ids[:, 20:], cache), model.forward(ids, None)[:, 20:], rtol=1e-4, atol=1e-4
    )
