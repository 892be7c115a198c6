"""What doctor gathers, here and on a machine with a GPU that is made up."""

from __future__ import annotations

import json
import types

import pytest
import torch

from hsbench import measure, profiling
from hsbench.errors import HsbenchError
from hsbench.kernels import library
from hsbench.kernels.device import CUDA
from hsbench.machine import hardware, software
from hsbench.report.doctor import document
from hsbench.run import diagnosis


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software, "tool_version", lambda name: None if name == "nsys" else "1.2")


def test_here() -> None:
    found = diagnosis.diagnose(probe=False)
    json.dumps(document(found), allow_nan=False)
    assert found["probes"] == [] and {"cpu", "cuda"} == {row["device"] for row in found["methods"]}
    libraries = {item["name"]: item for item in found["libraries"]}
    assert {"torch", "cuda", "cudnn", "driver", "nsys", "ncu", "nvcc", "nvidia-nvtx"} <= set(libraries)
    assert libraries["nsys"]["version"] is None and "timelines" in libraries["nsys"]["note"]
    assert libraries["ncu"] == {"name": "ncu", "version": "1.2", "note": ""}
    if not library.why_missing("cpu"):
        isas = found["code"]["cpu"]["architectures"]
        assert isas["portable"] is True and list(isas) == ["portable", "avx2", "avx512", "avx512_bf16"]
        assert found["code"]["cpu"]["verdict"] == f"{library.best_isa()} is used"
    if not torch.cuda.is_available():
        assert found["now"] == {}


