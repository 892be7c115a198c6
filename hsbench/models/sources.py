"""What MODEL names: a folder, a ``.gguf`` file, a name of HuggingFace's, or random weights in a profile's shape.

A source is checked as far as its headers tell, which takes no time, before anything is loaded.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from hsbench.errors import UnavailableError, UsageError
from hsbench.models import extra, folder, gguf_file
from hsbench.models.folder import ANY_POSITION, Folder
from hsbench.models.gguf_file import GgufHeader
from hsbench.models.tokenizer import ByteTokenizer, HfTokenizer, Tokenizer
from hsbench.problem.shapes import ModelShape, find_shape

RANDOM = "random:"
_REPOSITORY = re.compile(r"[\w.-]+(?:/[\w.-]+)?")
_KINDS = "give a folder, a .gguf file, a name such as Qwen/Qwen2.5-0.5B, or random:PROFILE"
_SAMPLES, _SAMPLE_BYTES = 64, 4096  # of each weight file, for the identity


@dataclass(frozen=True)
class Source:
    """A model that is there and can be loaded.

    Attributes:
        spec: as typed.
        name: as shown.
        identity: a digest of its config and of samples of its weights, as their files hold them.
        layers, max_positions: as its config has them.
        parameters: its weights; 0 for random ones.
        dtype: what the weights are published in, as torch names it; None where that is no type of torch's.
        rope_base: of its rotary frequencies; None where it is not known, or more is done to them.
        arguments: where transformers finds it; none for random weights.
        shape: of random weights.
        starts: whether a text starts with a token of its own (BOS); None leaves it to the tokenizer.
    """

    spec: str
    name: str
    identity: str
    layers: int
    max_positions: int
    parameters: int = 0
    dtype: str | None = None
    rope_base: float | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    shape: ModelShape | None = None
    starts: bool | None = None

    @property
    def is_gguf(self) -> bool:
        """Whether it is one file with quantised weights, which are made fp32 on the way."""
        return "gguf_file" in self.arguments

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer; a token per byte for random weights. Loaded at first use.

        Raises:
            UsageError: there is none, or it is damaged.
        """
        if self.shape is not None:
            return ByteTokenizer()
        with extra.quiet():
            from transformers import AutoTokenizer

            try:
                return HfTokenizer(AutoTokenizer.from_pretrained(**self.arguments), self.starts)
            except Exception as error:  # of tokenizers, of JSON, of transformers: by version
                reason = " ".join(str(error).split())[:200]
                raise UsageError("model", self.spec, f"its tokenizer cannot be loaded ({reason})") from error

    def check_context(self, tokens: int, field: str) -> None:
        """Refuse a context beyond what the model was made for.

        Raises:
            UsageError: it is; names the field.
        """
        if tokens > self.max_positions:
            remedy = f"{self.name} has {self.max_positions:,} positions; give at most that"
            raise UsageError(field, tokens, remedy)


def find_source(spec: str) -> Source:
    """Find and check what MODEL names.

    Raises:
        UsageError: there is no such model, or it is damaged, or of a kind that does not continue text.
        UnavailableError: the extra is missing, or a name is neither in the local cache nor to be had.
        UnsupportedError: transformers cannot read it.
    """
    if not spec.strip():
        raise UsageError("model", '""', f"no such file or folder; {_KINDS}")
    if spec.startswith(RANDOM):
        extra.require("transformers")
        return _random(spec)
    path = Path(spec).expanduser()
    if path.is_dir():
        extra.require("transformers")
        return _from_folder(spec, path, _name_of(path))
    if path.is_file():
        if path.suffix.lower() in (".safetensors", ".bin", ".pt", ".pth", ".json"):
            raise UsageError("model", spec, f"a part of a model; give its folder, {path.parent}")
        extra.require("transformers", "gguf", "accelerate")
        return _from_gguf(spec, path)
    if path.suffix == ".gguf" or spec.startswith(("/", ".", "~")) or not _REPOSITORY.fullmatch(spec):
        raise UsageError("model", spec, f"no such file or folder; {_KINDS}")
    extra.require("transformers")
    return _from_folder(spec, _downloaded(spec), spec)


def _random(spec: str) -> Source:
    try:
        shape = find_shape(spec.removeprefix(RANDOM))
    except UsageError as error:
        raise UsageError("model", spec, error.remedy) from None
    name = RANDOM + shape.name
    digest = _digest(name.encode(), ())
    return Source(spec, name, digest, shape.layers, shape.max_seq, shape=shape, dtype="bfloat16")


def _from_folder(spec: str, path: Path, name: str) -> Source:
    found: Folder = folder.read_folder(path)
    folder.check_supported(found)
    config = {key: value for key, value in found.config.items() if key not in ("_name_or_path", "transformers_version")}
    layers, positions = folder.layers_and_positions(found)
    return Source(
        spec,
        name,
        _digest(json.dumps(config, sort_keys=True).encode(), found.weights),
        layers,
        positions,
        found.parameters,
        found.dtype,
        found.rope_base,
        {"pretrained_model_name_or_path": str(path), "local_files_only": True},
    )


def _from_gguf(spec: str, path: Path) -> Source:
    header: GgufHeader = gguf_file.read_header(path)
    gguf_file.check_supported(header)
    scaled = header.of_architecture("rope.scaling.type") not in (None, "none")
    base = header.of_architecture("rope.freq_base")
    return Source(
        spec,
        path.stem,
        _digest(b"", (path,)),
        int(header.of_architecture("block_count") or 0),
        int(header.of_architecture("context_length") or ANY_POSITION),
        header.parameters,
        None,
        float(base) if base and not scaled else None,
        {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name, "local_files_only": True},
        starts=header.fields.get("tokenizer.ggml.add_bos_token"),
    )


def _downloaded(name: str) -> Path:
    """The folder of a name in the local cache of HuggingFace, put there first if it is not and there is a network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

    wanted = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    try:
        try:
            return Path(snapshot_download(name, allow_patterns=wanted, local_files_only=True))
        except LocalEntryNotFoundError:
            with extra.quiet():
                return Path(snapshot_download(name, allow_patterns=wanted))
    except (RepositoryNotFoundError, HFValidationError) as error:
        remedy = f"no such file or folder, nor a model on the hub that may be read; {_KINDS}"
        raise UsageError("model", name, remedy) from error
    except Exception as error:  # requests' and httpx's own types, by version
        what = "no such file or folder, nor in the local HuggingFace cache, and the hub cannot be reached"
        raise UnavailableError(f"MODEL {name}: {what}; {_KINDS}") from error


def _name_of(path: Path) -> str:
    return path.resolve().name


def _digest(config: bytes, files: Iterable[Path]) -> str:
    """Of a config and of samples of files: another model, or another training of it, differs in every sample."""
    digest = hashlib.sha256(config)
    for path in files:
        size = path.stat().st_size
        digest.update(size.to_bytes(8, "little"))
        with path.open("rb") as file:
            for sample in range(_SAMPLES):
                file.seek(max(size - _SAMPLE_BYTES, 0) * sample // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()
