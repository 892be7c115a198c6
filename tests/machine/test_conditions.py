"""One line on what stood in the way, and its remedy."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from hsbench.machine.conditions import cpu_warning, gpu_warning, quota_warning
from hsbench.measure import GpuProcess, TelemetrySummary
from hsbench.measure.telemetry import NOT_THROTTLING, REASONS


def telemetry(*reasons: str, shared: bool | None = False, pids: tuple[int, ...] = ()) -> SimpleNamespace:
    summary = TelemetrySummary(throttled=bool(reasons), reasons=reasons)
    seen = {pid: GpuProcess(pid, 5 << 30) for pid in pids}
    return SimpleNamespace(summary=lambda: summary, shared=shared, seen=seen)


@pytest.mark.parametrize("shared", [False, None])
def test_nothing_to_say(shared: bool | None) -> None:
    assert gpu_warning(telemetry(shared=shared)) is None


@pytest.mark.parametrize("reason", sorted(set(REASONS.values()) - NOT_THROTTLING))
def test_every_reason_is_named_and_has_a_remedy(reason: str) -> None:
    said = gpu_warning(telemetry(reason))
    assert said is not None and said.startswith(f"the GPU's clocks were held down ({reason}): ")
    assert len(said.partition("): ")[2]) > 20 and "\n" not in said


@pytest.mark.parametrize(
    ("reasons", "remedy"),
    [
        (("hw_slowdown", "hw_thermal_slowdown", "sw_power_cap"), "improve its cooling"),
        (("sw_power_cap", "sw_thermal_slowdown"), "improve its cooling"),
        (("hw_power_brake_slowdown", "sw_power_cap"), "power supply"),
        (("sw_power_cap",), "usual under load"),
        (("unknown_0x10000",), "nvidia-smi -q"),
    ],
)
def test_the_worst_reason_decides_the_remedy(reasons: tuple[str, ...], remedy: str) -> None:
    assert remedy in gpu_warning(telemetry(*reasons))


def test_company_is_named_where_it_can_be_seen() -> None:
    assert "others were on the GPU (process 7): stop them" in gpu_warning(telemetry(shared=True, pids=(7,)))
    assert "(processes 7, 12)" in gpu_warning(telemetry(shared=True, pids=(12, 7)))
    assert "others were on the GPU: stop them" in gpu_warning(telemetry(shared=True))


def test_both_are_one_line() -> None:
    said = gpu_warning(telemetry("sw_power_cap", shared=True, pids=(7,)))
    assert "sw_power_cap" in said and "process 7" in said


def test_others_on_the_cores() -> None:
    assert cpu_warning(0.368).startswith("others used 37% of the cores meanwhile: stop them")


@pytest.mark.parametrize(
    ("cores", "threads", "said", "remedy"),
    [
        (0.25, 2, "a CPU quota of 0.25 cores stopped the 2 threads", "raise the quota, and run again"),
        (1, 1, "a CPU quota of 1 core stopped the one thread ", "raise the quota, and run again"),
        (2.5, 16, "a CPU quota of 2.5 cores stopped the 16 threads", "set OMP_NUM_THREADS=2, or raise the quota"),
        (4, 4, "a CPU quota of 4 cores stopped the 4 threads", "raise the quota, and run again"),
    ],
)
def test_a_quota_and_its_remedy(cores: float, threads: int, said: str, remedy: str) -> None:
    text = quota_warning(cores, threads)
    assert text.startswith(said) and f": {remedy}" in text and "\n" not in text
