"""GPU telemetry through NVML: what the device is, how it was doing between the samples, and who else was on it.

Reading takes up to a millisecond, looking at the processes a few more; both must stay outside the timed
windows: call `Telemetry.read` right after a sample (in `on_sample`), while the clocks are still those of the
sample. A field that the driver or the machine does not give is None; no NVML error ever reaches the caller.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from hsbench.kernels.device import Device

# Bits of nvmlDeviceGetCurrentClocksEventReasons (nvml.h, nvmlClocksEventReason*). Written out, since the
# names in pynvml changed from ThrottleReason to EventReason and the bits did not.
REASONS = {
    0x001: "gpu_idle",
    0x002: "applications_clocks_setting",
    0x004: "sw_power_cap",
    0x008: "hw_slowdown",
    0x010: "sync_boost",
    0x020: "sw_thermal_slowdown",
    0x040: "hw_thermal_slowdown",
    0x080: "hw_power_brake_slowdown",
    0x100: "display_clock_setting",
    0x200: "board_limit",
    0x400: "reliability",
}
# Chosen by somebody, or nothing to do: the clock is low, but nothing holds it back.
NOT_THROTTLING = frozenset({"gpu_idle", "applications_clocks_setting", "display_clock_setting"})

_LOOK_EVERY_S = 1.0  # processes come and go slowly, and listing them costs more than a reading
# Beyond what torch holds: a context, loaded kernels and what cuDNN keeps take up to about 1 GiB.
_NOT_OURS_BYTES = 2 << 30


@dataclass(frozen=True)
class GpuFacts:
    """What the GPU is and how it is set. Clocks in MHz, power in watts, memory in bytes.

    Attributes:
        cuda_driver: the newest CUDA that the driver runs, such as "13.0".
        persistence: whether the driver stays loaded while nobody uses the GPU.
        mig: whether the GPU is partitioned (multi-instance GPU).
        ecc: whether its memory corrects errors.
        ecc_errors: uncorrected memory errors since the driver was loaded.
    """

    name: str | None = None
    driver: str | None = None
    memory_total_bytes: int | None = None
    power_limit_w: float | None = None
    max_sm_clock_mhz: int | None = None
    cuda_driver: str | None = None
    persistence: bool | None = None
    mig: bool | None = None
    ecc: bool | None = None
    ecc_errors: int | None = None


@dataclass(frozen=True)
class GpuProcess:
    """Another process that computes on the GPU; `pid` as the driver counts, which in a container may be the host's."""

    pid: int
    used_bytes: int | None = None


@dataclass(frozen=True)
class Reading:
    """One look at the GPU. `reasons` holds the names of all event reasons; None when they cannot be read."""

    sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    power_w: float | None = None
    temperature_c: int | None = None
    reasons: tuple[str, ...] | None = None


@dataclass(frozen=True)
class TelemetrySummary:
    """Medians over the readings that had the field.

    Attributes:
        throttled: whether any reading had a reason that holds the clocks back; None when no reading had
            reasons.
        reasons: those reasons' names.
        throttled_share: the share of the readings that had one.
    """

    sm_clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    power_w: float | None = None
    temperature_c: float | None = None
    throttled: bool | None = None
    reasons: tuple[str, ...] = ()
    throttled_share: float | None = None


# NVML's levels of what two GPUs have in common, nearest first.
_PATHS = {
    0: "the same board",
    10: "one PCIe switch",
    20: "PCIe switches",
    30: "one PCIe host bridge",
    40: "PCIe host bridges of one NUMA node",
    50: "the link between NUMA nodes",
}


