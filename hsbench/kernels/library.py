"""The compiled part: loads libhsbench_cpu and libhsbench_cuda on first use, and speaks their C ABI.

``csrc/params.h`` is the one source of truth for the structs: a copy of it lies beside the libraries, the ctypes
structures are read from it, and a library that was built from another version of it is refused.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import re
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from hsbench.errors import HsbenchError, UnavailableError
from hsbench.kernels import installation
from hsbench.kernels.device import Device

LIB = Path(__file__).parents[1] / "lib"

KEY, VALUE = 0, 1
ISAS = {"auto": 0, "portable": 1, "avx2": 2, "avx512": 3, "avx512_bf16": 4}
"""hsb_isa by name. The environment variable HSBENCH_ISA forces one of them."""
PATHS = {"auto": 0, "sm80": 1, "sm90": 2}
"""hsb_path by name: which CUDA prefill kernel."""
PROBE_WAYS = {"loads": 1, "ring": 2}
"""hsb_probe_way by name: how the CUDA probe reads."""

_C_TYPES: dict[str, Any] = {
    "int32_t": ctypes.c_int32,
    "int64_t": ctypes.c_int64,
    "float": ctypes.c_float,
    "double": ctypes.c_double,
}


class NativeError(HsbenchError):
    """A compiled operation failed; the message carries file, line and condition."""


@functools.cache
def structs() -> dict[str, type[ctypes.Structure]]:
    """ctypes structures by name, read from the params.h that was installed with the libraries."""
    found: dict[str, type[ctypes.Structure]] = {}
    for name, body in re.findall(r"typedef struct (\w+) \{(.*?)\}", _declarations(), flags=re.S):
        fields = []
        for declaration in filter(None, (part.strip() for part in body.split(";"))):
            match = re.fullmatch(r"(?:const )?(\w+)\s+(\*?)(\w+)", declaration)
            if match is None:
                raise NativeError(f"params.h: cannot read {declaration!r} in {name}")
            base, star, field = match.groups()
            fields.append((field, ctypes.c_void_p if star else _C_TYPES.get(base) or found[base]))
        found[name] = type(name, (ctypes.Structure,), {"_fields_": fields})
    return found


@functools.cache
def constants() -> dict[str, int]:
    """The enumerators of params.h by name, such as ``HSB_KIND_BITS``.

    Raises:
        NativeError: an enumerator does not say its value as a number.
        UnavailableError: there is no params.h beside the libraries.
    """
    found: dict[str, int] = {}
    for name, body in re.findall(r"enum (\w+) \{(.*?)\};", _declarations(), flags=re.S):
        for enumerator in filter(None, (part.strip() for part in body.split(","))):
            match = re.fullmatch(r"(\w+)\s*=\s*(-?\d+)", enumerator)
            if match is None:
                raise NativeError(f"params.h: cannot read {enumerator!r} in {name}")
            found[match[1]] = int(match[2])
    return found


def make(name: str, **fields: Any) -> ctypes.Structure:
    """A filled struct of params.h. Tensors become their data pointers: the caller keeps them alive."""
    struct = structs()[name]()
    known = {field for field, *_ in struct._fields_}
    for field, value in fields.items():
        if field not in known:
            raise NativeError(f"{name} has no field {field}")
        setattr(struct, field, value.data_ptr() if hasattr(value, "data_ptr") else value)
    return struct


class Library:
    """One loaded library, checked against params.h.

    Raises:
        UnavailableError: it is not there, does not load, or is stale; the message has the remedy.
    """

    def __init__(self, kind: str) -> None:
        path = LIB / f"libhsbench_{kind}.so"
        if not path.exists():
            raise _unusable(kind, "was not built")
        try:
            self._library = ctypes.CDLL(str(path))
        except OSError as error:
            raise _unusable(kind, f"does not load ({error})") from error
        self._library.hsb_abi.restype = ctypes.c_char_p
        self._library.hsb_last_error.restype = ctypes.c_char_p
        self._library.hsb_struct_size.restype = ctypes.c_int64
        stale = self._library.hsb_abi().decode() != hashlib.sha256(_header()).hexdigest()
        stale = stale or any(
            self._library.hsb_struct_size(name.encode()) != ctypes.sizeof(struct) for name, struct in structs().items()
        )
        if stale:
            raise _unusable(kind, "is from another version of hsbench")

    def has(self, function: str) -> bool:
        """Whether the library exports a function."""
        return hasattr(self._library, function)

    def call(self, function: str, params: ctypes.Structure) -> None:
        """Runs an operation (the GIL is released meanwhile); raises :class:`NativeError` if it fails."""
        if getattr(self._library, function)(ctypes.byref(params)):
            raise NativeError(f"{function}: {self._library.hsb_last_error().decode()}")

    def text(self, function: str) -> str | None:
        """Asks for a fixed string; None from a library that does not have it."""
        if not self.has(function):
            return None
        ask = getattr(self._library, function)
        ask.restype = ctypes.c_char_p
        return ask().decode()

    def number(self, function: str, params: ctypes.Structure | None = None) -> int:
        """Asks for a number, such as a workspace's bytes; raises :class:`NativeError` if it is negative."""
        ask = getattr(self._library, function)
        ask.restype = ctypes.c_int64
        value = int(ask(ctypes.byref(params)) if params is not None else ask())
        if value < 0:
            raise NativeError(f"{function}: {self._library.hsb_last_error().decode()}")
        return value


