"""What a page is, by kind of block: the protocol that each device's layout of pages fulfils.

A layout is a table from :class:`hsbench.cache.prune.BlockKind` to what is known of its pages, so that a new kind of
block is a new entry, and a kind that a device has no pages for is one that it cannot store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hsbench.cache.prune import BlockKind, Operand
from hsbench.problem.elements import Element

Pack = Callable[[Tensor, Operand, Tensor | None], Tensor]
Unpack = Callable[[Tensor, Operand, torch.dtype, int], Tensor]


@dataclass(frozen=True)
class PageFormat:
    """One kind of page on one kind of device.

    Attributes:
        pool: the pool that its pages lie in, as the structs of params.h name it: ``pool`` and ``{pool}_page_bytes``.
        component: what its bytes are called in reports, without their metadata.
        nbytes: bytes of a page, by head_dim and the type of its values.
        metadata_bytes: how many of them say which elements were kept, by head_dim.
        pack: pages, uint8 ``[pages, nbytes]``, of blocks ``[pages, 64, head_dim]``; prunes as it packs, by scores of
            that shape, or by the blocks themselves where they are None. Of elements that have a scale, blocks are in
            units of it, fp32, and have been pruned.
        unpack: the inverse: ``(pages, operand, dtype, head_dim)`` to blocks, zeros in place of what was dropped. Of
            elements that have a scale, blocks are fp32, in units of it.
        scale_bytes: how many of its bytes are scales of its own, by head_dim.
    """

    pool: str
    component: str
    nbytes: Callable[[int, Element], int]
    metadata_bytes: Callable[[int], int]
    pack: Pack
    unpack: Unpack
    scale_bytes: Callable[[int], int] = lambda head_dim: 0


PageLayout = Mapping[BlockKind, PageFormat]
"""All kinds of page that a kind of device has."""


def no_metadata(head_dim: int) -> int:
    """Of a page that keeps every element."""
    return 0
