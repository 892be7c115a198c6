"""How long the parts of a step take: append, attention, and the kinds of the model's layers, in a pass of its own."""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from hsbench.kernels.device import Device
from hsbench.models.living import APPEND, ATTENTION

STEP, BLOCK, MLP, NORM, HEAD = "step", "block", "mlp", "norm", "head"
"""The whole of a step; and of the model: an attention layer with all in it, the feed-forward layers, norms outside of
attention layers, with the residual sums that one kernel makes with them, the last layer."""


class Parts(Protocol):
    """Adds up what is enclosed, by name."""

    def span(self, name: str) -> Any:
        """Encloses a part; spans may nest."""
        ...

    def read(self) -> dict[str, float]:
        """Seconds by name since the last reading, or of the last replay; waits for the device."""
        ...

    def forget(self) -> None:
        """What was enclosed so far counts no more: a graph that is not replayed again."""
        ...


class HostParts:
    """By the host's clock: what runs where it is called."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - begin

    def read(self) -> dict[str, float]:
        found, self._seconds = self._seconds, {}
        return found

    def forget(self) -> None:
        self._seconds = {}


class EventParts:
    """By events on the current stream.

    Args:
        captured: whether the spans are part of a graph, whose replays record the events anew.
    """

    def __init__(self, *, captured: bool) -> None:
        self._captured = captured
        self._marks: list[tuple[str, Any, Any]] = []

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        events = [torch.cuda.Event(enable_timing=True, external=self._captured) for _ in range(2)]
        events[0].record()
        yield
        events[1].record()
        self._marks.append((name, events[0], events[1]))

    def read(self) -> dict[str, float]:
        torch.cuda.synchronize()
        found: dict[str, float] = {}
        for name, begin, end in self._marks:
            found[name] = found.get(name, 0.0) + begin.elapsed_time(end) * 1e-3
        if not self._captured:
            self.forget()
        return found

    def forget(self) -> None:
        self._marks = []


def graphs_hold_events() -> bool:
    """Whether this torch's events can be recorded by a graph's replays, as those of 2.7 and later can."""
    return "external" in inspect.signature(torch.cuda.Event.__new__).parameters


def parts_for(device: Device, *, captured: bool = False) -> HostParts | EventParts:
    """What adds up on a device."""
    return EventParts(captured=captured) if device.is_cuda else HostParts()


@contextmanager
def watching(hf: Any, parts: Parts) -> Iterator[None]:
    """In here, what a transformers model's layers do is enclosed by kind: see :data:`STEP`."""
    handles, opened = [], []

    def watch(module: torch.nn.Module, name: str) -> None:
        def begin(*_: Any) -> None:
            span = parts.span(name)
            span.__enter__()
            opened.append(span)

        def end(*_: Any) -> None:
            opened.pop().__exit__(None, None, None)

        handles.append(module.register_forward_pre_hook(begin))
        handles.append(module.register_forward_hook(end))

    try:
        for module, name in _kinds(hf):
            watch(module, name)
        yield
    finally:
        for handle in handles:
            handle.remove()


def _kinds(hf: Any) -> Iterator[tuple[torch.nn.Module, str]]:
    inside: list[str] = []
    for path, module in hf.named_modules():
        if any(path.startswith(f"{outer}.") for outer in inside):
            continue
        kind = type(module).__name__
        if hasattr(module, "layer_idx") and kind.endswith("Attention"):
            yield module, BLOCK
        elif path.endswith(".mlp"):
            yield module, MLP
        elif kind.endswith("Norm"):
            yield module, NORM
        elif module is hf.get_output_embeddings():
            yield module, HEAD
        else:
            continue
        inside.append(path)


def shares(readings: list[dict[str, float]]) -> dict[str, float]:
    """From seconds by name of some steps to shares of a step: ``attention``, ``append``, ``projection`` (what an
    attention layer does besides), ``mlp``, ``norm``, ``head``, and ``other``, which is the rest."""
    total = {name: sum(reading.get(name, 0.0) for reading in readings) for name in {n for r in readings for n in r}}
    step = total.pop(STEP)
    found = {name: total.get(name, 0.0) / step for name in (ATTENTION, APPEND, MLP, NORM, HEAD)}
    found["projection"] = max(0.0, total.get(BLOCK, 0.0) / step - found[ATTENTION] - found[APPEND])
    found["other"] = max(0.0, 1.0 - sum(found.values()))
    return found
