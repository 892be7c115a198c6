"""GPU telemetry through NVML: what the device is, and how it was doing between the samples.

Reading takes up to a millisecond and must stay outside the timed windows: call `Telemetry.read` right after a
sample (in `on_sample`), while the clocks are still those of the sample. A field that the driver or the
machine does not give is None; no NVML error ever reaches the caller.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

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


@dataclass(frozen=True)
class GpuFacts:
    """What the GPU is. Clocks in MHz, power in watts, memory in bytes."""

    name: str | None = None
    driver: str | None = None
    memory_total_bytes: int | None = None
    power_limit_w: float | None = None
    max_sm_clock_mhz: int | None = None


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


class Telemetry:
    """Reads one GPU, the one that torch calls `device`; on "cpu" it reads nothing and every field is None.

    Attributes:
        facts: what the GPU is.
        missing: why there is no telemetry although there is a GPU, with the remedy; None when all is well.
    """

    def __init__(self, device: str) -> None:
        self.facts = GpuFacts()
        self.missing: str | None = None
        self._readings: list[tuple[str | None, Reading]] = []
        self._nvml: Any = None
        self._handle: Any = None
        if device.startswith("cuda"):
            self._open(device)

    def read(self, tag: str | None = None) -> Reading:
        """Look at the GPU now, never inside a timed window.

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
        return reading

    def summary(self, tag: str | None = None) -> TelemetrySummary:
        """Medians and throttling over the readings of that tag, or over all."""
        readings = [reading for of, reading in self._readings if tag is None or of == tag]

        def middle(get: Callable[[Reading], float | None]) -> float | None:
            known = [value for reading in readings if (value := get(reading)) is not None]
            return float(median(known)) if known else None

        holding = [
            set(reading.reasons) - NOT_THROTTLING for reading in readings if reading.reasons is not None
        ]
        return TelemetrySummary(
            sm_clock_mhz=middle(lambda reading: reading.sm_clock_mhz),
            memory_clock_mhz=middle(lambda reading: reading.memory_clock_mhz),
            power_w=middle(lambda reading: reading.power_w),
            temperature_c=middle(lambda reading: reading.temperature_c),
            throttled=any(holding) if holding else None,
            reasons=tuple(sorted(set().union(*holding))),
            throttled_share=sum(map(bool, holding)) / len(holding) if holding else None,
        )

    def _open(self, device: str) -> None:
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
        )

    def _find(self, device: str) -> Any:
        """NVML's handle of torch's device: by bus address, else by UUID.

        Never by index: torch counts what CUDA_VISIBLE_DEVICES leaves, fastest first unless told otherwise,
        and NVML counts all in bus order.
        """
        import torch

        _, _, index = device.partition(":")
        properties = torch.cuda.get_device_properties(int(index) if index else torch.cuda.current_device())
        domain, bus, slot = (
            getattr(properties, f"pci_{part}_id", None) for part in ("domain", "bus", "device")
        )
        if bus is not None:
            handle = self._try(
                "nvmlDeviceGetHandleByPciBusId", f"{domain or 0:08x}:{bus:02x}:{slot or 0:02x}.0"
            )
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

    def _ask(self, function: str, *arguments: object) -> Any:
        return self._try(function, self._handle, *arguments)

    def _try(self, function: str, *arguments: object) -> Any:
        """The answer, or None for any NVML error and for a function that this pynvml or driver lacks."""
        call = getattr(self._nvml, function, None)
        if call is None:
            return None
        try:
            return call(*arguments)
        except self._nvml.NVMLError:
            return None


def _decoded(text: str | bytes | None) -> str | None:
    return text.decode(errors="replace") if isinstance(text, bytes) else text