class Telemetry:
    """Reads one GPU, the one that torch calls `device`; on the CPU it reads nothing and every field is None.

    Attributes:
        facts: what the GPU is.
        missing: why there is no telemetry although there is a GPU, with the remedy; None when all is well.
        seen: the other processes that any look found on the GPU, by the time they were first seen.
        shared: whether any look found others on the GPU; None when no look could tell.
    """

    def __init__(self, device: Device, *, now: Callable[[], float] = time.monotonic) -> None:
        self.facts = GpuFacts()
        self.missing: str | None = None
        self.seen: dict[int, GpuProcess] = {}
        self.shared: bool | None = None
        self._device, self._now = device, now
        self._next_look = now()
        self._readings: list[tuple[str | None, Reading]] = []
        self._nvml: Any = None
        self._handle: Any = None
        if device.is_cuda:
            self._open(device)

    def read(self, tag: str | None = None) -> Reading:
        """Look at the GPU now, never inside a timed window; once a second, also at who else is on it.

        Args:
            tag: whose sample it follows, for `summary`.
        """
        if self._handle is None:
            return Reading()
        nvml = self._nvml
        milliwatts = self._ask("nvmlDeviceGetPowerUsage")
        reading = Reading(
            sm_clock_mhz=self._ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM),
            memory_clock_mhz=self._ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_MEM),
            power_w=None if milliwatts is None else milliwatts / 1000,
            temperature_c=self._ask("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
            reasons=self._reasons(),
        )
        self._readings.append((tag, reading))
        if self._now() >= self._next_look:
            self.look()
            self._next_look = self._now() + _LOOK_EVERY_S
        return reading

    def look(self) -> tuple[GpuProcess, ...] | None:
        """The other processes that compute on the GPU now; None when that cannot be told. Never inside a timed window.

        Where the driver hides processes (a container, another user's), memory that is in use and not ours still
        gives them away: `shared` is then True while the processes are None.
        """
        if self._handle is None:
            return None
        ours = self._reserved_bytes()  # makes torch's context too: from here on we are on the GPU ourselves
        entries = self._ask("nvmlDeviceGetComputeRunningProcesses")
        if entries is None:  # drivers before the third version of the call
            entries = self._ask("nvmlDeviceGetComputeRunningProcesses_v2")
        others = None if entries is None or ours is None else _others(entries, ours)
        if others is not None:
            self.seen = {process.pid: process for process in others} | self.seen
            self.shared = bool(self.seen) or bool(self.shared)
        elif ours is not None and (self.memory_used_bytes() or 0) - ours > _NOT_OURS_BYTES:
            self.shared = True
        return others

    def memory_used_bytes(self) -> int | None:
        """What is in use of the whole GPU now: ours, with the context that no allocator counts, and others'."""
        if self._handle is None:
            return None
        memory = self._ask("nvmlDeviceGetMemoryInfo")
        return None if memory is None else int(memory.used)

    def summary(self, tag: str | None = None) -> TelemetrySummary:
        """Medians and throttling over the readings of that tag, or over all."""
        readings = [reading for of, reading in self._readings if tag is None or of == tag]

        def middle(get: Callable[[Reading], float | None]) -> float | None:
            known = [value for reading in readings if (value := get(reading)) is not None]
            return float(median(known)) if known else None

        holding = [set(reading.reasons) - NOT_THROTTLING for reading in readings if reading.reasons is not None]
        return TelemetrySummary(
            sm_clock_mhz=middle(lambda reading: reading.sm_clock_mhz),
            memory_clock_mhz=middle(lambda reading: reading.memory_clock_mhz),
            power_w=middle(lambda reading: reading.power_w),
            temperature_c=middle(lambda reading: reading.temperature_c),
            throttled=any(holding) if holding else None,
            reasons=tuple(sorted(set().union(*holding))),
            throttled_share=sum(map(bool, holding)) / len(holding) if holding else None,
        )

    def link_to(self, other: Telemetry) -> str | None:
        """By what this GPU reaches another one of the machine, in words; None when that cannot be told."""
        if self._handle is None or other._handle is None:
            return None
        nvml = self._nvml
        by_nvlink = self._ask("nvmlDeviceGetP2PStatus", other._handle, getattr(nvml, "NVML_P2P_CAPS_INDEX_NVLINK", 2))
        if by_nvlink == getattr(nvml, "NVML_P2P_STATUS_OK", 0):
            links = range(getattr(nvml, "NVML_NVLINK_MAX_LINKS", 18))
            active = sum(bool(self._ask("nvmlDeviceGetNvLinkState", link)) for link in links)
            return f"NVLink, {active} links" if active else "NVLink"
        return _PATHS.get(self._ask("nvmlDeviceGetTopologyCommonAncestor", other._handle))

    def _open(self, device: Device) -> None:
        try:
            self._nvml = importlib.import_module("pynvml")
        except ImportError:
            self.missing = "no GPU telemetry: pynvml is not installed (pip install nvidia-ml-py)"
            return
        try:
            self._nvml.nvmlInit()
        except self._nvml.NVMLError as error:
            self.missing = f"no GPU telemetry: NVML does not start ({error}); check that nvidia-smi works"
            return
        self._handle = self._find(device)
        if self._handle is None:
            self.missing = f"no GPU telemetry: NVML does not know the GPU that torch calls {device}"
            return
        memory = self._ask("nvmlDeviceGetMemoryInfo")
        milliwatts = self._ask("nvmlDeviceGetEnforcedPowerLimit")
        self.facts = GpuFacts(
            name=_decoded(self._ask("nvmlDeviceGetName")),
            driver=_decoded(self._try("nvmlSystemGetDriverVersion")),
            memory_total_bytes=None if memory is None else int(memory.total),
            power_limit_w=None if milliwatts is None else milliwatts / 1000,
            max_sm_clock_mhz=self._ask("nvmlDeviceGetMaxClockInfo", self._nvml.NVML_CLOCK_SM),
            cuda_driver=_cuda_version(self._try("nvmlSystemGetCudaDriverVersion_v2")),
            persistence=_is_on(self._ask("nvmlDeviceGetPersistenceMode")),
            mig=_is_on(self._ask("nvmlDeviceGetMigMode")),
            ecc=_is_on(self._ask("nvmlDeviceGetEccMode")),
            ecc_errors=self._ask(
                "nvmlDeviceGetTotalEccErrors",
                self._nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
                self._nvml.NVML_VOLATILE_ECC,
            ),
        )

    def _find(self, device: Device) -> Any:
        """NVML's handle of torch's device: by bus address, else by UUID.

        Never by index: torch counts what CUDA_VISIBLE_DEVICES leaves, fastest first unless told otherwise,
        and NVML counts all in bus order.
        """
        import torch

        index = torch.cuda.current_device() if device.index is None else device.index
        properties = torch.cuda.get_device_properties(index)
        domain, bus, slot = (getattr(properties, f"pci_{part}_id", None) for part in ("domain", "bus", "device"))
        if bus is not None:
            handle = self._try("nvmlDeviceGetHandleByPciBusId", f"{domain or 0:08x}:{bus:02x}:{slot or 0:02x}.0")
            if handle is not None:
                return handle
        uuid = getattr(properties, "uuid", None)
        if uuid is not None:
            text = str(uuid)
            text = text if text.startswith(("GPU-", "MIG-")) else f"GPU-{text}"
            handle = self._try("nvmlDeviceGetHandleByUUID", text)
            if handle is not None:
                return handle
        if self._try("nvmlDeviceGetCount") == 1:  # nothing to confuse it with
            return self._try("nvmlDeviceGetHandleByIndex", 0)
        return None

    def _reasons(self) -> tuple[str, ...] | None:
        bits = self._ask("nvmlDeviceGetCurrentClocksEventReasons")
        if bits is None:  # drivers and pynvml before the renaming
            bits = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        if bits is None:
            return None
        known = tuple(name for bit, name in REASONS.items() if bits & bit)
        unknown = bits & ~sum(REASONS)
        return (*known, f"unknown_{unknown:#x}") if unknown else known

    def _reserved_bytes(self) -> int | None:
        """What torch's allocator holds of the GPU; None when torch cannot get onto it."""
        import torch

        try:
            torch.cuda.mem_get_info(str(self._device))
            return torch.cuda.memory_reserved(str(self._device))
        except RuntimeError:  # no memory left for a context, exclusive mode, ...
            return None

    def _ask(self, function: str, *arguments: object) -> Any:
        return self._try(function, self._handle, *arguments)

    def _try(self, function: str, *arguments: object) -> Any:
        """The answer, or None for any NVML error and for a function that this pynvml or driver lacks."""
        call = getattr(self._nvml, function, None)
        if call is None:
            return None
        # Raised for a function that the driver has under an older version only; no NVMLError, for some reason.
        mismatch = getattr(self._nvml, "NVMLLibraryMismatchError", self._nvml.NVMLError)
        try:
            return call(*arguments)
        except (self._nvml.NVMLError, mismatch):
            return None


