"""What ``hsbench[models]`` adds, and what to say where it is missing."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import warnings
from collections.abc import Iterator

from hsbench.errors import UnavailableError

INSTALL = "pip install 'hsbench[models]'"

_LEAST = (4, 57)  # of transformers: before, a Cache has no layers


def require(*modules: str) -> None:
    """Make sure that modules of the extra are there, without importing them.

    Raises:
        UnavailableError: one is missing, or transformers is too old; says how to get it.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise UnavailableError(f"{' and '.join(missing)} missing, which running a model needs: {INSTALL}")
    if "transformers" in modules and transformers_version() < _LEAST:
        found = importlib.metadata.version("transformers")
        raise UnavailableError(f"transformers {found} is too old, 4.57 or newer is needed: {INSTALL}")


def transformers_version() -> tuple[int, int]:
    """The installed version's first two numbers."""
    major, minor = importlib.metadata.version("transformers").split(".")[:2]
    return int(major), int("".join(filter(str.isdigit, minor)) or 0)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """In here, transformers writes no progress bars, hints and warnings: what matters of them is checked."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
