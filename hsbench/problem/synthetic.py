"""Synthetic tensors, which depend on the seed and on nothing else: not on the number of threads, the device or the
instruction set. Each stretch of tokens of a head has a generator of its own, so threads share no state, and the tensors
of a short sequence are the head of those of a long one.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hsbench.kernels.device import Device
from hsbench.problem.inputs import Inputs
from hsbench.problem.workload import Workload

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


def make_inputs(workload: Workload, device: Device | str, tokens: slice | None = None) -> Inputs:
    """Synthetic tensors: standard normal, with ``outliers`` a few channels of K large and off zero.

    They are generated on the CPU whatever the device, so that every device measures the same numbers, by all
    cores this process may use, and rounded from fp32 piece by piece: no fp32 copy of a tensor exists.

    Args:
        workload: shape, dtype, seed, and ``tensors`` of ``gaussian`` or ``outliers``.
        device: where the tensors go.
        tokens: of which K and V are made, the same as in all of them; None for all.

    Raises:
        ValueError: the workload's tensors are captured.
    """
    import torch

    from hsbench.kernels import memory

    if workload.tensors not in ("gaussian", "outliers"):
        raise ValueError(f"tensors {workload.tensors!r} are captured: load them with open_captured")
    dtype = workload.element.torch_dtype
    q_shape = (workload.batch, workload.q_heads, workload.q_len, workload.head_dim)
    first, last, _ = (tokens or slice(None)).indices(workload.seq)
    kv_shape = (workload.batch, workload.kv_heads, last - first, workload.head_dim)
    outliers = None
    if workload.tensors == "outliers":
        heads = range(workload.kv_heads)
        outliers = [outlier_channels(workload.seed, head, workload.head_dim) for head in heads]

    def tensor(
        which: int, shape: tuple[int, ...], channels: list[Channels] | None = None, begin: int = 0
    ) -> torch.Tensor:
        # One at a time, so that the host holds one tensor more than the device does at most.
        with torch.inference_mode(False):  # threads do not inherit that mode, and may not write what was made in it
            out = memory.empty(shape, dtype, "cpu")
        _fill(out, workload.seed, which, channels, begin)
        return out.to(str(device))

    q, k, v = tensor(_Q, q_shape), tensor(_K, kv_shape, outliers, first), tensor(_V, kv_shape, begin=first)
    return Inputs(q, k, v, source=workload.tensors, ahead=workload.seq - last)


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


def _fill(out: torch.Tensor, seed: int, which: int, channels: list[Channels] | None, begin: int = 0) -> None:
    """Fill ``out`` [batch, heads, tokens, head_dim] from the generators of tensor ``which``, from token ``begin``."""
    import numpy as np
    import torch

    batch, heads, tokens, head_dim = out.shape

    def stretch(entry: int, head: int, start: int) -> None:
        generator = _generator(seed, which, entry, head, start // STRETCH)
        piece = np.empty((PIECE // head_dim, head_dim), dtype=np.float32)
        source = torch.from_numpy(piece)
        end = min(start + STRETCH, begin + tokens)
        for first in range(start, end, len(piece)):
            count = min(len(piece), end - first)
            generator.standard_normal(dtype=np.float32, out=piece[:count])
            if channels is not None:
                large = channels[head]
                piece[:count, large.index] = large.mean + large.scale * piece[:count, large.index]
            skipped = max(begin - first, 0)  # drawn all the same: a generator begins with its stretch
            if skipped < count:
                out[entry, head, first + skipped - begin : first + count - begin].copy_(source[skipped:count])

    units = [
        (entry, head, start)
        for entry in range(batch)
        for head in range(heads)
        for start in range(begin // STRETCH * STRETCH, begin + tokens, STRETCH)
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
