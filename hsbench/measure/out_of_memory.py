"""Out of memory, in whatever words it comes: which errors mean it, and how to let go of what they keep alive."""

from __future__ import annotations

import errno
import os
import traceback
from collections.abc import Iterator

from hsbench import measure
from hsbench.errors import HsbenchError
from hsbench.kernels.device import CPU
from hsbench.kernels.library import NativeError

REMEDY = "give a smaller --seq or --batch, or fewer --methods"

# Libraries have no common type for it.
_WORDS = (
    "can't allocate memory",  # torch's allocator on the CPU
    "not enough memory",  # the same, on other systems
    "cannot allocate memory",  # the system's ENOMEM: a file that cannot be mapped
    "out of memory",  # CUDA's, as torch and our own libraries hand it on
    "std::bad_alloc",  # C++, ours and others'
    "status_alloc_failed",  # cuBLAS, cuSPARSE, cuDNN
)
# A thread needs memory for its stack, but may be refused for the number of threads just as well.
_THREAD_WORDS = ("can't start new thread", "resource temporarily unavailable")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or what it was raised from, is that something could not be allocated.

    To be asked while what was held then still is: a thread that could not start counts if there is no room for stacks.
    """
    return any(_is_one(link) for link in _causes(error))


def let_go(error: BaseException) -> None:
    """Drop the traceback of an error that is not raised any further, and the local variables of its frames: they would
    keep alive the very tensors that left no room."""
    for link in _links(error):
        traceback.clear_frames(link.__traceback__)
        link.__traceback__ = None


def _is_one(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    # Errors of our own say what they mean by their type, but for one that hands on a library's words.
    ours = isinstance(error, HsbenchError) and not isinstance(error, NativeError)
    if ours or isinstance(error, (ValueError, TypeError, LookupError, AssertionError, ArithmeticError)):
        return False
    said = str(error).lower()
    if any(words in said for words in _WORDS):
        return True
    return any(words in said for words in _THREAD_WORDS) and _no_room_for_threads()


def _no_room_for_threads() -> bool:
    free = measure.free_memory(CPU)
    return free is not None and free.nbytes < measure.thread_bytes((os.cpu_count() or 1) + 1)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and what it was explicitly raised from."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__


def _links(error: BaseException) -> Iterator[BaseException]:
    """All errors that hang on this one."""
    seen: set[int] = set()
    todo: list[BaseException | None] = [error]
    while todo:
        link = todo.pop()
        if link is not None and id(link) not in seen:
            seen.add(id(link))
            yield link
            todo += [link.__cause__, link.__context__]
