"""One window through the model: dense, and by a setting, with teacher forcing; what each scored token says of it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hsbench.run.quality.attending import Attending, Recorder
from hsbench.run.quality.protocol import Attend, Model, ModelCache
from hsbench.run.quality.settings import BLOCK, Chunk, Task

PASS = 1024
"""Tokens of a dense pass."""

Told = Callable[[int], None]
"""Told of tokens that are through."""


@dataclass(frozen=True)
class Scores:
    """Of each scored token of a window, fp64 ``[score]``.

    Attributes:
        nll: -log p of the token that came next, by the setting.
        kl: KL(dense || setting), nats.
        agree: 1 where the likeliest token is the dense run's.
    """

    nll: np.ndarray
    kl: np.ndarray
    agree: np.ndarray


@dataclass(frozen=True)
class Dense:
    """The dense run of a window.

    Attributes:
        log_probs: fp32 ``[score, vocab]``.
        nll: fp64 ``[score]``.
        queries: of the last tokens of the context, by layer.
    """

    log_probs: Tensor
    nll: np.ndarray
    queries: dict[int, Tensor]


def dense_run(model: Model, cache: ModelCache, ids: Tensor, context: int, told: Told = lambda tokens: None) -> Dense:
    """The window by the model's own attention: its first ``context`` tokens, then the rest, which is scored.

    Args:
        cache: rewound to 0 first; afterwards it holds all of the window but the last token.
        ids: int64 ``[context + scored + 1]``.
    """
    cache.rewind(0)
    queries = dense_prefix(model, cache, ids[:context], told)
    scored = len(ids) - 1 - context
    log_probs = torch.empty(scored, model.geometry.vocab, dtype=torch.float32, device=ids.device)
    for first in range(context, len(ids) - 1, BLOCK):
        end = min(first + BLOCK, len(ids) - 1)
        logits = model.forward(ids[None, first:end], cache, None, logits="all")[0]
        log_probs[first - context : end - context] = logits.float().log_softmax(-1)
        told(end - first)
    return Dense(log_probs, _nll(log_probs, ids[context + 1 :]), queries)


def dense_prefix(model: Model, cache: ModelCache, ids: Tensor, told: Told = lambda tokens: None) -> dict[int, Tensor]:
    """Appends tokens by dense attention; the queries of the last ones, by layer."""
    recorder = Recorder()
    for first in range(0, len(ids), PASS):
        part = ids[first : first + PASS]
        model.forward(part[None], cache, recorder, logits="none")
        told(len(part))
    return recorder.queries


def scored_run(
    model: Model,
    cache: ModelCache,
    ids: Tensor,
    context: int,
    task: Task,
    attending: Attending,
    dense: Dense,
    told: Told = lambda tokens: None,
) -> Scores:
    """The window by a setting.

    Args:
        cache: of a dense run of it.

    Raises:
        DisagreementError, UnsupportedError: as :class:`Attending`.
    """
    pieces: list[tuple[np.ndarray, ...]] = []
    wanted = ids[context + 1 :]

    def visit(first: int, logits: Tensor) -> None:
        for at in range(0, len(logits), BLOCK):
            rows = slice(first - context + at, first - context + min(at + BLOCK, len(logits)))
            log_probs, right = logits[at : at + BLOCK].float().log_softmax(-1), dense.log_probs[rows]
            kl = (right.exp() * (right - log_probs)).sum(-1)
            agree = log_probs.argmax(-1) == right.argmax(-1)
            pieces.append((_nll(log_probs, wanted[rows]), _host(kl), _host(agree)))

    run_passes(model, cache, ids, context, task, attending, visit, told)
    return Scores(*(np.concatenate(column) for column in zip(*pieces, strict=True)))


def run_passes(
    model: Model,
    cache: ModelCache,
    ids: Tensor,
    context: int,
    task: Task,
    attending: Attending,
    visit: Callable[[int, Tensor], None],
    told: Told = lambda tokens: None,
) -> None:
    """The passes of a setting over ``ids``, all but the last of which go in.

    Args:
        cache: holds the first ``context`` tokens, dense, where the task prunes only after them.
        visit: told of the logits ``[n, vocab]`` of tokens from ``context`` on, with the first one's position.
    """
    passes = task.passes(context, len(ids) - 1)
    cache.rewind(passes[0].first)
    checked = checked_passes(passes, context, task.seed)
    attend: Attend = attending
    for at, chunk in enumerate(passes):
        attending.begin(chunk, checked=at in checked)
        scored = chunk.end > context
        part = ids[None, chunk.first : chunk.end]
        logits = model.forward(part, cache, attend, logits="all" if scored else "none")
        if scored:
            from_ = max(context, chunk.first)
            visit(from_, logits[0, from_ - chunk.first :])
        told(chunk.end - chunk.first)


def checked_passes(passes: Sequence[Chunk], context: int, seed: int) -> set[int]:
    """Which passes are held against the reference: the first that is scored, and another."""
    scored = [at for at, chunk in enumerate(passes) if chunk.end > context]
    return {scored[0], random.Random(seed).choice(scored[1:] or scored)}


def _nll(log_probs: Tensor, wanted: Tensor) -> np.ndarray:
    return _host(-log_probs.gather(-1, wanted[:, None])[:, 0])


def _host(x: Tensor) -> np.ndarray:
    return x.double().cpu().numpy()
