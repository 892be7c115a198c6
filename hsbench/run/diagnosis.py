"""All that ``hsbench doctor`` tells, gathered: what runs here, on what, with what, and what is missing."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import torch

from hsbench import measure
from hsbench.distributed.probe import collective_cost
from hsbench.errors import HsbenchError
from hsbench.kernels import library
from hsbench.kernels.device import CPU, CUDA, Device
from hsbench.machine import ceilings, hardware, software
from hsbench.problem.phase import PHASES
from hsbench.profiling import PROFILERS


def diagnose(probe: bool) -> dict[str, Any]:
    """What ``report.doctor`` shows; its text has the layout.

    Args:
        probe: whether to measure the ceilings too, which takes a few seconds.
    """
    has_gpu = torch.cuda.is_available()
    probes = []
    if probe:
        places = (CPU, CUDA) if has_gpu else (CPU,)
        for where, kind in itertools.product(places, ("read", "copy", "gemm")):
            measured = measure.probe(ceilings.ceiling(where, kind), measure.clock_for(where))
            probes.append({"name": f"{where} {measured.name}", "value": measured.value, "unit": measured.unit})
    several = torch.cuda.device_count() if has_gpu else 0
    if probe and several > 1:
        probes += _collectives(several)
    device = CUDA if has_gpu else CPU
    telemetry = measure.Telemetry(device)
    missing = hardware.missing()
    if telemetry.missing:
        what, _, why = telemetry.missing.removeprefix("no ").partition(": ")
        missing.append({"what": what, "why": why, "remedy": ""})
    missing += _profilers()
    return {
        "machine": hardware.hardware(device, telemetry),
        "now": _now(telemetry) if has_gpu else {},
        "links": _links(several),
        "methods": _methods(has_gpu),
        "code": {"cpu": _cpu_code(), "cuda": hardware.cuda_code()},
        "libraries": _libraries(telemetry.facts),
        "probes": probes,
        "missing": missing,
        "environment": software.environment(),
        "git": software.git_commit(),
    }


def _links(gpus: int) -> list[dict[str, Any]]:
    """By what each GPU reaches each other one: ``from`` and ``to``, as torch counts them, and ``by``, or None."""
    seen = [measure.Telemetry(Device(CUDA.kind, index)) for index in range(gpus)] if gpus > 1 else []
    pairs = itertools.combinations(range(len(seen)), 2)
    return [{"from": one, "to": other, "by": seen[one].link_to(seen[other])} for one, other in pairs]


def _collectives(gpus: int) -> list[dict[str, Any]]:
    """What a decode step over ranks adds to its parts, on two GPUs and on all."""
    probes = []
    for ranks in sorted({2, gpus}):
        try:
            cost = collective_cost(CUDA, ranks)
        except HsbenchError:  # it has said why
            continue
        name = f"{ranks} ranks: all-gather of {cost['bytes'] / 1e3:.1f} kB and combination"
        probes.append({"name": name, "value": cost["us"], "unit": "us"})
    return probes


def _methods(has_gpu: bool) -> list[dict[str, str]]:
    from hsbench.methods import FAMILIES, rows_of

    rows = []
    for device in (CPU, CUDA):
        for family in FAMILIES:
            if device.is_cuda and not has_gpu:
                why = hardware.why_no_gpu()
                rows.append({"method": family, "device": device.kind, "status": "unavailable", "reason": why})
                continue
            named = {method.name: method for phase in PHASES.values() for method in rows_of(family, phase, device)}
            for name, method in named.items():
                reason = method.unavailable(device)
                status = "unavailable" if reason else "ok"
                note = "only when asked for by name" if method.on_request else ""
                rows.append({"method": name, "device": device.kind, "status": status, "reason": reason or note})
    return rows


def _now(telemetry: measure.Telemetry) -> dict[str, Any]:
    """The GPU at this moment, and who else is on it."""
    others = telemetry.look()
    return {
        **dataclasses.asdict(telemetry.read()),
        "memory_used_bytes": telemetry.memory_used_bytes(),
        "shared": telemetry.shared,
        "other_processes": None if others is None else [dataclasses.asdict(process) for process in others],
    }


def _profilers() -> list[dict[str, str]]:
    """Profilers that are installed and would fail all the same; those that are not are among the libraries."""
    items = []
    for name, profiler in PROFILERS.items():
        if software.find_tool(name) is not None and (reason := profiler().missing()):
            why, _, remedy = reason.rpartition(": ")
            items.append({"what": f"reports by {name}", "why": why, "remedy": remedy})
    return items


def _cpu_code() -> dict[str, Any] | None:
    """As ``hardware.cuda_code``, of the CPU library: instruction sets in place of architectures."""
    if library.why_missing("cpu"):
        return None
    best = library.load("cpu").number("hsb_cpu_best_isa")
    isas = {name: value <= best for name, value in library.ISAS.items() if name != "auto"}
    return {"architectures": isas, "runs": True, "verdict": f"{library.best_isa()} is used"}


def _libraries(gpu: measure.GpuFacts) -> list[dict[str, Any]]:
    """What is installed around hsbench: ``name``, ``version`` (None: not found; "": found but tells none), ``note``."""
    items = [{"name": name, "version": version, "note": ""} for name, version in software.versions().items()]
    note = f"runs CUDA up to {gpu.cuda_driver}" if gpu.cuda_driver else ""
    items.append({"name": "driver", "version": gpu.driver, "note": note})
    items += [{"name": name, "version": software.package_version(name), "note": ""} for name in software.PACKAGES]
    for name, use in software.TOOLS.items():
        version = software.tool_version(name)
        items.append({"name": name, "version": version, "note": use if version is None else ""})
    return items
