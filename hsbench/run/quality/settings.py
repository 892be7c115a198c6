"""What is measured: one task for all rows, and a setting per row. Importing it is cheap, for the text of ``--help``."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hsbench.errors import UsageError, unknown
from hsbench.problem.elements import SIXTEEN_BIT

if TYPE_CHECKING:
    from hsbench.run.quality.layer_plan import LayerPlan

BLOCK = 64
"""Tokens that are compressed at a time."""

DEPTHS = (0.1, 0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True)
class Chunk:
    """Tokens that go through the model in one pass.

    Attributes:
        first, end: their positions.
        local: the last tokens, of ``end``, that stay dense: all but one of the pass, and of its first ``task.local``.
    """

    first: int
    end: int
    local: int


def _as_it_decodes(task: Task, start: int, end: int) -> Iterator[Chunk]:
    # A query at position t sees dense what touches the last `local` tokens, its own the last: blocks from
    # (t + 1 - local) // 64 on. That changes every 64 steps, so the queries between are one pass, whose own tokens are
    # dense and causal.
    first = start
    while first < end:
        step = BLOCK - (first + 1 - task.local) % BLOCK
        yield Chunk(first, min(first + step, end), task.local + min(step, end - first) - 1)
        first += step


def _in_chunks(task: Task, start: int, end: int) -> Iterator[Chunk]:
    for first in range(0, end, task.chunk):
        last = min(first + task.chunk, end)
        yield Chunk(first, last, task.local + last - first - 1)


def _at_once(task: Task, start: int, end: int) -> Iterator[Chunk]:
    yield Chunk(0, end, task.local)


WHENS = dict(decode=_as_it_decodes, chunked=_in_chunks, whole=_at_once)
"""When K and V are pruned: as tokens leave the window in generation, before each chunk of a prefill, or before all."""


@dataclass(frozen=True)
class Task:
    """What all rows of a run have in common.

    Attributes:
        context: tokens before those that are scored.
        score: tokens that are scored, per window.
        windows: stretches of the text.
        when: one of :data:`WHENS`.
        chunk: tokens of a pass where ``when`` is ``chunked``.
        sink, local: first and last tokens whose blocks stay dense.
        seed: of passkeys, and of which passes are checked.

    Raises:
        UsageError: a value out of its range.
    """

    context: int = 8192
    score: int = 1024
    windows: int = 4
    when: str = next(iter(WHENS))
    chunk: int = 2048
    sink: int = 64
    local: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        if self.when not in WHENS:
            raise unknown("when", self.when, WHENS)
        for name in ("context", "score", "windows", "chunk"):
            if getattr(self, name) < 1:
                raise UsageError(name, getattr(self, name), "must be 1 or more")

    @property
    def keeps_prefix(self) -> bool:
        """Whether the context is prefilled dense, for all settings alike."""
        return WHENS[self.when] is _as_it_decodes

    @property
    def has_chunks(self) -> bool:
        """Whether the size of a chunk matters."""
        return WHENS[self.when] is _in_chunks

    @property
    def tokens(self) -> int:
        """Of one window: each scored token predicts the one after it."""
        return self.context + self.score + 1

    def passes(self, start: int, end: int) -> list[Chunk]:
        """The passes that take the positions up to ``end``; from ``start`` on, they are what is scored."""
        return list(WHENS[self.when](self, start, end))

    def to_dict(self) -> dict[str, Any]:
        """Every field, as JSON can hold it."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Setting:
    """How K and V are pruned: a row.

    Attributes:
        method: of ``stores.METHODS``.
        key_sparsity, value_sparsity: of each layer, unless ``plan`` says otherwise.
        pruner: by name; None where the method has none.
        plan: shares by layer.
        only: the one layer that is pruned; None for all.
        evict: share of eligible blocks that every layer drops, 0 to 1.
        elements: what stored values are, by name (:func:`hsbench.problem.elements.elements_by_name`).
    """

    method: str
    key_sparsity: float
    value_sparsity: float
    pruner: str | None = None
    plan: LayerPlan | None = None
    only: int | None = None
    evict: float = 0.0
    elements: str = SIXTEEN_BIT.name

    def shares(self, layer: int) -> tuple[float, float]:
        """The sparsity of K and of V in a layer."""
        return (self.key_sparsity, self.value_sparsity) if self.plan is None else self.plan.layers[layer]

    @property
    def label(self) -> str:
        """The setting in few words."""
        share = f"K {self.key_sparsity:g} V {self.value_sparsity:g}"
        if self.key_sparsity == self.value_sparsity:
            share = f"{self.key_sparsity:g}"
        parts = [
            self.method,
            self.elements * (self.elements != SIXTEEN_BIT.name),
            self.pruner,
            share if self.plan is None else f"plan {self.plan.name}",
            f"evict {self.evict:.3g}" * bool(self.evict),
        ]
        parts.append(None if self.only is None else f"layer {self.only}")
        return " ".join(filter(None, parts))


