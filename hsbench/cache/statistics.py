"""What pruners are fitted by: means of K and V, norms of V's tokens. By native kernels where there are some."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from hsbench.kernels import library
from hsbench.kernels.device import KINDS, Device
from hsbench.problem.elements import element_by, element_of


def squared_norms_torch(stored: Tensor) -> tuple[Tensor, Tensor]:
    """Of what is stored, ``[batch, kv_heads, seq, head_dim]``, each token's norm, squared, fp64 ``[batch, kv_heads,
    seq]``, and largest magnitude, likewise in its dtype.

    In fp64, for the squares of bf16's larger values overflow fp32. A square is exact there, and sums are by halves:
    each of the lower half of the channels gets that of the upper half added, and so on.
    """
    sums = stored.double().square()
    halves = 1 << (stored.shape[-1] - 1).bit_length()  # a power of two: what is not there is 0
    sums = torch.nn.functional.pad(sums, (0, halves - sums.shape[-1]))
    while (halves := halves // 2) > 0:
        sums = sums[..., :halves] + sums[..., halves:]
    return sums[..., 0], stored.abs().amax(-1)


def squared_norms(x: Tensor, shift: Tensor | None) -> tuple[Tensor, Tensor]:
    """:func:`squared_norms_torch` of ``x`` less ``shift`` (fp32 ``[batch, kv_heads, head_dim]``) as it is stored, by
    the native kernel.

    Args:
        x: ``[batch, kv_heads, seq, 64|128]``, fp16 or bf16.

    Raises:
        UnavailableError: there is no native library for the device.
    """
    batch, kv_heads, seq, _ = x.shape
    squares = torch.empty(batch, kv_heads, seq, dtype=torch.float64, device=x.device)
    largest = torch.empty(batch, kv_heads, seq, dtype=x.dtype, device=x.device)
    _run("token_norms", x, shift=shift, squares=squares, largest=largest)
    return squares, largest


def mean_of(x: Tensor, first: int, last: int) -> Tensor:
    """The mean of tokens ``first <= i < last`` of ``x [batch, kv_heads, seq, head_dim]``, fp32 ``[batch, kv_heads,
    head_dim]``. Added up in fp64, for the sums of bf16's larger values overflow fp32."""
    batch, kv_heads, _, head_dim = x.shape
    mean = torch.empty(batch, kv_heads, head_dim, dtype=torch.float32, device=x.device)
    if has_kernel("mean", x):
        _run("mean", x, first_token=first, last_token=last, mean=mean)
    else:  # one head at a time: torch copies it in fp64 first
        for b, h in itertools.product(range(batch), range(kv_heads)):
            mean[b, h] = x[b, h, first:last].mean(0, dtype=torch.float64)
    return mean


def has_kernel(operation: str, x: Tensor) -> bool:
    """Whether there is a native kernel that takes a tensor."""
    fits = element_of(x.dtype) is not None and x.shape[-1] in (64, 128)
    return fits and x.device.type in KINDS and not library.why_cannot(operation, Device.of(x.device))


def _run(operation: str, x: Tensor, **fields: Any) -> None:
    batch, kv_heads, seq, head_dim = x.shape
    x = x.contiguous()
    shape = dict(batch=batch, kv_heads=kv_heads, head_dim=head_dim, seq=seq, dtype=element_by(x.dtype).code, x=x)
    params = library.make(f"hsb_{operation}_params", **shape, **fields, **library.on_device(x.device))
    library.Operation(operation, x.device, params).run()
