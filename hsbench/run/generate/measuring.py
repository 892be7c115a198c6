"""One row: a cache is filled by the prompt, then read and grown step by step, each step timed."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hsbench import measure
from hsbench.attention.reference import attend_heads
from hsbench.measure import ClockError
from hsbench.models.living import APPEND, CompressedLayer, LivingCache
from hsbench.models.model import Model
from hsbench.run import check
from hsbench.run.generate import parts as looking
from hsbench.run.generate.settings import EXTRA_STEPS, Generation
from hsbench.run.generate.stepping import Decoding, EagerStep, GraphStep, Step, warm_up

WARM_TOKENS = {"cpu": 512, "cuda": 4096}
"""Of a prompt that goes through everything once, before anything is timed: blocks are compressed in it, too."""

EAGER, GRAPH, GRAPHS = "eager", "graph", "a graph per step"
"""How the host hands over a step."""


@dataclass
class Measured:
    """What a row is made of.

    Attributes:
        first_token_s: from the prompt to its first token.
        fill_s: of that, what storing the prompt's K and V took.
        steps_s: of each further token.
        tokens: int64 ``[batch, new_tokens]``, on the CPU.
        shares: of a step, by part.
        reserved, used: bytes of the cache by component: all that it has; what was in use at the last token.
        peak_bytes: at most, beyond the model's weights; None where the system does not tell.
        rel_error: the largest of the layers that were checked; None for a cache that torch attends to.
        backend: of torch's, the one that was chosen; None where it was asked for, or is not torch's.
    """

    how: str
    first_token_s: float = 0.0
    fill_s: float = 0.0
    steps_s: list[float] = field(default_factory=list)
    tokens: Tensor | None = None
    shares: dict[str, float] = field(default_factory=dict)
    reserved: dict[str, int] = field(default_factory=dict)
    used: dict[str, int] = field(default_factory=dict)
    peak_bytes: int | None = None
    rel_error: float | None = None
    backend: str | None = None


class _WaitingClock:
    """Of a GPU that the host hands a step's kernels one by one: what both take together."""

    def time(self, run: Callable[[], None]) -> float:
        begin = time.perf_counter()
        run()
        torch.cuda.synchronize()
        return time.perf_counter() - begin


def measure_row(
    model: Model,
    make: Callable[[int, int], LivingCache],
    ids: Tensor,
    task: Generation,
    choose: Callable[[LivingCache], str | None] = lambda cache: None,
    through: Callable[[int], None] = lambda tokens: None,
) -> Measured:
    """Generates, and times it.

    Args:
        make: makes an empty cache of so many sequences, with room for so many tokens.
        ids: int64 ``[batch, context]``.
        choose: chooses a backend for what a prompt has filled, and names it.
        through: told of tokens that went through the model.

    Raises:
        DisagreementError: the output of a kernel is not what it must be.
        UsageError, UnsupportedError, UnavailableError: as :class:`hsbench.Cache`.
    """
    device, context = model.device, ids.shape[1]
    _rehearse(model, make, ids, task)
    footprint = measure.Footprint(device)
    with footprint.preparing():
        cache = make(task.batch, task.capacity(context))
        found = Measured(_how(cache, task))
        decoding = _first_token(found, model, cache, ids, task)
    through(ids.numel())
    found.backend = choose(cache)
    _check(found, model, cache, task.seed)
    with footprint.running():
        _steps(found, decoding, task, through)
    found.reserved, found.used = cache.memory()
    found.peak_bytes = footprint.peak_bytes
    found.tokens = decoding.tokens[:, : task.new_tokens].cpu()
    _look_inside(found, model, decoding)
    _check(found, model, cache, task.seed + 1)
    for layer in cache.layers:
        if isinstance(layer, CompressedLayer):
            layer.cache.check()
    return found


def _how(cache: LivingCache, task: Generation) -> str:
    if task.eager or cache.layers[0].device.type != "cuda":
        return EAGER
    return GRAPH if cache.replayable else GRAPHS


def _rehearse(model: Model, make: Callable[[int, int], LivingCache], ids: Tensor, task: Generation) -> None:
    tokens = min(WARM_TOKENS[model.device.kind], ids.shape[1])
    cache = make(task.batch, tokens + 1)
    decoding = Decoding(model, cache, task, tokens, model.prompt(ids[:, :tokens], cache))
    decoding.step()


def _first_token(found: Measured, model: Model, cache: LivingCache, ids: Tensor, task: Generation) -> Decoding:
    parts = looking.parts_for(model.device)
    cache.time_by(parts.span)
    _wait(model)
    begin = time.perf_counter()
    decoding = Decoding(model, cache, task, ids.shape[1], model.prompt(ids, cache))
    _wait(model)
    found.first_token_s = time.perf_counter() - begin
    found.fill_s = parts.read().get(APPEND, 0.0)
    cache.time_by(None)
    return decoding


def _steps(found: Measured, decoding: Decoding, task: Generation, through: Callable[[int], None]) -> None:
    step: Step = EagerStep(decoding)
    clock: measure.Clock = measure.HostClock()
    done = 1
    if decoding.tokens.is_cuda:
        clock = _WaitingClock()
        if found.how != EAGER:
            # The second token loads what a capture must find loaded; it is not timed.
            warm_up(decoding)
            done, step, clock = 2, GraphStep(decoding), measure.CudaClock(min_block_s=2e-3)
    for _ in range(task.new_tokens - done):
        step.prepare()
        with contextlib.suppress(ClockError):  # done, but part of its time was the host's: the clock waits longer then
            found.steps_s.append(clock.time(step.run))
        through(task.batch)


def _look_inside(found: Measured, model: Model, decoding: Decoding) -> None:
    cache, readings = decoding.cache, []
    captured = found.how != EAGER and looking.graphs_hold_events()
    parts = looking.parts_for(model.device, captured=captured)

    def around(step: Callable[[], None]) -> None:
        with parts.span(looking.STEP):
            step()

    step = GraphStep(decoding, around) if captured else None
    with looking.watching(model.hf, parts):
        cache.time_by(parts.span)
        for at in range(EXTRA_STEPS - 1):
            if step is None:
                around(decoding.step)
            else:
                if found.how == GRAPHS or not at:
                    parts.forget()
                step.prepare()
                step.run()
            readings.append(parts.read())
        cache.time_by(None)
    found.shares = looking.shares(readings)


def _check(found: Measured, model: Model, cache: LivingCache, seed: int) -> None:
    """Holds one layer's attention against fp32 over what its cache says that it holds."""
    layers = [(number, layer) for number, layer in enumerate(cache.layers) if isinstance(layer, CompressedLayer)]
    if not layers:
        return
    number, layer = random.Random(seed).choice(layers)
    g = model.geometry
    draw = torch.Generator("cpu").manual_seed(seed)
    batch = int(layer.cache.lengths.shape[0])
    q = torch.randn(batch, g.q_heads, 1, g.head_dim, generator=draw, device="cpu").to(layer.dtype).to(layer.device)
    k, v = layer.cache.unpack()
    rows = torch.zeros(1, dtype=torch.int64, device=q.device)
    right, lse = attend_heads(q, g.kv_heads, lambda b, h: (k[b, h], v[b, h]), rows)
    verdict = check.compare(check.Expected(rows, right, lse), *layer.cache.decode(q))
    found.rel_error = max(found.rel_error or 0.0, verdict.rel_error)
    if verdict.reason is not None:
        raise check.DisagreementError(f"layer {number}, {layer.length} tokens: {verdict.reason}")


def _wait(model: Model) -> None:
    if model.device.is_cuda:
        torch.cuda.synchronize()
