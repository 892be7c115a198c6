"""A local folder in HuggingFace's layout: what model it holds, and whether all of it is there."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hsbench.errors import UnsupportedError, UsageError
from hsbench.models.extra import quiet, transformers_version

_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
ANY_POSITION = 2**31 - 1
"""Positions of a model that states none."""

_HEADER_BYTES = 100 << 20  # safetensors' own limit


@dataclass(frozen=True)
class Folder:
    """A folder whose config and weights are there.

    Attributes:
        path: the folder.
        config: its config.json.
        weights: its weight files.
    """

    path: Path
    config: dict[str, Any]
    weights: tuple[Path, ...]

    @property
    def text_config(self) -> dict[str, Any]:
        """That of the language model, where the config is of several."""
        inner = self.config.get("text_config")
        return inner if isinstance(inner, dict) else self.config

    @property
    def dtype(self) -> str | None:
        """What its weights are published in, as torch names it."""
        for config in (self.config, self.text_config):
            for key in ("dtype", "torch_dtype"):
                if isinstance(config.get(key), str):
                    return str(config[key])
        return None

    @cached_property
    def parameters(self) -> int:
        """Weights in it.

        Raises:
            UsageError: a file is damaged.
        """
        per_byte = 4 if self.dtype == "float32" else 2
        return sum(
            safetensors_elements(file) if file.suffix == ".safetensors" else file.stat().st_size // per_byte
            for file in self.weights
        )

    @property
    def rope_base(self) -> float | None:
        """The base of its rotary frequencies where they are the plain ones; None where more is done to them."""
        config = self.text_config
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        plain = rope.get("rope_type", rope.get("type", "default")) == "default"
        base = rope.get("rope_theta", config.get("rope_theta"))
        return float(base) if plain and isinstance(base, int | float) else None


def read_folder(path: Path) -> Folder:
    """Read and check a folder; only the headers of its weights are read.

    Raises:
        UsageError: no config, no weights or not all of them, or no causal language model; says what, and the remedy.
    """
    file = path / "config.json"
    if not file.is_file():
        ggufs = sorted(path.glob("*.gguf"))
        other = f"give the file {ggufs[0]}" if ggufs else "give the folder that holds a model's config.json"
        raise UsageError("model", path, f"a folder without config.json; {other}")
    try:
        config = json.loads(file.read_bytes())
        if not isinstance(config, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError) as error:
        raise UsageError("model", path, f"its config.json cannot be read ({error}); copy it again") from error
    if not isinstance(config.get("model_type"), str):
        raise UsageError("model", path, "its config.json names no model_type; give a folder of a transformers model")
    folder = Folder(path, config, tuple(_weights(path)))
    _ = folder.parameters
    return folder


def check_supported(folder: Folder) -> None:
    """Make sure that it is a causal language model which this transformers reads as it was saved. Imports transformers.

    Raises:
        UsageError: an encoder, or a model of something else.
        UnsupportedError: transformers is too old for how it was saved.
    """
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    causal = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    named = folder.config.get("architectures") or []
    kind = folder.config["model_type"]
    remedy = "give a causal language model, such as Llama, Mistral, Qwen or Gemma"
    if folder.config.get("is_encoder_decoder") or (named and not causal & set(named)):
        raise UsageError("model", folder.path, f"a {named[0] if named else kind} does not continue text; {remedy}")
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        what = f"transformers {transformers.__version__} knows no causal language model of the type {kind}"
        raise UnsupportedError(f"MODEL {folder.path}: {what}; update transformers, or {remedy}")
    rope = folder.text_config.get("rope_parameters")
    if rope and transformers_version() < (5, 0):
        # 4.x does not read rope_parameters, and takes the base of its own defaults for it, in silence.
        base = folder.text_config.get("rope_theta")
        if folder.rope_base is None or base != folder.rope_base:
            what = f"saved by transformers 5, and {transformers.__version__} would take its RoPE for another"
            raise UnsupportedError(f"MODEL {folder.path}: {what}; pip install 'transformers>=5'")


def layers_and_positions(folder: Folder) -> tuple[int, int]:
    """Decoder layers and positions, with transformers' defaults where the file leaves them out.

    Raises:
        UsageError: the config cannot be understood.
    """
    from transformers import AutoConfig

    try:
        with quiet():
            config = AutoConfig.from_pretrained(str(folder.path), local_files_only=True).get_text_config()
        return int(config.num_hidden_layers), int(getattr(config, "max_position_embeddings", None) or ANY_POSITION)
    except Exception as error:  # transformers' own types, by version
        reason = " ".join(str(error).split())[:200]
        raise UsageError("model", folder.path, f"its config.json cannot be understood ({reason})") from error


def _weights(path: Path) -> Iterator[Path]:
    for name in _INDEXES:
        if (path / name).is_file():
            try:
                files = sorted(set(json.loads((path / name).read_bytes())["weight_map"].values()))
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise UsageError("model", path, f"its {name} cannot be read ({error}); copy it again") from error
            missing = [file for file in files if not (path / file).is_file()]
            if missing:
                more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
                raise UsageError("model", path, f"lacks {missing[0]}{more}, which {name} names; copy them there")
            yield from (path / file for file in files)
            return
    for name in _WEIGHTS:
        if (path / name).is_file():
            yield path / name
            return
    raise UsageError("model", path, f"holds no weights ({' or '.join(_WEIGHTS)}); copy them there")


def safetensors_elements(path: Path) -> int:
    """Elements of all tensors of a file, by its header.

    Raises:
        UsageError: damaged, or not all of it is there.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _HEADER_BYTES:
                raise ValueError("no header")
            header = json.loads(file.read(length))
        infos = [info for name, info in header.items() if name != "__metadata__"]
        need = 8 + length + max((info["data_offsets"][1] for info in infos), default=0)
        if (size := path.stat().st_size) < need:
            raise ValueError(f"{size} of {need} bytes are there")
        return sum(math.prod(info["shape"]) for info in infos)
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError) as error:
        raise UsageError("model", path, f"not a whole safetensors file ({error}); copy or download it again") from error
