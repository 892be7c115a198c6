"""Who is told what goes on in a run of ``quality``."""

from __future__ import annotations

from hsbench.results import Quality, Result


class Watcher:
    """Told what goes on; does nothing."""

    def begin(self, tokens: int) -> None:
        """So many tokens are to go through the model, from now on."""

    def stage(self, text: str) -> None:
        """A stage begins."""

    def through(self, tokens: int) -> None:
        """So many more tokens went through the model."""

    def finished(self, result: Result[Quality]) -> None:
        """A row is done."""