@dataclass(frozen=True)
class MethodKind:
    """What tells the rows of a method apart.

    Attributes:
        name: of ``stores.METHODS``.
        pruners: whether they differ by pruner.
        evicts: whether they differ by the share that is evicted.
        prunes: whether they differ by sparsity. What only evicts has the shares at which its cache is as small as a
            2:4 cache of these sparsities, unless shares are asked for.
        elements: whether they differ by what stored values are; else these have 16 bits.
    """

    name: str
    pruners: bool
    evicts: bool = False
    prunes: bool = True
    elements: bool = False


def all_settings(
    methods: Sequence[MethodKind],
    pruners: Sequence[str],
    sparsities: Sequence[float],
    key_sparsities: Sequence[float] | None,
    value_sparsities: Sequence[float] | None,
    plan: LayerPlan | None = None,
    evicts: Sequence[float] | None = None,
    same_memory: Callable[[float, float], float] = lambda key, value: 0.0,
    elements: Sequence[str] = (SIXTEEN_BIT.name,),
) -> list[Setting]:
    """The cross product, each setting once; nothing pruned is one row of each ``elements``, whatever methods do it.

    Args:
        key_sparsities, value_sparsities: in place of ``sparsities``, for K and for V.
        evicts: shares of blocks that are dropped.
        same_memory: from a sparsity of K and one of V to the share that leaves as small a cache, of 16 bits both.
        elements: of the methods that have a choice; the others are there where 16 bits are.
    """
    found: dict[Setting, None] = {}

    def add(setting: Setting) -> None:
        alike = (one for one in found if one.elements == setting.elements)
        if not (_prunes_nothing(setting) and any(map(_prunes_nothing, alike))):
            found[setting] = None

    pairs = list(_pairs(sparsities, key_sparsities, value_sparsities))
    for stored, kind in itertools.product(elements, methods):
        if not kind.elements and stored != SIXTEEN_BIT.name:
            continue
        shares: Sequence[float] = (evicts if kind.evicts else None) or (0.0,)
        if not kind.prunes:
            if kind.evicts and evicts is None:
                shares = [same_memory(*pair) for pair in pairs]
            for share in shares:
                add(Setting(kind.name, 0.0, 0.0, evict=share, elements=stored))
            continue
        for pruner in pruners if kind.pruners else (None,):
            for (key, value), share in itertools.product(pairs, shares):
                add(Setting(kind.name, key, value, pruner, evict=share, elements=stored))
            if plan is not None and kind.pruners:
                for share in shares:
                    add(Setting(kind.name, plan.mean(0), plan.mean(1), pruner, plan, evict=share, elements=stored))
    return list(found)


def _prunes_nothing(setting: Setting) -> bool:
    return setting.key_sparsity == setting.value_sparsity == setting.evict == 0 and setting.plan is None


def _pairs(
    both: Iterable[float], keys: Sequence[float] | None, values: Sequence[float] | None
) -> Iterator[tuple[float, float]]:
    for share in both:
        for key in (share,) if keys is None else keys:
            for value in (share,) if values is None else values:
                yield key, value
