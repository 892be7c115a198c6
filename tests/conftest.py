"""Shared by all tests: where there is no GPU, tests marked ``gpu`` skip with the reason.

A run that cannot test what it seems to test fails at once, rather than pass as a row of skipped tests: hsbench must
have been installed and be found, what was compiled must load, and a library that HSBENCH_REQUIRE names must be there.
On a machine without a compiler an installed hsbench has no library, and tests that need one skip.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from hsbench.errors import UnavailableError
from hsbench.kernels import library

LIBRARIES = ("cpu", "cuda")


def pytest_report_header() -> str:
    built = [kind for kind in LIBRARIES if library.why_missing(kind) is None]
    return f"hsbench: {library.LIB.parent}, libraries: {', '.join(built) or 'none'}"


def pytest_sessionstart(session: pytest.Session) -> None:
    try:
        library.structs()
    except UnavailableError as error:
        hint = "to test the installation, `pytest`, not `python -m pytest`; to test a source tree, `pip install -e` it"
        raise pytest.UsageError(f"{error} ({hint})") from error
    required = list(filter(None, os.environ.get("HSBENCH_REQUIRE", "").split(",")))
    for kind in dict.fromkeys((*required, *LIBRARIES)):
        reason = library.why_missing(kind)
        if reason and kind in required:
            raise pytest.UsageError(f"HSBENCH_REQUIRE names {kind}, but {reason}")
        if reason and (library.LIB / f"libhsbench_{kind}.so").exists():
            raise pytest.UsageError(reason)


@pytest.fixture(autouse=True)
def processes_find_what_is_tested(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Python that a test starts imports the hsbench under test, not the source tree that it may start in."""
    if "packaging" not in request.path.parts:  # whose processes start in places of their own, for what is found there
        entries = [str(library.LIB.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(entries))
        monkeypatch.setenv("PYTHONSAFEPATH", "1")


@pytest.fixture(scope="module")
def one_torch_thread() -> Iterator[None]:
    """For modules of many small operations: torch's threads only cost time there, and spin in the way of ours."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    reason = _why_no_gpu() if marked else None
    for item in marked:
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


def _why_no_gpu() -> str | None:
    import torch

    if not torch.cuda.is_available():
        return "needs an NVIDIA GPU"
    return library.why_missing("cuda")
