"""On the path of the ranks that test_faults.py starts: FAULT="RANK WHAT MODULE:NAME N" has WHAT happen in a rank where
a function, or a method, is called for the Nth time."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import Any


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _fail() -> None:
    raise OSError("a fault that was asked for")


_WHAT = {"kill": _kill, "fail": _fail, "sleep": lambda: time.sleep(600)}


def _watch(what: str, module: str, name: str, number: int) -> None:
    """Waits until the module is imported, and puts the fault before the function."""
    *path, last = name.split(".")
    while True:
        time.sleep(1e-3)
        owner: Any = sys.modules.get(module)
        for part in path:
            owner = getattr(owner, part, None)
        real = getattr(owner, last, None)
        if real is not None:
            break
    calls = iter(range(1, 1 << 30))

    def instead(*arguments: Any, **named: Any) -> Any:
        if next(calls) == number:
            _WHAT[what]()
        return real(*arguments, **named)

    setattr(owner, last, instead)


if fault := os.environ.get("FAULT"):
    _rank, _what, _where, _number = fault.split()
    if os.environ.get("RANK") == _rank:
        _arguments = (_what, *_where.split(":"), int(_number))
        threading.Thread(target=_watch, args=_arguments, daemon=True).start()
