"""What is shown on stderr while a plan runs."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from hsbench.cli.signals import held
from hsbench.cli.streams import say, stderr
from hsbench.run.observer import Observer
from hsbench.run.quality.watcher import Watcher

if TYPE_CHECKING:
    from hsbench.results import Result

#: Seconds between two redraws.
_REDRAW_S = 0.2


def warn(text: str) -> None:
    """One warning line on stderr."""
    say(f"hsbench: warning: {' '.join(text.split())}")


class Progress(Observer):
    """A bar on stderr where that is a terminal; only warnings where not. A context manager.

    It is drawn when the run reports something, which it does between samples, and never by a thread of
    its own: a thread that redraws ten times a second would run into the samples. Signals wait while it is drawn: a
    bar that one had left half started could not be stopped, and its cursor would stay hidden.

    Args:
        cells: how many there are; the bar counts them where there is more than one.
        finished: called with each result as it is done.
    """

    def __init__(self, cells: int, finished: Callable[[Result], None]) -> None:
        self._cells, self._finished = cells, finished
        self._warned: set[str] = set()
        self._label = ""
        self._drawn = 0.0
        self._bar: Any = _bar(cells) if stderr().isatty() else None
        self._task = self._bar.add_task("", total=cells) if self._bar else None

    def cell(self, done: int, label: str) -> None:
        """The next cell begins."""
        self._label = label
        self._draw("", completed=done, now=True)

    def stage(self, text: str) -> None:
        self._draw(text, now=True)

    def sampled(self, method: str, done: int, total_hint: int | None, elapsed_s: float) -> None:
        self._draw(f"{method}: {done} samples, {elapsed_s:.1f} s")

    def warning(self, text: str) -> None:
        # A sweep meets the same trouble in every cell; once is enough.
        if text not in self._warned:
            self._warned.add(text)
            with self.aside():
                warn(text)

    def finished(self, result: Result) -> None:
        with self.aside() if sys.stdout is not None and sys.stdout.isatty() else contextlib.nullcontext():
            self._finished(result)

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Take the bar away while something else is written to the terminal."""
        if self._bar is None or not self._bar.live.is_started:
            yield
            return
        with held():
            self._bar.stop()
        try:
            yield
        finally:
            with held():
                self._bar.start()

    def __enter__(self) -> Self:
        if self._bar:
            try:
                with held():
                    self._bar.start()
            except BaseException:
                self._bar.stop()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            with held():
                self._bar.stop()

    def _draw(self, text: str, *, completed: int | None = None, now: bool = False) -> None:
        if self._bar is None:
            return
        shown = " · ".join(part for part in (self._label, text) if part)
        with held():
            self._bar.update(self._task, description=shown, completed=completed)
            if now or time.monotonic() - self._drawn > _REDRAW_S:
                self._drawn = time.monotonic()
                self._bar.refresh()


class QualityProgress(Progress, Watcher):
    """The same for a run of ``quality``: the bar counts percent of the tokens that go through the model."""

    def __init__(self, finished: Callable[[Result[Any]], None]) -> None:
        super().__init__(100, finished)
        self._tokens = self._done = 0
        self._began = time.monotonic()

    def begin(self, tokens: int) -> None:
        self._tokens, self._done, self._began = tokens, 0, time.monotonic()

    def stage(self, text: str) -> None:
        self.cell(self._percent(), text)

    def through(self, tokens: int) -> None:
        self._done += tokens
        spent, share = time.monotonic() - self._began, self._done / max(self._tokens, 1)
        left = f"about {spent * (1 - share) / share:.0f} s left" if 0 < share < 1 else ""
        self._draw(left, completed=self._percent())

    def _percent(self) -> int:
        return min(100, 100 * self._done // max(self._tokens, 1))


def _bar(cells: int) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    counter = (BarColumn(bar_width=24), MofNCompleteColumn()) if cells > 1 else ()
    # Rich would otherwise send what is printed to stdout to this console, which is stderr.
    return Bar(
        *counter,
        TextColumn("{task.description}", markup=False),
        console=Console(file=stderr()),
        auto_refresh=False,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
