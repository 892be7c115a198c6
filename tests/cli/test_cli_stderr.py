"""Results do not depend on stderr: what cannot be said there is dropped, and nothing else changes."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hsbench.cli import streams
from hsbench.cli.main import main
from hsbench.results import COLUMNS

Run = Callable[..., object]
TINY = [
    "--seq", "512", "--q-heads", "4", "--kv-heads", "2", "--head-dim", "64", "--methods", "dense:16bit",
    "--device", "cpu", "--time", "0.1",
]  # fmt: skip


class Broken(io.StringIO):
    """A stream that takes nothing while it has an error, and may be a terminal that hangs up."""

    def __init__(self, error: Exception | None, terminal: bool) -> None:
        super().__init__()
        self.error, self.terminal = error, terminal

    def write(self, text: str) -> int:
        self.flush()
        return super().write(text)

    def flush(self) -> None:
        if self.error is not None:
            raise self.error

    def isatty(self) -> bool:
        return self.terminal


def broken(kind: str) -> io.StringIO | None:
    if kind == "none":
        return None
    if kind == "closed":
        stream = io.StringIO()
        stream.close()
        return stream
    numbers = {"gone": errno.EPIPE, "full": errno.ENOSPC, "hung up": errno.EIO}
    return Broken(OSError(numbers[kind], os.strerror(numbers[kind])), terminal=kind == "hung up")


@pytest.mark.parametrize("kind", ["none", "closed", "gone", "full", "hung up"])
@pytest.mark.parametrize(
    ("statuses", "code"), [(["ok", "ok"], 0), (["ok", "incorrect"], 3), (["unavailable", "oom"], 4)]
)
def test_results_and_exit_code_stay(
    bench: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, statuses: list[str], code: int
) -> None:
    bench.rows = lambda workload: list(zip(("dense", "hierarchical"), statuses, strict=True))
    bench.before = lambda call: bench.calls[-1]["observer"].warning(f"the machine is shared, {call}")
    path = tmp_path / "r.csv"
    monkeypatch.setattr("sys.stderr", broken(kind))
    argv = ["compare", "--workload", "Mistral-7B-v0.3", "--seq", "128k,33k", "--output", str(path)]
    assert main(argv) == code
    with path.open() as file:
        assert [row["status"] for row in csv.DictReader(file)] == statuses * 2
    assert len(json.loads((tmp_path / "r.manifest.json").read_text())["run"]["cells"]) == 2


@pytest.mark.parametrize("kind", ["none", "closed", "gone", "full", "hung up"])
def test_errors_keep_their_exit_code(bench: object, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    def end(error: type[BaseException]) -> Callable[[int], None]:
        def raise_it(call: int) -> None:
            raise error

        return raise_it

    monkeypatch.setattr("sys.stderr", broken(kind))
    assert main(["decode", "--seq", "x"]) == 2
    assert main(["decode", "--device", "cuda"]) == 4
    bench.before = end(ZeroDivisionError)
    monkeypatch.setenv("HSBENCH_TRACEBACK", "1")
    assert main(["decode"]) == 1
    bench.before = end(KeyboardInterrupt)
    assert main(["decode"]) == 130


def test_a_profile_is_said_to_nobody(
    bench: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from hsbench import profiling

    made = []
    monkeypatch.setattr(profiling.PROFILERS["torch"], "make", lambda self, job, wanted: made.append(job) or [])
    monkeypatch.setattr("sys.stderr", broken("gone"))
    argv = ["decode", "--profiler", "torch", "--profile-dir", str(tmp_path), "--format", "csv"]
    assert main(argv) == 0
    assert len(made) == 1 and capsys.readouterr().out.count("\n") == 3


def test_a_stream_that_recovers_is_heard_again() -> None:
    below = Broken(BlockingIOError(errno.EAGAIN, "would block"), terminal=False)
    stream = streams.Tolerant(below)
    print("lost", file=stream)
    below.error = None
    print("heard", file=stream, flush=True)
    assert below.getvalue() == "heard\n"


# ---- For real ----------------------------------------------------------------------------------------------
@contextmanager
def stderr_of(kind: str) -> Iterator[tuple[list[str], int | None]]:
    """Words to put before a command, and the descriptor to give it as stderr, so that it has such a one."""
    if kind == "closed":
        yield ["sh", "-c", 'exec "$@" 2>&-', "sh"], None
    elif kind == "all closed":
        yield ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"], None
    else:
        if kind == "full":
            if not Path("/dev/full").exists():
                pytest.skip("no /dev/full")
            descriptor = os.open("/dev/full", os.O_WRONLY)
        else:
            read, descriptor = os.pipe()
            os.close(read)
        try:
            yield [], descriptor
        finally:
            os.close(descriptor)


def spawn(kind: str, *argv: str) -> subprocess.CompletedProcess[bytes]:
    with stderr_of(kind) as (before, stderr):
        command = [*before, sys.executable, "-m", "hsbench", *argv]
        return subprocess.run(command, stdout=subprocess.PIPE, stderr=stderr, timeout=120, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gone", "full", "all closed"])
def test_a_process_writes_its_results(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "r.csv"
    ran = spawn(kind, "decode", *TINY, "--output", str(path))
    assert (ran.returncode, ran.stdout) == (0, b"")
    with path.open() as file:
        header, row = csv.reader(file)  # nothing else: a file that becomes descriptor 2 gets what is said there
    assert tuple(header) == COLUMNS and len(row) == len(COLUMNS)
    assert json.loads((tmp_path / "r.manifest.json").read_text())["run"]["cells"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gone", "full", "closed"])
def test_a_process_keeps_its_exit_code(kind: str) -> None:
    ran = spawn(kind, "decode", "--sparsity", "0.7")
    assert (ran.returncode, ran.stdout) == (2, b"")


@pytest.mark.parametrize("argv", [["decode", *TINY], ["decode", *TINY, "--output", "-"], ["doctor"]])
def test_a_closed_stdout_is_an_error_before_any_work(argv: list[str]) -> None:
    code = f"""
import sys
from hsbench.cli.main import main
assert main({argv!r}) == 1
assert "torch" not in sys.modules
"""
    command = ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-c", code]
    ran = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.startswith("hsbench: error: stdout is closed: ") and ran.stderr.count("\n") == 1