class Operation:
    """An operation of the library for a device, such as ``decode``, and the scratch memory that it wants, if any.

    Raises:
        UnavailableError: there is no library for the device, or it has no such operation.
    """

    def __init__(self, name: str, device: Any, params: ctypes.Structure) -> None:
        from hsbench.kernels import memory

        self._library, self._function = load(device.type), f"hsb_{device.type}_{name}"
        if not self._library.has(self._function):
            raise UnavailableError(f"hsbench has no {name} kernel for {device.type} tensors yet")
        self._device, self.params = device, params
        wants = f"{self._function}_workspace"
        if self._library.has(wants):
            with current(device):  # how much a GPU's kernels want depends on the GPU
                size = self._library.number(wants, params)
            self._workspace = memory.scratch(size, device)
            params.workspace = self._workspace.data_ptr()

    def run(self) -> None:
        """Runs it; on CUDA, on the stream that is current now."""
        with current(self._device):
            if self._device.type == "cuda":
                import torch

                self.params.stream = torch.cuda.current_stream(self._device).cuda_stream
            self._library.call(self._function, self.params)


@functools.cache
def load(kind: str) -> Library:
    """``load("cpu")`` or ``load("cuda")``, loaded once. Raises :class:`UnavailableError`."""
    return Library(kind)


def on_device(device: Any) -> dict[str, int]:
    """The struct fields that say how an operation runs on a torch.device: threads and instruction set on the CPU."""
    return {"threads": threads(), "isa": requested_isa()} if device.type == "cpu" else {}


def current(device: Any) -> AbstractContextManager[Any]:
    """Makes a torch.device the current one, which is where a CUDA kernel runs; nothing to do on the CPU."""
    if device.type != "cuda":
        return nullcontext()
    import torch

    return torch.cuda.device(device)


def why_missing(kind: str) -> str | None:
    """Why a library cannot be used, with the remedy; None if it can."""
    try:
        load(kind)
    except UnavailableError as error:
        return str(error)
    return None


def best_isa() -> str:
    """The instruction set that CPU kernels use: the best of the machine, or what HSBENCH_ISA forces."""
    return next(name for name, value in ISAS.items() if value == requested_isa(resolve=True))


def requested_isa(*, resolve: bool = False) -> int:
    """The hsb_isa to pass to kernels. Raises :class:`UnavailableError` for an HSBENCH_ISA that cannot run here."""
    best = load("cpu").number("hsb_cpu_best_isa")
    name = os.environ.get("HSBENCH_ISA", "auto")
    if name not in ISAS or ISAS[name] > best:
        can = [isa for isa, value in ISAS.items() if value <= best]
        raise UnavailableError(f"HSBENCH_ISA={name} cannot run on this processor: use one of {', '.join(can)}")
    return best if resolve and name == "auto" else ISAS[name]


def threads() -> int:
    """Threads that CPU kernels use: torch's own number (OMP_NUM_THREADS, torch.set_num_threads), so that both sides
    of a comparison have the same."""
    import torch

    return torch.get_num_threads()


def why_cannot(operation: str, device: Device) -> str | None:
    """Why an operation, such as ``decode``, cannot run on a device here; None if it can."""
    reason = why_missing(device.kind)
    if reason is None and not load(device.kind).has(f"hsb_{device.kind}_{operation}"):
        return f"hsbench has no {operation} kernel for {device} yet: use another --device"
    return reason


def _declarations() -> str:
    """params.h without its comments."""
    return re.sub(r"/\*.*?\*/", "", _header().decode(), flags=re.S)


@functools.cache
def _header() -> bytes:
    path = LIB / "params.h"
    if not path.exists():
        raise _shadowing(path.name, f"that tree has no {LIB.name}/{path.name}") or UnavailableError(
            f"{path} is missing: hsbench was not installed by pip; run `pip install .` in its source folder"
        )
    return path.read_bytes()


def _unusable(kind: str, fault: str) -> UnavailableError:
    """What to say of a library that "was not built", say. Behind the last ": " stands the remedy."""
    needs = {"cpu": "a C++17 compiler (g++ or clang)", "cuda": "nvcc (CUDA toolkit 12.4 or newer)"}[kind]
    return _shadowing(f"libhsbench_{kind}.so", f"in that tree the {kind.upper()} library {fault}") or UnavailableError(
        f"the {kind.upper()} library {fault}: install {needs}, then"
        " `pip install --force-reinstall --no-deps .` in hsbench's source folder"
    )


def _shadowing(file: str, fault: str) -> UnavailableError | None:
    """The same where an installation has the file, and would be found but for this source tree: another build would
    change nothing."""
    package = LIB.parent
    installed = installation.shadowed(package, f"{LIB.name}/{file}")
    if installed is None:
        return None
    return UnavailableError(
        f"the source tree at {package.parent} shadows the installation at {installed}, and {fault}:"
        f" {installation.how_to_leave(package)}"
    )
