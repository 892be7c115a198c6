"""What a model's layers attend through while a setting is measured: K and V compressed anew for each pass.

Every pass that is picked is held against fp32 attention over what the store itself says that it holds: a kernel that is
wrong makes no figure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hsbench.attention.reference import attend_heads
from hsbench.cache.fit import QUERIES
from hsbench.errors import NonFiniteError, UnsupportedError
from hsbench.models.dense import dense_attend
from hsbench.run import check
from hsbench.run.quality.protocol import Compressed, Store
from hsbench.run.quality.settings import Chunk, Setting, Task

SeenOf = Callable[[int, Tensor, Tensor, Tensor, Tensor], None]
"""Told of a layer's q, K, V and of what the setting made of them."""


class Recorder:
    """Dense attention that remembers the last queries of each layer, for pruners that look at what they attend to.

    Attributes:
        queries: ``[b, q_heads, up to QUERIES, d]`` by layer.
    """

    def __init__(self) -> None:
        self.queries: dict[int, Tensor] = {}

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See ``protocol.Attend``."""
        before = self.queries.get(layer, q[:, :, :0])
        self.queries[layer] = torch.cat([before, q[:, :, -QUERIES:]], 2)[:, :, -QUERIES:]
        return dense_attend(q, k, v)


@dataclass
class Stored:
    """What the layers of one pass stored, all together."""

    nbytes: int = 0
    dense_nbytes: int = 0
    pruned: float = 0.0
    eligible: float = 0.0
    evicted: int = 0
    evictable: int = 0
    layers: int = 0
    simulated: int = 0
    memory: dict[str, int] = field(default_factory=dict)

    def add(self, compressed: Compressed) -> None:
        """One more layer."""
        pruned, eligible = compressed.shares()
        self.nbytes += compressed.nbytes
        self.dense_nbytes += compressed.dense_nbytes
        self.pruned, self.eligible = self.pruned + pruned, self.eligible + eligible
        evicted, evictable = compressed.evicted()
        self.evicted, self.evictable = self.evicted + evicted, self.evictable + evictable
        self.layers, self.simulated = self.layers + 1, self.simulated + compressed.simulated
        for component, size in compressed.memory().items():
            self.memory[component] = self.memory.get(component, 0) + size


class Attending:
    """The ``attend`` of a setting, for one window.

    Args:
        store: of this window and setting.
        dtype: of the cache: K, V and q are cast to it.
        through: whether the layers after this one go on with what the setting gives, or, to look at a layer by itself,
            with the dense output.
        seen: told of each layer, where given.
        queries: of the last tokens of what the cache holds before the first pass, by layer; see :class:`Recorder`.

    Attributes:
        stored: what the last pass stored.
        rel_error: the largest that a checked pass had; None while none was.
    """

    def __init__(
        self,
        store: Store,
        setting: Setting,
        task: Task,
        dtype: torch.dtype,
        *,
        through: bool = True,
        seen: SeenOf | None = None,
        queries: Mapping[int, Tensor] | None = None,
    ) -> None:
        self._store, self._setting, self._task, self._dtype = store, setting, task, dtype
        self._through, self._seen = through, seen
        self._chunk, self._checked = Chunk(0, 0, 0), False
        self.stored = Stored()
        self._queries = dict(queries or {})
        self.rel_error: float | None = None

    def begin(self, chunk: Chunk, *, checked: bool) -> None:
        """The next pass begins; whether it is held against the reference."""
        self._chunk, self._checked = chunk, checked
        self.stored = Stored()

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See ``protocol.Attend``.

        Raises:
            DisagreementError: the output is not what it must be.
            UnsupportedError: K or V is not finite in the cache's element type.
        """
        if self._setting.only is not None and layer != self._setting.only:
            return dense_attend(q, k, v)
        query, key, value = (x.to(self._dtype) for x in (q, k, v))
        try:
            compressed = self._store.compress(
                layer,
                key,
                value,
                self._queries.get(layer, query),
                held=self._chunk.first,
                sink=self._task.sink,
                local=self._chunk.local,
            )
        except NonFiniteError as error:
            where = f"layer {layer}: {error.tensor} is not finite"
            if not all(bool(torch.isfinite(x).all()) for x in (k, v)):
                raise UnsupportedError(f"{where}, as the model makes it") from error
            raise UnsupportedError(f"{where} in {self._dtype}: give another --dtype") from error
        self._queries[layer] = query[:, :, -QUERIES:]
        out = compressed.attend(query)
        self.stored.add(compressed)
        if self._checked and not compressed.simulated:
            self._check(layer, query, compressed, out)
        if self._seen is not None:
            self._seen(layer, q, k, v, out)
        return out.to(q.dtype) if self._through else dense_attend(q, k, v)

    def _check(self, layer: int, q: Tensor, compressed: Compressed, out: Tensor) -> None:
        """Holds the output of a pass against fp32 on what is stored, and that of its last query alone, which the kernel
        for one query gives."""
        k, v = compressed.unpack()
        rows = check.sample_rows(q.shape[2], self._task.seed + layer).to(q.device)
        tokens, seq = compressed.tokens, self._chunk.end

        def left(b: int, h: int) -> Tensor | None:
            return None if tokens is None else tokens[b, h]

        right, lse = attend_heads(q, k.shape[1], lambda b, h: (k[b, h], v[b, h]), rows, left=left, seq=seq)
        blind = check.blind_queries(q, k.shape[1], seq, left)
        self._compare(layer, check.Expected(rows, right, lse, blind), out)
        if q.shape[2] > 1:
            alone = check.Expected(torch.zeros_like(rows[:1]), right[:, :, -1:], lse[:, :, -1:])
            self._compare(layer, alone, compressed.attend(q[:, :, -1:]), "the last alone of tokens")

    def _compare(self, layer: int, expected: check.Expected, out: Tensor, which: str = "tokens") -> None:
        verdict = check.compare(expected, out, None)
        self.rel_error = max(self.rel_error or 0.0, verdict.rel_error)
        if verdict.reason is not None:
            where = f"layer {layer}, {which} {self._chunk.first} to {self._chunk.end}"
            raise check.DisagreementError(f"{where}: {verdict.reason}")
