"""Element types: the one place that knows how large an element is, how precise, and what each library calls it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Element:
    """A type of stored or input elements.

    Attributes:
        name: as typed and reported, such as ``fp16``.
        bits: of one element.
        mantissa_bits: of these, behind the leading one.
        torch_name: torch's name, such as ``float16``.
        safetensors_name: as a safetensors header says it.
        code: the ``hsb_dtype`` of params.h; None for a type that no kernel takes.
        tolerance: the largest relative error, ``||out - reference|| / ||reference||``, with which an attention output
            passes that is of this type, or that is of products of this type; None for a type that neither is.
    """

    name: str
    bits: int
    mantissa_bits: int
    torch_name: str
    safetensors_name: str
    code: int | None = None
    tolerance: float | None = None

    def nbytes(self, count: int) -> int:
        """Bytes of ``count`` elements, side by side."""
        return -(-count * self.bits // 8)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The torch dtype."""
        import torch

        dtype: torch.dtype = getattr(torch, self.torch_name)
        return dtype

    def __str__(self) -> str:
        return self.name


FP16 = Element("fp16", 16, 10, "float16", "F16", code=0, tolerance=1e-3)
BF16 = Element("bf16", 16, 7, "bfloat16", "BF16", code=1, tolerance=8e-3)
FP32 = Element("fp32", 32, 23, "float32", "F32")
FP8 = Element("fp8", 8, 3, "float8_e4m3fn", "F8_E4M3", tolerance=0.1)
"""e4m3: 4 bits of exponent, 3 of fraction; 448 at most, no infinity. What rounding q and probabilities to it does to an
output is derived in docs/kernels/cuda-prefill-sm90.md: 0.0375 to 0.042 of a row where scores vary by a nat."""
INT4 = Element("int4", 4, 3, "int4", "I4")
"""A sign and 3 bits, in units of a scale that a few of them share (:mod:`hsbench.cache.int4`)."""

WIDE = FP16
"""What the values of blocks are that stay wide in a cache of narrower elements, whatever the input's type: in units of
the scale of a channel, which is a power of 2, they lose nothing but what lies 2^-23 under the channel's largest."""

INPUTS = {element.name: element for element in (FP16, BF16)}
"""What q, k and v may be, by name, the one to take where nobody asks first."""

DEFAULT_INPUT = next(iter(INPUTS.values()))
"""The one to take where nobody asks."""

TORCH_INPUTS = " or ".join(f"torch.{element.torch_name}" for element in INPUTS.values())
"""The inputs as a message says them to who has a tensor."""


def element_of(dtype: torch.dtype) -> Element | None:
    """The element type of a torch dtype; None for one that hsbench has no kernels for."""
    return next((element for element in INPUTS.values() if element.torch_dtype == dtype), None)


def element_by(dtype: torch.dtype) -> Element:
    """The element type of a torch dtype that kernels take.

    Raises:
        ValueError: they do not take it.
    """
    element = element_of(dtype)
    if element is None:
        raise ValueError(f"no kernels for {dtype}")
    return element


@dataclass(frozen=True)
class StoredElements:
    """What the values of a cache's pages are.

    Attributes:
        name: as typed and reported.
        code: the ``hsb_stored`` of params.h.
        element: their type; None for the input's own.
    """

    name: str
    code: int
    element: Element | None = None

    @property
    def has_scale(self) -> bool:
        """Whether each channel of a head has a scale, for the type's range is short."""
        return self.element is not None

    def of(self, own: Element) -> Element:
        """The type of the values of inputs of type ``own``."""
        return self.element or own

    @property
    def key(self) -> StoredElements:
        """Of a cache where both K and V are such: K's."""
        return self

    @property
    def value(self) -> StoredElements:
        """V's."""
        return self

    def __str__(self) -> str:
        return self.name


SIXTEEN_BIT = StoredElements("16bit", 0)
STORED_FP8 = StoredElements("fp8", 1, FP8)
STORED_INT4 = StoredElements("int4", 2, INT4)

STORED = {stored.name: stored for stored in (SIXTEEN_BIT, STORED_FP8, STORED_INT4)}
"""What a cache's values may be, by name, the one to take where nobody asks first."""


@dataclass(frozen=True)
class MixedElements:
    """What the values of a cache's pages are where K's and V's differ."""

    key: StoredElements
    value: StoredElements

    @property
    def name(self) -> str:
        """As reported: K's, then V's."""
        return f"{self.key}/{self.value}"

    @property
    def has_scale(self) -> bool:
        """Whether those of either have."""
        return self.key.has_scale or self.value.has_scale

    def __str__(self) -> str:
        return self.name


CacheElements = StoredElements | MixedElements
"""What the values of a whole cache are: of K as ``key``, of V as ``value``."""


def elements_of(key: StoredElements, value: StoredElements) -> CacheElements:
    """Those of a cache, of K's and V's."""
    return key if key == value else MixedElements(key, value)


def elements_by_name(name: str) -> CacheElements:
    """The inverse of ``CacheElements.name``.

    Raises:
        KeyError: there are none of that name.
    """
    key, _, value = name.partition("/")
    return elements_of(STORED[key], STORED[value or key])
