"""Passkeys in a haystack: does the model still find what was said once, far back?

    [instruction | text ... | The pass key is 48151. ... | ... text]  [question and answer]
     the context: prefilled, and compressed as the task says            scored over it

The question comes after the compression, so that nothing could be kept with an eye to it, and every token of the answer
is predicted from the compressed context. An answer is greedy decoding's exactly where every token of it is the
likeliest after those before, which teacher forcing tells without decoding.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hsbench.errors import UsageError

DIGITS = 5
_INTRO = "There is a pass key hidden inside a lot of other text. Find it and remember it.\n\n"
_QUESTION = "\n\nWhat is the pass key?"
_ANSWER = "The pass key is"


@dataclass(frozen=True)
class Needle:
    """One passkey.

    Attributes:
        depth: where it was hidden, 0 the beginning and 1 the end.
        ids: int64: the context, the question, the answer.
        context: tokens of the context.
        answer: tokens of the answer, the last ones.
    """

    depth: float
    ids: Tensor
    context: int
    answer: int


@dataclass(frozen=True)
class Answers:
    """What a run says of one passkey: -log p of each of its tokens, and whether each was the likeliest."""

    nll: np.ndarray
    found: bool


def needles_of(
    tokenize: Callable[[str], Tensor],
    text: Tensor,
    context: int,
    depths: Sequence[float],
    seed: int,
    positions: int,
    frame: tuple[str, str] = ("", ""),
) -> list[Needle]:
    """A passkey for each depth, in haystacks from different places of the text.

    Args:
        tokenize: from words to token numbers, with what the model wants at the start of every text.
        text: int64 ``[n]``.
        context: tokens that instruction, haystack and passkey take together, exactly.
        positions: that the model was made for.
        frame: what stands before a user's words and behind them, for a model that is made for conversations.

    Raises:
        UsageError: the context is too short to hide anything in or too long for the model, or the text is too short for
            a haystack.
    """
    rng = random.Random(seed)
    begins = len(tokenize(""))
    before, behind = frame
    question = _QUESTION + (behind or " ") + _ANSWER
    made = []
    for at, depth in enumerate(depths):
        key = "".join(rng.choice("123456789") for _ in range(DIGITS))
        intro = tokenize(before + _INTRO)
        words = (f"\n\nThe pass key is {key}. Remember it: {key} is the pass key.\n\n", question, f" {key}")
        hidden, asked, answer = (tokenize(one)[begins:] for one in words)
        # A space that is a token of its own tells of the model's manners, not of its memory: it is not asked for.
        space = tokenize(" ")[begins:]
        if len(answer) > len(space) and torch.equal(answer[: len(space)], space):
            asked, answer = torch.cat([asked, space]), answer[len(space) :]
        hay = context - len(intro) - len(hidden)
        if hay < 1:
            least = len(intro) + len(hidden) + 1
            raise UsageError("context", context, f"too short to hide a passkey in; give {least} or more")
        if hay > len(text):
            raise UsageError("context", context, f"more than the text's {len(text)} tokens; give less")
        if context + len(asked) + len(answer) > positions:
            most = positions - len(asked) - len(answer)
            raise UsageError("context", context, f"leaves no room to ask for a passkey; give {most} or less")
        start = (len(text) - hay) * at // max(1, len(depths) - 1)
        stack = text[start : start + hay]
        cut = round(depth * hay)
        ids = torch.cat([intro, stack[:cut], hidden, stack[cut:], asked, answer])
        made.append(Needle(depth, ids, context, len(answer)))
    return made


def answers(needle: Needle, first: int, logits: Sequence[Tensor]) -> Answers:
    """What the logits from position ``first`` on say of the answer; every token's but the last one's are there."""
    rows = torch.cat(list(logits))[len(needle.ids) - 1 - needle.answer - first :].float()
    wanted = needle.ids[-needle.answer :]
    log_probs = rows.log_softmax(-1)
    nll = -log_probs.gather(-1, wanted[:, None])[:, 0]
    return Answers(nll.double().cpu().numpy(), bool((log_probs.argmax(-1) == wanted).all()))


def needle_columns(answered: Sequence[tuple[Answers, Answers]]) -> dict[str, Any]:
    """The figures of passkeys: of a setting, and of the dense run on the same ones."""
    columns: dict[str, Any] = {"needles": len(answered)}
    for at, name in enumerate(("needle", "needle_dense")):
        runs = [pair[at] for pair in answered]
        columns[f"{name}_nll"] = float(np.mean([run.nll.sum() for run in runs]))
        columns[f"{name}_found"] = float(np.mean([run.found for run in runs]))
    return columns
