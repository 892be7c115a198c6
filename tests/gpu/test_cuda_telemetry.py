"""Telemetry, memory and doctor on the GPU that is there. Others may be on it too: nothing assumes to be alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hsbench import measure
from hsbench.cli.main import main
from hsbench.kernels.device import CUDA
from hsbench.machine import hardware
from hsbench.problem.workload import make_workload
from hsbench.report.doctor import document
from hsbench.run import diagnosis
from hsbench.run.measuring import run_workload
from hsbench.run.settings import Settings

pytestmark = pytest.mark.gpu

MIB = 1 << 20


@pytest.fixture
def telemetry() -> measure.Telemetry:
    found = measure.Telemetry(CUDA)
    if found.missing:
        pytest.skip(found.missing)
    return found


def test_what_nvml_and_torch_both_know(telemetry: measure.Telemetry) -> None:
    free, total = torch.cuda.mem_get_info()
    facts = telemetry.facts
    assert facts.name == torch.cuda.get_device_name()
    assert abs(facts.memory_total_bytes - total) < 0.05 * total
    assert facts.cuda_driver is None or tuple(map(int, facts.cuda_driver.split("."))) >= (12, 0)
    assert all(value in (True, False, None) for value in (facts.persistence, facts.mig, facts.ecc))
    if not facts.mig:
        assert abs(telemetry.memory_used_bytes() - (total - free)) < 2048 * MIB


def test_a_reading_and_its_summary(telemetry: measure.Telemetry) -> None:
    reading = telemetry.read("a")
    assert reading.sm_clock_mhz > 0
    summary = telemetry.summary("a")
    assert summary.sm_clock_mhz == reading.sm_clock_mhz and summary.throttled is not None


def test_memory_that_is_taken_shows(telemetry: measure.Telemetry) -> None:
    before = telemetry.memory_used_bytes()
    footprint = measure.Footprint(CUDA)
    with footprint.preparing():
        kept = torch.ones(512 * MIB, dtype=torch.uint8, device="cuda")
        del kept
        kept = torch.ones(256 * MIB, dtype=torch.uint8, device="cuda")
    assert footprint.peak_bytes == 512 * MIB
    with footprint.running():
        torch.ones(300 * MIB, dtype=torch.uint8, device="cuda")
    assert footprint.peak_bytes == 556 * MIB
    torch.cuda.synchronize()
    assert telemetry.memory_used_bytes() > before - 64 * MIB and kept.is_cuda


@pytest.fixture
def neighbour() -> Iterator[None]:
    """Another process that holds 4 GiB of the GPU."""
    code = """
import sys, torch
held = torch.ones(4 << 30, dtype=torch.uint8, device="cuda")
torch.cuda.synchronize()
print("ready", flush=True)
sys.stdin.read()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ.copy()
    )
    try:
        if process.stdout.readline() != b"ready\n":
            pytest.skip("a second process cannot use the GPU (exclusive mode, or no memory)")
        yield
    finally:
        process.stdin.close()
        process.wait(60)


def test_a_neighbour_is_seen(telemetry: measure.Telemetry, request: pytest.FixtureRequest) -> None:
    before = telemetry.look()
    request.getfixturevalue("neighbour")
    after = telemetry.look()
    assert telemetry.shared is True
    if before is not None:
        # Others may come and go meanwhile: this one is among those that came.
        came = [process for process in after if process.pid not in {other.pid for other in before}]
        assert any((process.used_bytes or 4 << 30) >= 4 << 30 for process in came)


def test_a_run_tells_what_the_gpu_did() -> None:
    settings = Settings(budget_s=0.3, max_samples=20)
    report = run_workload(make_workload("decode", seq=32768), device=CUDA, settings=settings)
    rows = [result.record for result in report.results if result.record.status == "ok"]
    assert {"dense", "hierarchical"} <= {row.method for row in rows}
    known = measure.Telemetry(CUDA).missing is None
    for row in rows:
        assert (row.measures.sm_clock_mhz is not None) == (row.measures.memory_clock_mhz is not None) == known
        assert bool(row.measures.throttle_reasons) == bool(row.measures.throttled)
        assert row.measures.peak_bytes < row.measures.estimated_bytes * 1.1 + 64 * MIB, row.method
        if known and not report.machine["gpu"]["mig"]:
            assert row.measures.gpu_used_bytes > report.workload.dense_kv_bytes
    ours = next(row for row in rows if row.method == "dense")
    assert ours.measures.peak_bytes > 0.9 * report.workload.dense_kv_bytes


def test_the_library_has_code_for_this_chip() -> None:
    code = hardware.cuda_code()
    assert code is not None and code["runs"] is True and any(code["architectures"].values())
    assert not any(item["what"] == "CUDA kernels for this GPU" for item in hardware.missing())


def test_doctor_names_what_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    found = diagnosis.diagnose(probe=False)
    json.dumps(document(found), allow_nan=False)
    libraries = {item["name"]: item["version"] for item in found["libraries"]}
    assert libraries["cuda"] == torch.version.cuda
    assert found["machine"]["gpu"]["compute_capability"] == "{}.{}".format(*torch.cuda.get_device_capability())
    if measure.Telemetry(CUDA).missing is None:
        assert libraries["driver"] and found["now"]["sm_clock_mhz"] > 0 and found["now"]["memory_used_bytes"] > 0
    assert main(["doctor", "--no-probe"]) == 0
    assert "GPU now" in capsys.readouterr().out


def test_a_replay_on_the_same_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--seq", "4k", "--time", "0.05", "--methods", "dense,hierarchical", "--device", "cuda"]
    assert main(["decode", *argv, "--output", str(tmp_path / "a.csv")]) == 0
    manifest = json.loads((tmp_path / "a.manifest.json").read_text())
    assert manifest["machine"]["gpu"]["name"] and manifest["versions"]["cuda"] == torch.version.cuda
    capsys.readouterr()
    assert main(["compare", "--replay", str(tmp_path / "a.manifest.json"), "--output", str(tmp_path / "b.csv")]) == 0
    assert "not all is as it was" not in capsys.readouterr().err
    first, again = ((tmp_path / name).read_text().splitlines() for name in ("a.csv", "b.csv"))
    assert len(first) == len(again) > 2
