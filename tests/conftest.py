"""Shared by all tests: where there is no GPU, tests marked ``gpu`` skip with the reason; a library that
HSBENCH_REQUIRE names must be there, so that a broken build cannot pass as a row of skipped tests."""

from __future__ import annotations

import os

import pytest

from hsbench import native


def pytest_sessionstart(session: pytest.Session) -> None:
    for kind in filter(None, os.environ.get("HSBENCH_REQUIRE", "").split(",")):
        if reason := native.why_missing(kind):
            raise pytest.UsageError(f"HSBENCH_REQUIRE names {kind}, but {reason}")


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
    return native.why_missing("cuda")
