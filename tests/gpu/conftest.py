"""Shared by the tests of CUDA kernels."""

from __future__ import annotations

import pytest

from hsbench.kernels import library


@pytest.fixture(params=[path for path in library.PATHS if path != "auto"])
def kernel(request: pytest.FixtureRequest) -> str:
    """Each prefill kernel that this GPU can run."""
    from hsbench.attention import calls

    if reason := calls.why_not_path(request.param):
        pytest.skip(reason)
    return request.param
