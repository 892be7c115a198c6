"""What a profiled run gives to the profiler that it runs under; CUDA's calls are stand-ins that keep a log."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hsbench import measure
from hsbench.kernels.device import CPU, CUDA
from hsbench.profiling import child

PREPARED, RUN = "prepared", "run"


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    calls: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: calls.append("wait"))
    monkeypatch.setattr(torch.cuda.profiler, "start", lambda: calls.append("start"))
    monkeypatch.setattr(torch.cuda.profiler, "stop", lambda: calls.append("stop"))
    return calls


def sample(log: list[str], profiler: str, rounds: int, *, fails: bool = False) -> None:
    def run() -> None:
        log.append(RUN)
        if fails:
            raise RuntimeError("made to fail")

    measure.sample_in_turn(
        [measure.Subject("sdpa:flash", run, lambda: log.append(PREPARED))],
        measure.ProfiledClock(CUDA),
        measure.StopRule(rounds, rounds, target=0.0),
        warmup=0 if fails else 1,
        capture=child.recording(child.Orders(profiler, rounds, Path("unused")), CUDA),
    )


WARM_UP = [PREPARED, RUN, "wait"]


def test_ncu_is_given_the_samples_without_their_preparation(log: list[str]) -> None:
    sample(log, "ncu", 2)
    assert log == WARM_UP + 2 * [PREPARED, "wait", "start", RUN, "wait", "wait", "stop"]
    with measure.annotate("sample"):
        pass
    assert log[-1] == "stop" and log.count("start") == 2, "nothing after the recording"


def test_nsys_is_given_all_rounds_at_once(log: list[str]) -> None:
    """Its capture ends with the first stop."""
    sample(log, "nsys", 2)
    assert log == WARM_UP + ["wait", "start"] + 2 * [PREPARED, RUN, "wait"] + ["wait", "stop"]


@pytest.mark.parametrize("profiler", ["nsys", "ncu"])
def test_the_capture_ends_with_a_run_that_fails(log: list[str], profiler: str) -> None:
    sample(log, profiler, 1, fails=True)
    assert log.count("start") == log.count("stop") == 1 and log[-1] == "stop"


@pytest.mark.parametrize("has_gpu", [False, True])
def test_on_the_cpu_a_range_takes_the_place_of_cuda(
    log: list[str], has_gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is a GPU beside, too: the capture that nsys was told to open is that of the run's device."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    with (
        measure.recorder() as recorder,
        child.recording(child.Orders("nsys", 1, Path("unused")), CPU),
        measure.annotate("sample"),
    ):
        pass
    assert log == [] and recorder.opened() == ["profiled", "profiled/sample"]
