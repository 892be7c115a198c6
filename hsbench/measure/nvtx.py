"""NVTX by its C interface: ranges and marks in a domain, for the tool, if any, that was started around the process.

The functions are those of ``libnvtx3interop.so``: NVTX's own code as a library, in the package nvidia-nvtx, which
torch's builds for CUDA 13 bring anyway and which is the same for every Python. The Python package nvtx would not do.
From 0.2.12 on it asks whether the domain is enabled (``nvtxDomainIsEnabled``), and without a yes drops every event; but
under Nsight Systems 2022.4 and 2023.4, which have an older form of the extension of NVTX that the question is part of,
the answer is no, and a report holds domains and nothing in them. Versions before that one have no wheels for Python
3.14. A range pushed without asking is in NVTX since its version 2, and every tool hears it.
"""

from __future__ import annotations

import ctypes
import importlib.util
from functools import cache
from pathlib import Path

_LIBRARY = "libnvtx3interop.so"
_VERSION, _INT64, _DOUBLE, _REGISTERED = 3, 2, 3, 3  # NVTX_VERSION, NVTX_PAYLOAD_TYPE_*, NVTX_MESSAGE_TYPE_REGISTERED


class _Payload(ctypes.Union):
    _fields_ = (("whole", ctypes.c_int64), ("real", ctypes.c_double))


class _Attributes(ctypes.Structure):
    """nvtxEventAttributes_t; its size and layout are part of NVTX's binary interface since version 2."""

    _fields_ = (
        ("version", ctypes.c_uint16),
        ("size", ctypes.c_uint16),
        ("category", ctypes.c_uint32),
        ("color_type", ctypes.c_int32),
        ("color", ctypes.c_uint32),
        ("payload_type", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
        ("payload", _Payload),
        ("message_type", ctypes.c_int32),
        ("message", ctypes.c_void_p),
    )


class Domain:
    """A domain that a tool listens to.

    Args:
        library: with NVTX's functions, their types set.
        handle: the domain's.
    """

    def __init__(self, library: ctypes.CDLL, handle: int) -> None:
        self._library, self._handle = library, handle
        self._names: dict[str, int] = {}

    def push(self, name: str, payload: int | float | None = None) -> None:
        """Open a range, nested in those that this thread has open."""
        self._library.nvtxDomainRangePushEx(self._handle, ctypes.byref(self._event(name, payload)))

    def pop(self) -> None:
        """Close the range that this thread opened last."""
        self._library.nvtxDomainRangePop(self._handle)

    def mark(self, name: str, payload: int | float | None = None) -> None:
        """A point in time."""
        self._library.nvtxDomainMarkEx(self._handle, ctypes.byref(self._event(name, payload)))

    def _event(self, name: str, payload: int | float | None) -> _Attributes:
        if name not in self._names:
            # Registered: a capture range of nsys heeds no other names.
            self._names[name] = self._library.nvtxDomainRegisterStringA(self._handle, name.encode())
        event = _Attributes(version=_VERSION, size=ctypes.sizeof(_Attributes))
        event.message_type, event.message = _REGISTERED, self._names[name]
        if isinstance(payload, float):
            event.payload_type, event.payload.real = _DOUBLE, payload
        elif payload is not None:
            event.payload_type, event.payload.whole = _INT64, payload
        return event


def open_domain(name: str) -> Domain | None:
    """The domain of that name; None where no tool listens, or NVTX is not here."""
    library = _load()
    if isinstance(library, str):
        return None
    handle = library.nvtxDomainCreateA(name.encode())
    return None if handle is None else Domain(library, handle)


def why_missing() -> str | None:
    """Why no tool can hear of our ranges, with the remedy; None where one could."""
    library = _load()
    return library if isinstance(library, str) else None


@cache
def _load() -> ctypes.CDLL | str:
    """The library; why there is none, with the remedy, where it cannot be loaded."""
    path = _installed()
    try:
        library = ctypes.CDLL(str(path or f"{_LIBRARY}.1"))  # by name: a CUDA toolkit's, where ld.so knows it
        handle, event = ctypes.c_void_p, ctypes.POINTER(_Attributes)
        for function, result, arguments in (
            (library.nvtxDomainCreateA, handle, (ctypes.c_char_p,)),
            (library.nvtxDomainRegisterStringA, handle, (handle, ctypes.c_char_p)),
            (library.nvtxDomainRangePushEx, ctypes.c_int, (handle, event)),
            (library.nvtxDomainRangePop, ctypes.c_int, (handle,)),
            (library.nvtxDomainMarkEx, None, (handle, event)),
        ):
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:  # not there, another machine's, or not NVTX
        if path is None:
            return "nvidia-nvtx is not installed: pip install nvidia-nvtx"
        return f"{path} cannot be used ({error}): pip install --force-reinstall nvidia-nvtx"
    return library


def _installed() -> Path | None:
    """The library of the package nvidia-nvtx (or nvidia-nvtx-cu12), in whose folder of CUDA's major version it is."""
    spec = importlib.util.find_spec("nvidia")
    folders = [Path(folder) for folder in (spec and spec.submodule_search_locations) or ()]
    return max((path for folder in folders for path in folder.glob(f"*/lib/{_LIBRARY}*")), default=None)
