"""Lines on a console: as wide as the terminal, or as wide as they need where there is none, in any encoding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TextIO

from rich.console import Console
from rich.text import Text

from hsbench.report import text

#: The width that the tables are designed for, and the one to wrap at where there is no terminal.
PIPE_WIDTH = 100

#: Facts that ask for something.
_WARNINGS = ("warning", "missing", "throttled", "shared", "stopped")


def console_for(stream: TextIO) -> Console:
    """A console on `stream`: the terminal's width, or `PIPE_WIDTH` where there is none."""
    console = _Console(file=stream, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    return console


class _Console(Console):
    def on_broken_pipe(self) -> None:
        # Rich's own takes it for stdout's, whatever the stream, points that at nothing and leaves the program.
        raise  # the BrokenPipeError that is being handled


class Page:
    """Prints lines whole: what should wrap is wrapped before, and rich neither cuts nor folds."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.width = console.width if console.is_terminal else max(console.width, PIPE_WIDTH)

    def line(self, *parts: str | tuple[str, str]) -> None:
        """One line of (text, style) parts."""
        line = Text()
        for part in parts:
            words, style = part if isinstance(part, tuple) else (part, "")
            line.append(text.encodable(words, self.console.encoding), style or None)
        line.rstrip()
        self.console.print(line, soft_wrap=True, highlight=False)

    def labelled(self, label: str, words: str, *, style: str = "dim", indent: int = 11) -> None:
        """A label, and words wrapped with a hanging indent."""
        for at, piece in enumerate(text.wrapped(words, self.width - indent)):
            self.line(((label if at == 0 else "").ljust(indent), "dim" if style == "dim" else style), (piece, style))

    def table(self, table: Sequence[list[str]], optional: Iterable[Iterable[int]]) -> None:
        """A header and its lines, side by side; where they do not fit, columns go that CSV and JSON have too.

        Args:
            optional: which, by number: as many of these groups as it takes, in order.
        """
        gone: set[int] = set()
        lines = text.aligned(table)
        for group in optional:
            if max(map(len, lines)) <= self.width:
                break
            gone.update(group)
            lines = text.aligned([[cell for at, cell in enumerate(line) if at not in gone] for line in table])
        for at, line in enumerate(lines):
            self.line((line, "" if at else "dim"))
            if not at:
                self.line(("─" * max(map(len, lines)), "dim"))

    def facts(self, lines: list[tuple[str, str]]) -> None:
        """Labelled lines, those that ask for something in colour."""
        for label, words in lines:
            self.labelled(label, words, style="yellow" if label in _WARNINGS else "dim")
