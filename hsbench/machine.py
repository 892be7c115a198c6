"""What this machine is, what it lacks, and its ceilings: the facts that stand under every report and in ``doctor``."""

from __future__ import annotations

import dataclasses
import shutil
from typing import Any

import torch

from hsbench import architectures, measure, memory, native, software
from hsbench.errors import UnavailableError

# On a GPU so many that a launch and the last CTAs to end, some 5 us, are 1 % of a probe: else long decodes pass it.
_PROBE_BYTES = {"cpu": 512 << 20, "cuda": 2 << 30}


def resolve_device(name: str) -> str:
    """``cpu`` or ``cuda`` for ``auto``, ``cpu`` or ``cuda``: auto takes CUDA where there is a GPU.

    Raises:
        UnavailableError: cuda is asked for and torch sees no GPU.
    """
    has_gpu = torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        raise UnavailableError(f"--device cuda: {why_no_gpu()}")
    return "cuda" if name == "cuda" or (name == "auto" and has_gpu) else "cpu"


def hardware(device: str, telemetry: measure.Telemetry) -> dict[str, Any]:
    """``cpu``, and ``gpu`` or None."""
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
            "memory_limit_bytes": cpu.memory_limit_bytes,
            "last_level_cache_bytes": measure.last_level_cache_bytes("cpu"),
        },
        "gpu": None,
    }
    if device == "cuda":
        found["gpu"] = {
            **dataclasses.asdict(telemetry.facts),
            "name": telemetry.facts.name or torch.cuda.get_device_name(),
            "compute_capability": "{}.{}".format(*torch.cuda.get_device_capability()),
            "l2_bytes": measure.last_level_cache_bytes("cuda"),
        }
    return found


def facts(device: str, telemetry: measure.Telemetry) -> dict[str, Any]:
    """What a report says of the machine: its hardware, ``versions``, ``missing`` and ``warnings`` (lines with
    remedies)."""
    lacks = [f"{item['what']}: {item['why']}" for item in missing()]
    if device == "cuda" and telemetry.missing:
        lacks.append(telemetry.missing)
    return {**hardware(device, telemetry), "versions": software.versions(), "missing": lacks, "warnings": []}


def surroundings(device: str) -> dict[str, Any]:
    """What a manifest says of where a run takes place: ``machine``, ``versions``, ``libraries``, ``git`` and
    ``environment``; no host or user name."""
    return {
        "machine": hardware(device, measure.Telemetry(device)),
        "versions": software.versions(),
        "libraries": software.libraries(),
        "git": software.git_commit(),
        "environment": software.environment(),
    }


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
        items.append({"what": "GPU", "why": why_no_gpu(), "remedy": remedy})
    elif (code := cuda_code()) is not None and not code["runs"]:
        why, _, remedy = code["verdict"].partition(": ")
        items.append({"what": "CUDA kernels for this GPU", "why": why, "remedy": remedy})
    for tool, use in (("g++", "builds the CPU kernels"), ("nvcc", "builds the CUDA kernels")):
        if shutil.which(tool) is None:
            items.append({"what": tool, "why": f"not on the PATH; {use} at install", "remedy": f"install {tool}"})
    return items


def cuda_code() -> dict[str, Any] | None:
    """What the CUDA library holds code for: ``architectures`` (name to whether the GPU that is there can run it),
    ``runs`` (whether any does) and ``verdict`` (a line); all of these None without a GPU. None without the library, or
    with one that does not tell."""
    told = None if native.why_missing("cuda") else native.library("cuda").text("hsb_cuda_architectures")
    if told is None:
        return None
    codes = architectures.parse(told)
    if not torch.cuda.is_available():
        return {"architectures": {code.name: None for code in codes}, "runs": None, "verdict": None}
    chip = torch.cuda.get_device_capability()
    runs, verdict = architectures.verdict(codes, chip)
    return {"architectures": {code.name: code.runs_on(chip) for code in codes}, "runs": runs, "verdict": verdict}


def ceiling(device: str, kind: str, size: int | None = None) -> measure.Ceiling:
    """A ceiling of this machine: ``read`` or ``copy`` (GB/s) of ``size`` bytes, or ``gemm`` (TFLOP/s). Without a size,
    far more than the caches hold. Its buffers live as long as it does: a cell that kept them would leave less to the
    cells after it."""
    if kind == "gemm":
        return measure.gemm_ceiling(device)
    size = size or _probe_size(device)
    make = {"read": measure.read_ceiling, "copy": measure.copy_ceiling}[kind]
    ways = [make(device, **way) for way in _native_probes(device, size, copy=kind == "copy")]
    return ways[0] if len(ways) == 1 else measure.fastest(ways, measure.clock_for(device))


def ceiling_of(phase: str, device: str) -> measure.Ceiling:
    """What bounds a phase: a matrix product for prefill, reading memory for decode, which writes next to nothing;
    a copy is slower than reads are, on a GPU too, so that decode would pass it."""
    return ceiling(device, _ceiling_kind(phase))


def ceiling_bytes(phase: str, device: str) -> int:
    """Memory that :func:`ceiling_of` takes, known before it is made."""
    return measure.gemm_bytes(device) if _ceiling_kind(phase) == "gemm" else _probe_size(device)


def _ceiling_kind(phase: str) -> str:
    return "gemm" if phase == "prefill" else "read"


def _probe_size(device: str) -> int:
    """Bytes of a probe's buffer: far more than the caches hold; on a GPU, else at most an eighth of what is free."""
    size = _PROBE_BYTES[device]
    if device == "cuda":
        size = min(size, torch.cuda.mem_get_info()[0] // 8)
    return max(size, 4 * measure.last_level_cache_bytes(device)) // 4096 * 4096


def _native_probes(device: str, size: int, *, copy: bool) -> list[dict[str, Any]]:
    """The compiled probe's run and its bytes, for each way that the device has to do it; nothing in their place
    (torch's fallback) where there is no library for the device."""
    if native.why_cannot("probe", device) is not None:
        return [{}]
    source = memory.empty((size,), torch.uint8, device).fill_(1)
    target = memory.empty((size if copy else 0,), torch.uint8, device).fill_(0)
    sink = torch.zeros(1, dtype=torch.int64, device=device)

    def by(way: int) -> dict[str, Any]:
        params = native.make(
            "hsb_probe_params",
            bytes=size,
            src=source,
            sink=sink,
            way=way,
            **native.on_device(source.device),
            **({"dst": target} if copy else {}),
        )
        operation = native.Operation("probe", source.device, params)

        def run(_alive: tuple[torch.Tensor, ...] = (source, target, sink)) -> None:
            operation.run()

        return {"run": run, "bytes_moved": size * (2 if copy else 1)}

    reads_on_gpu = device == "cuda" and not copy
    return [by(way) for way in (native.PROBE_WAYS.values() if reads_on_gpu else (0,))]


def why_no_gpu() -> str:
    """Why torch has no GPU here, as one clause."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA, or there is no NVIDIA GPU"
    return "torch sees no NVIDIA GPU (check that nvidia-smi works)"
