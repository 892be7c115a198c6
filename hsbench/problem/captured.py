"""Tensors captured from a model: q, k and v per layer in a safetensors file."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hsbench.errors import UsageError
from hsbench.kernels.device import Device
from hsbench.problem.elements import DEFAULT_INPUT, INPUTS
from hsbench.problem.inputs import Inputs
from hsbench.problem.tensor_file import damaged, holds_no_layer, open_safetensors
from hsbench.problem.workload import check_geometry

if TYPE_CHECKING:
    import torch


_LAYER = re.compile(r"layers\.(\d+)\.([qkv])", re.ASCII)
_DTYPES = {element.safetensors_name: element.name for element in INPUTS.values()}
_TRANSPOSED = (
    "if the tensors are [batch, seq, heads, head_dim] where [batch, heads, seq, head_dim] is needed, "
    "save them with .transpose(1, 2).contiguous()"
)


@dataclass(frozen=True)
class Captured:
    """One layer's q, k, v in a safetensors file, known by its header; nothing is loaded before :meth:`load`.

    Attributes:
        path, layer: which tensors: ``layers.{layer}.q``, ``.k``, ``.v``.
        batch, q_heads, kv_heads, head_dim, dtype, seq: their geometry.
        q_len: the queries that are used, the last ones of the file.
    """

    path: Path
    layer: int
    batch: int
    q_heads: int
    kv_heads: int
    head_dim: int
    dtype: str
    q_len: int
    seq: int

    @property
    def warning(self) -> str | None:
        """What looks wrong about the geometry, with the remedy; None where nothing does."""
        if self.kv_heads <= self.seq:
            return None
        return f"{self.path}: {self.kv_heads} kv heads but only {self.seq} tokens; {_TRANSPOSED}"

    @property
    def source(self) -> str:
        """Provenance, such as ``kv.safetensors#layers.3``."""
        return f"{self.path.name}#layers.{self.layer}"

    def last(self, q_len: int) -> Captured:
        """The same tensors with only the last ``q_len`` queries, which still see what they saw."""
        if not 1 <= q_len <= self.q_len:
            remedy = f"{self.path} holds {self.q_len} queries; give at most that, or leave it out"
            raise UsageError("q_len", q_len, remedy)
        return replace(self, q_len=q_len)

    def sha256(self) -> str:
        """Of all of the layer's q, k and v as the file holds them: tells whether two runs had the same tensors.

        Raises:
            UsageError: the file is damaged.
            UnavailableError: it does not fit in the memory that may be had; the same in all that read it.
        """
        stat = self.path.stat()
        return _sha256(self.path, self.layer, (stat.st_size, stat.st_mtime_ns))

    def load(self, device: Device | str, tokens: slice | None = None) -> Inputs:
        """Load the tensors and check that every element is finite.

        Args:
            tokens: those of K and V; None for all.

        Raises:
            UsageError: the file is damaged, or an element is not finite; names tensor and first index.
        """
        of_kv = tokens or slice(None)
        q = self._load("q", device, slice(-self.q_len, None))
        k, v = self._load("k", device, of_kv), self._load("v", device, of_kv)
        return Inputs(q, k, v, source=self.source, ahead=self.seq - of_kv.indices(self.seq)[1])

    def context(self, device: Device | str, most: int) -> torch.Tensor:
        """The last queries of the file, whether or not they are used: ``most``, or as many as there are.

        Raises:
            UsageError: as :meth:`load`.
        """
        return self._load("q", device, slice(-most, None))

    def _load(self, name: str, device: Device | str, tokens: slice) -> torch.Tensor:
        """Some tokens of q, k or v."""
        key = f"layers.{self.layer}.{name}"
        with open_safetensors(self.path, "pt") as file:
            try:
                whole = tokens == slice(None)
                tensor = file.get_tensor(key) if whole else file.get_slice(key)[:, :, tokens]
            except Exception as error:  # safetensors raises its own types, by version
                raise damaged(self.path, error) from error
        tensor = tensor.contiguous()
        _check_finite(tensor, key, self.path)
        return tensor.to(str(device))


