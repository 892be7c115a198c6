"""Errors a user can meet, each with the process exit code that it ends in."""

from __future__ import annotations


class HsbenchError(Exception):
    """Base of every error that hsbench raises on purpose; the message is one line, made to be shown."""

    exit_code = 1


class UsageError(HsbenchError):
    """Bad input: names the option, the value and the remedy.

    Args:
        option: the option as typed, such as ``--sparsity``.
        value: the value as typed.
        remedy: what is wrong and what to give instead, as one clause.
    """

    exit_code = 2

    def __init__(self, option: str, value: object, remedy: str) -> None:
        self.option, self.value, self.remedy = option, value, remedy
        super().__init__(f"{option} {value}: {remedy}")


class UnavailableError(HsbenchError):
    """What was asked for cannot run on this machine; the message says what is missing and how to get it."""

    exit_code = 4


class UnsupportedError(HsbenchError):
    """A method cannot do this phase, shape or dtype at all, on any machine of this kind."""

    exit_code = 4


class NonFiniteError(HsbenchError, ValueError):
    """K or V holds a NaN or an infinity: which tensor and the first index, in row-major order."""

    exit_code = 2

    def __init__(self, tensor: str, index: tuple[int, ...]) -> None:
        self.tensor, self.index = tensor, index
        super().__init__(f"{tensor} is not finite at index {list(index)}: remove NaN and infinities before compressing")
