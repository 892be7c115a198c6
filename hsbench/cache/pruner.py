"""Pruners: what 2:4 sees of K and V, and what it stores of them, as values.

A pruner is a combination of independent parts, none of which costs a kernel anything; ``docs/quality.md`` has what each
costs a model. This module imports no torch, so that a command line can be checked before anything heavy is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from hsbench.errors import UsageError, unknown
from hsbench.problem.elements import CacheElements

Order = Literal["adjacent", "mirror"]
Weights = Literal["none", "calibration", "queries", "norm", "attention"]
Axis = Literal["tokens", "head_dim"]

SHIFT_STEPS = 4
"""Of a shift's iteration: three were measured to give what eight do."""

ALONG_HEAD_DIM = ":hd"
"""What stands behind the name of a pruner whose groups of V run along head_dim."""


@dataclass(frozen=True)
class Pruner:
    """A way to prune K and V to 2:4.

    Attributes:
        name: as typed and reported.
        order: of K's channels. ``mirror``: group g holds g, h-1-g, g+h, d-1-g with h = d/2, so that each mixes slow and
            fast frequencies of half-split RoPE, whose energies differ by orders of magnitude.
        key_shift, value_shift: whether the mean over the eligible tokens is subtracted from every token. A query's
            scores all move by the same amount, and the output by V's mean, for probabilities sum to 1.
        key_shift_steps, value_shift_steps: where not 0, what is subtracted is not the mean of all, but of what is
            dropped, weighed by the last queries' attention, after so many steps of an iteration that moves one to the
            other. For groups along head_dim.
        key_weights: what a channel's magnitudes are multiplied by to choose what stays: the root mean square of the
            queries' channel, over a ``calibration``'s text or over the context's last ``queries``, each as much as it
            looks at what may be pruned.
        value_weights: the same for a token of V. ``norm``: ``|v|`` to the power of ``-norm_power``, so that no token
            loses nearly all of its value to larger neighbours. ``attention``: times what the last queries paid it, to
            the power of ``attention_power``.
        fold: each of the two that stay of a group of V gets half of this share of the sum of the two that go; at 1 a
            group's sum is kept, so that flat attention over it is exact.
        norm_power, attention_power: see ``value_weights``.
        value_axis: along which V's groups run. Along head_dim no token's whole value can vanish, and decode reads it as
            fast; prefill has no kernel for it, since sparse tensor cores want the groups along what they contract.
    """

    name: str
    order: Order = "adjacent"
    key_shift: bool = False
    value_shift: bool = False
    key_shift_steps: int = 0
    value_shift_steps: int = 0
    key_weights: Weights = "none"
    value_weights: Weights = "none"
    fold: float = 0.0
    norm_power: float = 0.0
    attention_power: float = 0.0
    value_axis: Axis = "tokens"

    @property
    def needs_calibration(self) -> bool:
        """Whether it takes a basis file."""
        return self.key_weights == "calibration"

    @property
    def needs_queries(self) -> bool:
        """Whether it must see the last queries of the context."""
        steps = self.key_shift_steps + self.value_shift_steps
        return self.key_weights == "queries" or self.value_weights == "attention" or steps > 0

    def __str__(self) -> str:
        return self.name


MAGNITUDE = Pruner("magnitude")
"""The paper's: the largest magnitudes stay (HieraSparse, arXiv 2604.16864)."""

MIRROR = Pruner("mirror", order="mirror")

CENTERED = Pruner("centered", order="mirror", key_shift=True, value_shift=True, fold=0.5)

BALANCED = replace(CENTERED, name="balanced", value_weights="norm", norm_power=1.25, fold=0.25)

ATTENTIVE = replace(
    BALANCED,
    name="attentive",
    key_shift_steps=SHIFT_STEPS,
    key_weights="queries",
    value_weights="attention",
    norm_power=0.5,
    attention_power=0.3,
    fold=0.35,
)

CALIBRATED = replace(BALANCED, name="calibrated", key_weights="calibration")

PRUNERS = {pruner.name: pruner for pruner in (MAGNITUDE, MIRROR, CENTERED, BALANCED, ATTENTIVE, CALIBRATED)}
"""By name."""

DEFAULT_PRUNER = BALANCED.name
"""Of what sees K and V alone: the best that needs neither a calibration nor queries."""

DEFAULT_MODEL_PRUNER = ATTENTIVE.name
"""Of what runs a model, and so has the context's queries: the best that needs no calibration."""


def pruner_of(name: str) -> Pruner:
    """The pruner of a name, with ``:hd`` behind it for groups of V along head_dim.

    There V's tokens do not compete with each other, so weights of tokens and fold are nothing. What comes back for a
    dropped element is the shift: the mean was measured to cost, the one that the last queries' attention tells gains.
    So V is taken as it is, except by pruners that know of queries: they get to see the last ones.

    Raises:
        UsageError: no such pruner; lists those that there are.
    """
    base = name.removesuffix(ALONG_HEAD_DIM)
    if base not in PRUNERS:
        raise unknown("pruner", name, [*PRUNERS, *(f"{known}{ALONG_HEAD_DIM}" for known in PRUNERS)])
    pruner = PRUNERS[base]
    if base == name:
        return pruner
    return replace(
        pruner,
        name=name,
        value_axis="head_dim",
        value_shift=pruner.key_weights != "none",
        value_shift_steps=0 if pruner.key_weights == "none" else SHIFT_STEPS,
        value_weights="none",
        fold=0.0,
        norm_power=0.0,
        attention_power=0.0,
    )


AUTO_PRUNER = "auto"
"""Stands for :func:`auto_pruner`."""


def auto_pruner(*, decode_alone: bool) -> str:
    """The name of the best pruner that needs no calibration but knows the last queries, by what will read the cache:
    V's groups run along head_dim where only decode does, which costs a model less and decode nothing, and along tokens
    where prefill does."""
    return DEFAULT_MODEL_PRUNER + (ALONG_HEAD_DIM if decode_alone else "")


def pruner_for(pruner: Pruner, elements: CacheElements) -> Pruner:
    """The pruner where values are stored as ``elements``: before few bits a shift, for channels of K that hardly
    change from token to token, as some models have them, would use the bits up."""
    if not elements.has_scale:
        return pruner
    return replace(
        pruner,
        key_shift=pruner.key_shift or elements.key.has_scale,
        value_shift=pruner.value_shift or elements.value.has_scale,
    )


def check_sources(pruner: Pruner, *, calibration: bool, queries: bool) -> None:
    """Checks that a pruner has what it chooses by.

    Raises:
        UsageError: it needs a basis file or the context's queries, and has none.
    """
    if pruner.needs_calibration and not calibration:
        raise UsageError(
            "pruner", pruner.name, "needs a calibration; make one with `hsbench calibrate`, give it as `basis`"
        )
    if pruner.needs_queries and not queries:
        raise UsageError(
            "pruner", pruner.name, f"needs the context's last queries; give them, or take {DEFAULT_PRUNER}"
        )
