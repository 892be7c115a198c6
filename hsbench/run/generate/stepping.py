"""A step: one token of each sequence, from the last one's number to the next one's, all of it on the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hsbench.models.living import LivingCache
from hsbench.models.model import Model
from hsbench.run.generate.settings import EXTRA_STEPS, Generation


class Decoding:
    """Sequences on their way.

    Args:
        context: tokens of each prompt.
        first: what comes after it, ``[batch, vocab]``.

    Attributes:
        tokens: int64 ``[batch, new_tokens and some]``, those that were generated; as many as ``at`` says are there.
    """

    def __init__(self, model: Model, cache: LivingCache, task: Generation, context: int, first: Tensor) -> None:
        self._model, self.cache, self._temperature = model, cache, task.temperature
        batch, device = first.shape[0], first.device
        room = task.new_tokens + EXTRA_STEPS
        self.tokens = torch.zeros(batch, room, dtype=torch.int64, device=device)
        self.at = torch.zeros(1, dtype=torch.int64, device=device)
        self._ids = torch.zeros(batch, 1, dtype=torch.int64, device=device)
        self._positions = torch.full((batch, 1), context, dtype=torch.int64, device=device)
        # Drawn beforehand, and on the host: the same for all methods and devices, and a graph needs no generator.
        draw = torch.Generator("cpu").manual_seed(task.seed)
        self._uniform = torch.rand(room, batch, generator=draw, dtype=torch.float32, device="cpu").to(device)
        self._pick(first)

    def step(self) -> None:
        """One more token of each sequence."""
        logits = self._model.step(self._ids, self._positions, self.cache)
        self._positions += 1
        self._pick(logits)

    def _pick(self, logits: Tensor) -> None:
        if self._temperature:
            share = torch.softmax(logits.float() / self._temperature, -1).cumsum(-1)
            drawn = self._uniform.index_select(0, self.at).T * share[:, -1:]
            chosen = torch.searchsorted(share, drawn, right=True).clamp_(max=share.shape[-1] - 1)
        else:
            chosen = logits.argmax(-1, keepdim=True)
        self._ids.copy_(chosen)
        self.tokens.index_copy_(1, self.at, chosen)
        self.at += 1


class EagerStep:
    """A step whose operations the host hands over one by one."""

    def __init__(self, decoding: Decoding) -> None:
        self._decoding = decoding

    def prepare(self) -> None:
        """Nothing."""

    def run(self) -> None:
        self._decoding.step()


class GraphStep:
    """A step as a CUDA graph: captured once, or, where what it reads is of a length that the host knows, anew before
    each; only the replay is to be timed.

    Args:
        around: encloses what is captured.
    """

    def __init__(self, decoding: Decoding, around: Callable[[Callable[[], None]], None] | None = None) -> None:
        self._decoding, self._around = decoding, around
        self._stream = torch.cuda.Stream()
        self._pool = torch.cuda.graph_pool_handle()
        self._graph: Any = None

    def prepare(self) -> None:
        """Captures, where that is to be done."""
        cache = self._decoding.cache
        if self._graph is not None and cache.replayable:
            return
        before = cache.length
        graph = torch.cuda.CUDAGraph()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            graph.capture_begin(pool=self._pool)
            try:
                step = self._decoding.step
                step() if self._around is None else self._around(step)
            finally:
                graph.capture_end()
        torch.cuda.current_stream().wait_stream(self._stream)
        cache.length = before  # nothing has run
        self._graph = graph  # the one before kept the memory that both use

    def run(self) -> None:
        self._graph.replay()
        self._decoding.cache.length += 1


Step = EagerStep | GraphStep


def warm_up(decoding: Decoding) -> None:
    """A step that loads what steps need, as a capture wants it: on a stream of its own."""
    if not decoding.tokens.is_cuda:
        decoding.step()
        return
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        decoding.step()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
