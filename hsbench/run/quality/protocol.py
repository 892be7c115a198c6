"""What is asked of a model here, and of a store of K and V: a model of ``models/`` has it, and so has a test's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol

from torch import Tensor

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""``(layer, q [b, q_heads, n, d], k [b, kv_heads, m, d], v) -> out [b, q_heads, n, d]``: causal attention, whose n
queries are the last n of m tokens."""

Logits = Literal["all", "last", "none"]


class Geometry(Protocol):
    """The sizes of a model that a cache depends on."""

    @property
    def layers(self) -> int: ...
    @property
    def q_heads(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def max_positions(self) -> int: ...
    @property
    def vocab(self) -> int: ...


class ModelCache(Protocol):
    """The dense K and V of a model, which its forward passes append to."""

    @property
    def length(self) -> int: ...
    def rewind(self, length: int) -> None: ...
    def layer(self, index: int, /) -> tuple[Tensor, Tensor]: ...


class Model(Protocol):
    """A causal language model whose attention can be replaced."""

    @property
    def name(self) -> str: ...
    @property
    def identity(self) -> str: ...
    @property
    def geometry(self) -> Any: ...  # a Geometry
    @property
    def attended(self) -> Any: ...  # the layers that go through `attend`, ascending
    @property
    def notes(self) -> Any: ...  # lines that a report shows
    def check_pass(self, tokens: int, /) -> None: ...
    def new_cache(self, batch: int, capacity: int) -> Any: ...  # a ModelCache
    def forward(self, ids: Tensor, cache: Any, attend: Attend | None = None, *, logits: Logits = "all") -> Tensor: ...


class Compressed(Protocol):
    """K and V of one layer, stored.

    Attributes:
        simulated: whether ``attend`` is fp32 over what the definition says is stored, since no kernel can run it.
        dense_nbytes: of the same tokens in 16 bits, evicted ones among them.
        tokens: int64 ``[b, kv_heads, n]``, ascending: which of them are left; None where all are.
    """

    simulated: bool

    @property
    def nbytes(self) -> int: ...
    @property
    def dense_nbytes(self) -> int: ...
    @property
    def tokens(self) -> Tensor | None: ...
    def memory(self) -> dict[str, int]: ...
    def shares(self) -> tuple[float, float]:
        """Elements that are pruned, and elements of eligible blocks, K and V together."""
        ...

    def evicted(self) -> tuple[int, int]:
        """Blocks of each (b, kv head) that are evicted, and eligible ones; 0 and 0 where nothing is."""
        ...

    def attend(self, q: Tensor) -> Tensor:
        """Causal attention of ``q [b, q_heads, n, d]``, the last n tokens; in q's dtype, or fp32."""
        ...

    def unpack(self) -> tuple[Tensor, Tensor]:
        """What is stored, in the basis of K and V: fp32 ``[b, kv_heads, m, d]`` each, or of the ``tokens`` left."""
        ...


class Store(Protocol):
    """How the K and V of one window are stored as it grows; it keeps what is frozen at the first compression."""

    def compress(
        self, layer: int, k: Tensor, v: Tensor, queries: Tensor, *, held: int, sink: int, local: int
    ) -> Compressed:
        """Stores ``k, v [b, kv_heads, m, d]`` of a layer, 16-bit.

        Args:
            queries: ``[b, q_heads, n, d]``, of the last n tokens that were in the cache before this pass; of this pass
                where there were none.
            held: of the m tokens, those that were in the cache before this pass.
            sink, local: first and last tokens of the m that stay dense, by whole blocks.
        """
        ...
