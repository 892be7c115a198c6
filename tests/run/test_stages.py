"""The steps of a row by themselves, as those use them that time nothing."""

from __future__ import annotations

import pytest
import torch

from hsbench.errors import UnavailableError, UnsupportedError
from hsbench.kernels.device import CPU
from hsbench.methods import find_methods
from hsbench.problem.phase import DECODE
from hsbench.problem.workload import make_workload
from hsbench.run import stages
from hsbench.run.fit import Fit

WORKLOAD = make_workload("decode", seq=300, q_heads=4, kv_heads=2, head_dim=64)


def packed(name: str) -> tuple[stages.Packed, stages.Reference]:
    (method,) = find_methods([name], DECODE, CPU)
    row = stages.plan(stages.Asked(method), WORKLOAD, CPU, Fit(WORKLOAD, CPU, cold=False, ceiling=False))
    assert isinstance(row, stages.Planned)
    inputs = stages.load(WORKLOAD, None, CPU)
    return stages.prepare(row, WORKLOAD, inputs), stages.Reference(inputs, WORKLOAD.seed)


def test_prepare_and_check_without_a_clock() -> None:
    row, reference = packed("sdpa:flash")
    ready = reference.check(row)
    assert ready.verdict.reason is None and ready.verdict.rel_error < 1e-3
    assert ready.prepared is row.prepared and ready.footprint is row.footprint


def test_a_wrong_output_is_a_verdict_not_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    row, reference = packed("sdpa:flash")
    monkeypatch.setattr(type(row.prepared), "run", lambda self: self.out.fill_(1.0))
    reason = reference.check(row).verdict.reason
    assert reason is not None and "relative error" in reason


def test_dense_methods_share_one_reference() -> None:
    row, reference = packed("sdpa:flash")
    other, _ = packed("sdpa:math")
    assert reference.expect(row.prepared) is reference.expect(other.prepared)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UnsupportedError("x"), "unsupported"),
        (UnavailableError("x"), "unavailable"),
        (MemoryError(), "oom"),
        (torch.OutOfMemoryError("CUDA out of memory"), "oom"),
    ],
)
def test_known_failures_are_rows(error: Exception, status: str) -> None:
    assert stages.refused(error, CPU).status == status


def test_a_bug_is_none() -> None:
    with pytest.raises(ZeroDivisionError):
        stages.refused(ZeroDivisionError("a bug"), CPU)
