"""What ``--output`` and ``--manifest`` name: a file, stdout, another descriptor of this process; and its format."""

from __future__ import annotations

import fcntl
import os
import re
from pathlib import Path
from typing import TextIO

from hsbench.errors import UsageError

FORMATS = ("table", "csv", "json", "parquet", "markdown")
_ENDINGS = {
    ".csv": "csv",
    ".json": "json",
    ".parquet": "parquet",
    ".md": "markdown",
    ".markdown": "markdown",
    ".txt": "table",
}
_SAYS_NOTHING = ("", ".", ".out", ".log")  # endings, or none, that go with any format

_STANDARD = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}


def format_of(path: Path | None, default: str) -> str:
    """The format where none was asked for: what the file's name ends in.

    That of the command is for stdout, and for a name with no ending or one that goes with any format.

    Raises:
        UsageError: an ending that is no format's.
    """
    ending = "" if path is None else path.suffix.lower()
    if ending in _SAYS_NOTHING:
        return default
    if ending not in _ENDINGS:
        remedy = f"{ending} is the ending of no format; end it in .txt, .csv, .json, .parquet or .md, or give --format"
        raise UsageError("output", path, remedy)
    return _ENDINGS[ending]


def names_stdout(typed: str) -> bool:
    """Whether what was typed means stdout: ``-``, ``/dev/stdout``, ``/dev/fd/1`` and their like."""
    return typed == "-" or descriptor_of(Path(typed)) == 1


def descriptor_of(path: Path) -> int | None:
    """The descriptor of this process that a path names, through links, too; None for any other path.

    What is behind the descriptor does not matter: ``/dev/stdout`` may be a regular file, and is stdout nevertheless.
    """
    ours = rf"/dev/fd/(\d+)|/proc/(?:self|thread-self|{os.getpid()})/fd/(\d+)"
    name = os.fspath(path)
    for _ in range(8):  # links that lead nowhere end
        name = "/" + os.path.abspath(name).lstrip("/")
        if name in _STANDARD:
            return _STANDARD[name]
        if found := re.fullmatch(ours, name):
            return int(found[1] or found[2])
        try:
            name = os.path.join(os.path.dirname(name), os.readlink(name))
        except OSError:  # no link, or not ours to read
            return None
    return None


def is_file(path: Path) -> bool:
    """Whether a path is, or will be, a regular file of its own, so that others can be named after it."""
    return descriptor_of(path) is None and (path.is_file() or not path.exists())


def open_for_writing(path: Path) -> TextIO:
    """A text file, emptied; or what a descriptor of this process leads to, as it is and from where it stands.

    Lines end as they are written, on every system.
    """
    descriptor = descriptor_of(path)
    if descriptor is None:
        return path.open("w", encoding="utf-8", newline="")
    # Not by its name: that would empty a file which others write, and fails for a socket. "a": nothing of it is ours
    # to rewind.
    return open(os.dup(descriptor), "a", encoding="utf-8", newline="")


def check_writable(path: Path, field: str = "output") -> None:
    """Make sure that a file can be written, without changing it or leaving one behind.

    Raises:
        UsageError: a directory, in no directory, or not writable.
    """
    if path.is_dir():
        raise UsageError(field, path, f"is a directory; name a file in it, such as {path / 'results.csv'}")
    if not path.parent.is_dir():
        raise UsageError(field, path, f"there is no directory {path.parent}; create it first")
    try:
        if (descriptor := descriptor_of(path)) is not None:
            if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
                raise PermissionError(13, "open for reading only")
        elif path.is_file():
            with path.open("r+b"):
                pass
        elif not path.exists():
            path.open("xb").close()
            path.unlink()
        elif not os.access(path, os.W_OK):  # a pipe or a device: opening it might block
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        remedy = f"cannot be written ({error.strerror or error}); give a path that can"
        raise UsageError(field, path, remedy) from error


def check_creatable(folder: Path, field: str) -> None:
    """Make sure that files can be put into a folder, or that it can be made, without making it.

    Raises:
        UsageError: it is, or lies below, something that is no folder; or it cannot be written.
    """
    try:
        above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not above.is_dir():
            raise UsageError(field, folder, f"{above} is not a folder; give another")
        if not os.access(above, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        remedy = f"cannot be written ({error.strerror or error}); give a folder that can"
        raise UsageError(field, folder, remedy) from error


def same(one: Path, other: Path) -> bool:
    """Whether two paths are one file."""
    return one.resolve() == other.resolve() or (one.exists() and other.exists() and one.samefile(other))
