"""What bounds a phase, and how large its probe is."""

from __future__ import annotations

import pytest

from hsbench import measure
from hsbench.kernels.device import CPU, CUDA, Device
from hsbench.machine import ceilings
from hsbench.problem.phase import DECODE, PREFILL, Phase


@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
@pytest.mark.parametrize(("phase", "kind"), [(DECODE, "read"), (PREFILL, "gemm")], ids=["decode", "prefill"])
def test_decode_is_held_against_reads_on_every_device(
    phase: Phase, kind: str, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ceilings, "ceiling", lambda device, kind: (device, kind))
    assert ceilings.ceiling_of(phase, device) == (device, kind)


def test_products_are_fp32_on_a_cpu_and_16_bit_on_a_gpu() -> None:
    assert ceilings.ceiling(CPU, "gemm").name == "gemm fp32"
    assert ceilings.ceiling_bytes(PREFILL, CPU) == 2048**2 * 4 * (2 + 3)
    assert ceilings.ceiling_bytes(PREFILL, CUDA) == 8192**2 * (2 * 4 + 3 * 2)


def test_a_gpu_s_probe_is_long_but_leaves_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "last_level_cache_bytes", lambda device: 50 << 20)
    for free, size in ((80 << 30, 2 << 30), (8 << 30, 1 << 30), (1 << 30, 200 << 20)):
        monkeypatch.setattr(measure, "free_memory", lambda device, free=free: measure.FreeMemory(free))
        assert ceilings._probe_size(CUDA) == size == ceilings.ceiling_bytes(DECODE, CUDA)
    assert ceilings._probe_size(CPU) == 512 << 20
