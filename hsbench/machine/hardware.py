"""What this machine is, what it lacks, and its ceilings: the facts that stand under every report and in ``doctor``."""

from __future__ import annotations

import dataclasses
import shutil
from typing import Any

import torch

from hsbench import measure
from hsbench.errors import UnavailableError
from hsbench.kernels import architectures, library
from hsbench.kernels.device import CPU, CUDA, Device
from hsbench.machine import software


def resolve_device(name: str) -> Device:
    """The device for ``auto``, ``cpu`` or ``cuda``: auto takes CUDA where there is a GPU.

    Raises:
        UnavailableError: cuda is asked for and torch sees no GPU.
    """
    has_gpu = torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        raise UnavailableError(f"--device cuda: {why_no_gpu()}")
    return CUDA if name == "cuda" or (name == "auto" and has_gpu) else CPU


def hardware(device: Device, telemetry: measure.Telemetry) -> dict[str, Any]:
    """``cpu``, and ``gpu`` or None."""
    cpu = measure.cpu_facts()
    has_native = library.why_missing("cpu") is None
    found: dict[str, Any] = {
        "cpu": {
            "model": cpu.model,
            "cores": cpu.usable_cores,
            "logical_cores": cpu.logical_cores,
            "quota_cores": cpu.quota_cores,
            "threads": torch.get_num_threads(),
            "isa": library.best_isa() if has_native else None,
            "governor": cpu.governor,
            "virtual_machine": cpu.hypervisor,
            "memory_bytes": cpu.memory_total_bytes,
            "memory_limit_bytes": cpu.memory_limit_bytes,
            "last_level_cache_bytes": measure.last_level_cache_bytes(CPU),
        },
        "gpu": None,
    }
    if device.is_cuda:
        found["gpu"] = {
            **dataclasses.asdict(telemetry.facts),
            "name": telemetry.facts.name or torch.cuda.get_device_name(),
            "compute_capability": "{}.{}".format(*torch.cuda.get_device_capability()),
            "l2_bytes": measure.last_level_cache_bytes(CUDA),
        }
    return found


def facts(device: Device, telemetry: measure.Telemetry) -> dict[str, Any]:
    """What a report says of the machine: its hardware, ``versions``, ``missing`` and ``warnings`` (lines with
    remedies)."""
    lacks = [f"{item['what']}: {item['why']}" for item in missing()]
    if device.is_cuda and telemetry.missing:
        lacks.append(telemetry.missing)
    return {**hardware(device, telemetry), "versions": software.versions(), "missing": lacks, "warnings": []}


def surroundings(device: Device) -> dict[str, Any]:
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
    if reason := library.why_missing("cpu"):
        why, _, remedy = reason.rpartition(": ")
        items.append({"what": "CPU kernels", "why": f"{why}; only torch's methods run", "remedy": remedy})
    if reason := library.why_missing("cuda"):
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
    told = None if library.why_missing("cuda") else library.load("cuda").text("hsb_cuda_architectures")
    if told is None:
        return None
    codes = architectures.parse(told)
    if not torch.cuda.is_available():
        return {"architectures": {code.name: None for code in codes}, "runs": None, "verdict": None}
    chip = torch.cuda.get_device_capability()
    runs, verdict = architectures.verdict(codes, chip)
    return {"architectures": {code.name: code.runs_on(chip) for code in codes}, "runs": runs, "verdict": verdict}


def why_no_gpu() -> str:
    """Why torch has no GPU here, as one clause."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA, or there is no NVIDIA GPU"
    return "torch sees no NVIDIA GPU (check that nvidia-smi works)"
