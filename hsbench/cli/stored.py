"""What is said of a file of results that is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hsbench.cli.progress import warn

if TYPE_CHECKING:
    from hsbench.results import Stored


def warn_of(stored: Stored) -> None:
    """Warn where a file is not whole."""
    if stored.torn:
        warn(f"{stored.path}: its end is missing, as after a kill; a row that was cut short is left out")
    elif not stored.complete:
        warn(f"{stored.path}: the run was killed before its end; rows that were not done are not in it")
