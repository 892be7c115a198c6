"""Opening a model."""

from __future__ import annotations

from pathlib import Path

import torch

from hsbench.models.geometry import ModelGeometry
from hsbench.models.hook import NAME, Call, LayerFacts, calling, register
from hsbench.models.model import Model
from hsbench.models.tokenizer import HfTokenizer


def open_model(spec: str, *, device: str = "cpu", dtype: str | None = None, context: int | None = None) -> Model:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    register()
    path = Path(spec)
    where = (
        dict(pretrained_model_name_or_path=str(path.parent), gguf_file=path.name)
        if path.suffix == ".gguf"
        else dict(pretrained_model_name_or_path=spec)
    )
    hf = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32, attn_implementation=NAME)
    facts: dict[int, LayerFacts] = {}
    with torch.no_grad(), calling(Call(None, frozenset(), frozenset(), facts)):
        hf(input_ids=torch.zeros(1, 2, dtype=torch.long), use_cache=False)
    one = facts[0]
    config = hf.config
    geometry = ModelGeometry(
        config.num_hidden_layers,
        one.q_heads,
        one.kv_heads,
        one.head_dim,
        config.max_position_embeddings,
        config.vocab_size,
    )
    return Model(
        hf.eval(),
        HfTokenizer(AutoTokenizer.from_pretrained(**where)),
        name=path.stem,
        identity="",
        geometry=geometry,
        attended=tuple(sorted(facts)),
    )
