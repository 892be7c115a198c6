"""The header of a GGUF file: what model it holds, and whether all of it is there.

Read here and not by ``gguf.GGUFReader``, which takes seconds for a vocabulary: a mistake is to be answered at once. The
format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from hsbench.errors import UnsupportedError, UsageError

_STRING, _ARRAY = 8, 9
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_VERSIONS = (2, 3)
_MOST = 1 << 32  # no count or length in a header is larger; a damaged file's is


@dataclass(frozen=True)
class GgufHeader:
    """What stands before the weights.

    Attributes:
        path: the file.
        fields: metadata that are single values, by key.
        tensors: (ggml type, elements) of each tensor.
    """

    path: Path
    fields: dict[str, Any]
    tensors: tuple[tuple[int, int], ...]

    @property
    def architecture(self) -> str:
        """As the file names it, such as ``llama``."""
        return str(self.fields.get("general.architecture", ""))

    @property
    def parameters(self) -> int:
        """Weights in it."""
        return sum(elements for _, elements in self.tensors)

    def of_architecture(self, key: str) -> Any:
        """A value such as ``context_length`` of the model's architecture; None where it is not said."""
        return self.fields.get(f"{self.architecture}.{key}")


def read_header(path: Path) -> GgufHeader:
    """Read and check a header.

    Raises:
        UsageError: no GGUF file, not a whole one, or one part of several.
        UnsupportedError: a version, a quantisation or an architecture that cannot be read.
    """
    try:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise UsageError("model", path, "not a GGUF file, whatever its name says; give one, or a folder")
            version = _number(file, "<I")
            if version not in _VERSIONS:
                raise UnsupportedError(
                    f"MODEL {path}: GGUF version {version}, but {_VERSIONS} are read; convert it again"
                )
            tensors, fields = _number(file, "<Q"), _number(file, "<Q")
            values = dict(_field(file) for _ in range(_sane(fields)))
            infos = [_tensor(file) for _ in range(_sane(tensors))]
            start = file.tell()
    except (EOFError, UnicodeDecodeError, KeyError) as error:
        raise _damaged(path, f"its header ends or breaks at {error}") from error
    except OSError as error:
        raise UsageError("model", path, f"cannot be read ({error.strerror or error}); check it") from error
    if (parts := values.get("split.count", 1)) > 1:
        raise UsageError("model", path, f"one part of {parts}; join them with llama-gguf-split --merge")
    _check_whole(path, start, int(values.get("general.alignment", 32)), infos)
    return GgufHeader(path, values, tuple((kind, elements) for kind, elements, _ in infos))


def check_supported(header: GgufHeader) -> None:
    """Make sure that transformers can load it. Imports transformers.

    Raises:
        UnsupportedError: it cannot; says what, and what it can.
    """
    import gguf
    import numpy as np
    import transformers
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    def plain(name: str) -> str:
        return name.replace("_", "").replace("-", "").lower()

    others = ("general", "tokenizer")  # sections of a header that stand in the same table
    known = sorted(name for name in GGUF_SUPPORTED_ARCHITECTURES if name not in others)
    if plain(header.architecture) not in map(plain, known):
        what = f"transformers {transformers.__version__} reads no GGUF of the architecture {header.architecture or '?'}"
        raise UnsupportedError(f"MODEL {header.path}: {what}; it reads {', '.join(known)}")
    for kind in sorted({kind for kind, _ in header.tensors}):
        try:
            block = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)][1]
            gguf.dequantize(np.zeros((1, block), dtype=np.uint8), gguf.GGMLQuantizationType(kind))
        except (NotImplementedError, ValueError, KeyError) as error:
            known_kind = kind in {int(known) for known in gguf.GGMLQuantizationType}
            name = gguf.GGMLQuantizationType(kind).name if known_kind else f"type {kind}"
            remedy = "give a file of another quantisation, such as Q8_0 or Q4_K_M"
            raise UnsupportedError(
                f"MODEL {header.path}: gguf cannot dequantise its {name} tensors; {remedy}"
            ) from error


def _check_whole(path: Path, start: int, alignment: int, infos: list[tuple[int, int, int]]) -> None:
    """The last tensor must end within the file; sizes are those of gguf, where it knows the type."""
    import gguf

    first = math.ceil(start / alignment) * alignment
    end, size = first, path.stat().st_size
    for kind, elements, offset in infos:
        try:
            per_block, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
        except (ValueError, KeyError):
            continue
        end = max(end, first + offset + elements // per_block * nbytes)
    if end > size:
        raise _damaged(path, f"{size} of {end} bytes are there")


def _damaged(path: Path, reason: str) -> UsageError:
    return UsageError("model", path, f"not a whole GGUF file ({reason}); copy or download it again")


def _field(file: BinaryIO) -> tuple[str, Any]:
    return _string(file), _value(file, _number(file, "<I"))


def _tensor(file: BinaryIO) -> tuple[int, int, int]:
    """(ggml type, elements, offset)"""
    _string(file)
    sizes = [_number(file, "<Q") for _ in range(_sane(_number(file, "<I")))]
    return _number(file, "<I"), math.prod(sizes), _number(file, "<Q")


def _value(file: BinaryIO, kind: int) -> Any:
    """A value; None for an array, which is passed over."""
    if kind == _STRING:
        return _string(file)
    if kind != _ARRAY:
        return _number(file, _SCALARS[kind])
    of, count = _number(file, "<I"), _sane(_number(file, "<Q"))
    if of in _SCALARS:
        _read(file, count * struct.calcsize(_SCALARS[of]))
    else:
        for _ in range(count):
            _value(file, of)
    return None


def _string(file: BinaryIO) -> str:
    return _read(file, _number(file, "<Q")).decode(errors="replace")


def _number(file: BinaryIO, form: str) -> Any:
    return struct.unpack(form, _read(file, struct.calcsize(form)))[0]


def _read(file: BinaryIO, count: int) -> bytes:
    data = file.read(_sane(count))
    if len(data) < count:
        raise EOFError(f"byte {file.tell()}")
    return data


def _sane(count: int) -> int:
    if count >= _MOST:
        raise EOFError(f"a length of {count}")
    return count
