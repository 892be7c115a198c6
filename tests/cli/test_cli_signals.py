"""Ctrl-C, SIGTERM and SIGHUP: one line and an exit code at first, and what is done is kept in a run."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import pty
import select
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hsbench import __main__ as entry
from hsbench.cli.main import main
from hsbench.cli.progress import Progress

Run = Callable[..., object]
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
TINY = [
    "--q-heads", "4", "--kv-heads", "2", "--head-dim", "64", "--methods", "dense:16bit", "--device", "cpu",
    "--time", "0.1",
]  # fmt: skip


def send(number: int) -> None:
    """A signal to this process, which has a handler for it or ignores it; the tests outlive one that does not."""
    assert signal.getsignal(number) != signal.SIG_DFL
    os.kill(os.getpid(), number)


def interrupted(call_of_it: int, number: int) -> Callable[[int], None]:
    def before(call: int) -> None:
        if call == call_of_it:
            send(number)

    return before


def statuses(text: str) -> list[str]:
    return [row["status"] for row in csv.DictReader(io.StringIO(text))]


# ---- In a run ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("number", CODES)
def test_a_signal_in_a_run_keeps_what_is_done(hsbench: Run, bench: object, number: int) -> None:
    before = [signal.getsignal(each) for each in CODES]
    bench.before = interrupted(2, number)
    ran = hsbench("compare", "--seq", "1k,2k,4k", "--methods", "dense:16bit,hierarchical:16bit")
    assert ran.code == CODES[number]
    assert statuses(ran.out) == ["ok"] * 2 + ["interrupted"] * 4
    assert "summary" in ran.err and "Traceback" not in ran.err
    assert [signal.getsignal(each) for each in CODES] == before


def test_a_signal_that_the_run_turns_into_rows(hsbench: Run, bench: object) -> None:
    def before(call: int) -> None:
        with contextlib.suppress(KeyboardInterrupt):
            send(signal.SIGTERM)
        bench.interrupt_at = call

    bench.before = before
    ran = hsbench("decode", "--format", "csv")
    assert (ran.code, statuses(ran.out)) == (143, ["ok", "interrupted"])


def test_a_signal_whose_exception_was_swallowed_ends_the_run_after_its_cell(hsbench: Run, bench: object) -> None:
    def before(call: int) -> None:
        if call == 2:
            with contextlib.suppress(KeyboardInterrupt):
                send(signal.SIGTERM)

    bench.before = before
    ran = hsbench("compare", "--seq", "1k,2k,4k", "--methods", "dense:16bit,hierarchical:16bit")
    assert (ran.code, statuses(ran.out)) == (143, ["ok"] * 4 + ["interrupted"] * 2)


def test_a_signal_between_a_cell_s_last_row_and_its_report_keeps_it_as_it_is(
    hsbench: Run, bench: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    aside = Progress.aside

    @contextlib.contextmanager
    def stopped(progress: Progress) -> Iterator[None]:
        send(signal.SIGTERM)
        with aside(progress):
            yield

    monkeypatch.setattr(Progress, "aside", stopped)
    ran = hsbench("compare", "--seq", "1k,2k", "--methods", "dense:16bit,hierarchical:16bit")
    assert (ran.code, statuses(ran.out)) == (143, ["ok"] * 2 + ["interrupted"] * 2)


def test_a_second_signal_ends_what_the_first_began(
    hsbench: Run, bench: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    def impatient(*given: object) -> None:
        send(signal.SIGINT)

    bench.before = interrupted(1, signal.SIGTERM)
    monkeypatch.setattr("hsbench.run.measuring.not_reached", impatient)
    ran = hsbench("decode", "--format", "csv")
    assert (ran.code, ran.out, ran.err) == (130, "", "hsbench: interrupted\n")


def test_an_ignored_signal_stays_ignored_and_a_foreign_handler_its_owner_s(hsbench: Run, bench: object) -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN), signal.signal(signal.SIGTERM, lambda n, f: heard.append(n))
    try:
        bench.before = lambda call: (send(signal.SIGHUP), send(signal.SIGTERM))
        ran = hsbench("compare", "--seq", "1k,2k")
    finally:
        signal.signal(signal.SIGHUP, before[0])
        signal.signal(signal.SIGTERM, before[1])
    assert (ran.code, statuses(ran.out)) == (0, ["ok"] * 4)
    assert heard == [signal.SIGTERM] * 2


def test_a_run_in_another_thread_leaves_signals_alone(bench: object, capsys: object) -> None:
    import threading

    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(main(["decode"])))
    thread.start()
    thread.join()
    assert codes == [0] and "Traceback" not in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_process_on_a_terminal(tmp_path: Path, number: int) -> None:
    """Rows are kept, and the cursor that the bar hides is shown again."""
    path = tmp_path / "r.csv"
    sizes = [str(64 * n) for n in range(1, 61)]  # more than can be done before the signal comes
    command = [sys.executable, "-m", "hsbench", "compare", "--seq", ",".join(sizes), *TINY, "--output", str(path)]
    terminal, stderr = pty.openpty()
    env = os.environ | {"TERM": "xterm"}
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr, env=env)
    os.close(stderr)
    shown, sent, deadline = b"", False, time.monotonic() + 120
    try:
        while time.monotonic() < deadline:
            if select.select([terminal], [], [], 0.05)[0]:
                try:
                    shown += os.read(terminal, 65536)
                except OSError:  # EIO: the other side has closed
                    break
            if not sent and path.exists() and path.read_bytes().count(b"\n") >= 2:
                process.send_signal(number)
                sent = True
        assert process.wait(timeout=60) == CODES[number], shown
    finally:
        process.kill()
        process.wait()
        os.close(terminal)
    found = statuses(path.read_text())
    assert len(found) == len(sizes) and found[0] == "ok" and found[-1] == "interrupted"
    assert shown.rindex(b"\x1b[?25h") > shown.rindex(b"\x1b[?25l") and b"Traceback" not in shown


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


CURSOR = {"hidden": "\x1b[?25l", "shown": "\x1b[?25h"}


@pytest.mark.parametrize("call", ["set_live", "push_render_hook", "clear_live", "pop_render_hook"])
@pytest.mark.parametrize("time_of_it", [1, 2])
def test_a_signal_while_the_bar_is_drawn(monkeypatch: pytest.MonkeyPatch, call: str, time_of_it: int) -> None:
    """Wherever in rich it comes: the run is stopped, and the bar is taken away."""
    from rich.console import Console

    from hsbench.cli import progress
    from hsbench.cli.signals import Interruptible, Stopped, held

    real, calls = getattr(Console, call), []

    def signalled(*arguments: object) -> object:
        calls.append(call)
        if len(calls) == time_of_it:
            send(signal.SIGTERM)
        return real(*arguments)

    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(progress, "stderr", lambda: terminal)
    monkeypatch.setattr(Console, call, signalled)
    with Interruptible() as signals, pytest.raises(Stopped), progress.Progress(2, print) as bar:
        bar.cell(0, "a cell")
        with bar.aside():
            pass
    assert (signals.exit_code, held.depth, held.late) == (143, 0, 0)
    assert len(calls) >= time_of_it
    shown = terminal.getvalue()
    assert shown.rindex(CURSOR["shown"]) > shown.rindex(CURSOR["hidden"])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_that_a_finalizer_swallowed_is_still_told() -> None:
    """Python prints what is raised there, and goes on: a long wait asks."""
    from hsbench.cli.signals import Interruptible, Stopped

    class Finalized:
        def __del__(self) -> None:
            send(signal.SIGTERM)

    with Interruptible() as signals:
        signals.check()
        Finalized()
        with pytest.raises(Stopped):
            signals.check()
    assert signals.exit_code == 143


# ---- At the start ------------------------------------------------------------------------------------------
def console_script() -> list[str]:
    """What the installed ``hsbench`` does."""
    project = Path(__file__).parents[2] / "pyproject.toml"  # of the sources, also where hsbench is installed elsewhere
    scripts = tomllib.loads(project.read_text())["project"]["scripts"]
    module, _, function = scripts["hsbench"].partition(":")
    return ["-c", f"import sys\nfrom {module} import {function}\nsys.exit({function}())"]


def start(tmp_path: Path, script: list[str], meets: str, *before: str) -> subprocess.CompletedProcess[str]:
    """A process that meets this while it imports its command line parser."""
    (tmp_path / "typer.py").write_text(f"import os, signal, time\n{meets}\ntime.sleep(60)\n")
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]])}
    command = [*before, sys.executable, *script, "--version"]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=60, check=False)


@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize("script", [["-m", "hsbench"], console_script()], ids=["module", "script"])
def test_a_signal_while_modules_are_imported(tmp_path: Path, script: list[str], number: int) -> None:
    # Where an exception would be swallowed.
    meets = f"try:\n    os.kill(os.getpid(), {number:d}); time.sleep(5)\nexcept BaseException:\n    pass"
    ran = start(tmp_path, script, meets)
    assert (ran.returncode, ran.stdout, ran.stderr) == (CODES[number], "", "hsbench: interrupted\n")


def test_nohup_holds_from_the_start(tmp_path: Path) -> None:
    meets = "os.kill(os.getpid(), signal.SIGHUP); os.kill(os.getpid(), signal.SIGTERM)"
    ran = start(tmp_path, ["-m", "hsbench"], meets, "sh", "-c", 'trap "" HUP; exec "$@"', "sh")
    assert (ran.returncode, ran.stderr) == (143, "hsbench: interrupted\n")


def test_ctrl_c_before_signals_are_handled(monkeypatch: pytest.MonkeyPatch, capsys: object) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hsbench.cli.signals.leave_at_once", interrupt)
    assert entry.main() == 130
    assert capsys.readouterr().err == "hsbench: interrupted\n"


def test_little_is_imported_before_signals_are_handled() -> None:
    """Of what takes long, nothing: typing and typer are most of the first 0.1 s of a command."""
    code = """
import sys
before = set(sys.modules)
from hsbench.cli import signals
slow = {"typing", "typer", "importlib.metadata", "hsbench.cli.main"} & (set(sys.modules) - before)
sys.exit(f"imported {slow}" if slow else 0)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
