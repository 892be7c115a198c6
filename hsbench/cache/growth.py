"""How a cache grows: which blocks have left the window when, and how many pages that takes. Whole numbers alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hsbench.cache.prune import BLOCK, BlockKind, judged_kind, open_kind
from hsbench.problem.elements import StoredElements

SPARE = 1
"""Blocks by which the number of 2:4 ones may differ from the asked share of those judged."""


@dataclass(frozen=True)
class Growth:
    """What a cache keeps open, and for how long.

    Attributes:
        capacity: tokens that a sequence may have.
        sink: blocks that touch the first so many tokens stay open.
        local: blocks that touch the last so many tokens are open.
        chunk: of an append of several tokens as many, the last ones, are open, too, but for the last of them, whose
            own window is ``local``: so the first query of a chunk of that many tokens has all of its window open.
    """

    capacity: int
    sink: int
    local: int
    chunk: int

    @property
    def blocks(self) -> int:
        """Of a sequence at capacity."""
        return -(-self.capacity // BLOCK)

    @property
    def first(self) -> int:
        """The first block that is ever judged."""
        return -(-self.sink // BLOCK)

    def window(self, appended: int) -> int:
        """The last tokens that are open once so many have been appended at a time."""
        return self.local + min(appended, self.chunk) - 1

    def judged_end(self, length: int, appended: int) -> int:
        """Blocks from :attr:`first` up to this one are judged once ``appended`` tokens have made the sequence
        ``length`` long."""
        return max(self.first, (length - self.window(appended)) // BLOCK)

    @property
    def most_judged(self) -> int:
        """Blocks that are judged at capacity."""
        return self.judged_end(self.capacity, 1) - self.first

    @property
    def open_pages(self) -> int:
        """The most blocks that are open at once: the sinks', and those of the longest window, which may begin and end
        within a block, while the next one is begun before it is judged what has left."""
        window = -(-(BLOCK - 2 + self.local + self.chunk) // BLOCK) + 1
        return min(self.blocks, self.first + window)

    def pages(self, ratio: float, elements: StoredElements) -> dict[BlockKind, int]:
        """Pages of each kind that a (batch, kv head) takes at most.

        Args:
            ratio: share of judged blocks that become 2:4, 0 to 1.
        """
        judged = self.most_judged
        sparse, kept = round(ratio) * judged, round(1 - ratio) * judged
        if 0.0 < ratio < 1.0:
            sparse = min(judged, math.floor(ratio * judged + 1e-9) + SPARE)
            kept = min(judged, math.floor((1 - ratio) * judged + 1e-9) + SPARE)
        # Of 16 bits, those that stay do so in the pages that they were open in.
        counts = {judged_kind(is_sparse=True): sparse, judged_kind(is_sparse=False): kept}
        counts[open_kind(elements)] = min(self.blocks, self.open_pages + counts.get(open_kind(elements), 0))
        return counts


def becomes_sparse(ratio: float, judged: int, sparse: int, at_most: int) -> bool:
    """Whether the next block becomes 2:4: as part 1 would have it of the losses so far and its own, as long as that
    leaves the number of 2:4 blocks within one of the asked share.

    Args:
        ratio: that share, 0 to 1.
        judged, sparse: blocks judged before, and how many of them are 2:4.
        at_most: how many of their losses are at most its own: ties take the lower index.
    """
    share = ratio * (judged + 1)
    if sparse > share:
        return False
    return sparse + 1 < share or at_most < math.ceil(share - 1e-9)
