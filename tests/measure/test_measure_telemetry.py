"""Telemetry on a fake pynvml: matching the device, the reasons, medians, and every way NVML can fail."""

from __future__ import annotations

import dataclasses
import os
import sys
from types import SimpleNamespace

import pytest

from hsbench.kernels.device import CPU, CUDA, Device
from hsbench.measure.telemetry import (
    REASONS,
    GpuFacts,
    GpuProcess,
    Reading,
    Telemetry,
    TelemetrySummary,
)

GIB = 1 << 30


class FakeNvml:
    """A pynvml with two GPUs, by bus address; a function named in `broken` raises NVMLError."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0
    NVML_MEMORY_ERROR_TYPE_UNCORRECTED, NVML_VOLATILE_ECC = 1, 0

    class NVMLError(Exception):
        pass

    class NVMLLibraryMismatchError(Exception):
        pass

    def __init__(self) -> None:
        self.broken: set[str] = set()
        self.bits = 0
        self.sm_clock = 1700
        self.devices = {"00000000:1b:00.0": "first", "00000002:3d:01.0": "second"}
        self.uuids = {"GPU-aaaa": "first", "GPU-bbbb": "second"}
        self.used = 3 * GIB
        self.processes = [process(os.getpid(), 2 * GIB)]
        self.listed = 0

    def __getattribute__(self, name: str):
        value = super().__getattribute__(name)
        if name.startswith("nvml") and ("*" in self.broken or name in self.broken):

            def fails(*arguments: object) -> None:
                raise self.NVMLError(name)

            return fails
        return value

    def nvmlInit(self) -> None:  # noqa: N802
        pass

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.devices)

    def nvmlDeviceGetHandleByPciBusId(self, address: str) -> str:  # noqa: N802
        if address.lower() not in self.devices:
            raise self.NVMLError("Not Found")
        return self.devices[address.lower()]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        if uuid not in self.uuids:
            raise self.NVMLError("Not Found")
        return self.uuids[uuid]

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:  # noqa: N802
        return list(self.devices.values())[index]

    def nvmlSystemGetDriverVersion(self) -> bytes:  # noqa: N802
        return b"580.1"  # old versions give bytes

    def nvmlDeviceGetName(self, handle: str) -> str:  # noqa: N802
        return f"GPU {handle}"

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(total=80 * GIB, used=self.used)

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: str) -> int:  # noqa: N802
        return 700_000

    def nvmlDeviceGetMaxClockInfo(self, handle: str, kind: int) -> int:  # noqa: N802
        return 1980

    def nvmlDeviceGetClockInfo(self, handle: str, kind: int) -> int:  # noqa: N802
        return self.sm_clock if kind == self.NVML_CLOCK_SM else 2619

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:  # noqa: N802
        return 350_500

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:  # noqa: N802
        return 55

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: str) -> int:  # noqa: N802
        return self.bits

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:  # noqa: N802
        return 13010

    def nvmlDeviceGetPersistenceMode(self, handle: str) -> int:  # noqa: N802
        return 1

    def nvmlDeviceGetMigMode(self, handle: str) -> list[int]:  # noqa: N802
        return [0, 1]  # now, and after the next reset

    def nvmlDeviceGetEccMode(self, handle: str) -> list[int]:  # noqa: N802
        return [1, 0]

    def nvmlDeviceGetTotalEccErrors(self, handle: str, kind: int, since: int) -> int:  # noqa: N802
        assert (kind, since) == (self.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, self.NVML_VOLATILE_ECC)
        return 2

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[SimpleNamespace]:  # noqa: N802
        self.listed += 1
        return self.processes


def process(pid: int, used: int | None, gpu_instance: int = 0xFFFFFFFF) -> SimpleNamespace:
    return SimpleNamespace(pid=pid, usedGpuMemory=used, gpuInstanceId=gpu_instance)


@pytest.fixture
def nvml(monkeypatch):
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return fake


@pytest.fixture
def torch(monkeypatch):
    second = SimpleNamespace(pci_domain_id=2, pci_bus_id=0x3D, pci_device_id=1, uuid="bbbb")
    first = SimpleNamespace(pci_domain_id=0, pci_bus_id=0x1B, pci_device_id=0, uuid="aaaa")
    visible = [second, first]  # as with CUDA_VISIBLE_DEVICES=1,0
    cuda = SimpleNamespace(
        current_device=lambda: 0,
        get_device_properties=lambda index: visible[index],
        mem_get_info=lambda device: (77 * GIB, 80 * GIB),
        memory_reserved=lambda device: 2 * GIB,
    )
    fake = SimpleNamespace(cuda=cuda, visible=visible)
    monkeypatch.setitem(sys.modules, "torch", fake)
    return fake


def test_on_a_cpu_nothing_is_read_and_nothing_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setitem(sys.modules, "torch", None)
    telemetry = Telemetry(CPU)
    assert telemetry.read("a") == Reading()
    assert telemetry.summary() == telemetry.summary("a") == TelemetrySummary()
    assert telemetry.facts == GpuFacts() and telemetry.missing is None
    assert telemetry.summary().throttled is None
    assert telemetry.look() is telemetry.shared is telemetry.memory_used_bytes() is None


def test_facts_and_a_reading(nvml, torch):
    telemetry = Telemetry(CUDA)
    facts = GpuFacts("GPU second", "580.1", 80 * GIB, 700.0, 1980, "13.1")
    assert telemetry.facts == dataclasses.replace(facts, persistence=True, mig=False, ecc=True, ecc_errors=2)
    assert telemetry.missing is None
    assert telemetry.read() == Reading(1700, 2619, 350.5, 55, ())


@pytest.mark.parametrize(
    ("nvlink", "links", "level", "words"),
    [(0, 18, 50, "NVLink, 18 links"), (0, 0, 50, "NVLink"), (1, 0, 10, "one PCIe switch"), (1, 0, 99, None)],
)
def test_by_what_two_gpus_are_linked(nvml, torch, nvlink, links, level, words):
    nvml.nvmlDeviceGetP2PStatus = lambda handle, other, capability: nvlink
    nvml.nvmlDeviceGetNvLinkState = lambda handle, link: int(link < links)
    nvml.nvmlDeviceGetTopologyCommonAncestor = lambda handle, other: level
    one, other = (Telemetry(Device(CUDA.kind, index)) for index in range(2))
    assert one.link_to(other) == words and Telemetry(CPU).link_to(one) is None
    nvml.broken = {"*"}
    assert one.link_to(other) is None


def test_the_device_is_matched_by_bus_address_not_by_index(nvml, torch):
    assert Telemetry(CUDA).facts.name == "GPU second"
    assert Telemetry(Device.of("cuda:0")).facts.name == "GPU second"
    assert Telemetry(Device.of("cuda:1")).facts.name == "GPU first"


@pytest.mark.parametrize("uuid", ["aaaa", "GPU-aaaa"])
def test_without_a_bus_address_the_uuid_decides(nvml, torch, uuid):
    torch.visible[0] = SimpleNamespace(uuid=uuid)  # older torch
    assert Telemetry(CUDA).facts.name == "GPU first"


def test_a_device_that_cannot_be_told_is_not_guessed(nvml, torch):
    torch.visible[0] = SimpleNamespace()
    telemetry = Telemetry(CUDA)
    assert telemetry.facts == GpuFacts() and "cuda" in telemetry.missing
    assert telemetry.read() == Reading()
    del nvml.devices["00000000:1b:00.0"]
    assert Telemetry(CUDA).facts.name == "GPU second"  # the only one


def test_without_pynvml_the_remedy_is_named(monkeypatch, torch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    telemetry = Telemetry(CUDA)
    assert "pip install nvidia-ml-py" in telemetry.missing
    assert telemetry.read() == Reading() and telemetry.summary() == TelemetrySummary()


def test_when_nvml_does_not_start_all_fields_are_none(nvml, torch):
    nvml.broken = {"nvmlInit"}
    telemetry = Telemetry(CUDA)
    assert "nvidia-smi" in telemetry.missing
    assert telemetry.read() == Reading() and telemetry.facts == GpuFacts()


FUNCTIONS = [name for name in dir(FakeNvml) if name.startswith("nvml")]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_any_single_failure_leaves_the_rest(nvml, torch, function):
    nvml.broken = {function}
    telemetry = Telemetry(CUDA)
    reading = telemetry.read()
    telemetry.summary()
    telemetry.look()
    if function not in ("nvmlInit",):
        known = [reading.sm_clock_mhz, reading.power_w, reading.temperature_c, reading.reasons]
        facts = dataclasses.asdict(telemetry.facts).values()
        assert sum(value is None for value in (*known, *facts)) <= 1


def test_failure_of_everything_after_the_start_gives_none_fields(nvml, torch):
    telemetry = Telemetry(CUDA)
    nvml.broken = {"*"}
    assert telemetry.read() == Reading()
    assert telemetry.summary() == TelemetrySummary()
    assert telemetry.look() is telemetry.shared is telemetry.memory_used_bytes() is None
    nvml.broken = {name for name in FUNCTIONS if name.startswith("nvmlDeviceGet") and "Handle" not in name}
    assert Telemetry(CUDA).facts == GpuFacts(driver="580.1", cuda_driver="13.1")


def test_a_pynvml_that_lacks_a_function_is_as_one_that_fails(nvml, torch, monkeypatch):
    monkeypatch.delattr(FakeNvml, "nvmlDeviceGetPowerUsage")
    assert Telemetry(CUDA).read().power_w is None


def test_before_the_renaming_reasons_had_another_name(nvml, torch, monkeypatch):
    monkeypatch.delattr(FakeNvml, "nvmlDeviceGetCurrentClocksEventReasons")
    nvml.nvmlDeviceGetCurrentClocksThrottleReasons = lambda handle: 0x4
    assert Telemetry(CUDA).read().reasons == ("sw_power_cap",)


def test_a_function_that_the_driver_has_in_another_version_only(nvml, torch):
    """pynvml raises something then that is no NVMLError."""

    def mismatched(handle: str) -> None:
        raise nvml.NVMLLibraryMismatchError

    telemetry = Telemetry(CUDA)
    nvml.nvmlDeviceGetComputeRunningProcesses = mismatched
    assert telemetry.look() is None
    nvml.nvmlDeviceGetComputeRunningProcesses_v2 = lambda handle: [process(os.getpid(), 1), process(7, 1)]
    assert telemetry.look() == (GpuProcess(7, 1),)


# ---- Who else is on the GPU --------------------------------------------------------------------------------
def test_alone(nvml, torch):
    telemetry = Telemetry(CUDA)
    assert telemetry.look() == () and telemetry.shared is False and telemetry.seen == {}
    assert telemetry.memory_used_bytes() == 3 * GIB


def test_others_are_named_and_remembered(nvml, torch):
    telemetry = Telemetry(CUDA)
    mine = process(os.getpid(), 2 * GIB)
    nvml.processes = [process(7, 5 * GIB), mine, process(9, None)]
    assert telemetry.look() == (GpuProcess(7, 5 * GIB), GpuProcess(9, None))
    nvml.processes = [mine]
    assert telemetry.look() == ()
    assert telemetry.shared is True and list(telemetry.seen) == [7, 9]


@pytest.mark.parametrize(
    ("entries", "others"),
    [
        ([process(70_001, 2.4 * GIB)], ()),  # us, as the host counts
        ([process(70_001, None)], ()),
        ([process(70_001, 30 * GIB), process(70_002, 2.4 * GIB)], (GpuProcess(70_001, 30 * GIB),)),
        ([process(70_001, 2.5 * GIB), process(70_002, 0.4 * GIB)], (GpuProcess(70_002, 0.4 * GIB),)),
        ([], None),  # not even we are shown
    ],
)
def test_in_a_container_where_our_number_is_another(nvml, torch, entries, others):
    nvml.processes = entries
    telemetry = Telemetry(CUDA)
    assert telemetry.look() == others
    assert telemetry.shared is (None if others is None else bool(others))


def test_processes_on_another_slice_of_the_gpu_do_not_count(nvml, torch):
    nvml.processes = [process(os.getpid(), GIB, 3), process(7, GIB, 3), process(8, GIB, 4)]
    assert Telemetry(CUDA).look() == (GpuProcess(7, GIB),)


@pytest.mark.parametrize(("used", "shared"), [(3 * GIB, None), (3.9 * GIB, None), (9 * GIB, True)])
def test_hidden_processes_are_given_away_by_their_memory(nvml, torch, used, shared):
    nvml.processes, nvml.used = [], used  # 2 GiB of it are torch's
    telemetry = Telemetry(CUDA)
    assert telemetry.look() is None and telemetry.shared is shared


def test_without_a_context_of_ours_nothing_is_told(nvml, torch):
    def full(device: str) -> None:
        raise RuntimeError("CUDA error: out of memory")

    torch.cuda.mem_get_info = full
    telemetry = Telemetry(CUDA)
    nvml.processes, nvml.used = [process(7, GIB)], 79 * GIB
    assert telemetry.look() is None and telemetry.shared is None


def test_readings_look_around_once_a_second(nvml, torch):
    clock = SimpleNamespace(at=100.0)
    telemetry = Telemetry(CUDA, now=lambda: clock.at)
    listed = []
    for clock.at in (100.0, 100.1, 100.9, 101.2, 101.3, 103.0):
        telemetry.read()
        listed.append(nvml.listed)
    assert listed == [1, 1, 1, 2, 2, 3]
    nvml.processes = [*nvml.processes, process(7, GIB)]
    clock.at = 104.5
    telemetry.read()
    assert telemetry.shared is True


# ---- Readings ----------------------------------------------------------------------------------------------
def test_medians_by_tag(nvml, torch):
    telemetry = Telemetry(CUDA)
    for tag, clock in [("a", 1500), ("b", 1900), ("a", 1600), ("b", 1910), ("a", 1980)]:
        nvml.sm_clock = clock
        telemetry.read(tag)
    assert telemetry.summary("a").sm_clock_mhz == 1600
    assert telemetry.summary("b").sm_clock_mhz == 1905
    assert telemetry.summary().sm_clock_mhz == 1900
    assert telemetry.summary("a").power_w == 350.5
    assert telemetry.summary("nobody") == TelemetrySummary()


@pytest.mark.parametrize("bit", sorted(REASONS))
def test_which_reasons_are_throttling(nvml, torch, bit):
    nvml.bits = bit
    telemetry = Telemetry(CUDA)
    assert telemetry.read().reasons == (REASONS[bit],)
    harmless = REASONS[bit] in ("gpu_idle", "applications_clocks_setting", "display_clock_setting")
    assert telemetry.summary().throttled is not harmless
    assert telemetry.summary().reasons == (() if harmless else (REASONS[bit],))


def test_one_throttled_reading_marks_the_whole_and_tells_its_share(nvml, torch):
    telemetry = Telemetry(CUDA)
    for bits in (0x1, 0x0, 0x4 | 0x1, 0x40):
        nvml.bits = bits
        telemetry.read()
    summary = telemetry.summary()
    assert summary.throttled is True and summary.throttled_share == 0.5
    assert summary.reasons == ("hw_thermal_slowdown", "sw_power_cap")


def test_a_reason_of_the_future_is_kept_and_counts(nvml, torch):
    nvml.bits = 0x4 | 0x10000
    telemetry = Telemetry(CUDA)
    assert telemetry.read().reasons == ("sw_power_cap", "unknown_0x10000")
    assert telemetry.summary().throttled


def test_the_bits_are_those_of_the_real_pynvml():
    pynvml = pytest.importorskip("pynvml")
    names = {0x1: "GpuIdle", 0x4: "SwPowerCap", 0x8: "HwSlowdown", 0x20: "SwThermalSlowdown"}
    names |= {0x40: "HwThermalSlowdown", 0x80: "HwPowerBrakeSlowdown", 0x10: "SyncBoost"}
    names |= {0x2: "ApplicationsClocksSetting", 0x100: "DisplayClockSetting"}
    for bit, name in names.items():
        assert getattr(pynvml, f"nvmlClocksThrottleReason{name}") == bit
        assert REASONS[bit].replace("_", "") == name.lower()


@pytest.mark.parametrize("function", [name for name in FUNCTIONS if hasattr(FakeNvml, name)])
def test_the_functions_exist_in_the_real_pynvml(function):
    assert callable(getattr(pytest.importorskip("pynvml"), function))
