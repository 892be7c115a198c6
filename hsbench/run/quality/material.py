"""What goes through the model: windows of a text that have no token in common, and passkeys in haystacks of it.

All of it is made, and refused, before a model's weights are loaded: its tokenizer is enough.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hsbench.errors import UsageError
from hsbench.models.text import Text
from hsbench.run.quality.needle import Needle, needles_of
from hsbench.run.quality.settings import Task

Tokenize = Callable[[str], Tensor]
"""From words to token numbers, int64 ``[n]``, with what a model wants at the start of every text."""


@dataclass(frozen=True)
class Material:
    """The tokens of a run: of each window int64 ``[task.tokens]``, and the passkeys."""

    windows: tuple[Tensor, ...]
    needles: tuple[Needle, ...]


def material_of(
    tokenize: Tokenize,
    text: Text,
    task: Task,
    depths: Sequence[float] | None,
    positions: int,
    frame: tuple[str, str] = ("", ""),
) -> Material:
    """Cuts a text.

    Args:
        depths: of passkeys; None for none.
        positions: that the model was made for.
        frame: see ``needle.needles_of``.

    Raises:
        UsageError: the text is too short, or the context too long or too short for what is asked.
    """
    if task.context + task.score > positions:
        remedy = f"with `score` {task.score} that is more than the model's {positions:,} positions; give less of one"
        raise UsageError("context", task.context, remedy)
    start = tokenize("")
    ids = tokenize(text.text)[len(start) :]
    needles: list[Needle] = []
    if depths is not None:
        needles = needles_of(tokenize, ids, task.context, depths, task.seed, positions, frame)
    return Material(tuple(windows_of(text, start, ids, task)), tuple(needles))


def windows_of(text: Text, start: Tensor, ids: Tensor, task: Task) -> list[Tensor]:
    """The windows, spread evenly over the text, no token in two of them.

    Args:
        start: int64, what each begins with.
        ids: int64 ``[n]``, the tokens of the text without it.

    Raises:
        UsageError: the text is too short.
    """
    have, size = len(ids), task.tokens - len(start)
    if have < size * task.windows:
        one = f"{task.context} + {task.score} tokens and one more"
        needs = f"{task.windows} windows of {one} need" if task.windows > 1 else f"a window of {one} needs"
        fewer = f"`windows` {have // size}" if have >= size else "a smaller `context` or `score`"
        remedy = f"has {have:,} tokens, and {needs} {size * task.windows:,}; give a longer text, or {fewer}"
        raise UsageError("text", text.path, remedy)
    starts = torch.linspace(0, have - size, task.windows, dtype=torch.float64, device="cpu").floor().long().tolist()
    return [torch.cat([start, ids[first : first + size]]) for first in starts]
