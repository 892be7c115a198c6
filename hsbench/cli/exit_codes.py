"""What a run of the commands ends with, beside what an error's own ``exit_code`` says."""

from __future__ import annotations

from collections.abc import Collection

#: INTERRUPTED is Ctrl-C's; another signal has its own, see ``signals.py``.
OK, INTERNAL, INCORRECT, CANNOT_RUN, INTERRUPTED = 0, 1, 3, 4, 130


def code_of(statuses: Collection[str], *, interrupted: bool, lacks: bool = False) -> int:
    """Of a run whose rows have these statuses: 130 if it was interrupted; else 3 if a result failed its check; else 4
    if nothing could run, or if it lacks something that was asked for; else 0."""
    if interrupted:
        return INTERRUPTED
    if "incorrect" in statuses:
        return INCORRECT
    return CANNOT_RUN if lacks or "ok" not in statuses else OK
