"""What the compressors' tests on every device share: tensors, buffers that notice what they should not get, and blocks
whose losses are told apart in the last place only. The definition in torch is the oracle, byte for byte.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

from hsbench.cache.fit import Fit
from hsbench.cache.paged import axis_code
from hsbench.cache.prune import BLOCK, BlockPlan, Operand, plan_blocks
from hsbench.kernels import library
from hsbench.problem.elements import INPUTS, STORED_FP8, StoredElements, element_by

DTYPES = tuple(element.torch_dtype for element in INPUTS.values())
OPERANDS: tuple[Operand, ...] = ("k", "v")
SEQS = (1, 63, 64, 65, 256, 1000)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
every_tensor = pytest.mark.parametrize(
    ("operand", "dtype", "head_dim"),
    [
        pytest.param(operand, dtype, head_dim, id=f"{operand}-{str(dtype)[6:]}-{head_dim}")
        for operand, dtype, head_dim in itertools.product(OPERANDS, DTYPES, (64, 128))
    ],
)

POISON = 0xA5
GUARD = 256  # bytes past a buffer's end, which nothing may touch


# ---- Data --------------------------------------------------------------------------------------------------
def from_bits(bits: Tensor, dtype: torch.dtype) -> Tensor:
    return bits.to(torch.int16).view(dtype)


def make_data(kind: str, shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Finite tensors: ``gaussian``; ``ties``, few magnitudes of either sign; ``zeros`` of either sign;
    ``subnormals``; ``wide``, every exponent of the dtype alike."""
    random = torch.Generator().manual_seed(seed)
    sign = torch.randint(2, shape, generator=random) << 15
    if kind == "gaussian":
        return torch.randn(shape, generator=random).to(dtype)
    if kind == "ties":
        values = torch.tensor([0.0, -0.0, 0.5, -0.5, 1.0, -1.0, 2.0, -3.0], dtype=dtype)
        return values[torch.randint(len(values), shape, generator=random)]
    if kind == "zeros":
        return from_bits(sign, dtype)
    mantissa_bits, infinity = {torch.float16: (10, 0x7C00), torch.bfloat16: (7, 0x7F80)}[dtype]
    largest = {"subnormals": 2 << mantissa_bits, "wide": infinity}[kind]
    return from_bits(sign | torch.randint(largest, shape, generator=random), dtype)


