"""The ceilings of this machine that a method is held against: how fast memory is read or copied, and products run."""

from __future__ import annotations

from typing import Any

import torch

from hsbench import measure
from hsbench.kernels import library, memory
from hsbench.kernels.device import CPU, CUDA, Device
from hsbench.problem.elements import DEFAULT_INPUT, FP32
from hsbench.problem.phase import Phase

# On a GPU so many that a launch and the last CTAs to end, some 5 us, are 1 % of a probe: else long decodes pass it.
_PROBE_BYTES = {CPU.kind: 512 << 20, CUDA.kind: 2 << 30}

# What a device's prefill multiplies in: a CPU widens its inputs, and tensor cores take all 16-bit types at one rate.
_PRODUCTS = {CPU.kind: FP32, CUDA.kind: DEFAULT_INPUT}


def ceiling(device: Device, kind: str, size: int | None = None) -> measure.Ceiling:
    """A ceiling of this machine: ``read`` or ``copy`` (GB/s) of ``size`` bytes, or ``gemm`` (TFLOP/s). Without a size,
    far more than the caches hold. Its buffers live as long as it does: a cell that kept them would leave less to the
    cells after it."""
    if kind == "gemm":
        element = _PRODUCTS[device.kind]
        return measure.gemm_ceiling(device, element.torch_dtype, element.name)
    make = {"read": measure.read_ceiling, "copy": measure.copy_ceiling}[kind]
    ways = [make(device, **way) for way in _native_probes(device, size or _probe_size(device), copy=kind == "copy")]
    return ways[0] if len(ways) == 1 else measure.fastest(ways, measure.clock_for(device))


def ceiling_of(phase: Phase, device: Device) -> measure.Ceiling:
    """What bounds a phase: a matrix product for prefill, reading memory for decode, which writes next to nothing; a
    copy is slower than reads are, so that decode would pass it."""
    return ceiling(device, phase.ceiling)


def ceiling_bytes(phase: Phase, device: Device) -> int:
    """Memory that :func:`ceiling_of` takes, known before it is made."""
    if phase.ceiling == "gemm":
        return measure.gemm_bytes(device, _PRODUCTS[device.kind].nbytes(1))
    return _probe_size(device)


def _probe_size(device: Device) -> int:
    """Bytes of a probe's buffer: far more than the caches hold; on a GPU, else at most an eighth of what is free."""
    size = _PROBE_BYTES[device.kind]
    if device.is_cuda and (free := measure.free_memory(device)) is not None:
        size = min(size, free.nbytes // 8)
    return max(size, 4 * measure.last_level_cache_bytes(device)) // 4096 * 4096


def _native_probes(device: Device, size: int, *, copy: bool) -> list[dict[str, Any]]:
    """The compiled probe's run and its bytes, for each way that the device has to do it; nothing in their place
    (torch's fallback) where there is no library for the device."""
    if library.why_cannot("probe", device) is not None:
        return [{}]
    source = memory.empty((size,), torch.uint8, str(device)).fill_(1)
    target = memory.empty((size if copy else 0,), torch.uint8, str(device)).fill_(0)
    checksum = torch.zeros(1, dtype=torch.int64, device=str(device))

    def by(way: int) -> dict[str, Any]:
        params = library.make(
            "hsb_probe_params",
            bytes=size,
            src=source,
            checksum=checksum,
            way=way,
            **library.on_device(source.device),
            **({"dst": target} if copy else {}),
        )
        operation = library.Operation("probe", source.device, params)

        def run(_alive: tuple[torch.Tensor, ...] = (source, target, checksum)) -> None:
            operation.run()

        return {"run": run, "bytes_moved": size * (2 if copy else 1)}

    reads_on_gpu = device.is_cuda and not copy
    return [by(way) for way in (library.PROBE_WAYS.values() if reads_on_gpu else (0,))]
