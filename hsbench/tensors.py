"""Which tensors are measured: synthetic, or captured from a model.

Synthetic tensors depend on the seed and on nothing else: not on the number of threads, the device or the
instruction set. Each stretch of tokens of a head has a generator of its own, so threads share no state,
and the tensors of a short sequence are the head of those of a long one.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hsbench.errors import UsageError
from hsbench.tensor_file import damaged, holds_no_layer, open_safetensors
from hsbench.workload import Workload, check_geometry

if TYPE_CHECKING:
    import numpy as np
    import torch

# Tokens that one generator fills; with a thread per stretch this is the unit of parallel work.
STRETCH = 16384
# Elements that are fp32 at a time, per thread. Also torch's grain size: copies this small stay on the calling
# thread. Larger ones would start an OpenMP pool for every thread here, many threads to a core.
PIECE = 32768
# Outlier channels: how many of a head, and their scale against the others. KIVI (arXiv 2402.02750) and
# KVQuant (arXiv 2401.18079) show them in K: few, the same for all tokens, an order of magnitude larger.
OUTLIERS = (2, 4)
OUTLIER_SCALE = (10.0, 20.0)

_Q, _K, _V, _CHANNELS = range(4)  # first key of the generators

_LAYER = re.compile(r"layers\.(\d+)\.([qkv])", re.ASCII)
_DTYPES = {"F16": "fp16", "BF16": "bf16"}
_TRANSPOSED = (
    "if the tensors are [batch, seq, heads, head_dim] where [batch, heads, seq, head_dim] is needed, "
    "save them with .transpose(1, 2).contiguous()"
)


@dataclass
class Inputs:
    """Tensors of one workload, contiguous, in its dtype.

    Attributes:
        q: ``[batch, q_heads, q_len, head_dim]``.
        k, v: ``[batch, kv_heads, seq, head_dim]``.
        source: where they come from, as ``Workload.tensors``.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    source: str


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
        return f"--kv {self.path}: {self.kv_heads} kv heads but only {self.seq} tokens; {_TRANSPOSED}"

    @property
    def source(self) -> str:
        """Provenance, such as ``kv.safetensors#layers.3``."""
        return f"{self.path.name}#layers.{self.layer}"

    def last(self, q_len: int) -> Captured:
        """The same tensors with only the last ``q_len`` queries, which still see what they saw."""
        if not 1 <= q_len <= self.q_len:
            remedy = f"{self.path} holds {self.q_len} queries; give at most that, or leave it out"
            raise UsageError("--q-len", q_len, remedy)
        return replace(self, q_len=q_len)

    def sha256(self) -> str:
        """Of all of the layer's q, k and v as the file holds them: tells whether two runs had the same tensors.

        Raises:
            UsageError: the file is damaged.
            UnavailableError: it does not fit in the memory that may be had; the same in all that read it.
        """
        stat = self.path.stat()
        return _sha256(self.path, self.layer, (stat.st_size, stat.st_mtime_ns))

    def load(self, device: str | torch.device) -> Inputs:
        """Load the tensors and check that every element is finite.

        Raises:
            UsageError: the file is damaged, or an element is not finite; names tensor and first index.
        """
        with open_safetensors(self.path, "pt") as file:
            loaded = {}
            for name in "qkv":
                key = f"layers.{self.layer}.{name}"
                try:
                    tensor = file.get_slice(key)[:, :, -self.q_len :] if name == "q" else file.get_tensor(key)
                except Exception as error:  # safetensors raises its own types, by version
                    raise damaged(self.path, error) from error
                tensor = tensor.contiguous()
                _check_finite(tensor, key, self.path)
                loaded[name] = tensor.to(device)
        return Inputs(**loaded, source=self.source)


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


def make_inputs(workload: Workload, device: str | torch.device) -> Inputs:
    """Synthetic tensors: standard normal, with ``outliers`` a few channels of K large and off zero.

    They are generated on the CPU whatever the device, so that every device measures the same numbers, by all
    cores this process may use, and rounded from fp32 piece by piece: no fp32 copy of a tensor exists.

    Args:
        workload: shape, dtype, seed, and ``tensors`` of ``gaussian`` or ``outliers``.
        device: where the tensors go.

    Raises:
        ValueError: the workload's tensors are captured.
    """
    import torch

    from hsbench import memory

    if workload.tensors not in ("gaussian", "outliers"):
        raise ValueError(f"tensors {workload.tensors!r} are captured: load them with open_captured")
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[workload.dtype]
    q_shape = (workload.batch, workload.q_heads, workload.q_len, workload.head_dim)
    kv_shape = (workload.batch, workload.kv_heads, workload.seq, workload.head_dim)
    outliers = None
    if workload.tensors == "outliers":
        heads = range(workload.kv_heads)
        outliers = [outlier_channels(workload.seed, head, workload.head_dim) for head in heads]

    def tensor(which: int, shape: tuple[int, ...], channels: list[Channels] | None = None) -> torch.Tensor:
        # One at a time, so that the host holds one tensor more than the device does at most.
        with torch.inference_mode(False):  # threads do not inherit that mode, and may not write what was made in it
            out = memory.empty(shape, dtype, "cpu")
        _fill(out, workload.seed, which, channels)
        return out.to(device)

    q, k, v = tensor(_Q, q_shape), tensor(_K, kv_shape, outliers), tensor(_V, kv_shape)
    return Inputs(q, k, v, source=workload.tensors)