def make_channels(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Channels as bad for 8 bits as models have them, and worse: of 60,000 beside some of 1e-4 and of the smallest
    numbers, constant ones, one of zeros, and noise around means."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=random)
    x[..., 0] *= 60_000 / x[..., 0].abs().amax()
    x[..., 1::8] *= 1e-4
    x[..., 2], x[..., 3] = 0.0, -3e-4
    x[..., 4] = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps * x[..., 4].round()
    x[..., 5::8] += 50
    return x.to(dtype)


KINDS = ("gaussian", "ties", "zeros", "subnormals", "wide")


# ---- Pruners -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class GivenFit(Fit):
    """A fit whose weights are given, 16-bit: K ``[batch, kv_heads, head_dim]``, V ``[batch, kv_heads, seq]``."""

    given: Tensor | None = None

    @property
    def weighs(self) -> bool:
        return self.given is not None

    def weights(self, stored: Tensor) -> Tensor:
        assert self.given is not None
        return self.given.to(stored.device)


FITS = ("order", "shift", "beyond", "weights", "fold", "all")
"""What :func:`make_fit` makes: a part by itself; shifts that reach ``beyond`` the largest number; all of it."""


def make_fit(kind: str, x: Tensor, operand: Operand, seed: int = 0) -> GivenFit:
    """Shifts of the size of ``x``; weights up to 1, which leave scores finite, with zeros and the smallest numbers."""
    random = torch.Generator().manual_seed(seed)
    batch, kv_heads, seq, head_dim = x.shape
    parts: dict[str, Any] = {}
    if kind in ("order", "all") and operand == "k":
        parts["order"] = "mirror"
    if kind in ("shift", "beyond", "all"):
        sizes = x.float().abs().amax(2) if kind == "beyond" else x.double().square().mean(2).sqrt().float()
        parts["shift"] = sizes * torch.randn(batch, kv_heads, head_dim, generator=random).clamp(-2, 2)
    if kind in ("weights", "all"):
        weights = torch.rand(batch, kv_heads, head_dim if operand == "k" else seq, generator=random)
        drawn = torch.rand(weights.shape, generator=random)
        weights[drawn < 0.1], weights[(drawn > 0.1) & (drawn < 0.2)] = 0.0, 1.0
        weights[(drawn > 0.2) & (drawn < 0.25)] = torch.finfo(x.dtype).smallest_normal / 2
        parts["given"] = weights.to(x.dtype)
    if kind in ("fold", "all") and operand == "v":
        parts["fold"] = (0.25, 0.35, 0.5, 1.0)[seed % 4]
    return GivenFit(operand, **parts)


FP8_FITS = ("none", *FITS, "grown")
"""The same for elements with a scale. ``none``: the scale alone; ``grown``: all, to fewer tokens, so that others may
be beyond the largest that it has."""


def make_fp8_fit(kind: str, x: Tensor, operand: Operand, seed: int = 0) -> Fit:
    fit = make_fit("all" if kind == "grown" else kind, x, operand, seed)
    return fit.scaled_to(x[:, :, : 1 if kind == "grown" else None])


def fp8_data(kind: str, shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    return make_channels(shape, dtype, seed) if kind == "channels" else make_data(kind, shape, dtype, seed)


FP8_KINDS = ("channels", *KINDS)


ALONG_HEAD_DIM = ("none", "shift", "beyond")
"""What a pruner may do to V in groups along head_dim, of :data:`FITS` and :data:`FP8_FITS`."""


def make_head_dim_fit(kind: str, x: Tensor, elements: StoredElements, seed: int = 0) -> Fit:
    fit = replace(make_fit(kind, x, "v", seed), value_axis="head_dim")
    return fit.scaled_to(x) if elements.has_scale else fit


def fit_fields(fit: Fit, x: Tensor, elements: StoredElements = STORED_FP8) -> dict[str, Any]:
    """What ``hsb_compress_params`` says of a fit of ``x``, with ``elements`` where it has a scale; the caller keeps the
    tensors."""
    weights = fit.weights(fit.stored(x)).contiguous() if fit.weighs else None
    order = library.constants()[f"HSB_ORDER_{fit.order.upper()}"]
    of_scale = {} if fit.scale is None else dict(scale=fit.scale, stored=elements.code)
    axis = axis_code(fit.value_axis)
    return dict(order=order, shift=fit.shift, weights=weights, fold=fit.fold, value_axis=axis, **of_scale)


# ---- Buffers and parameters --------------------------------------------------------------------------------------
class Buffer:
    """``nbytes`` of poison on a device, and a guard behind them."""

    def __init__(self, nbytes: int, device: str) -> None:
        self._all = torch.full((nbytes + GUARD,), POISON, dtype=torch.uint8, device=device)
        self.bytes = self._all[:nbytes]

    def data_ptr(self) -> int:
        return self._all.data_ptr()

    def check_guard(self) -> None:
        assert bool((self._all[len(self.bytes) :] == POISON).all()), "written past the end"

    def cpu(self, dtype: torch.dtype) -> Tensor:
        return self.bytes.cpu().view(dtype)


def compress_params(x: Tensor, operand: Operand, plan: BlockPlan, **fields: Any) -> Any:
    """``hsb_compress_params`` of pages; ``fields`` are buffers and how to compute."""
    code = library.KEY if operand == "k" else library.VALUE
    return library.make("hsb_compress_params", operand=code, **plan.fields(), **_tensor(x), **fields)


def bitmap_params(x: Tensor, keep: int, **fields: Any) -> Any:
    """``hsb_compress_bitmap_params``, ``keep`` of each token; ``fields`` are buffers and how to compute."""
    return library.make("hsb_compress_bitmap_params", keep=keep, **_tensor(x), **fields)


def _tensor(x: Tensor) -> dict[str, Any]:
    batch, kv_heads, seq, head_dim = x.shape
    return dict(batch=batch, kv_heads=kv_heads, head_dim=head_dim, seq=seq, dtype=element_by(x.dtype).code, x=x)


BAD_PARAMETERS = (
    ("head_dim", 96),
    ("dtype", 2),
    ("operand", 2),
    ("sparse_per_head", 3),
    ("last_eligible", 3),
    ("first_eligible", -1),
    ("order", 2),
    ("fold", 1.5),
    ("fold", 0.5),
    ("stored", 1),
    ("stored", 7),
    ("scale", 64),
)
"""Fields of a compression of K, 150 tokens, 64 wide, and values that they cannot have."""


# ---- What is compressed ------------------------------------------------------------------------------------------
def plans(seq: int) -> set[BlockPlan]:
    """None, all, half and some of the blocks, with and without a sink and a local window."""
    prunes = ((0, 0, 0), (0.5, 0, 0), (0.25, 0, 0), (0.15, 70, 100), (0.5, 64, 1))
    return {plan_blocks(seq, sparsity, sink=sink, local=local) for sparsity, sink, local in prunes}


def keeps(seq: int, head_dim: int) -> tuple[int, ...]:
    """Values to keep of each token."""
    half = head_dim // 2
    return (half, half + 3, 1) if seq > 256 else (0, 1, 7, half, head_dim - 1, head_dim)


def with_non_finite(seq: int, dtype: torch.dtype, random: torch.Generator) -> tuple[Tensor, int]:
    """A tensor with three elements that are not finite, and the index of the first."""
    x = make_data("wide", (2, 2, seq, 64), dtype, seed=seq)
    places = torch.randint(x.numel(), (3,), generator=random)
    x.view(-1)[places] = torch.tensor([float("nan"), float("inf"), -float("inf")], dtype=dtype)
    return x, int(places.min())


def blocks_dropping(losses: list[list[float]], operand: Operand) -> Tensor:
    """bf16 ``[1, 1, 64 x blocks, 64]``: block i drops the elements ``losses[i]`` (at most 2048) and zeros."""
    x = torch.zeros(len(losses), BLOCK, 16, 4, dtype=torch.float64)
    x[..., :2] = 2.0**120
    for block, dropped in zip(x, losses, strict=True):
        groups = block.view(-1, 4)
        for i, value in enumerate(dropped):
            groups[7 * i % len(groups), 2 + i // len(groups)] = -value if i % 2 else value
    x = x.flatten(-2)
    x = (x if operand == "k" else x.mT).contiguous()
    assert torch.equal(x.to(torch.bfloat16).to(torch.float64), x)
    return x.to(torch.bfloat16).view(1, 1, -1, BLOCK)


# Both add up to 2^40 + 1: one in double, or within the window of a fast sum; the other only in limbs.
TIE_NARROW = [129.0] + [2.0**e for e in range(7, 40)]
TIE_WIDE = [2.0**40, 2.0**-120, 2.0**-120] + [2.0**-e for e in range(1, 120)]
LAST_PLACE = [[2.0**100, 2.0**-126], [2.0**100], [2.0**100, 2.0**-133], [2.0**100, 2.0**-125]]
MANY = [255 * 2.0**28] * 2047
NINE = [1.0 - 2.0**-8] * 9
# Exponents 32 and 33 below the largest: the last that CUDA's fast sum holds, and the first that it does not.
WINDOW = [
    [1.0, 255 * 2.0**-39],
    [1.0, 255 * 2.0**-40],
    [1.0, 2.0**-32],
    [1.0, 2.0**-33],
    [1.0, 129 * 2.0**-40],
]

LOSSES = {
    "last-place": LAST_PLACE,
    "subnormal": [[2.0**-133], [], [2.0**-132], [2.0**-133, 2.0**-133]],
    "both-paths-tie": [TIE_NARROW, TIE_WIDE, [2.0**40, 2.0], [2.0**40]],
    "both-paths-tie-reversed": [TIE_WIDE, TIE_NARROW, [2.0**40], [2.0**40, 0.5]],
    "carry": [[2.0**119] * 2000, [2.0**119] * 1999 + [2.0**118] * 2, [2.0**119] * 1999],
    "54-bits": [[2.0**46, 1.0 + 2.0**-7], [2.0**46, 1.0]],
    "54-bits-of-many": [[*MANY, 1.0 + 2.0**-7], [*MANY, 1.0]],
    "limbs": [[*NINE, 2.0**-40], NINE, [2.0**64], [2.0**63, 2.0**63]],
    "window": WINDOW,
    "small": [[2.0**-100] * 3, [2.0**-99, 2.0**-100], [2.0**-100, 2.0**-133]],
    "equal-digits": [*LAST_PLACE, *LAST_PLACE, *LAST_PLACE],
}
"""What the blocks of a tensor drop, for ``blocks_dropping``."""


def by_loss(losses: list[list[float]]) -> list[int]:
    """The blocks from the smallest loss on, computed exactly; of equal ones the first comes first."""
    exact = [sum(map(Fraction, dropped), Fraction(0)) for dropped in losses]
    return sorted(range(len(losses)), key=lambda i: (exact[i], i))
