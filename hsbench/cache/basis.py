"""A calibrated basis: what a text says of a model's queries, keys and values, per layer and KV head.

Dropping a channel of a key costs a score by what the query has there, so the pruner ``calibrated`` weighs each channel
of K by the root mean square of the queries' own to choose what stays. The axes that K is stored along stay its
channels: turned to principal axes of a whitened space, which lets 2:4 drop the least of each group of axes, a model
lost twice as much (docs/models.md), for keys are sparser along their own channels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from torch import Tensor

from hsbench.errors import UsageError
from hsbench.problem.tensor_output import BASIS_FORMAT, format_of, replacing

_AGAIN = "hsbench calibrate makes one"


@dataclass(frozen=True)
class LayerBasis:
    """One layer's.

    Attributes:
        key_mean, value_mean: fp32 ``[kv_heads, head_dim]``, of every key and value.
        query_rms: the same shape: the root mean square of each channel of the group's queries.
    """

    key_mean: Tensor
    value_mean: Tensor
    query_rms: Tensor


@dataclass(frozen=True)
class BasisSource:
    """What a basis was made from, and for.

    Attributes:
        model, identity: the model's name and digest.
        geometry: its layers, q_heads, kv_heads, head_dim and more.
        text_sha256, tokens: the text, and how much of it.
    """

    model: str
    identity: str
    geometry: Mapping[str, int]
    text_sha256: str
    tokens: int


@dataclass(frozen=True)
class Basis:
    """The basis of a model: some or all of its layers'."""

    source: BasisSource
    layers: Mapping[int, LayerBasis]
    path: Path | None = field(default=None, compare=False)

    def layer(self, i: int) -> LayerBasis:
        """One layer's.

        Raises:
            UsageError: it is not in there.
        """
        if i not in self.layers:
            raise UsageError("basis", self.path, f"has no layer {i}; {_AGAIN} of all that are attended")
        return self.layers[i]

    def check_model(self, name: str, identity: str) -> None:
        """Refuse a basis of another model.

        Raises:
            UsageError: it is one.
        """
        if identity != self.source.identity:
            raise UsageError("basis", self.path, f"is of {self.source.model}, not of this {name}; {_AGAIN} for it")

    def check_heads(self, kv_heads: int, head_dim: int) -> None:
        """Refuse a basis for another geometry.

        Raises:
            UsageError: it is one.
        """
        own = self.source.geometry["kv_heads"], self.source.geometry["head_dim"]
        if own != (kv_heads, head_dim):
            what = f"is for {own[0]} kv heads x {own[1]} ({self.source.model}), not for {kv_heads} x {head_dim}"
            raise UsageError("basis", self.path, f"{what}; {_AGAIN} for the model")

    def save(self, path: Path) -> None:
        """Write it, in one step: whoever opens the file finds all of it, or what was there before.

        Raises:
            OSError: the disk is full, or such.
        """
        from safetensors.torch import save_file

        tensors = {
            f"layers.{number}.{name}": tensor.contiguous().clone()  # layers may share one
            for number, layer in self.layers.items()
            for name, tensor in vars(layer).items()
        }
        metadata = {"format": BASIS_FORMAT, "source": json.dumps(asdict(self.source))}
        with replacing(path) as part:
            save_file(tensors, part, metadata)

    @classmethod
    def load(cls, path: str | Path) -> Basis:
        """Read a file that :meth:`save` has written.

        Raises:
            UsageError: there is none, it is none, or it is damaged.
        """
        from safetensors.torch import load_file

        path = Path(path)
        if not path.is_file():
            raise UsageError("basis", path, f"no such file; {_AGAIN}")
        found, metadata = format_of(path)
        if found != BASIS_FORMAT:
            raise UsageError("basis", path, f"not a {BASIS_FORMAT} file, but {found or 'something else'}; {_AGAIN}")
        try:
            tensors = load_file(path)
            source = BasisSource(**json.loads(metadata["source"]))
            numbers = sorted({int(name.split(".")[1]) for name in tensors})
            names = LayerBasis.__dataclass_fields__
            layers = {i: LayerBasis(**{name: tensors[f"layers.{i}.{name}"] for name in names}) for i in numbers}
        except Exception as error:  # safetensors raises its own types, by version
            raise UsageError("basis", path, f"damaged ({' '.join(str(error).split())}); {_AGAIN}") from error
        shape = (source.geometry["kv_heads"], source.geometry["head_dim"])
        if not layers or any(tensor.shape != shape for tensor in tensors.values()):
            raise UsageError("basis", path, f"damaged (its tensors are not {list(shape)}); {_AGAIN}")
        return cls(source, layers, path)


@dataclass(frozen=True)
class BasisLayer:
    """One layer of a basis file.

    Attributes:
        path, layer: which.
        basis: what the file holds.
    """

    path: Path
    layer: int
    basis: Basis = field(compare=False)

    @classmethod
    def open(cls, path: str | Path, layer: int | None = None) -> BasisLayer:
        """A layer of a file; the first there if None.

        Raises:
            UsageError: the file cannot be read, is none, or has no such layer.
        """
        basis = Basis.load(path)
        number = min(basis.layers) if layer is None else layer
        basis.layer(number)
        return cls(Path(path), number, basis)

    @property
    def query_rms(self) -> Tensor:
        """See :class:`LayerBasis`."""
        return self.basis.layer(self.layer).query_rms

    def check_heads(self, kv_heads: int, head_dim: int) -> None:
        """As :meth:`Basis.check_heads`."""
        self.basis.check_heads(kv_heads, head_dim)

    def sha256(self) -> str:
        """Of what a pruner reads of it: tells whether two runs had the same."""
        return hashlib.sha256(self.query_rms.contiguous().numpy().tobytes()).hexdigest()
