"""e4m3, as caches store it: bytes, and the scale of a channel.

A scale is a power of 2: floating point loses nothing by that, and a query or an output that takes it in loses nothing
either. It belongs to a channel of one (batch, kv head), as stored: shifted, in its place, before 2:4 (docs/kernels).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LARGEST = 448.0

SMALLEST_POWER = -9
"""Of 2, the smallest number above 0."""

EXPONENTS = (-120, 119)
"""Of a scale: it, its inverse and 448 times it are numbers of fp32. What lies beyond saturates, or vanishes."""

_BIAS, _FRACTION_BITS = 127, 23  # fp32's


def to_bytes(x: Tensor) -> Tensor:
    """uint8, like ``x`` (finite) in shape: rounded to nearest even, saturating, never NaN."""
    return x.float().clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn).view(torch.uint8)


def from_bytes(stored: Tensor) -> Tensor:
    """fp32, like ``stored`` (uint8) in shape."""
    return stored.view(torch.float8_e4m3fn).float()


def scale_of(largest: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The smallest power of 2, fp32, with ``largest <= 448 x`` it; 1 where there is nothing but zeros.

    None is so small that the smallest number of ``dtype`` is more than the smallest of e4m3: a smaller one would change
    no value, and its inverse may be no number of that type (fp16: 2^15 at most).

    Args:
        largest: magnitudes, any floating type.
        dtype: of the values that they are of; by default that of ``largest``.
    """
    fraction, exponent = torch.frexp(largest.double())  # fraction in [0.5, 1)
    # 448 is 7 / 8 x 2^9.
    least, most = EXPONENTS
    limits = torch.finfo(dtype or largest.dtype)
    smallest = round(math.log2(limits.smallest_normal * limits.eps)) if limits.bits == 16 else least  # a subnormal
    power = (exponent - 9 + (fraction > 7 / 8).to(exponent.dtype)).clamp(max(least, smallest - SMALLEST_POWER), most)
    power = torch.where(largest == 0, 0, power)
    return ((power.to(torch.int32) + _BIAS) << _FRACTION_BITS).view(torch.float32)
