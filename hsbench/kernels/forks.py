"""A process made by ``fork()`` has its parent's OpenMP runtime, but none of the threads in it.

If the parent used them, torch's next parallel operation in the child waits for them for ever. Our own kernels start
their threads anew (csrc/cpu/pool.cpp), so what is left is what we ask of torch: in a child that is done by one thread.
Imported with the package, before any fork that matters; imports no torch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def _born_of_fork() -> bool:
    """Whether this may be a child whose parent had not imported hsbench, but had torch, as far as that can be told."""
    process = sys.modules.get("multiprocessing.process")
    return "torch" in sys.modules and process is not None and process.parent_process() is not None


_child = _born_of_fork()


def _after_fork() -> None:
    global _child
    _child = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@contextmanager
def torch_operations() -> Iterator[None]:
    """Around operations of torch on large CPU tensors; they may use all threads except in a forked child.

    Our kernels do not belong inside: they take torch's number of threads for theirs.
    """
    import torch

    threads = torch.get_num_threads() if _child else 1
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
