"""Who is told what goes on in a run of a command that lets a model run."""

from __future__ import annotations

from typing import Any

from hsbench.results import Result


class Watcher:
    """Told what goes on; does nothing."""

    def begin(self, tokens: int) -> None:
        """So many tokens are to go through the model, from now on."""

    def stage(self, text: str) -> None:
        """A stage begins."""

    def through(self, tokens: int) -> None:
        """So many more tokens went through the model."""

    def finished(self, result: Result[Any]) -> None:
        """A row is done."""
