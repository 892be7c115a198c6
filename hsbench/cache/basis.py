"""A calibrated basis: what K and V are shifted by, and the axes that K is stored along, per layer and KV head.

A key is stored as ``k' = (k - mean) T`` and a query read as ``q' = q R`` with ``R = T^-T``, so that ``q' k'^T`` is
``q (k - mean)^T``: no score changes but by what is the same for every token. T whitens q, then rotates to the principal
axes of what is left of K: with ``C = E[q q^T]``, ``S = E[(k - mean)(k - mean)^T]`` and ``C^1/2 S C^1/2 = U L U^T``, it
is ``T = C^1/2 U``, and ``R = C^-1/2 U``. There, dropping a coordinate costs a score by its own size alone, and 2:4
drops the smaller of each four. The axes are dealt over the groups of four so that each has one of every quarter of the
spectrum.

Or, as ``channels``, the axes are the channels themselves in the order `mirror`, each scaled by the rms of q in it: T
has one number a row. That undoes none of the correlation between channels, but keys are sparser along their own
channels than along principal axes, and 2:4 lives on that.

A kernel multiplies q by R in 16-bit products that it adds up in fp32. So R is rounded to bf16 first, and T made from
the rounded one: the pair is exact, and only its whiteness is approximate.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from hsbench.errors import UsageError
from hsbench.problem.tensor_output import AXES, BASIS_FORMAT, format_of, replacing

EXACT = 1e-5
"""The most by which ``R T^T`` may differ from the identity."""

_RIDGES = (1e-3, 1e-2, 1e-1)  # of the mean of C's diagonal, added to it until R is well conditioned
_CONDITION = 300.0  # of R: what rounding to bf16 (2^-9) then leaves of the smallest axis is still that axis
_AGAIN = "hsbench calibrate makes one"


@dataclass(frozen=True)
class LayerBasis:
    """One layer's.

    Attributes:
        key_mean, value_mean: fp32 ``[kv_heads, head_dim]``, subtracted from every key and value.
        read: R, fp32 holding bf16 values, ``[kv_heads, head_dim, head_dim]``: ``q' = q @ read``.
        store: T, fp32, the same shape: ``k' = (k - key_mean) @ store``.
    """

    key_mean: Tensor
    value_mean: Tensor
    read: Tensor
    store: Tensor


@dataclass(frozen=True)
class BasisSource:
    """What a basis was made from, and for.

    Attributes:
        model, identity: the model's name and digest.
        geometry: its layers, q_heads, kv_heads, head_dim and more.
        text_sha256, tokens: the text, and how much of it.
        axes: one of `AXES`.
    """

    model: str
    identity: str
    geometry: Mapping[str, int]
    text_sha256: str
    tokens: int
    axes: str = AXES[0]


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
        if any(tensor.shape[:2] != shape for tensor in tensors.values()):
            raise UsageError("basis", path, f"damaged (its tensors are not {shape}); {_AGAIN}")
        return cls(source, layers, path)


def make_basis(query: Tensor, spread: Tensor, axes: str = AXES[0]) -> tuple[Tensor, Tensor]:
    """(R, T) of each KV head.

    Args:
        query: ``E[q q^T]`` over the queries of a group, ``[kv_heads, head_dim, head_dim]``.
        spread: ``E[(k - mean)(k - mean)^T]``, the same shape; whitened axes alone depend on it.
        axes: one of `AXES`.

    Returns:
        R, fp32 holding bf16 values, and T, fp32, with ``R T^T = 1`` to `EXACT`.

    Raises:
        ValueError: no ridge makes them well conditioned, as where a matrix is not finite.
    """
    make = {"whitened": _whitened, "channels": _channels}[axes]
    pairs = [make(query[head].double(), spread[head].double()) for head in range(query.shape[0])]
    return torch.stack([read for read, _ in pairs]), torch.stack([store for _, store in pairs])


def deal(head_dim: int) -> Tensor:
    """Which axis, by rank of its energy, stands in which place: each four places hold one of every quarter."""
    return torch.arange(head_dim).reshape(4, -1).T.flatten()


def mirror(head_dim: int) -> Tensor:
    """Channels in the order `mirror`, group by group: (g, h-1-g, g+h, d-1-g) with h = d/2."""
    half = head_dim // 2
    first = torch.arange(half // 2)
    return torch.stack((first, half - 1 - first, first + half, head_dim - 1 - first), dim=1).flatten()


def _channels(query: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
    if not bool(torch.isfinite(query).all()):
        raise ValueError("the queries' second moments are not finite")
    d = query.shape[0]
    energy = query.diagonal() + _RIDGES[0] * _level(query)
    # Around a geometric mean of 1, so that no q' or k' is much larger than q or k were.
    weights = (energy.log() / 2 - energy.log().mean() / 2).exp().clamp(_CONDITION**-0.5, _CONDITION**0.5)
    order, places = mirror(d).to(query.device), torch.arange(d, device=query.device)
    read, store = torch.zeros_like(query), torch.zeros_like(query)
    read[order, places] = (1 / weights).float().bfloat16().double()[order]
    store[order, places] = 1 / read[order, places]
    return read.float(), store.float()


def _level(query: Tensor) -> Tensor:
    """The mean of a diagonal; of a head that no query reads, more than 0."""
    return query.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny)


def _whitened(query: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
    d = query.shape[0]
    eye = torch.eye(d, dtype=torch.float64, device=query.device)
    level = _level(query)
    for ridge in _RIDGES:
        energies, axes = torch.linalg.eigh((query + query.T) / 2 + ridge * level * eye)
        root = (axes * energies.sqrt()) @ axes.T
        inverse = (axes / energies.sqrt()) @ axes.T
        seen = root @ spread @ root
        lengths, turn = torch.linalg.eigh((seen + seen.T) / 2)
        turn = turn.flip(-1)[:, deal(d).to(turn.device)]  # eigh's order is ascending
        # q' and k' are made alike in size, by a power of two, so that neither leaves the range of fp16.
        scale = torch.exp2(torch.log2(lengths.clamp_min(0).mean().sqrt().clamp_min(1e-30)).div(2).round())
        read = (inverse @ turn * scale).float().bfloat16().double()
        if not bool(torch.isfinite(read).all()) or float(torch.linalg.cond(read)) > _CONDITION:
            continue
        store = torch.linalg.inv(read).T.float()
        if float((read @ store.double().T - eye).abs().max()) <= EXACT:
            return read.float(), store
    raise ValueError("the queries' second moments cannot be inverted")
