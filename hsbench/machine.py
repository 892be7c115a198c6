"""What this machine is, what it lacks, and its ceilings: the facts that stand under every report and in ``doctor``."""

from __future__ import annotations

import functools
import platform
import shutil
from typing import Any

import torch

import hsbench
from hsbench import measure, memory, native
from hsbench.errors import UnavailableError
from hsbench.workload import PHASES

_PROBE_BYTES = 512 << 20


def resolve_device(name: str) -> str:
    """``cpu`` or ``cuda`` for ``auto``, ``cpu`` or ``cuda``: auto takes CUDA where there is a GPU.

    Raises:
        UnavailableError: cuda is asked for and torch sees no GPU.
    """
    has_gpu = torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        raise UnavailableError(f"--device cuda: {_why_no_gpu()}")
    return "cuda" if name == "cuda" or (name == "auto" and has_gpu) else "cpu"


def available_bytes(device: str) -> int | None:
    """Memory that can still be allocated; None where the system does not tell."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    facts = measure.cpu_facts()
    known = [size for size in (facts.memory_available_bytes, facts.memory_limit_bytes) if size is not None]
    return min(known, default=None)


def facts(device: str, telemetry: measure.Telemetry) -> dict[str, Any]:
    """What a report says of the machine: ``cpu``, ``gpu`` or None, ``versions``, ``missing`` (lines with remedies)."""
    cpu = measure.cpu_facts()
    has_native = native.why_missing("cpu") is None
    found: dict[str, Any] = {
        "cpu": {
            "model": cpu.model,
            "cores": cpu.usable_cores,
            "logical_cores": cpu.logical_cores,
            "quota_cores": cpu.quota_cores,
            "threads": torch.get_num_threads(),
            "isa": native.best_isa() if has_native else None,
            "governor": cpu.governor,
            "virtual_machine": cpu.hypervisor,
            "memory_bytes": cpu.memory_total_bytes,
            "last_level_cache_bytes": measure.last_level_cache_bytes("cpu"),
        },
        "gpu": None,
        "versions": {"hsbench": hsbench.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "missing": [f"{item['what']}: {item['why']}" for item in missing()],
        "warnings": [],
    }
    if device == "cuda":
        gpu = telemetry.facts
        found["gpu"] = {
            "name": gpu.name or torch.cuda.get_device_name(),
            "driver": gpu.driver,
            "memory_bytes": gpu.memory_total_bytes,
            "power_limit_w": gpu.power_limit_w,
            "max_sm_clock_mhz": gpu.max_sm_clock_mhz,
            "l2_bytes": measure.last_level_cache_bytes("cuda"),
        }
        if telemetry.missing:
            found["missing"].append(telemetry.missing)
    return found


def missing() -> list[dict[str, str]]:
    """What is not here, why it matters, and how to get it."""
    items = []
    if reason := native.why_missing("cpu"):
        why, _, remedy = reason.rpartition(": ")
        items.append({"what": "CPU kernels", "why": f"{why}; only torch's methods run", "remedy": remedy})
    if reason := native.why_missing("cuda"):
        why, _, remedy = reason.rpartition(": ")
        items.append({"what": "CUDA kernels", "why": f"{why}; needed only for an NVIDIA GPU", "remedy": remedy})
    if not torch.cuda.is_available():
        remedy = "run on a machine with an NVIDIA GPU, its driver, and a CUDA build of torch"
        items.append({"what": "GPU", "why": _why_no_gpu(), "remedy": remedy})
    for tool, use in (("g++", "builds the CPU kernels"), ("nvcc", "builds the CUDA kernels")):
        if shutil.which(tool) is None:
            items.append({"what": tool, "why": f"not on the PATH; {use} at install", "remedy": f"install {tool}"})
    return items


@functools.cache
def ceiling(device: str, kind: str, size: int | None = None) -> measure.Ceiling:
    """A ceiling of this machine, made once per process: ``read`` or ``copy`` (GB/s) of ``size`` bytes, or ``gemm``
    (TFLOP/s). Without a size, far more than the caches hold."""
    if kind == "gemm":
        return measure.gemm_ceiling(device)
    size = size or max(_PROBE_BYTES, 4 * measure.last_level_cache_bytes(device)) // 4096 * 4096
    make = {"read": measure.read_ceiling, "copy": measure.copy_ceiling}[kind]
    return make(device, **_native_probe(device, size, copy=kind == "copy"))


def ceiling_of(phase: str, device: str) -> measure.Ceiling:
    """What bounds a phase: a matrix product for prefill, memory for decode. On a CPU, decode only reads, and a copy's
    stores first read the lines that they write, so that reads are the ceiling there."""
    return ceiling(device, "gemm" if phase == "prefill" else "copy" if device == "cuda" else "read")


def _native_probe(device: str, size: int, *, copy: bool) -> dict[str, Any]:
    """The compiled probe's run and its bytes; empty (torch's fallback) where there is no library for the device."""
    if native.why_cannot("probe", device) is not None:
        return {}
    source = memory.empty((size,), torch.uint8, device).fill_(1)
    target = memory.empty((size if copy else 0,), torch.uint8, device).fill_(0)
    sink = torch.zeros(1, dtype=torch.int64, device=device)
    params = native.make(
        "hsb_probe_params",
        bytes=size,
        src=source,
        sink=sink,
        **native.on_device(source.device),
        **({"dst": target} if copy else {}),
    )
    operation = native.Operation("probe", source.device, params)

    def run(_alive: tuple[torch.Tensor, ...] = (source, target, sink)) -> None:
        operation.run()

    return {"run": run, "bytes_moved": size * (2 if copy else 1)}


def _why_no_gpu() -> str:
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA, or there is no NVIDIA GPU"
    return "torch sees no NVIDIA GPU (check that nvidia-smi works)"


def diagnose(probe: bool) -> dict[str, Any]:
    """All that ``hsbench doctor`` shows.

    Args:
        probe: whether to measure the ceilings too, which takes a few seconds.
    """
    from hsbench.methods import FAMILIES, rows_of

    has_gpu = torch.cuda.is_available()
    rows = []
    for device in ("cpu", "cuda"):
        for family in FAMILIES:
            if device == "cuda" and not has_gpu:
                rows.append({"method": family, "device": device, "status": "unavailable", "reason": _why_no_gpu()})
                continue
            named = {method.name: method for phase in PHASES for method in rows_of(family, phase, device)}
            for name, method in named.items():
                reason = method.unavailable(device)
                status = "unavailable" if reason else "ok"
                note = "only when asked for by name" if method.on_request else ""
                rows.append({"method": name, "device": device, "status": status, "reason": reason or note})
    device = "cuda" if has_gpu else "cpu"
    probes = []
    if probe:
        wanted = [("cpu", "read"), ("cpu", "copy"), ("cpu", "gemm")] + [("cuda", "copy"), ("cuda", "gemm")] * has_gpu
        for where, kind in wanted:
            measured = measure.probe(ceiling(where, kind), measure.clock_for(where))
            probes.append({"name": f"{where} {measured.name}", "value": measured.value, "unit": measured.unit})
    machine = facts(device, measure.Telemetry(device))
    for derived in ("missing", "warnings"):
        del machine[derived]
    return {"machine": machine, "methods": rows, "probes": probes, "missing": missing()}
