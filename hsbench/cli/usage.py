"""What is wrong with a command line, in one line.

The words are checked here before click parses them: click's own messages span several lines, differ between
its versions, and take ``--seq --batch 2`` for a sequence length of "--batch".
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from contextvars import ContextVar
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from hsbench.errors import HsbenchError

#: Every error that click raises on purpose. Recent typer vendors click and older ones depend on it, so it is
#: found through typer: BadParameter, UsageError, ClickException.
ClickException: type[Exception] = typer.BadParameter.__mro__[2]


#: What was typed behind ``hsbench``, for the record that a run leaves of itself.
COMMAND_LINE: ContextVar[tuple[str, ...]] = ContextVar("command_line", default=())


class CommandLineError(HsbenchError):
    """A command line that cannot be understood."""

    exit_code = 2


class Command(TyperCommand):
    """A command whose options are checked word by word."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        words = [param for param in self.get_params(ctx) if param.param_type_name == "argument"]
        wanted = [str(param.metavar) for param in words]
        more = any(param.nargs == -1 for param in words)
        _check_words(ctx.command_path, _options(self, ctx), wanted, args, more=more)
        return super().parse_args(ctx, args)


class Group(TyperGroup):
    """The ``hsbench`` command itself: unknown commands, and options that stand before the command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        options = _options(self, ctx)
        if args and args[0].startswith("-") and args[0] not in options:
            name = args[0].partition("=")[0]
            if any(name in _options(command, ctx) for command in self.commands.values()):
                raise CommandLineError(f"{name}: options follow the command, as in hsbench decode {name} ...")
            raise CommandLineError(f"{name}: no such option{_closest(name, options)}; see hsbench --help")
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in self.commands:
            known = ", ".join(self.commands)
            raise CommandLineError(f"{args[0]}: no such command{_closest(args[0], self.commands)}; one of {known}")
        return super().resolve_command(ctx, args)


def translated(error: Exception) -> CommandLineError:
    """What click still raised, as one line."""
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    return CommandLineError(f"{message.rstrip('.')}; see hsbench --help")


def _options(command: Any, ctx: Any) -> dict[str, Any]:
    params = [param for param in command.get_params(ctx) if param.param_type_name == "option"]
    return {name: param for param in params for name in (*param.opts, *param.secondary_opts)}


def _check_words(
    command: str, options: dict[str, Any], wanted: list[str], args: list[str], *, more: bool = False
) -> None:
    """Raise for the first unknown or repeated option, missing value, flag with a value, or stray or missing word.

    Args:
        command: as typed, for the remedy.
        options: by name.
        wanted: the words that are no options' values, as the help names them.
        args: what was typed.
        more: whether there may be more words than wanted.
    """
    seen: set[str] = set()
    missing = list(wanted)
    words = iter(range(len(args)))
    for at in words:
        name, equals, _ = args[at].partition("=")
        if not args[at].startswith("-"):
            if missing:
                missing.pop(0)
                continue
            if more:
                continue
            raise CommandLineError(
                f"{args[at]}: not an option; a value follows its own, as in --seq 128k; see {command} --help"
            )
        if name not in options:
            raise CommandLineError(f"{name}: no such option{_closest(name, options)}; see {command} --help")
        option = options[name]
        if name == "--help":
            return
        if option.name in seen:
            raise CommandLineError(f"{name}: given twice; give it once (hsbench compare takes lists, a,b,c)")
        seen.add(option.name)
        if getattr(option, "is_flag", False):
            if equals:
                raise CommandLineError(f"{args[at]}: takes no value; give {name} alone")
        elif not equals:
            if at + 1 == len(args) or args[at + 1].startswith("--"):
                raise CommandLineError(f"{name}: needs a value; give {name} {option.metavar or 'VALUE'}")
            next(words)
    if missing:
        raise CommandLineError(f"{missing[0]}: missing; it stands behind the command, see {command} --help")


def _closest(word: str, known: Iterable[str]) -> str:
    matches = difflib.get_close_matches(word, list(known), n=1)
    if not matches and word.startswith("-"):
        # -seq, for --seq.
        matches = difflib.get_close_matches("--" + word.lstrip("-"), list(known), n=1)
    return f" (did you mean {matches[0]}?)" if matches else ""
