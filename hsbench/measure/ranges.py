"""NVTX ranges in the domain "hsbench", for profilers that are started around the process.

They nest as run > workload > method > phase, where a phase is prune (and, being one operation with it, compress
inside it), check, warm-up, prepare (what is untimed before each run) or sample; one sample is one range. Without a
profiler a range costs well under a microsecond, and without NVTX (see ``nvtx``) it does nothing. Names are fixed words,
so that a profiler adds up the same range over all rounds; whatever varies (the round) is the payload. No range opens or
closes between the clock's start and its stop.

Some profilers cannot go by NVTX: torch.profiler does not see it, and ncu is told by other means which ranges to count.
While one of them records, ``mirrored`` opens each range there too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from . import nvtx

DOMAIN = "hsbench"

Payload = int | float | None


@dataclass(frozen=True)
class Event:
    """One thing recorded; `path` holds the names of the ranges it lies in, outermost first, and its own."""

    kind: Literal["open", "close", "mark"]
    path: tuple[str, ...]
    payload: Payload = None

    @property
    def name(self) -> str:
        """The range's or mark's own name."""
        return self.path[-1]


@dataclass
class Recorder:
    """What was annotated while it was in place, in order; for tests."""

    events: list[Event] = field(default_factory=list)
    stack: list[str] = field(default_factory=list)

    def opened(self) -> list[str]:
        """The paths of the ranges opened, joined with "/", in order."""
        return ["/".join(event.path) for event in self.events if event.kind == "open"]


Annotate = Callable[[str, Payload], AbstractContextManager[object]]

_recorder: Recorder | None = None
_mirror: Annotate | None = None


@contextmanager
def recorder() -> Iterator[Recorder]:
    """Record every range and mark of the block, with or without NVTX."""
    global _recorder
    before, _recorder = _recorder, Recorder()
    try:
        yield _recorder
    finally:
        _recorder = before


@contextmanager
def mirrored(mirror: Annotate) -> Iterator[None]:
    """Open every range of the block a second time, by what ``mirror(name, payload)`` gives, inside the NVTX range."""
    global _mirror
    before, _mirror = _mirror, mirror
    try:
        yield
    finally:
        _mirror = before


class annotate:  # noqa: N801 - a context manager named like nvtx's own
    """Context manager: a range of that name, nested in the ranges that are open on this thread.

    Args:
        name: fixed words; no number that varies.
        payload: the number that varies, if any.
    """

    __slots__ = ("_domain", "_mirrored", "_name", "_payload", "_recorder")

    def __init__(self, name: str, payload: Payload = None) -> None:
        self._name, self._payload = name, payload

    def __enter__(self) -> annotate:
        self._domain = _domain()
        if self._domain is not None:
            self._domain.push(self._name, self._payload)
        self._mirrored: Any = None
        if _mirror is not None:
            self._mirrored = _mirror(self._name, self._payload)
            self._mirrored.__enter__()
        self._recorder = _recorder  # the one that saw it open is told that it closed
        if self._recorder is not None:
            self._recorder.stack.append(self._name)
            self._recorder.events.append(Event("open", tuple(self._recorder.stack), self._payload))
        return self

    def __exit__(self, *exc: object) -> None:
        if self._recorder is not None:
            self._recorder.events.append(Event("close", tuple(self._recorder.stack), self._payload))
            self._recorder.stack.pop()
        if self._mirrored is not None:
            self._mirrored.__exit__(*exc)
        if self._domain is not None:
            self._domain.pop()


def mark(name: str, payload: Payload = None) -> None:
    """A point in time, of that name."""
    domain = _domain()
    if domain is not None:
        domain.mark(name, payload)
    if _recorder is not None:
        _recorder.events.append(Event("mark", (*_recorder.stack, name), payload))


@cache
def _domain() -> nvtx.Domain | None:
    return nvtx.open_domain(DOMAIN)
