"""How a sequence is dealt over ranks: contiguous runs of 64-token blocks, as even as they come.

    blocks   0 1 2 3 | 4 5 6 | 7 8 9'        10 blocks, the last one in part, over 3 ranks
             rank 0  | rank 1 | rank 2       what is over goes to the first ranks

A block is on one rank, whole, and so is compressed there as it would be alone. The first ``sink`` and the last
``local`` tokens are the sequence's: a shard keeps of each what lies in it, so that the same blocks are eligible as in
one cache of all. Of these a shard makes ``ceil(ratio x eligible)`` blocks 2:4, those of its own lowest losses. At
sparsity 0 and 0.5 these are the very blocks of one cache of all. Between, the ranks together make at most ``ranks - 1``
blocks of a head more than one cache would, and a rank whose losses are all high prunes as many as its neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

from hsbench.cache.prune import BLOCK
from hsbench.errors import UsageError


@dataclass(frozen=True)
class Shard:
    """One rank's tokens of a sequence.

    Attributes:
        first, last: tokens ``first`` to ``last``, without it; multiples of 64, but for the sequence's end.
        seq: tokens of the sequence.
    """

    first: int
    last: int
    seq: int

    @property
    def tokens(self) -> int:
        """How many it has."""
        return self.last - self.first

    @property
    def ahead(self) -> int:
        """Tokens of the sequence behind its own: so far is the sequence's last query ahead of the shard's last key."""
        return self.seq - self.last

    def sink(self, of_all: int) -> int:
        """How many of its first tokens are among the sequence's first ``of_all``."""
        return min(max(of_all - self.first, 0), self.tokens)

    def local(self, of_all: int) -> int:
        """How many of its last tokens are among the sequence's last ``of_all``."""
        return min(max(of_all - self.ahead, 0), self.tokens)


def shards_of(seq: int, ranks: int) -> tuple[Shard, ...]:
    """The shard of each rank, in order; together they are the sequence.

    Args:
        seq: tokens, 1 or more.
        ranks: how many, 1 or more.

    Raises:
        UsageError: fewer blocks than ranks, so that a rank would have none.
    """
    blocks = -(-seq // BLOCK)
    if ranks > blocks:
        remedy = f"{seq} tokens are {blocks} block{'s' * (blocks > 1)} of {BLOCK}; give at most {blocks}, or more `seq`"
        raise UsageError("ranks", ranks, remedy)
    each, over = divmod(blocks, ranks)
    begins = [BLOCK * (rank * each + min(rank, over)) for rank in range(ranks)]
    return tuple(Shard(first, last, seq) for first, last in zip(begins, [*begins[1:], seq], strict=True))
