"""What tests of kernels share on every device for caches some of whose blocks are evicted: which ones, cases, and their
exact results on what is left.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hsbench.cache.evict import Eviction
from hsbench.cache.prune import BLOCK
from kernel_cases import Case, Pack, assert_close, attention, scattered

Drop = Callable[[int, int, int], list[int]]
"""From the full blocks, the heads before this one, and a seed: those that are evicted, as many of every head."""


def _random(full: int, head: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(100 * seed + head)
    return torch.randperm(full, generator=generator)[: full // 2].tolist()


DROPS: dict[str, Drop] = {
    "none": lambda full, head, seed: [],
    "the first": lambda full, head, seed: [0],
    "the last": lambda full, head, seed: [full - 1],
    "the first half of a head, the last of the next": lambda full, head, seed: list(
        range(full // 2) if head % 2 == 0 else range(full - full // 2, full)
    ),
    "half, at random": _random,
    "all but one": lambda full, head, seed: [block for block in range(full) if block != (head + seed) % full],
    "all full blocks": lambda full, head, seed: list(range(full)),
}
"""Those that leave nothing at all are no case: no kernel is called then."""


@dataclass
class EvictCase(Case):
    """A case whose K and V are what is left.

    Attributes:
        eviction: which blocks that is.
    """

    eviction: Eviction

    @property
    def fields(self) -> dict[str, Any]:
        """What prefill's struct has of it."""
        position = self.eviction.position
        return {"seq": self.eviction.seq, "position": position, "stored_blocks": position.shape[-1]}

    def assert_close(
        self, got: tuple[Tensor, Tensor], *, message: str = "", close: Callable[..., None] = assert_close
    ) -> None:
        """Queries that see a token as ``close`` says of all; the others exactly."""
        out, lse = self.out[:, :, : got[0].shape[2]], self.lse[:, :, : got[0].shape[2]]
        blind = lse == -math.inf
        assert not got[0][blind].any(), f"{message}: not 0 where nothing is seen"
        assert (got[1][blind] == -math.inf).all(), f"{message}: no -infinity where nothing is seen"
        if not blind.all():
            close((got[0][~blind], got[1][~blind]), out[~blind], lse[~blind])


def evict_case(
    dtype: torch.dtype,
    head_dim: int,
    seq: int,
    drop: str,
    *,
    device: str,
    q_len: int = 1,
    batch: int = 2,
    kv_heads: int = 2,
    group: int = 4,
    mix: tuple[float, float] = (0.0, 0.0),
    change: Any = None,
    pack: Pack = scattered,
) -> EvictCase | None:
    """A case, or None where nothing would be left, or nothing is there to drop."""
    full, blocks = seq // BLOCK, -(-seq // BLOCK)
    if drop != "none" and (full == 0 or (full == 1 and drop == "half, at random")):
        return None
    gone = torch.zeros(batch, kv_heads, blocks, dtype=torch.bool)
    for head in range(batch * kv_heads):
        gone.view(-1, blocks)[head, DROPS[drop](full, head, seq)] = True
    if gone.all():
        return None
    evicted = int(gone[0, 0].sum())
    position = (~gone).nonzero()[:, 2].view(batch, kv_heads, -1).to(torch.int32).to(device)
    eviction = Eviction(position, seq, full, evicted, "key norm")
    generator = torch.Generator(device).manual_seed(seq + head_dim)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device).to(dtype)

    q = normal(batch, kv_heads, group, q_len, head_dim)
    k, v = normal(batch, kv_heads, seq, head_dim), normal(batch, kv_heads, seq, head_dim)
    if change is not None:
        q, k, v = change(q, k, v)
    (pages_k, left_k), (pages_v, left_v) = (
        pack(eviction.gather(x), operand, sparsity) for x, operand, sparsity in zip((k, v), "kv", mix, strict=True)
    )
    right = attention(q, left_k, left_v, tokens=eviction.tokens, seq=seq)
    return EvictCase(q, pages_k, pages_v, *right, eviction)
