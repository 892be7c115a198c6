"""Writing files of tensors: in one step, tensor after tensor, and over nothing but what hsbench itself wrote."""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from hsbench.errors import UsageError
from hsbench.problem.elements import Element

if TYPE_CHECKING:
    import torch

CAPTURE_FORMAT = "hsbench-capture/1"
BASIS_FORMAT = "hsbench-basis/1"
"""What the metadata of our files say that they are."""


@dataclass(frozen=True)
class Entry:
    """A tensor that a file is to hold."""

    name: str
    element: Element
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of it."""
        return self.element.nbytes(math.prod(self.shape))


class TensorWriter:
    """Writes a safetensors file of known tensors one after the other, each as soon as it is there.

    By hand, since ``safetensors.save_file`` takes all tensors at once: the layers of a long context are more than the
    model. The format is a header, which says where each tensor is, and their bytes: https://github.com/huggingface/safetensors

    Args:
        file: empty, open for writing.
        entries: the tensors, in the order in which they will come.
        metadata: of the file.
    """

    def __init__(self, file: BinaryIO, entries: Sequence[Entry], metadata: dict[str, str]) -> None:
        self._file, self._left = file, list(entries)
        header: dict[str, object] = {"__metadata__": metadata}
        end = 0
        for entry in entries:
            start, end = end, end + entry.nbytes
            shown = {"dtype": entry.element.safetensors_name, "shape": entry.shape, "data_offsets": (start, end)}
            header[entry.name] = shown
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)  # so that the tensors are aligned
        file.write(len(text).to_bytes(8, "little") + text)

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """The next tensor.

        Raises:
            ValueError: another is due, or it has another shape or type.
            OSError: the disk is full, or such.
        """
        import torch

        due = self._left.pop(0) if self._left else None
        if due is None or (due.name, due.shape, due.element.torch_dtype) != (name, tuple(tensor.shape), tensor.dtype):
            raise ValueError(f"{name} {list(tensor.shape)} {tensor.dtype} where {due} is due")
        self._file.write(tensor.contiguous().cpu().view(torch.uint8).numpy().data)

    def close(self) -> None:
        """All tensors are written.

        Raises:
            ValueError: some are not.
        """
        if self._left:
            raise ValueError(f"{self._left[0].name} was not written")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside another, which takes its place at the end; after an exception it is gone, and nothing changed."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(descriptor)
    part = Path(name)
    try:
        yield part
        umask = os.umask(0)
        os.umask(umask)
        part.chmod(0o666 & ~umask)  # mkstemp's is for the owner alone
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def format_of(path: Path) -> tuple[str | None, dict[str, str]]:
    """What a safetensors file says that it is, and its metadata; None and nothing of any other file."""
    from safetensors import safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            metadata = dict(file.metadata() or {})
    except Exception:  # safetensors raises its own types, by version
        return None, {}
    return metadata.get("format"), metadata


def check_own(path: Path, format: str) -> None:
    """Make sure that a path is free, or holds what a file of this format may take the place of: one like it.

    Raises:
        UsageError: it holds something else.
    """
    if path.exists() and (not path.is_file() or path.stat().st_size) and format_of(path)[0] != format:
        raise UsageError("output", path, f"holds something that is not {format}; delete it, or name another file")
