"""A method over a sequence that is sharded over ranks: its own part, then one all-gather and a combination."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from hsbench.distributed.gathered import Gathered
from hsbench.distributed.group import Group, losing
from hsbench.methods.base import Prepared


@dataclass(kw_only=True)
class Sharded(Prepared):
    """``out`` and ``lse`` are those of all ranks' tokens; ``memory`` and the shares are sums and means over ranks.

    Attributes:
        part: the method on this rank's tokens; ``pruned`` and ``left`` are its.
        device_bytes: stored bytes of K and V on each rank.
        split: called between the part and its collective.
    """

    part: Prepared
    gathered: Gathered
    device_bytes: tuple[int, ...]
    split: Callable[[], None] = field(default=lambda: None)

    def run(self) -> None:
        self.part.run()
        self.split()
        out, lse = self.part.out, self.part.lse
        assert lse is not None  # why_not_sharded refuses methods that give none
        self.gathered.take(out, lse)
        with losing():
            self.gathered.run()

    def poison(self) -> None:
        self.part.poison()
        super().poison()

    def pruned(self, batch: int, kv_head: int) -> tuple[Tensor, Tensor] | None:
        return self.part.pruned(batch, kv_head)

    def left(self, batch: int, kv_head: int) -> Tensor | None:
        return self.part.left(batch, kv_head)


def sharded(part: Prepared, eligible: int, group: Group, split: Callable[[], None]) -> Sharded:
    """A prepared part with those of the other ranks; a collective.

    Args:
        part: one that gives a log-sum-exp.
        eligible: blocks of a head that may be pruned, of this rank.
        split: see :class:`Sharded`.
    """
    ranks = group.all((part.memory, part.achieved_sparsity, eligible))
    components = dict.fromkeys(name for memory, _, _ in ranks for name in memory)
    shares = [(share, blocks) for _, share, blocks in ranks if share is not None]
    of_all = sum(blocks for _, blocks in shares)
    mean = sum(share * blocks for share, blocks in shares) / of_all if of_all else 0.0
    gathered = Gathered(part.out, group.data)
    part.write_to(gathered.own_out, gathered.own_lse)
    return Sharded(
        out=gathered.out,
        lse=gathered.lse,
        products=part.products,
        memory={name: sum(memory.get(name, 0) for memory, _, _ in ranks) for name in components},
        achieved_sparsity=mean if shares else None,
        achieved_evict=part.achieved_evict,
        compress=part.compress,
        part=part,
        gathered=gathered,
        device_bytes=tuple(sum(memory.values()) for memory, _, _ in ranks),
        split=split,
    )
