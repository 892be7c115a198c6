"""A rank that waits in a collective for one that is gone does not hear Ctrl-C or SIGTERM: Python's handlers run in the
main thread, which is in native code, and a NCCL kernel waits for ever. A thread hears them by the wakeup descriptor,
which the C handler writes to, and ends the collective; the handler then runs."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import TracebackType

_BY_ITSELF_S = 1.0  # for a main thread that is in Python, or in a collective that ends
_AT_ALL_S = 10.0  # for what it has to write


class Watch:
    """A context manager, of the main thread.

    Args:
        leave: ends the process.

    Attributes:
        abort: ends collectives that hang; None while there are none, and nothing to write either.
    """

    def __init__(self, leave: Callable[[int], object] = os._exit) -> None:
        self.abort: Callable[[], None] | None = None
        self._leave = leave
        self._done = threading.Event()
        self._before = -1
        self._pipe = (-1, -1)

    def __enter__(self) -> Watch:
        self._pipe = os.pipe()
        os.set_blocking(self._pipe[1], False)
        self._before = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        signal.set_wakeup_fd(self._before)
        os.close(self._pipe[1])  # which ends the thread

    def _watch(self) -> None:
        heard = os.read(self._pipe[0], 1)
        os.close(self._pipe[0])
        if not heard or self._done.wait(_BY_ITSELF_S):
            return
        if self.abort is not None:
            self.abort()
            self._done.wait(_AT_ALL_S)
        if not self._done.is_set():
            self._leave(128 + heard[0])
