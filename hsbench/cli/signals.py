"""Ctrl-C, SIGTERM and SIGHUP: what they do while there is nothing to keep, and while there is.

At first they end the process at once: an exception would pass through whatever is being imported, where a callback may
swallow it, or an extension module may turn it into another. In a run they raise KeyboardInterrupt, so that what is done
is kept. A signal that is ignored when hsbench starts (nohup, a script's background job) stays ignored, and a handler
that somebody else has set stays theirs.
"""

from __future__ import annotations

import contextlib
import os
import signal

TYPE_CHECKING = False  # typing's own takes long to import, see the package's __init__
if TYPE_CHECKING:
    from types import FrameType, TracebackType
    from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(KeyboardInterrupt):
    """A signal that ends the run."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.exit_code = 128 + number


def leave_at_once() -> None:
    """From now on, a signal ends this process with its one line and its exit code, wherever that is."""
    for number in STOPPING:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _leave)


class Interruptible:
    """A context manager in which a signal raises :class:`Stopped`, each time that it comes.

    In a thread other than the main one, where Python handles no signals, it changes nothing.

    Attributes:
        first: the number of the first signal that came; None while none has, although its exception may have been
            swallowed on the way.
    """

    def __init__(self) -> None:
        self.first: int | None = None
        self._before: dict[int, Any] = {}

    @property
    def exit_code(self) -> int:
        """What an interrupted process ends with: 128 and the signal's number, Ctrl-C's where none came."""
        return 128 + (self.first or signal.SIGINT)

    def check(self) -> None:
        """Raises :class:`Stopped` if a signal came, for long waits: its exception may have been swallowed."""
        if self.first is not None:
            raise Stopped(self.first)

    def __enter__(self) -> Interruptible:
        import threading

        if threading.current_thread() is threading.main_thread():
            for number in STOPPING:
                before = signal.getsignal(number)
                if before in (signal.SIG_DFL, signal.default_int_handler, _leave):
                    self._before[number] = before
                    signal.signal(number, self._stop)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.first = self.first or number
        if held.depth and not held.late:  # a second one does not wait: what is held may hang
            held.late = number
            return
        raise Stopped(number)


class held:  # noqa: N801 - a context manager, used as a function
    """Calls in here are not left half done: a signal that comes meanwhile is raised at the end. For libraries whose
    state an exception would break, and for short calls only."""

    depth = 0
    late = 0

    def __enter__(self) -> None:
        held.depth += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        held.depth -= 1
        if held.late and not held.depth:
            number, held.late = held.late, 0
            raise Stopped(number)


def said_elsewhere() -> bool:
    """Whether another process says that this one was interrupted: rank 0, or what started all ranks (``ranks.py``)."""
    return bool(os.environ.get("HSBENCH_LAUNCHER")) or os.environ.get("RANK", "0") != "0"


def _leave(number: int, frame: FrameType | None) -> None:
    if not said_elsewhere():
        with contextlib.suppress(OSError):
            os.write(2, b"hsbench: interrupted\n")
    os._exit(128 + number)