def test_a_profiler_that_is_here_and_would_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Said beforehand; of one that is not here the libraries tell."""
    monkeypatch.setattr(software, "find_tool", lambda name: "/usr/bin/nsys" if name == "nsys" else None)
    monkeypatch.setattr(measure.nvtx, "why_missing", lambda: "nvidia-nvtx is not installed: pip install nvidia-nvtx")
    monkeypatch.setattr(profiling.base, "find_tool", software.find_tool)
    assert [item for item in diagnosis.diagnose(probe=False)["missing"] if item["what"].startswith("reports by")] == [
        {
            "what": "reports by nsys",
            "why": "nsys would hear of none of hsbench's ranges, as nvidia-nvtx is not installed",
            "remedy": "pip install nvidia-nvtx",
        }
    ]
    monkeypatch.setattr(measure.nvtx, "why_missing", lambda: None)
    found = diagnosis.diagnose(probe=False)
    assert not any(item["what"].startswith("reports by") for item in found["missing"])


def test_kernels_by_name_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))
    monkeypatch.setattr(library, "why_cannot", lambda operation, device: None)
    rows = {(row["method"], row["device"]): row for row in diagnosis._methods(has_gpu=True)}
    on_cuda = [name for name, device in rows if device == "cuda" and name.startswith("dense")]
    assert on_cuda == ["dense", "dense:fp8", "dense:int4", "dense:sm80", "dense:sm90"]
    assert ("dense:sm80", "cpu") not in rows and rows["dense", "cuda"]["reason"] == ""
    asked, lacking = rows["dense:sm80", "cuda"], rows["dense:sm90", "cuda"]
    assert (asked["status"], asked["reason"]) == ("ok", "only when asked for by name")
    assert lacking["status"] == "unavailable" and "this one has 8.9" in lacking["reason"]


class Gpu:
    """A telemetry that has all there is to tell, or nothing."""

    def __init__(self, known: bool) -> None:
        self.missing = None if known else "no GPU telemetry: pynvml is not installed (pip install nvidia-ml-py)"
        self.facts = measure.GpuFacts(
            "NVIDIA H200", "580.1", 141 << 30, 700.0, 1980, "13.0", True, False, True, 0
        ) if known else measure.GpuFacts()  # fmt: skip
        self.known, self.shared = known, True if known else None

    def read(self) -> measure.Reading:
        return measure.Reading(345, 3201, 80.5, 33, ("gpu_idle",)) if self.known else measure.Reading()

    def look(self) -> tuple[measure.GpuProcess, ...] | None:
        return (measure.GpuProcess(7, 5 << 30), measure.GpuProcess(9)) if self.known else None

    def memory_used_bytes(self) -> int | None:
        return 6 << 30 if self.known else None


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """A machine with a chip of compute capability 9.0, and a library with code for it."""
    state = types.SimpleNamespace(known=True, chip=(9, 0), held="80-real 90a-real 90-virtual")
    held = types.SimpleNamespace(text=lambda function: state.held)
    cpu = library.load("cpu") if library.why_missing("cpu") is None else None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "GPU of torch")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: state.chip)
    monkeypatch.setattr(library, "why_missing", lambda kind: None if kind == "cuda" or cpu else "not built: build it")
    monkeypatch.setattr(library, "load", lambda kind: held if kind == "cuda" else cpu)
    monkeypatch.setattr(measure, "Telemetry", lambda device: Gpu(state.known))
    monkeypatch.setattr(measure, "last_level_cache_bytes", lambda device: 50 << 20)
    monkeypatch.setattr(diagnosis, "_methods", lambda has_gpu: [])
    return state


def shown(found: dict[str, object]) -> str:
    import io

    from hsbench.report import console_for
    from hsbench.report.doctor import render_doctor

    stream = io.StringIO()
    render_doctor(found, console_for(stream))
    assert max(map(len, stream.getvalue().splitlines())) <= 100
    return stream.getvalue()


def test_a_gpu_with_all_its_facts(gpu: types.SimpleNamespace) -> None:
    found = diagnosis.diagnose(probe=False)
    json.dumps(document(found), allow_nan=False)
    assert found["machine"]["gpu"]["compute_capability"] == "9.0" and found["now"]["shared"] is True
    text = shown(found)
    squeezed = " ".join(text.split())
    for words in (
        "sm_80 no, sm_90a yes, compute_90 yes",
        "sm_90a: made for this chip",
        "driver 580.1 (runs CUDA up to 13.0)",
        "other processes 7 (5.0 GiB), 9",
        "sm clock mhz 345",
        "reasons gpu_idle",
        "memory used 6144.0 MiB",
    ):
        assert words in squeezed, words
    flat = dict(line.strip().split("  ", 1) for line in text.splitlines() if line.startswith("  gpu "))
    assert {name: flat[f"gpu {name}"].strip() for name in ("persistence", "mig", "ecc", "ecc errors")} == {
        "persistence": "yes",
        "mig": "no",
        "ecc": "yes",
        "ecc errors": "0",
    }


def test_a_gpu_of_which_nvml_says_nothing(gpu: types.SimpleNamespace) -> None:
    gpu.known = False
    found = diagnosis.diagnose(probe=False)
    assert found["machine"]["gpu"]["name"] == "GPU of torch" and found["machine"]["gpu"]["ecc"] is None
    assert found["now"]["other_processes"] is found["now"]["power_w"] is None
    assert "GPU telemetry: pynvml is not installed (pip install nvidia-ml-py)" in shown(found)


def test_a_chip_that_the_library_has_no_code_for(gpu: types.SimpleNamespace) -> None:
    gpu.chip, gpu.held = (10, 0), "80-real 90a-real"
    found = diagnosis.diagnose(probe=False)
    (item,) = [item for item in found["missing"] if item["what"] == "CUDA kernels for this GPU"]
    assert item["why"] == "none fits this chip (sm_100)" and "CUDAARCHS=100" in item["remedy"]
    assert "sm_80 no, sm_90a no" in shown(found)
    said = hardware.facts(CUDA, Gpu(True))["missing"]
    assert "CUDA kernels for this GPU: none fits this chip (sm_100)" in said


def test_a_library_that_does_not_tell(gpu: types.SimpleNamespace) -> None:
    gpu.held = None
    found = diagnosis.diagnose(probe=False)
    assert found["code"]["cuda"] is None and "sm_" not in shown(found)


def test_code_without_a_gpu(gpu: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = diagnosis.diagnose(probe=False)
    assert found["code"]["cuda"] == {
        "architectures": {"sm_80": None, "sm_90a": None, "compute_90": None},
        "runs": None,
        "verdict": None,
    }
    assert "sm_80, sm_90a, compute_90 (no GPU here to run them)" in shown(found)


def test_several_gpus_have_links_and_collectives(gpu: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    links = iter(["NVLink, 18 links", None, "one PCIe switch"])
    monkeypatch.setattr(Gpu, "link_to", lambda self, other: next(links), raising=False)
    found = diagnosis.diagnose(probe=False)
    assert [(link["from"], link["to"]) for link in found["links"]] == [(0, 1), (0, 2), (1, 2)]
    text = shown(found)
    assert "0 - 1  NVLink, 18 links" in text and "0 - 2  cannot be told" in text

    def cost(device: object, ranks: int) -> dict[str, object]:
        if ranks == 3:
            raise HsbenchError("they could not")
        return {"us": 12.5, "bytes": 8320}

    monkeypatch.setattr(diagnosis, "collective_cost", cost)
    (probe,) = diagnosis._collectives(3)
    assert probe == {"name": "2 ranks: all-gather of 8.3 kB and combination", "value": 12.5, "unit": "us"}
