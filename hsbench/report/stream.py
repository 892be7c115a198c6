"""What all writers share: they are opened once, closed once, and get each row of a report once."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

from hsbench.report.text import encodable
from hsbench.results import Reported, Result, key


class Writer(Protocol):
    """Where results go. `open` and `close` may be called twice; `row` and `report` open if need be."""

    def open(self) -> None: ...
    def row(self, result: Result[Any]) -> None: ...
    def report(self, report: Reported) -> None: ...
    def keep(self, reports: Sequence[Reported]) -> None: ...
    def close(self) -> None: ...
    def __enter__(self) -> Writer: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Rows:
    """The base of the writers: they fill in `_head`, `_row` and `_tail`."""

    def __init__(self) -> None:
        self._opened = self._closed = False
        self._written: set[tuple[Any, ...]] = set()

    def open(self) -> None:
        if not self._opened:
            self._opened = True
            self._head()

    def row(self, result: Result[Any]) -> None:
        identity = key(result.record.case)
        if identity not in self._written:
            self.open()
            self._row(result)
            self._written.add(identity)

    def report(self, report: Reported) -> None:
        self.open()
        for result in report.results:
            self.row(result)
        # The next report may have rows of the same cases: what no pruner touches is the same whichever was asked for.
        self._written.clear()

    def keep(self, reports: Sequence[Reported]) -> None:
        """Write reports of before, all of them before anything else."""
        for report in reports:
            self.report(report)

    def close(self) -> None:
        if self._opened and not self._closed:
            self._closed = True
            self._tail()

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _head(self) -> None: ...
    def _row(self, result: Result[Any]) -> None: ...
    def _tail(self) -> None: ...


class RowStream(Rows):
    """The base of those that write text as it comes."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self.stream = stream

    def _emit(self, text: str) -> None:
        emit(text, self.stream)


def emit(text: str, stream: TextIO) -> None:
    """Text on a stream, at once, with what its encoding cannot hold replaced."""
    stream.write(encodable(text, getattr(stream, "encoding", None)))
    stream.flush()
