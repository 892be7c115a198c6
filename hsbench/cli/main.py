"""Entry point: dispatch a command, and turn whatever it ends in into one line and an exit code.

Exit codes: 0 ok, 1 internal error, 2 usage, 3 a result failed its check or became worse, 4 what was asked for cannot
run here, 130 interrupted (128 and the signal's number: 143 by SIGTERM, 129 by SIGHUP).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from hsbench import __version__
from hsbench.cli import signals
from hsbench.cli.calibrate import calibrate
from hsbench.cli.capture import capture
from hsbench.cli.compare import compare
from hsbench.cli.decode import decode
from hsbench.cli.diff import diff
from hsbench.cli.doctor import doctor
from hsbench.cli.exit_codes import INTERNAL, INTERRUPTED
from hsbench.cli.generate import generate
from hsbench.cli.output import writing
from hsbench.cli.parse import as_option
from hsbench.cli.plot import plot
from hsbench.cli.prefill import prefill
from hsbench.cli.quality import quality
from hsbench.cli.show import show
from hsbench.cli.streams import discard, say, tolerant_stderr
from hsbench.cli.usage import COMMAND_LINE, ClickException, Command, Group, translated
from hsbench.errors import HsbenchError, SaidElsewhereError, UsageError

app = typer.Typer(name="hsbench", cls=Group, add_completion=False, rich_markup_mode="rich")
for _command in (decode, prefill, compare, quality, generate, show, plot, diff, doctor, capture, calibrate):
    app.command(cls=Command)(_command)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"hsbench {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def hsbench(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """What hierarchical 2:4 sparsity in the KV cache buys on this machine, for your model's shape.

    Results go to stdout; progress, warnings and summaries to stderr.

    Exit codes: 0 ok, 1 internal error, 2 usage, 3 a result failed its check
    or diff found a regression,
    4 what was asked for cannot run here, 130 interrupted (143 by SIGTERM, 129 by
    SIGHUP; rows that were done are kept).
    """
    if context.invoked_subcommand is None:
        print(context.get_help())


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line, ``sys.argv`` by default, and return the exit code. Raises nothing."""
    with tolerant_stderr():
        return _answered(list(sys.argv[1:] if argv is None else argv))


def _answered(words: list[str]) -> int:
    try:
        COMMAND_LINE.set(tuple(words))
        code = _dispatch(words)
        if sys.stdout is not None:
            with writing():
                sys.stdout.flush()
        return code
    except UsageError as error:
        return _fail("error", as_option(error), error.exit_code)
    except SaidElsewhereError as error:
        return error.exit_code
    except HsbenchError as error:
        return _fail("error", error, error.exit_code)
    except (KeyboardInterrupt, typer.Abort) as error:
        if not signals.said_elsewhere():
            say("hsbench: interrupted")
        return getattr(error, "exit_code", INTERRUPTED)
    except BrokenPipeError:
        # Only stdout's gets here: whoever read it has seen enough. No error, and nothing to say.
        discard(sys.stdout)
        return 0
    except SystemExit as left:
        # Rich leaves so, with 1, when it meets a broken pipe itself: typer's help has its own console.
        return 0 if isinstance(left.__context__, BrokenPipeError) else INTERNAL
    except Exception as error:
        code = _fail("internal error", f"{type(error).__name__}: {error}", INTERNAL)
        if os.environ.get("HSBENCH_TRACEBACK", "0") in ("", "0"):
            say("hsbench: set HSBENCH_TRACEBACK=1 to see the traceback")
        return code


def _dispatch(argv: list[str]) -> int:
    # Not app(...): in every mode, its main turns a broken pipe into exit code 1.
    command = typer.main.get_command(app)
    try:
        with command.make_context("hsbench", argv) as context:
            code = command.invoke(context)
    except typer.Exit as done:
        code = done.exit_code
    except ClickException as error:
        raise translated(error) from error
    return code if isinstance(code, int) else 0


def _fail(kind: str, message: object, code: int) -> int:
    if os.environ.get("HSBENCH_TRACEBACK", "0") not in ("", "0"):
        import traceback

        traceback.print_exc()
    # One line whatever was typed: a value may hold a newline, and a library's message usually does.
    say(f"hsbench: {kind}: {' '.join(str(message).split())}")
    return code
