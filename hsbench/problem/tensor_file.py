"""Opening a file of captured tensors; where it is none, saying what it is instead and what to do.

A file is told by its content, not by its name, and only once safetensors has refused it: the common case reads nothing
twice.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from pathlib import Path
from typing import Any

from hsbench.errors import HsbenchError, UnavailableError, UsageError
from hsbench.measure.out_of_memory import is_out_of_memory

SAVE = "save q, k and v with safetensors.torch.save_file, as layers.N.q, layers.N.k and layers.N.v"

_WEIGHTS = f"a model's weights, not captured tensors; run the model and {SAVE}"
_BY_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"GGUF", f"a GGUF file, {_WEIGHTS}"),
    (b"\x93NUMPY", f"a NumPy array (.npy); load it with numpy.load and {SAVE}"),
    (b"\x89HDF\r\n", f"an HDF5 file; read its tensors and {SAVE}"),
    (b"version https://git-lfs", "a Git LFS pointer in place of the file; fetch it with git lfs pull"),
    (b"\x1f\x8b", "compressed (gzip); decompress it first"),
    (b"\x28\xb5\x2f\xfd", "compressed (zstd); decompress it first"),
    (b"\xfd7zXZ", "compressed (xz); decompress it first"),
)
_PICKLE = re.compile(rb"\x80[\x02-\x05]", re.DOTALL)
_TORCH = f"made by torch.save, not by safetensors; load it with torch.load and {SAVE}"
_INDEX_BYTES = 64 << 20  # a larger JSON file is not read


def open_safetensors(path: Path, framework: str) -> Any:
    """``safetensors.safe_open``.

    Raises:
        UsageError: there is no such file, it cannot be read, or it is something else: says what, and the remedy.
    """
    from safetensors import safe_open

    shown = os.fsencode(path).decode(errors="backslashreplace")
    if shown != str(path):
        raise UsageError("kv", shown, "the path is not UTF-8, which safetensors needs; rename the file or link to it")
    try:
        if not path.exists():
            raise UsageError("kv", path, "no such file; give a safetensors file with layers.N.q, .k and .v")
        if path.is_dir():
            raise UsageError("kv", path, f"a folder, not a file; {_files_of(path)}")
        if not path.is_file():
            raise UsageError("kv", path, "not a regular file; give a safetensors file with layers.N.q, .k and .v")
        return safe_open(path, framework=framework)
    except UsageError:
        raise
    except OSError as error:
        if is_out_of_memory(error):
            raise damaged(path, error) from error
        remedy = f"cannot be read ({error.strerror or error}); check its name and permissions"
        raise UsageError("kv", path, remedy) from error
    except Exception as error:  # safetensors raises its own types, by version
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> HsbenchError:
    """What to say of a file that safetensors cannot read; where there was no room to map it, that is not its fault."""
    if is_out_of_memory(error):
        reason = " ".join(str(error).split())
        return UnavailableError(f"--kv {path}: no room in memory for it ({reason}): raise the limit (see ulimit -v)")
    if (what := _what_it_is(path)) is not None:
        return UsageError("kv", path, what)
    reason = " ".join(str(error).split())
    return UsageError("kv", path, f"not a whole safetensors file ({reason}); save or copy it again")


def holds_no_layer(path: Path, names: set[str]) -> UsageError:
    """What to say of a safetensors file without ``layers.N.*``."""
    if any(name.endswith((".weight", ".bias")) for name in names):
        return UsageError("kv", path, f"holds {_WEIGHTS}")
    return UsageError("kv", path, "holds no layer; save layers.N.q, layers.N.k and layers.N.v")


def _files_of(folder: Path) -> str:
    files = sorted(file.name for file in folder.glob("*.safetensors"))
    if not files:
        return "it holds no .safetensors file; give one with layers.N.q, .k and .v"
    return f"give one of the files in it, such as {folder / files[0]}"


def _what_it_is(path: Path) -> str | None:
    """What a file is that is not safetensors, with the remedy; None if that cannot be told."""
    try:
        with path.open("rb") as file:
            head = file.read(32)
        if head.startswith(b"PK\x03\x04"):
            return _archive(path)
        if head.lstrip().startswith(b"{"):
            return _json(path)
    except OSError:
        return None
    if _PICKLE.match(head):
        return _TORCH
    return next((what for magic, what in _BY_MAGIC if head.startswith(magic)), None)


def _archive(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        return f"a damaged zip archive, such as torch.save makes; make it again, then {SAVE}"
    if any(Path(name).name == "data.pkl" for name in names):
        return _TORCH
    if names and all(name.endswith(".npy") for name in names):
        return f"NumPy arrays (.npz); load them with numpy.load and {SAVE}"
    return "a zip archive; extract it first"


def _json(path: Path) -> str | None:
    """Of a JSON file: most likely the index of a model in several files, which lies beside them."""
    try:
        document = json.loads(path.read_bytes()) if path.stat().st_size <= _INDEX_BYTES else None
    except ValueError:  # not JSON after all; UnicodeDecodeError is one too
        return None
    shards = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(shards, dict):
        return f"a JSON file, not tensors; {SAVE}"
    captured = sorted({str(file) for name, file in shards.items() if re.fullmatch(r"layers\.\d+\.[qkv]", name)})
    if captured:
        return f"an index of safetensors files, not one of them; give the file that holds the layer: {captured[0]}"
    return f"the index of {_WEIGHTS}"