def _others(entries: Sequence[Any], reserved_bytes: int) -> tuple[GpuProcess, ...] | None:
    """Who of the processes on the GPU is not this one, which is among them; None where the list cannot be trusted.

    In a container the driver may number processes as the host does. One of the entries is then this process under
    another number: the one whose memory is closest to ours, of which at least `reserved_bytes` are torch's. A list
    that holds nobody, not even us, hides the others as well.
    """
    if not entries:
        return None
    own = next((entry for entry in entries if entry.pid == os.getpid()), None)
    if own is None:
        own = min(entries, key=lambda entry: abs((entry.usedGpuMemory or 0) - reserved_bytes))
    slice_of_own = getattr(own, "gpuInstanceId", None)  # processes on other MIG slices have memory of their own
    return tuple(
        GpuProcess(entry.pid, entry.usedGpuMemory)
        for entry in entries
        if entry is not own and getattr(entry, "gpuInstanceId", None) == slice_of_own
    )


def _is_on(mode: int | Sequence[int] | None) -> bool | None:
    """Of an NVML mode, or of the pair (current, pending)."""
    if mode is None:
        return None
    return bool(mode if isinstance(mode, int) else mode[0])


def _cuda_version(number: int | None) -> str | None:
    """13000 -> "13.0"."""
    return None if number is None else f"{number // 1000}.{number % 1000 // 10}"


def _decoded(text: str | bytes | None) -> str | None:
    return text.decode(errors="replace") if isinstance(text, bytes) else text
