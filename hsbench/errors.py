"""Errors a user can meet, each with the process exit code that it ends in."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HsbenchError(Exception):
    """Base of every error that hsbench raises on purpose; the message is one line, made to be shown."""

    exit_code = 1


class UsageError(HsbenchError):
    """Bad input: names what was given, the value and the remedy.

    Args:
        option: the field, such as ``key_sparsity``, which the command line turns into its option; or an option.
        value: the value as given.
        remedy: what is wrong and what to give instead, as one clause. Other fields stand in it as `` `kv_heads` ``.
    """

    exit_code = 2

    def __init__(self, option: str, value: object, remedy: str) -> None:
        self.option, self.value, self.remedy = option, value, remedy
        super().__init__(f"{option} {value}: {remedy}")


def unknown(option: str, value: object, choices: Iterable[str]) -> UsageError:
    """The error for a value that is none of the choices: lists them, and names the closest."""
    known = list(choices)
    lowered = {choice.lower(): choice for choice in known}
    matches = difflib.get_close_matches(str(value).strip().lower(), lowered, n=1)
    hint = f" (did you mean {lowered[matches[0]]}?)" if matches else ""
    return UsageError(option, str(value).strip() or '""', f"unknown{hint}; one of {', '.join(known)}")


class UnavailableError(HsbenchError):
    """What was asked for cannot run on this machine; the message says what is missing and how to get it."""

    exit_code = 4


class SaidElsewhereError(HsbenchError):
    """An error that another process of the same run says: this one ends without a word."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class UnsupportedError(HsbenchError):
    """A method cannot do this phase, shape or dtype at all, on any machine of this kind."""

    exit_code = 4


class NonFiniteError(HsbenchError, ValueError):
    """K or V holds a NaN or an infinity: which tensor and the first index, in row-major order."""

    exit_code = 2

    def __init__(self, tensor: str, index: tuple[int, ...]) -> None:
        self.tensor, self.index = tensor, index
        super().__init__(f"{tensor} is not finite at index {list(index)}: remove NaN and infinities before compressing")
