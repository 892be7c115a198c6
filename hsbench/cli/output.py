"""Where results go: stdout, or a file that is touched only once there is a result to write."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from hsbench.cli.streams import discard
from hsbench.errors import HsbenchError, UsageError
from hsbench.workload import parse_choice

if TYPE_CHECKING:
    from hsbench.report import Report, Result, Writer

FORMATS = ("table", "csv", "json", "markdown")
_SUFFIXES = {".csv": "csv", ".json": "json", ".md": "markdown", ".markdown": "markdown", ".txt": "table"}


def format_of(path: Path | None, default: str) -> str:
    """The format where none was asked for: what the file's name ends in, else the command's own."""
    return default if path is None else _SUFFIXES.get(path.suffix.lower(), default)


def check_writable(path: Path, option: str = "--output") -> None:
    """Make sure that a file can be written, without changing it or leaving one behind.

    Raises:
        UsageError: a directory, in no directory, or not writable.
    """
    if path.is_dir():
        raise UsageError(option, path, f"is a directory; name a file in it, such as {path / 'results.csv'}")
    if not path.parent.is_dir():
        raise UsageError(option, path, f"there is no directory {path.parent}; create it first")
    try:
        if path.is_file():
            with path.open("r+b"):
                pass
        elif not path.exists():
            path.open("xb").close()
            path.unlink()
        elif not os.access(path, os.W_OK):  # a pipe or a device: opening it might block
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        remedy = f"cannot be written ({error.strerror or error}); give a path that can"
        raise UsageError(option, path, remedy) from error


def check_creatable(folder: Path, option: str) -> None:
    """Make sure that files can be put into a folder, or that it can be made, without making it.

    Raises:
        UsageError: it is, or lies below, something that is no folder; or it cannot be written.
    """
    try:
        above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not above.is_dir():
            raise UsageError(option, folder, f"{above} is not a folder; give another")
        if not os.access(above, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        remedy = f"cannot be written ({error.strerror or error}); give a folder that can"
        raise UsageError(option, folder, remedy) from error


def make_sink(
    typed_output: str | None,
    typed_format: str | None,
    typed_manifest: str | None,
    default_format: str,
    inputs: Iterable[tuple[str, Path]],
) -> Sink:
    """Where results and their manifest go; nothing is written yet.

    Args:
        typed_output, typed_format, typed_manifest: the options as they were typed.
        inputs: files that are read, with the options that name them; none of them may be written over.

    Raises:
        UsageError: an unknown format, or a path that cannot or must not be written.
        HsbenchError: results go to stdout, which is closed.
    """
    output = None if typed_output is None else Path(typed_output)
    if typed_format is None:
        format = format_of(output, default_format)
    else:
        format = parse_choice(typed_format, "--format", FORMATS)
    targets = {}
    if output is None:
        results_stdout()
    else:
        check_writable(output)
        targets[output] = "--output"
    manifest, beside = None, False
    if typed_manifest is not None:
        manifest = Path(typed_manifest)
        check_writable(manifest, "--manifest")
        if output is not None and _same(manifest, output):
            raise UsageError("--manifest", manifest, "is the file of --output; give another")
        targets[manifest] = "--manifest"
    elif format == "csv" and output is not None and (output.is_file() or not output.exists()):
        manifest, beside = output.with_suffix(".manifest.json"), True
        try:
            check_writable(manifest)
        except UsageError as error:
            remedy = f"its manifest {manifest} {error.remedy}, with --manifest"
            raise UsageError("--output", output, remedy) from error
    for option, path in inputs:
        for target, given in targets.items():
            if _same(target, path):
                raise UsageError(given, target, f"is the file of {option}; give another")
        if beside and _same(manifest, path):
            remedy = f"its manifest would be {manifest}, the file of {option}; give another, or --manifest PATH"
            raise UsageError("--output", output, remedy)
    return Sink(format, output, manifest)


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve() or (one.exists() and other.exists() and one.samefile(other))


class Sink:
    """Writes results in a format, each as it comes, to a file or to stdout; a context manager.

    A file is opened, and what it held is dropped, when the first result arrives: a run that fails before that
    leaves it as it was. The manifest is written right before, so that whoever has a row has it too.

    Attributes:
        manifest: for the caller to fill before the first result where `wants_manifest`.

    Raises:
        HsbenchError: the disk is full, or such.
        BrokenPipeError: the reader of stdout is gone.
    """

    def __init__(self, format: str, path: Path | None, manifest_path: Path | None = None) -> None:
        self.format, self.path, self.manifest_path = format, path, manifest_path
        self.manifest: dict[str, Any] | None = None
        self._stream: TextIO | None = None
        self._writer: Writer | None = None

    @property
    def wants_manifest(self) -> bool:
        """Whether there is a place for a manifest: a file, or a JSON document."""
        return self.manifest_path is not None or self.format == "json"

    def row(self, result: Result) -> None:
        """Write one result, if its format shows single rows."""
        with writing(self.path):
            self._open().row(result)

    def report(self, report: Report) -> None:
        """Write what of a report is not written yet."""
        with writing(self.path):
            self._open().report(report)

    def __enter__(self) -> Sink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, BrokenPipeError):
            return  # the ending of the document has no reader either
        with writing(self.path):
            try:
                if self._writer is not None:
                    self._writer.close()
            finally:
                if self._stream is not None and self.path is not None:
                    self._stream.close()

    def _open(self) -> Writer:
        from hsbench.report import writer_for

        if self._writer is None:
            if self.manifest_path is not None and self.manifest is not None:
                with writing(self.manifest_path, "--manifest"):
                    self.manifest_path.write_text(json.dumps(self.manifest, indent=2) + "\n", encoding="utf-8")
            # newline="": lines end as the writer ends them, on every system.
            stream = results_stdout() if self.path is None else self.path.open("w", encoding="utf-8", newline="")
            self._stream, self._writer = stream, writer_for(self.format, stream, self.manifest)
        return self._writer


def results_stdout(remedy: str = "give --output FILE") -> TextIO:
    """Stdout, where it can take results.

    Raises:
        HsbenchError: it was closed when the process started.
    """
    if sys.stdout is None:
        raise HsbenchError(f"stdout is closed: {remedy}")
    return sys.stdout


@contextlib.contextmanager
def writing(path: Path | None = None, option: str = "--output") -> Iterator[None]:
    """Explain a failure to write to a file, or to stdout where there is none.

    Raises:
        HsbenchError: the disk is full, the reader of a pipe that was named is gone, or such.
        BrokenPipeError: the reader of stdout is gone; to nobody, nothing needs explaining.
    """
    try:
        yield
    except OSError as error:
        if path is None:
            discard(sys.stdout)
            if isinstance(error, BrokenPipeError):
                raise
        where = "stdout" if path is None else f"{option} {path}"
        remedy = f"cannot be written ({error.strerror or error}); results from there on are lost"
        raise HsbenchError(f"{where}: {remedy}") from error
