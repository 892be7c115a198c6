"""From samples to numbers: the columns of a row that ran. Times in seconds come in, units as in the schema go out."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from hsbench import measure
from hsbench.kernels.device import Device
from hsbench.methods.base import Prepared
from hsbench.problem.workload import Workload
from hsbench.results import MeasuredCeiling, Record
from hsbench.run.settings import Settings


def record(
    workload: Workload,
    method: str,
    device: Device,
    settings: Settings,
    status: str,
    reason: str | None,
    machine: Mapping[str, Any],
    columns: Mapping[str, object],
    *,
    ranks: int = 1,
) -> Record:
    """The record of a row, wherever it ends: every record of a run is made here.

    Args:
        settings: how it was measured, or would have been.
        machine: the facts of the report.
        columns: what was found out about it.
        ranks: processes that its sequence is sharded over.
    """
    return Record.of(
        workload,
        method=method,
        device=device,
        cache=settings.cache,
        sustain_s=settings.sustain_s,
        status=status,
        reason=reason,
        machine=machine,
        ranks=ranks,
        **columns,
    )


def times(samples: measure.Samples) -> dict[str, object]:
    """The median, the quartiles, how many samples there were and why no more."""
    summary = measure.summarize(samples.times_s)
    return {
        "time_us": summary.median * 1e6,
        "time_us_p25": summary.p25 * 1e6,
        "time_us_p75": summary.p75 * 1e6,
        "samples": summary.n,
        "stop": samples.stop,
    }


def rates(
    workload: Workload, prepared: Prepared, median_s: float, ceilings: Iterable[MeasuredCeiling]
) -> dict[str, object]:
    """Work over time, and its share of the ceiling: bytes that must be read for decode, dense-equivalent FLOPs for
    prefill."""
    told = workload.phase.rate
    work = {"read_bytes": prepared.kv_bytes, "flops": workload.flops}[told.work]
    rate = work / median_s / told.per_unit
    columns: dict[str, object] = {told.column: rate}
    for ceiling in ceilings:
        columns |= {"ceiling": ceiling.name, "percent_of_ceiling": 100 * rate / ceiling.value}
    return columns


def storage(workload: Workload, prepared: Prepared) -> dict[str, object]:
    """What a method keeps of K and V, in elements and in bytes."""
    return {
        "achieved_sparsity": prepared.achieved_sparsity,
        "achieved_evict": prepared.achieved_evict,
        "evict_by": prepared.evict_by,
        "kv_bytes": prepared.kv_bytes,
        "kv_ratio": workload.dense_kv_bytes / prepared.kv_bytes,
        "read_bytes": prepared.kv_bytes,
    }


def device_state(telemetry: measure.TelemetrySummary, shared: bool | None) -> dict[str, object]:
    """What the device did while a method was sampled, and whether others used it meanwhile."""
    return {
        "sm_clock_mhz": telemetry.sm_clock_mhz,
        "power_w": telemetry.power_w,
        "throttled": telemetry.throttled,
        "memory_clock_mhz": telemetry.memory_clock_mhz,
        "temperature_c": telemetry.temperature_c,
        "throttle_reasons": "+".join(telemetry.reasons) or None,
        "throttled_share": telemetry.throttled_share,
        "shared": shared,
    }


def speedup(times_s: Sequence[float], baseline: str, baseline_times_s: Sequence[float]) -> dict[str, object]:
    """The ratio to a baseline, with its interval. A method beside itself is 1, exactly."""
    if times_s is baseline_times_s:
        ratio = measure.Ratio(1.0, 1.0, 1.0, True)
    else:
        ratio = measure.ratio_interval(baseline_times_s, times_s)
    return {"speedup": ratio.ratio, "speedup_lo": ratio.lo, "speedup_hi": ratio.hi, "baseline": baseline}


def compress_note(
    workload: Workload, kv_bytes: int, compress: Callable[[], None], clock: measure.Clock, gain_s: float = 0.0
) -> str:
    """Times pruning and packing by itself: what it costs to compress online. Empty where it cannot be timed.

    Args:
        kv_bytes: stored bytes of K and V.
        compress: prunes and packs once.
        gain_s: by which each step is faster than the baseline's; 0 or less where none is, or there are no steps.
    """
    moved = workload.dense_kv_bytes + kv_bytes
    work = measure.Ceiling("compress", "GB/s", moved / 1e9, compress, "native")
    try:
        probe = measure.probe(work, clock)
    except measure.ClockError:
        return ""
    seconds = statistics.median(probe.samples)
    paid = f"; paid for after {math.ceil(seconds / gain_s):,} steps" if gain_s > 0 else ""
    rate = f"{moved / seconds / 1e9:.0f} GB/s read and written"
    return f"prunes and packs K and V in {seconds * 1e3:.3g} ms, {rate}{paid}"
