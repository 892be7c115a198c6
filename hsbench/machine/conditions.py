"""What stood in the way of a run, in one line with a remedy."""

from __future__ import annotations

from collections.abc import Collection

from hsbench.measure import Telemetry

#: Why a GPU holds its clocks down, the worst first, and what to do about it. One remedy is given: the worst reason
#: brings others with it (a thermal slowdown is also a "hw_slowdown").
_REMEDIES: tuple[tuple[Collection[str], str], ...] = (
    (("hw_thermal_slowdown", "sw_thermal_slowdown"), "improve its cooling and run again"),
    (
        ("hw_power_brake_slowdown", "hw_slowdown"),
        "check its power supply and cables (nvidia-smi -q -d PERFORMANCE) and run again",
    ),
    (("sync_boost",), "take it out of its sync boost group and run again"),
    (
        # No fault: tensor cores at work take all the power that a GPU may have.
        ("sw_power_cap",),
        "usual under load, but methods sampled in turn then share a clock: --sustain 0.3 gives each that of its own "
        "load, lower locked clocks (nvidia-smi --lock-gpu-clocks) all the same; quote times with the power limit",
    ),
)
_OTHERWISE = "nvidia-smi -q -d PERFORMANCE tells more; compare times with care"


def gpu_warning(telemetry: Telemetry) -> str | None:
    """One line on throttling and on company during the readings of `telemetry`; None where neither was seen.

    It holds no numbers that vary from cell to cell, so that a sweep says it once.
    """
    summary = telemetry.summary()
    parts = []
    if summary.throttled:
        parts.append(f"the GPU's clocks were held down ({', '.join(summary.reasons)}): {_remedy(summary.reasons)}")
    if telemetry.shared:
        pids = sorted(telemetry.seen)
        whose = f" (process{'es' if len(pids) > 1 else ''} {', '.join(map(str, pids))})" if pids else ""
        parts.append(f"others were on the GPU{whose}: stop them and run again for times to quote")
    return "; ".join(parts) or None


def cpu_warning(share: float) -> str:
    """One line on others' use of the cores, `share` of all."""
    return f"others used {share:.0%} of the cores meanwhile: stop them and run again for times to quote"


def quota_warning(cores: float, threads: int) -> str:
    """One line on a CPU quota of so many `cores` that stopped `threads` threads during samples."""
    amount = f"{cores:g} core{'' if cores == 1 else 's'}"
    whose = "the one thread" if threads == 1 else f"the {threads} threads"
    fewer = f"set OMP_NUM_THREADS={int(cores)}, or " if 1 <= int(cores) < threads else ""
    said = f"a CPU quota of {amount} stopped {whose} during samples (cpu.max of the control group)"
    return f"{said}: {fewer}raise the quota, and run again for times to quote"


def _remedy(reasons: Collection[str]) -> str:
    return next((remedy for causes, remedy in _REMEDIES if any(cause in reasons for cause in causes)), _OTHERWISE)
