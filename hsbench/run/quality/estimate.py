"""Before a run: how much memory it takes, and about how long."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from hsbench.models.dense import dense_attend
from hsbench.models.memory import check_fits
from hsbench.run.quality.plan import QualityPlan
from hsbench.run.quality.protocol import Model
from hsbench.run.quality.scoring import PASS
from hsbench.run.quality.settings import BLOCK, Chunk, Setting
from hsbench.run.quality.stores import METHODS

_UNPACKING = 36  # bytes per element of one layer's K and V: casts, what is stored, unpacked, and all of it in fp32


def needed_bytes(plan: QualityPlan, model: Model, weight_bytes: int) -> int:
    """What a run takes beside the model itself.

    Args:
        weight_bytes: of one element of the model's own K and V.
    """
    g, task = model.geometry, plan.task
    elements = 2 * g.kv_heads * g.head_dim * (task.context + task.score + BLOCK)
    passes = task.passes(task.context, task.context + task.score)
    scored = max(chunk.end - chunk.first for chunk in passes if chunk.end > task.context)
    # The dense run's log-softmax; a pass's logits as the model makes them, and as fp32; a few log-softmaxes at a time.
    logits = g.vocab * (4 * task.score + 8 * max(scored, BLOCK) + 16 * BLOCK)
    return g.layers * elements * weight_bytes + elements * _UNPACKING + logits


def check_memory(plan: QualityPlan, model: Model, weight_bytes: int) -> None:
    """Raises :class:`UnavailableError` if a run does not fit."""
    what = f"--context {plan.task.context} --score {plan.task.score}"
    passes = plan.task.passes(plan.task.context, plan.task.context + plan.task.score)
    model.check_pass(max([PASS, *(chunk.end - chunk.first for chunk in passes)]))
    check_fits(what, needed_bytes(plan, model, weight_bytes), plan.device, "give less of them, or a smaller --chunk")


@torch.inference_mode()
def estimate_s(plan: QualityPlan, model: Model, rows: int) -> float:
    """About how long a run takes: passes of the model without a context and one layer's attention at full length are
    timed here, and counted up. Good to a factor of two.

    Args:
        rows: that are measured over all windows; layers by themselves among them.
    """
    task, layers = plan.task, len(model.attended)
    large = min(PASS, task.context)
    small_s, large_s = _model_s(plan, model, BLOCK), _model_s(plan, model, large)
    prefix = task.context / large * (large_s + layers * _dense_s(plan, model, large) / 2)
    dense = prefix + task.score / BLOCK * (small_s + layers * _dense_s(plan, model, BLOCK))
    chunks = task.passes(task.context, task.context + task.score)
    through = sum(chunk.end - chunk.first for chunk in chunks)
    by_model = through * (small_s / BLOCK if chunks[0].end - chunks[0].first <= BLOCK else large_s / large)
    fullness = sum(chunk.end for chunk in chunks) / chunks[-1].end
    each = [by_model + layers * fullness * _setting_s(plan, model, one, chunks[-1]) for one in plan.settings]
    total = task.windows * (dense + rows * sum(each) / len(each))
    if plan.depths is not None:
        question = sum(each) * (BLOCK / task.score if task.keeps_prefix else 1)
        total += len(plan.depths) * (prefix + question)
    return total


def _model_s(plan: QualityPlan, model: Model, tokens: int) -> float:
    cache = model.new_cache(1, tokens)
    ids = torch.zeros(1, tokens, dtype=torch.int64, device=str(plan.device))

    def run() -> None:
        cache.rewind(0)
        model.forward(ids, cache, None, logits="none")

    return _timed(run, plan)


def _dense_s(plan: QualityPlan, model: Model, queries: int) -> float:
    q, k, v = _tensors(plan, model, queries, plan.task.context + queries)
    return _timed(lambda: dense_attend(q, k, v), plan)


def _setting_s(plan: QualityPlan, model: Model, setting: Setting, chunk: Chunk) -> float:
    q, k, v = (x.to(plan.dtype.torch_dtype) for x in _tensors(plan, model, chunk.end - chunk.first, chunk.end))
    basis = None if plan.basis is None else plan.basis[1]
    group, layer = model.geometry.q_heads // model.geometry.kv_heads, next(iter(model.attended))

    def run() -> None:
        store = METHODS[setting.method].store(setting, group, basis, plan.task, chunk.end)
        store.compress(layer, k, v, q, held=chunk.first, sink=plan.task.sink, local=chunk.local).attend(q)

    return _timed(run, plan)


def _tensors(plan: QualityPlan, model: Model, queries: int, tokens: int) -> tuple[torch.Tensor, ...]:
    g = model.geometry
    sizes = ((g.q_heads, queries), (g.kv_heads, tokens), (g.kv_heads, tokens))
    return tuple(torch.randn(1, heads, length, g.head_dim, device=str(plan.device)) for heads, length in sizes)


def _timed(run: Callable[[], object], plan: QualityPlan) -> float:
    """Seconds of the second run; the first one warms up."""
    seconds = 0.0
    for _ in range(2):
        started = time.monotonic()
        run()
        if plan.device.is_cuda:
            torch.cuda.synchronize()
        seconds = time.monotonic() - started
    return seconds