@functools.cache  # the cells of a sweep share a file
def _sha256(path: Path, layer: int, _version: tuple[int, int]) -> str:
    import torch

    digest = hashlib.sha256()
    with open_safetensors(path, "pt") as file:
        for name in "qkv":
            try:
                tensor = file.get_tensor(f"layers.{layer}.{name}")
            except Exception as error:  # safetensors raises its own types, by version
                raise damaged(path, error) from error
            digest.update(tensor.contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def open_captured(path: str | Path, layer: int | None = None) -> Captured:
    """Read the geometry of one layer of a file of captured tensors; only the header is read.

    The file holds ``layers.N.q`` ``[batch, q_heads, q_len, head_dim]`` and ``layers.N.k``, ``layers.N.v``
    ``[batch, kv_heads, seq, head_dim]``, all in one of ``elements.INPUTS``.

    Args:
        path: a safetensors file.
        layer: N; None takes the first that is there.

    Raises:
        UsageError: no such file or layer, damaged, a tensor missing, or shapes or dtypes that do not fit.
    """
    path = Path(path)
    with open_safetensors(path, "numpy") as file:
        names = set(file.keys())
        layer = _choose_layer(path, names, layer)
        shapes, dtypes = {}, {}
        for name in "qkv":
            key = f"layers.{layer}.{name}"
            if key not in names:
                raise UsageError("kv", path, f"lacks {key}; save the layer's q, k and v as layers.{layer}.*")
            header = file.get_slice(key)
            shapes[name], dtypes[name] = tuple(header.get_shape()), header.get_dtype()
    dtype = _check_dtypes(path, layer, dtypes)
    batch, q_heads, kv_heads, head_dim, q_len, seq = _check_shapes(path, layer, shapes)
    return Captured(path, layer, batch, q_heads, kv_heads, head_dim, dtype, q_len, seq)


def _choose_layer(path: Path, names: set[str], layer: int | None) -> int:
    layers = sorted({int(match[1]) for match in map(_LAYER.fullmatch, names) if match})
    if not layers:
        raise holds_no_layer(path, names)
    if layer is None:
        return layers[0]
    if layer not in layers:
        raise UsageError("layer", layer, f"not in {path}, which holds {ranges(layers)}; give one of these")
    return layer


def ranges(numbers: list[int]) -> str:
    """Ascending numbers, compactly: ``0-3, 7``."""

    def runs() -> Iterator[tuple[int, int]]:
        first = last = numbers[0]
        for number in numbers[1:]:
            if number != last + 1:
                yield first, last
                first = number
            last = number
        yield first, last

    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs())


def _check_dtypes(path: Path, layer: int, dtypes: dict[str, str]) -> str:
    for name, found in dtypes.items():
        if found not in _DTYPES:
            problem = f"layers.{layer}.{name} is {found}, but {' or '.join(INPUTS)} is needed"
            convert = f"convert q, k and v with .to(torch.{DEFAULT_INPUT.torch_name})"
            remedy = f"{convert} and save them with safetensors.torch.save_file"
            raise UsageError("kv", path, f"{problem}; {remedy}")
    if len(set(dtypes.values())) > 1:
        found = ", ".join(f"{name} {_DTYPES[dtype]}" for name, dtype in dtypes.items())
        raise UsageError("kv", path, f"layers.{layer} mixes dtypes ({found}); save q, k and v in one")
    return _DTYPES[dtypes["k"]]


def _check_shapes(path: Path, layer: int, shapes: dict[str, tuple[int, ...]]) -> tuple[int, int, int, int, int, int]:
    """(batch, q_heads, kv_heads, head_dim, q_len, seq) of shapes that fit."""

    kv = shapes["k"]
    # Where heads exceed tokens, they may be in each other's place; what does not fit then is but a consequence.
    swapped = f"; {_TRANSPOSED}" if len(kv) == 4 and kv[1] > kv[2] else ""

    def refuse(problem: str) -> UsageError:
        remedy = "shapes must be [batch, heads, seq, head_dim]"
        return UsageError("kv", path, f"layers.{layer}: {problem}; {remedy}{swapped}")

    for name, shape in shapes.items():
        if len(shape) != 4 or 0 in shape:
            raise refuse(f"{name} has the shape {list(shape)}")
    if shapes["k"] != shapes["v"]:
        raise refuse(f"k is {list(shapes['k'])} but v is {list(shapes['v'])}")
    batch, q_heads, q_len, head_dim = shapes["q"]
    kv_batch, kv_heads, seq, kv_head_dim = kv
    if (batch, head_dim) != (kv_batch, kv_head_dim):
        raise refuse(f"batch or head_dim of q {list(shapes['q'])} and k {list(shapes['k'])} differ")
    if q_len > seq:
        raise refuse(f"q has {q_len} queries, more than the {seq} tokens of k")
    if swapped and q_heads % kv_heads:
        raise refuse(f"q has {q_heads} heads, no multiple of the {kv_heads} of k")
    try:
        check_geometry(q_heads, kv_heads, head_dim)
    except UsageError as error:
        problem = f"{error.option} {error.value}: {error.remedy.replace('`', '')}"
        raise UsageError("kv", path, f"layers.{layer}: {problem}; capture tensors of another model") from None
    return batch, q_heads, kv_heads, head_dim, q_len, seq


def _check_finite(tensor: torch.Tensor, key: str, path: Path) -> None:
    import torch

    # Head by head: the mask of a whole tensor would be half as large as the tensor.
    for entry in range(tensor.shape[0]):
        for head in range(tensor.shape[1]):
            finite = torch.isfinite(tensor[entry, head])
            if not bool(finite.all()):
                token, channel = (int(i) for i in (~finite).nonzero()[0])
                index = [entry, head, token, channel]
                remedy = f"{key} is not finite at index {index}; remove NaN and infinities"
                raise UsageError("kv", path, remedy)
