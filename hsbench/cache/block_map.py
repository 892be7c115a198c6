"""Entries of a block map: which kind of page a block is, and its slot among the pages of that kind.

An entry is ``slot << HSB_KIND_BITS | kind``, as ``csrc/params.h`` declares it and ``csrc/block_map.h`` computes it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hsbench.cache.prune import BlockKind
from hsbench.kernels import library


def _bits() -> int:
    return library.constants()["HSB_KIND_BITS"]


def entries_of(slots: Tensor, kinds: Tensor | BlockKind) -> Tensor:
    """Map entries, int32, of slots (integers) and their kinds (integers or booleans, or one for all)."""
    return (slots << _bits() | kinds).to(torch.int32)


def slots_of(entries: Tensor) -> Tensor:
    """int64, like ``entries`` in shape."""
    return (entries >> _bits()).to(torch.int64)


def kinds_of(entries: Tensor) -> Tensor:
    """The kinds, integers, like ``entries`` in shape and dtype."""
    return entries & ((1 << _bits()) - 1)


def is_kind(entries: Tensor, kind: BlockKind) -> Tensor:
    """bool, like ``entries`` in shape: which blocks are stored so."""
    return kinds_of(entries) == kind
