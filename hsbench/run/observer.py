"""Who is told what goes on in a run."""

from __future__ import annotations

from hsbench.results import Result


class Observer:
    """Told what goes on, between samples only; does nothing."""

    def stage(self, text: str) -> None:
        """A stage begins."""

    def sampled(self, method: str, done: int, total_hint: int | None, elapsed_s: float) -> None:
        """A sample of ``method`` was taken; ``elapsed_s`` is what its samples took so far."""

    def warning(self, text: str) -> None:
        """Something that the user should know, with a remedy."""

    def finished(self, result: Result) -> None:
        """A row is done."""
