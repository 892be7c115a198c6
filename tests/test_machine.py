"""What bounds a phase."""

from __future__ import annotations

import pytest

from hsbench import machine


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(("phase", "kind"), [("decode", "read"), ("prefill", "gemm")])
def test_decode_is_held_against_reads_on_every_device(
    phase: str, kind: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "ceiling", lambda device, kind: (device, kind))
    assert machine.ceiling_of(phase, device) == (device, kind)


def test_a_gpu_s_probe_is_long_but_leaves_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.measure, "last_level_cache_bytes", lambda device: 50 << 20)
    for free, size in ((80 << 30, 2 << 30), (8 << 30, 1 << 30), (1 << 30, 200 << 20)):
        monkeypatch.setattr(machine.torch.cuda, "mem_get_info", lambda free=free: (free, 80 << 30))
        assert machine._probe_size("cuda") == size
    assert machine._probe_size("cpu") == 512 << 20
