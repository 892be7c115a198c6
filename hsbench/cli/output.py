"""Where results go: stdout, or a file that is touched only once there is a result to write."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from hsbench.cli.parse import flag, parse_choice
from hsbench.cli.places import FORMATS, check_writable, format_of, is_file, names_stdout, open_for_writing, same
from hsbench.cli.streams import discard
from hsbench.errors import HsbenchError, UsageError

if TYPE_CHECKING:
    from hsbench.report import Writer
    from hsbench.results import Reported, Result, Row


def make_output(
    typed_output: str | None,
    typed_format: str | None,
    typed_manifest: str | None,
    default_format: str,
    inputs: Iterable[tuple[str, Path]],
) -> Output:
    """Where results and their manifest go; nothing is written yet.

    Args:
        typed_output, typed_format, typed_manifest: the options as they were typed.
        inputs: files that are read, each with the field that names it; none of them may be written over.

    Raises:
        UsageError: an unknown format, or a path that cannot or must not be written.
        HsbenchError: results go to stdout, which is closed.
    """
    output = None if typed_output is None or names_stdout(typed_output) else Path(typed_output)
    targets: dict[Path, str] = {}
    if output is None:
        results_stdout()
    else:
        check_writable(output)
        targets[output] = "--output"
    manifest = None
    if typed_manifest is not None:
        if names_stdout(typed_manifest):
            raise UsageError("manifest", typed_manifest, "stdout is for results; name a file")
        manifest = Path(typed_manifest)
        check_writable(manifest, "manifest")
        if output is not None and same(manifest, output):
            raise UsageError("manifest", manifest, "is the file of --output; give another")
        targets[manifest] = "--manifest"
    inputs = tuple(inputs)
    for field, path in inputs:
        for target, given in targets.items():
            if same(target, path):
                raise UsageError(given, target, f"is the file of {flag(field)}; give another")
    if typed_format is None:
        format = format_of(output, default_format)
    else:
        format = parse_choice(typed_format, "format", FORMATS)
    if format == "parquet":
        _check_parquet(output, typed_output)
    if manifest is None and format == "csv" and output is not None and is_file(output):
        manifest = _manifest_beside(output, inputs)
    return Output(format, output, manifest)


def _check_parquet(output: Path | None, typed: str | None) -> None:
    if output is None or not is_file(output):
        raise UsageError("output", typed or "-", "Parquet is a file of its own; give --output FILE.parquet")
    from hsbench.results import parquet

    parquet.require()


def _manifest_beside(output: Path, inputs: Iterable[tuple[str, Path]]) -> Path:
    manifest = output.with_suffix(".manifest.json")
    try:
        check_writable(manifest)
    except UsageError as error:
        raise UsageError("output", output, f"its manifest {manifest} {error.remedy}, with --manifest") from error
    for field, path in inputs:
        if same(manifest, path):
            remedy = f"its manifest would be {manifest}, the file of {flag(field)}; give another, or --manifest PATH"
            raise UsageError("output", output, remedy)
    return manifest


class Output:
    """Writes results in a format, each as it comes, to a file or to stdout; a context manager.

    A file is opened, and what it held is dropped, when the first result arrives: a run that fails before that
    leaves it as it was. The manifest is written right before, so that whoever has a row has it too.

    Attributes:
        manifest: for the caller to fill before the first result where `wants_manifest`.
        rows: the kind of rows, for the caller to say where it is not that of `decode`, `prefill` and `compare`.
        kept: rows of the file, where it goes on: they are in it at every moment.

    Raises:
        HsbenchError: the disk is full, or such.
        BrokenPipeError: the reader of stdout is gone.
    """

    def __init__(self, format: str, path: Path | None, manifest_path: Path | None = None) -> None:
        self.format, self.path, self.manifest_path = format, path, manifest_path
        self.manifest: dict[str, Any] | None = None
        self.rows: type[Row[Any, Any]] | None = None
        self.kept: Sequence[Reported] = ()
        self._stream: TextIO | None = None
        self._writer: Writer | None = None

    @property
    def wants_manifest(self) -> bool:
        """Whether there is a place for a manifest: a file, or a JSON document."""
        return self.manifest_path is not None or self.format in ("json", "parquet")

    def begin(self) -> None:
        """Write what comes before the first result, and what is kept."""
        with writing(self.path):
            self._open()

    def row(self, result: Result[Any]) -> None:
        """Write one result, if its format shows single rows."""
        with writing(self.path):
            self._open().row(result)

    def report(self, report: Reported) -> None:
        """Write what of a report is not written yet."""
        with writing(self.path):
            self._open().report(report)

    def __enter__(self) -> Output:
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
        from hsbench.report import parquet_writer, writer_for
        from hsbench.results import Record

        if self._writer is None:
            if self.manifest_path is not None and self.manifest is not None:
                with writing(self.manifest_path, "--manifest"), open_for_writing(self.manifest_path) as file:
                    file.write(json.dumps(self.manifest, indent=2) + "\n")
            rows = self.rows or Record
            if self.format == "parquet" and self.path is not None:
                self._writer = parquet_writer(self.path, self.manifest, rows)
                self._writer.keep(self.kept)
            elif self.path is not None and self.kept:
                # What is kept takes the file's place whole.
                beside = self.path.with_name(f".{self.path.name}.unfinished")
                self._stream = open_for_writing(beside)
                self._writer = writer_for(self.format, self._stream, self.manifest, rows)
                self._writer.keep(self.kept)
                os.replace(beside, self.path)
            else:
                self._stream = results_stdout() if self.path is None else open_for_writing(self.path)
                self._writer = writer_for(self.format, self._stream, self.manifest, rows)
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
