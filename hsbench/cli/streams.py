"""The standard streams of a process, whatever state it was started in; and the one way to say something on stderr.

Nothing that hsbench says on stderr is worth a result: what cannot be said (its reader is gone, its disk is full, it was
closed) is dropped, by a stream that never fails. Results on stdout are another matter, see ``output.py``.
"""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

#: What a broken stream raises: OSError, and ValueError where it is closed.
_BROKEN = (OSError, ValueError)


class Tolerant(io.TextIOBase):
    """A text stream that drops what the one below cannot take; below it may be none at all."""

    def __init__(self, below: TextIO | None) -> None:
        self._below = below

    def write(self, text: str) -> int:
        with contextlib.suppress(*_BROKEN):
            if self._below is not None:
                self._below.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(*_BROKEN):
            if self._below is not None:
                self._below.flush()

    def isatty(self) -> bool:
        try:
            return self._below is not None and self._below.isatty()
        except _BROKEN:
            return False

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        if self._below is None:
            raise io.UnsupportedOperation("fileno")
        return self._below.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self._below, "encoding", None) or "utf-8"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._below, name)


def stderr() -> TextIO:
    """Stderr as it is now, tolerant."""
    # TextIOBase has all that TextIO asks for.
    return sys.stderr if isinstance(sys.stderr, Tolerant) else Tolerant(sys.stderr)  # type: ignore[return-value]


def say(*lines: str) -> None:
    """Lines on stderr, at once."""
    stream = stderr()
    for line in lines:
        print(line, file=stream, flush=True)


def say_how_to_draw(path: Path | None, format: str) -> None:
    """Say which command draws the results that are in a file now."""
    if path is not None and format in ("csv", "json", "parquet"):
        say(f"hsbench: to draw them: hsbench plot {shlex.quote(str(path))}")


@contextlib.contextmanager
def tolerant_stderr() -> Iterator[None]:
    """Inside, ``sys.stderr`` drops what cannot be said, for everyone: libraries and their warnings, too.

    Standard descriptors that are closed are opened on nothing, and stay so: the next file that is opened, such as the
    results, would otherwise become stdout or stderr to all code that writes there by number.
    """
    _open_standard_descriptors()
    stream = sys.stderr
    try:
        with contextlib.redirect_stderr(Tolerant(stream)):
            yield
    finally:
        try:
            if stream is not None:
                stream.flush()
        except _BROKEN:
            discard(stream)


def discard(stream: TextIO | None) -> None:
    """Point a broken stream at nothing; the interpreter flushes it at its end, and a failure there is exit code 120."""
    if stream is None:
        return
    with contextlib.suppress(*_BROKEN):
        nothing = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nothing, stream.fileno())
        finally:
            os.close(nothing)
        stream.flush()


def _open_standard_descriptors() -> None:
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                nothing = os.open(os.devnull, os.O_RDWR)  # the lowest free one: this
                if nothing != descriptor:
                    os.dup2(nothing, descriptor)
                    os.close(nothing)
                os.set_inheritable(descriptor, True)