@dataclass(frozen=True)
class Channels:
    """Outlier channels of one KV head: ``x -> mean + scale * x`` for every token.

    Attributes:
        index: the channels, ascending.
        scale, mean: fp32, one per channel; the mean is as large as the scale, of either sign.
    """

    index: np.ndarray
    scale: np.ndarray
    mean: np.ndarray


def outlier_channels(seed: int, head: int, head_dim: int) -> Channels:
    """The outlier channels of one KV head: the same for all tokens and every batch entry, as in a model."""
    import numpy as np

    generator = _generator(seed, _CHANNELS, head)
    count = int(generator.integers(OUTLIERS[0], OUTLIERS[1] + 1))
    index = np.sort(generator.permutation(head_dim)[:count])
    scale = generator.uniform(*OUTLIER_SCALE, size=count).astype(np.float32)
    sign = generator.choice(np.array([-1, 1], dtype=np.float32), size=count)
    return Channels(index=index, scale=scale, mean=sign * scale)


def open_captured(path: str | Path, layer: int | None = None) -> Captured:
    """Read the geometry of one layer of a file of captured tensors; only the header is read.

    The file holds ``layers.N.q`` ``[batch, q_heads, q_len, head_dim]`` and ``layers.N.k``, ``layers.N.v``
    ``[batch, kv_heads, seq, head_dim]``, all fp16 or all bf16.

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
                raise UsageError(
                    "--kv", path, f"lacks {key}; save the layer's q, k and v as layers.{layer}.*"
                )
            header = file.get_slice(key)
            shapes[name], dtypes[name] = tuple(header.get_shape()), header.get_dtype()
    dtype = _check_dtypes(path, layer, dtypes)
    batch, q_heads, kv_heads, head_dim, q_len, seq = _check_shapes(path, layer, shapes)
    return Captured(path, layer, batch, q_heads, kv_heads, head_dim, dtype, q_len, seq)


def _fill(out: torch.Tensor, seed: int, which: int, channels: list[Channels] | None) -> None:
    """Fill ``out`` [batch, heads, tokens, head_dim] from the generators of tensor ``which``."""
    import numpy as np
    import torch

    batch, heads, tokens, head_dim = out.shape

    def stretch(entry: int, head: int, start: int) -> None:
        generator = _generator(seed, which, entry, head, start // STRETCH)
        piece = np.empty((PIECE // head_dim, head_dim), dtype=np.float32)
        source = torch.from_numpy(piece)
        end = min(start + STRETCH, tokens)
        for first in range(start, end, len(piece)):
            count = min(len(piece), end - first)
            generator.standard_normal(dtype=np.float32, out=piece[:count])
            if channels is not None:
                large = channels[head]
                piece[:count, large.index] = large.mean + large.scale * piece[:count, large.index]
            out[entry, head, first : first + count].copy_(source[:count])

    units = [
        (entry, head, start)
        for entry in range(batch)
        for head in range(heads)
        for start in range(0, tokens, STRETCH)
    ]
    # numpy draws without the interpreter lock, so threads are enough.
    with ThreadPoolExecutor(max_workers=min(len(units), _cores())) as pool:
        for done in [pool.submit(stretch, *unit) for unit in units]:
            done.result()


def _generator(seed: int, *key: int) -> np.random.Generator:
    """An independent generator for every key of a seed."""
    import numpy as np

    return np.random.Generator(np.random.PCG64DXSM(np.random.SeedSequence(seed, spawn_key=key)))


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _choose_layer(path: Path, names: set[str], layer: int | None) -> int:
    layers = sorted({int(match[1]) for match in map(_LAYER.fullmatch, names) if match})
    if not layers:
        raise holds_no_layer(path, names)
    if layer is None:
        return layers[0]
    if layer not in layers:
        raise UsageError("--layer", layer, f"not in {path}, which holds {_ranges(layers)}; give one of these")
    return layer


def _ranges(numbers: list[int]) -> str:
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
            problem = f"layers.{layer}.{name} is {found}, but fp16 or bf16 is needed"
            remedy = (
                "convert q, k and v with .to(torch.float16) and save them with safetensors.torch.save_file"
            )
            raise UsageError("--kv", path, f"{problem}; {remedy}")
    if len(set(dtypes.values())) > 1:
        found = ", ".join(f"{name} {_DTYPES[dtype]}" for name, dtype in dtypes.items())
        raise UsageError("--kv", path, f"layers.{layer} mixes dtypes ({found}); save q, k and v in one")
    return _DTYPES[dtypes["k"]]


def _check_shapes(
    path: Path, layer: int, shapes: dict[str, tuple[int, ...]]
) -> tuple[int, int, int, int, int, int]:
    """(batch, q_heads, kv_heads, head_dim, q_len, seq) of shapes that fit."""

    kv = shapes["k"]
    # Where heads exceed tokens, they may be in each other's place; what does not fit then is but a consequence.
    swapped = f"; {_TRANSPOSED}" if len(kv) == 4 and kv[1] > kv[2] else ""

    def refuse(problem: str) -> UsageError:
        remedy = "shapes must be [batch, heads, seq, head_dim]"
        return UsageError("--kv", path, f"layers.{layer}: {problem}; {remedy}{swapped}")

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
    check_geometry(q_heads, kv_heads, head_dim, option="--kv", value=path)
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
                raise UsageError("--kv", path, remedy)
