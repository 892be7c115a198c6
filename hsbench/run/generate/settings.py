"""What is measured: one task for all rows, and a setting per row. Importing it is cheap, for the text of ``--help``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hsbench.errors import UsageError, unknown
from hsbench.problem.elements import SIXTEEN_BIT, STORED, elements_by_name

if TYPE_CHECKING:
    from hsbench.run.quality.layer_plan import LayerPlan

TORCH, DENSE, HIERARCHICAL = "sdpa", "dense", "hierarchical"
METHODS = (TORCH, DENSE, HIERARCHICAL)
"""Families, in row order."""

EXTRA_STEPS = 6
"""Steps behind the timed ones, which look into a step: a cache has room for them."""


@dataclass(frozen=True)
class Generation:
    """What all rows of a run have in common.

    Attributes:
        contexts: tokens of the prompt; rows of each.
        new_tokens: that are generated.
        batch: sequences at a time.
        sink, local: first and last tokens whose blocks stay open.
        temperature: of sampling; 0 takes the likeliest token.
        seed: of sampling, of prompts that are drawn, and of what is checked.
        eager: whether a GPU is given a step's kernels one by one, rather than as one captured graph.

    Raises:
        UsageError: a value out of its range.
    """

    contexts: tuple[int, ...] = (8192,)
    new_tokens: int = 128
    batch: int = 1
    sink: int = 64
    local: int = 256
    temperature: float = 0.0
    seed: int = 0
    eager: bool = False

    def __post_init__(self) -> None:
        for name, least in (("batch", 1), ("new_tokens", 2)):
            if getattr(self, name) < least:
                raise UsageError(name, getattr(self, name), f"must be {least} or more")
        if not 0 <= self.temperature <= 100:
            raise UsageError("temperature", self.temperature, "must be a number from 0, the likeliest token, to 100")
        for context in self.contexts:
            if context < 1:
                raise UsageError("context", context, "must be 1 or more")

    def capacity(self, context: int) -> int:
        """Tokens that a cache has room for."""
        return context + self.new_tokens + EXTRA_STEPS

    def to_dict(self) -> dict[str, Any]:
        """Every field, as JSON can hold it."""
        return dataclasses.asdict(self) | {"contexts": list(self.contexts)}


@dataclass(frozen=True)
class MethodSetting:
    """How K and V are kept: a row.

    Attributes:
        family: one of :data:`METHODS`.
        variant: of torch's, a backend; None for the fastest.
        elements: what stored values are, by name.
        pruner: by name, or ``auto``; None where nothing is pruned.
        key_sparsity, value_sparsity: of each layer, unless ``plan`` says otherwise.
        plan: shares by layer.
    """

    family: str
    variant: str | None = None
    elements: str = SIXTEEN_BIT.name
    pruner: str | None = None
    key_sparsity: float = 0.0
    value_sparsity: float = 0.0
    plan: LayerPlan | None = None

    @property
    def method(self) -> str:
        """Family, and what tells it from others of it."""
        variant = self.variant or (self.elements if self.elements != SIXTEEN_BIT.name else None)
        return self.family if variant is None else f"{self.family}:{variant}"

    @property
    def dense(self) -> bool:
        """Whether it keeps all, in the input's own type: what others are held against."""
        return self.family != HIERARCHICAL and self.elements == SIXTEEN_BIT.name


def all_settings(
    names: Sequence[str],
    elements: Sequence[str],
    pruner: str,
    shares: tuple[float, float],
    plan: LayerPlan | None,
    backends: Sequence[str],
) -> list[MethodSetting]:
    """A setting for each name, without repeats, those that others are held against first.

    Args:
        names: ``sdpa``, ``sdpa:BACKEND``, ``dense``, ``dense:ELEMENTS``, ``hierarchical`` or ``hierarchical:ELEMENTS``.
        elements: of ``hierarchical`` without any: a row of each.
        shares: the sparsity of K and of V.
        backends: that ``sdpa`` knows.

    Raises:
        UsageError: no such method or elements.
    """
    found: dict[MethodSetting, None] = {}
    for name in names:
        family, colon, variant = name.strip().lower().partition(":")
        if family not in METHODS:
            raise unknown("methods", name, [*METHODS, *(f"{HIERARCHICAL}:{one}" for one in STORED)])
        if family == TORCH:
            if colon and variant not in backends:
                raise unknown("methods", name, [f"{TORCH}:{one}" for one in backends])
            found[MethodSetting(TORCH, variant or None)] = None
            continue
        if colon:
            _check_elements("methods", name, variant)
        for stored in (variant,) if colon else elements if family == HIERARCHICAL else (SIXTEEN_BIT.name,):
            if family == DENSE:
                found[MethodSetting(DENSE, None, stored)] = None
            elif plan is not None:
                found[MethodSetting(family, None, stored, pruner, plan.mean(0), plan.mean(1), plan)] = None
            else:
                found[MethodSetting(family, None, stored, pruner, *shares)] = None
    return sorted(found, key=lambda setting: not setting.dense)


def check_elements(names: Sequence[str]) -> list[str]:
    """Names of elements, ``K/V`` among them, as they are.

    Raises:
        UsageError: there are none of such a name.
    """
    for name in names:
        _check_elements("elements", name, name)
    return list(names)


def _check_elements(field: str, typed: str, name: str) -> None:
    try:
        elements_by_name(name)
    except KeyError:
        raise UsageError(field, typed, f"no such elements; give {', '.join(STORED)}, or K's/V's") from None
