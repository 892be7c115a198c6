"""--profile: what is handed to which profiler, what comes back, and every way in which that can fail.

nsys and ncu are stand-ins on the PATH that note their command lines. Most tests leave the profiled run itself out, and
measure nothing either; the last ones run everything for real.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import profiler_standin
from hsbench import profiling
from hsbench.cli.main import main
from hsbench.kernels.device import CPU, CUDA, Device
from hsbench.machine import software
from hsbench.measure import nvtx
from hsbench.problem.workload import make_workload
from hsbench.results import Record, Report, Result
from hsbench.run import child
from hsbench.run.plan import Cell, Plan, make_plan
from hsbench.run.settings import Settings

Run = Callable[..., object]
DATA = Path(__file__).parents[1] / "profiling" / "data"
SMALL = ("--seq", "512", "--q-heads", "4", "--kv-heads", "2", "--head-dim", "64", "--device", "cpu", "--time", "0.05")


class Standin:
    """The stand-ins on the PATH, and what they were asked."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._root, self._monkeypatch = root, monkeypatch
        self._log = root / "log"
        monkeypatch.setenv("STANDIN_LOG", str(self._log))
        monkeypatch.setenv("STANDIN_RUN", "")
        monkeypatch.chdir(root)
        # No tool that is really here; and NVTX, whether it is or not.
        monkeypatch.setattr(software, "_PLACES", {})
        monkeypatch.setattr(nvtx, "why_missing", lambda: None)
        (root / "bin").mkdir()
        monkeypatch.setenv("PATH", str(root / "bin"))

    def install(self, name: str, mode: str = "ok") -> None:
        profiler_standin.install(self._root / "bin", name)
        holds = {"nsys": "nsys_export.sql", "ncu": "ncu_raw.csv"}[name]
        self._monkeypatch.setenv("STANDIN_MODE", mode)
        self._monkeypatch.setenv("STANDIN_HOLDS", str(DATA / holds))

    def run_the_command(self) -> None:
        self._monkeypatch.setenv("STANDIN_RUN", "1")

    @property
    def asked(self) -> list[list[str]]:
        return [json.loads(line) for line in self._log.read_text().splitlines()] if self._log.exists() else []

    @property
    def plans(self) -> list[dict[str, Any]]:
        """What each run under a profiler was given."""
        given = self._log.with_name(self._log.name + ".plans")
        return [json.loads(line) for line in given.read_text().splitlines()] if given.exists() else []

    @property
    def files(self) -> list[str]:
        folder = self._root / "profiles" / "out"
        return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@pytest.fixture
def standin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Standin:
    return Standin(tmp_path, monkeypatch)


# ---- Which profiler ----------------------------------------------------------------------------------------
def test_nsys_is_taken_where_it_is_found(hsbench: Run, bench: object, standin: Standin) -> None:
    bench.cuda = True
    standin.install("nsys")
    ran = hsbench("decode", "--profile")
    assert ran.code == 0, ran.err
    assert standin.asked[0][:2] == ["nsys", "profile"]
    assert "takes torch" not in ran.err


def test_torch_is_taken_where_nsys_is_not_found(hsbench: Run, bench: object, standin: Standin) -> None:
    bench.cuda = True
    bench.rows = lambda workload: [("dense", "unavailable")]
    ran = hsbench("decode", "--profile")
    (said,) = [line for line in ran.err.splitlines() if "torch.profiler" in line]
    assert "nsys is not on the PATH" in said and "install Nsight Systems" in said


def test_torch_is_taken_on_the_cpu(hsbench: Run, bench: object, standin: Standin) -> None:
    """nsys would show CUDA work, of which there is none."""
    standin.install("nsys")
    bench.rows = lambda workload: [("dense", "unavailable")]
    ran = hsbench("decode", "--profile")
    (said,) = [line for line in ran.err.splitlines() if "torch.profiler" in line]
    assert "this run is on the CPU" in said and standin.asked == []


@pytest.mark.parametrize("name", ["nsys", "ncu"])
def test_a_missing_profiler_is_said_before_anything_runs(
    hsbench: Run, bench: object, standin: Standin, name: str
) -> None:
    bench.cuda = True
    ran = hsbench("decode", "--profile", "--profiler", name)
    assert (ran.code, ran.out, bench.calls) == (4, "", [])
    assert ran.err.startswith(f"hsbench: error: --profiler {name}: {name} is not on the PATH: install Nsight")
    assert ran.err.count("\n") == 1 and "--profiler torch" in ran.err
    assert standin.files == []


def test_ncu_without_a_gpu(hsbench: Run, bench: object, standin: Standin) -> None:
    standin.install("ncu")
    ran = hsbench("decode", "--profiler", "ncu")
    assert (ran.code, bench.calls) == (4, [])
    assert "this run is on the CPU" in ran.err and "--profiler torch" in ran.err


def test_nsys_on_the_cpu_is_done_and_warned_of(hsbench: Run, bench: object, standin: Standin) -> None:
    standin.install("nsys")
    ran = hsbench("decode", "--profiler", "nsys")
    assert ran.code == 0
    assert "hsbench: warning: --profiler nsys: nsys shows CUDA work and this run is on the CPU" in ran.err
    table = ran.err[ran.err.index("profile    ") :].splitlines()
    assert [line.split()[-3:] for line in table[1:4]] == [
        ["call", "calls", "share"],
        ["Python)", "2", "95%"],
        ["pthread_cond_wait", "1", "5%"],
    ]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_nsys_that_would_hear_no_range_is_said_before_anything_runs(
    hsbench: Run, bench: object, standin: Standin, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    bench.cuda = device == "cuda"
    standin.install("nsys")
    monkeypatch.setattr(nvtx, "why_missing", lambda: "nvidia-nvtx is not installed: pip install nvidia-nvtx")
    ran = hsbench("decode", "--profiler", "nsys", "--device", device)
    assert (ran.code, bench.calls, ran.err.count("\n")) == (4, [], 1)
    assert "as nvidia-nvtx is not installed: pip install nvidia-nvtx; or give --profiler torch" in ran.err


def test_nsys_as_debian_splits_it(
    hsbench: Run, bench: object, standin: Standin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program looks for its importer beside itself, where no package puts it."""
    bench.cuda = True
    standin.install("nsys")
    target, host = (tmp_path / "lib" / place / "nsight-systems" for place in ("x86_64-linux-gnu", ""))
    for folder in (target / "target-linux-x64", host / "host-linux-x64"):
        folder.mkdir(parents=True)
    (tmp_path / "bin" / "nsys").rename(target / "target-linux-x64" / "nsys")
    (tmp_path / "bin" / "nsys").symlink_to(target / "target-linux-x64" / "nsys")
    ran = hsbench("decode", "--profiler", "nsys")
    assert (ran.code, bench.calls) == (4, []) and "apt-get install nsight-systems" in ran.err
    (host / "host-linux-x64" / "QdstrmImporter").touch()
    ran = hsbench("decode", "--profiler", "nsys")
    link = f"ln -s {host}/host-linux-x64 {target}/"
    assert (ran.code, bench.calls) == (4, []) and f"without which it leaves no report: {link};" in ran.err
    subprocess.run(link.split(), check=True, env={"PATH": os.defpath})
    assert hsbench("decode", "--profiler", "nsys").code == 0


def test_a_tool_beside_the_path_is_found(
    hsbench: Run, bench: object, standin: Standin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.cuda = True
    standin.install("nsys")
    for version in ("2024.9.1", "2024.10.1"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "nsys").write_bytes((tmp_path / "bin" / "nsys").read_bytes())
        (tmp_path / version / "nsys").chmod(0o755)
    (tmp_path / "bin" / "nsys").unlink()
    monkeypatch.setattr(software, "_PLACES", {"nsys": (f"{tmp_path}/*/nsys",)})
    command = profiling.PROFILERS["nsys"]().command(
        profiling.Job(("run",), tmp_path / "x", ".nsys-rep", ("dense",), CUDA)
    )
    assert command[0] == str(tmp_path / "2024.10.1" / "nsys"), "the newest"
    assert hsbench("decode", "--profile").code == 0


# ---- What is wrong with a command line ---------------------------------------------------------------------
def test_an_unknown_profiler(hsbench: Run, bench: object, standin: Standin) -> None:
    ran = hsbench("decode", "--profiler", "nsyss")
    assert (ran.code, bench.calls) == (2, [])
    assert ran.err == "hsbench: error: --profiler nsyss: unknown (did you mean nsys?); one of nsys, ncu, torch\n"


@pytest.mark.parametrize("where", ["file", "file/below", "file/below/that"])
def test_a_folder_that_cannot_be_made(hsbench: Run, bench: object, standin: Standin, where: str) -> None:
    Path("file").write_text("in the way")
    ran = hsbench("decode", "--profile-dir", where)
    assert (ran.code, bench.calls) == (2, [])
    assert ran.err.startswith(f"hsbench: error: --profile-dir {where}: ") and "is not a folder" in ran.err
    assert ran.err.count("\n") == 1


def test_the_folder_is_not_made_before_there_is_a_report(hsbench: Run, bench: object, standin: Standin) -> None:
    bench.rows = lambda workload: [("dense", "oom")]
    ran = hsbench("decode", "--profile-dir", "profiles/out")
    assert ran.code == 4 and "nothing to profile: no row ran ok" in ran.err
    assert not Path("profiles").exists()


def test_without_any_of_the_options_nothing_is_profiled(hsbench: Run, bench: object, standin: Standin) -> None:
    bench.cuda = True
    standin.install("nsys")
    ran = hsbench("decode")
    assert (ran.code, ran.err, standin.asked, standin.files) == (0, "", [], [])


# ---- The command lines -------------------------------------------------------------------------------------
def test_the_command_line_of_nsys(hsbench: Run, bench: object, standin: Standin) -> None:
    bench.cuda = True
    standin.install("nsys")
    hsbench("decode", "--seq", "128k", "--sparsity", "0.5", "--profile")
    profile, export = standin.asked
    stem = "profiles/out/decode-Llama-3.1-8B-128k-b1-fp16-s0.5"
    assert profile == [
        "nsys", "profile", "--trace=cuda,nvtx", "--capture-range=cudaProfilerApi", "--cuda-graph-trace=node",
        "--capture-range-end=stop", "--sample=none", "--cpuctxsw=none", f"--output={stem}",
        sys.executable, "-m", "hsbench.run.child", f"{stem}.plan.json", "nsys", "3", f"{stem}.nsys-rep",
    ]  # fmt: skip
    (given,) = standin.plans
    assert given == {
        "schema": "hsbench-plan/2",
        "device": "cuda",
        "methods": ["dense", "hierarchical"],
        "settings": Settings().to_dict(),
        "cells": [
            {
                "workload": make_workload("decode", seq=131072).to_dict(),
                "methods": ["dense", "hierarchical"],
                "captured": None,
            }
        ],
    }
    assert export[:4] == ["nsys", "export", "--type=sqlite", "--force-overwrite=true"]
    assert export[5:] == [f"{stem}.nsys-rep"] and not Path(export[4].removeprefix("--output=")).exists()
    assert standin.files == [f"{Path(stem).name}.nsys-rep"], "nothing but the report is left, no plan either"


def test_the_command_line_of_nsys_on_the_cpu(hsbench: Run, bench: object, standin: Standin) -> None:
    """Nothing calls cudaProfilerStart there: a capture that waits for it would leave no report."""
    standin.install("nsys")
    hsbench("prefill", "--seq", "1k", "--profiler", "nsys")
    profile, _ = standin.asked
    assert profile[: profile.index(sys.executable)] == [
        "nsys", "profile", "--trace=nvtx,osrt", "--capture-range=nvtx", "--nvtx-capture=profiled@hsbench",
        "--capture-range-end=stop", "--sample=none", "--cpuctxsw=none",
        "--output=profiles/out/prefill-Llama-3.1-8B-1k-b1-fp16-s0.5",
    ]  # fmt: skip


def test_the_command_lines_of_ncu(hsbench: Run, bench: object, standin: Standin) -> None:
    """A report per method: each gets its few launches."""
    bench.cuda = True
    bench.rows = lambda workload: [("dense", "ok"), ("sdpa:flash", "ok"), ("hierarchical", "unsupported")]
    standin.install("ncu")
    ran = hsbench("decode", "--profiler", "ncu")
    assert ran.code == 0, ran.err
    stem = "profiles/out/decode-Llama-3.1-8B-32k-b1-fp16-s0.5-"
    runs = [words for words in standin.asked if "--import" not in words]
    for words, file in zip(runs, ["dense", "sdpa-flash"], strict=True):
        at = words.index(sys.executable)
        assert words[:at] == [
            "ncu", "--target-processes", "all", "--profile-from-start", "off", "--nvtx", "--clock-control", "none",
            "--set", "detailed", "--launch-count", "8", "--export", f"{stem}{file}.ncu-rep",
        ]  # fmt: skip
        assert words[at + 4 :] == ["ncu", "1", f"{stem}{file}.ncu-rep"]
    assert [plan["cells"][0]["methods"] for plan in standin.plans] == [["dense"], ["sdpa:flash"]]
    asked = [words for words in standin.asked if "--import" in words]
    assert asked[0] == [
        "ncu", "--import", f"{stem}dense.ncu-rep", "--page", "raw", "--csv", "--print-units", "base"
    ]  # fmt: skip
    assert f"open       ncu-ui {stem}dense.ncu-rep" in ran.err and "decode_kernel" in ran.err


def test_only_rows_that_ran_ok_are_profiled(hsbench: Run, bench: object, standin: Standin) -> None:
    bench.cuda = True
    bench.rows = lambda w: [("dense", "ok"), ("hierarchical", "ok" if w.seq == 1024 else "oom"), ("sdpa:math", "oom")]
    standin.install("nsys")
    assert hsbench("compare", "--seq", "1k,2k", "--profile").code == 0
    assert [plan["cells"][0]["methods"] for plan in standin.plans] == [["dense", "hierarchical"], ["dense"]]
    assert standin.files == [
        "decode-Llama-3.1-8B-1k-b1-fp16-s0.5.nsys-rep",
        "decode-Llama-3.1-8B-2k-b1-fp16-s0.5.nsys-rep",
    ]


def test_a_cell_without_a_row_that_ran_ok_is_left_out(hsbench: Run, bench: object, standin: Standin) -> None:
    bench.cuda = True
    bench.rows = lambda w: [("dense", "ok" if w.seq == 2048 else "oom")]
    standin.install("nsys")
    assert hsbench("compare", "--seq", "1k,2k", "--profile").code == 0
    assert standin.files == ["decode-Llama-3.1-8B-2k-b1-fp16-s0.5.nsys-rep"]


@pytest.mark.parametrize(
    "argv",
    [
        (),
        ("--workload", "qwen3-8b", "--seq", "100", "--batch", "3", "--dtype", "bf16", "--sink", "64", "--local", "65"),
        ("--q-heads", "4", "--kv-heads", "2", "--head-dim", "64", "--key-sparsity", "0.1", "--value-sparsity", "0.3"),
        ("--tensors", "outliers", "--seed", "7", "--cache", "warm", "--time", "0.5", "--sustain", "0.3"),
    ],
)
@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_the_run_under_the_profiler_is_the_very_same(
    hsbench: Run, bench: object, standin: Standin, phase: str, argv: tuple[str, ...]
) -> None:
    """The plan that it is given, read again, is the cell that was measured."""
    bench.cuda = True
    bench.rows = lambda workload: [("dense", "ok"), ("sdpa:flash", "ok")]
    standin.install("nsys")
    chunk = ("--q-len", "64") if phase == "prefill" else ()
    assert hsbench(phase, *argv, *chunk, "--profile").code == 0
    (given,) = standin.plans
    again, (measured,) = Plan.from_dict(given), bench.calls
    assert [cell.workload for cell in again.cells] == [measured["workload"]]
    assert (again.device, again.settings) == (measured["device"], measured["settings"])
    assert again.methods == again.cells[0].methods == ("dense", "sdpa:flash")


@pytest.mark.parametrize("command", [("decode",), ("compare", "--phase", "prefill")])
def test_a_cell_of_captured_tensors_names_file_and_layer(
    hsbench: Run, bench: object, standin: Standin, tmp_path: Path, command: tuple[str, ...]
) -> None:
    import torch
    from safetensors.torch import save_file

    bench.cuda = True
    standin.install("nsys")
    path = tmp_path / "kv.safetensors"
    named = {f"layers.2.{n}": torch.zeros(1, 2, 96, 64).half() for n in "kv"}
    save_file({**named, "layers.2.q": torch.zeros(1, 8, 5, 64).half()}, path)
    assert hsbench(*command, "--kv", str(path), "--profile").code == 0
    (given,) = standin.plans
    assert (given["cells"][0]["captured"]["path"], given["cells"][0]["captured"]["layer"]) == (str(path), 2)
    (cell,) = Plan.from_dict(given).cells
    assert (cell.workload, cell.captured) == (bench.calls[0]["workload"], bench.calls[0]["captured"])


# ---- What comes back ---------------------------------------------------------------------------------------
def test_what_is_said_of_a_report(hsbench: Run, bench: object, standin: Standin) -> None:
    bench.cuda = True
    standin.install("nsys")
    plain = hsbench("decode", "--format", "csv")
    ran = hsbench("decode", "--format", "csv", "--profile")
    assert ran.out == plain.out, "the results are the unprofiled run's"
    assert len(bench.calls) == 2, "and nothing was measured for the profile in this process"
    said = ran.err[ran.err.index("hsbench: profiling") :].splitlines()
    report = "profiles/out/decode-Llama-3.1-8B-32k-b1-fp16-s0.5.nsys-rep"
    assert said[1] == f"profile    {report}" and Path(report).read_bytes() == b"a report"
    assert [line.split() for line in said[2:-2]] == [
        ["method", "kernel", "calls", "share"],
        ["dense", "decode_kernel", "2", "95%"],
        ["merge_kernel", "2", "5%"],
        ["sdpa:flash", "flash_fwd_splitkv_kernel", "1", "100%"],
    ]
    assert "profiled run, no timing" in said[-2]
    assert said[-1] == f"open       nsys-ui {report}"


def test_a_second_report_does_not_overwrite_the_first(hsbench: Run, bench: object, standin: Standin) -> None:
    bench.cuda = True
    standin.install("nsys")
    for _ in range(3):
        assert hsbench("decode", "--profile").code == 0
    stem = "decode-Llama-3.1-8B-32k-b1-fp16-s0.5"
    assert standin.files == [f"{stem}-2.nsys-rep", f"{stem}-3.nsys-rep", f"{stem}.nsys-rep"]


def test_profile_dir(hsbench: Run, bench: object, standin: Standin) -> None:
    bench.cuda = True
    standin.install("nsys")
    ran = hsbench("decode", "--profile-dir", "here/and there")
    assert ran.code == 0 and standin.files == []
    report = "here/and there/decode-Llama-3.1-8B-32k-b1-fp16-s0.5.nsys-rep"
    assert Path(report).exists() and f"open       nsys-ui '{report}'" in ran.err, "quoted for a shell"


def test_a_manifest_is_the_unprofiled_runs(hsbench: Run, bench: object, standin: Standin) -> None:
    bench.cuda = True
    standin.install("nsys")
    assert hsbench("decode", "--output", "r.csv", "--profile").code == 0
    (given,) = standin.plans
    assert set(given) == {"schema", "device", "methods", "settings", "cells"}, "where results go is no part of it"
    assert json.loads(Path("r.manifest.json").read_text())["command"][-1] == "--profile"


def test_a_replay_can_be_profiled(hsbench: Run, bench: object, standin: Standin) -> None:
    bench.cuda = True
    standin.install("nsys")
    hsbench("compare", "--seq", "1k,2k", "--cache", "warm", "--output", "then.csv")
    assert standin.asked == []
    ran = hsbench("compare", "--replay", "then.manifest.json", "--profile-dir", "inside")
    assert ran.code == 0 and ran.err.count("open       nsys-ui inside/decode-") == 2
    assert [plan["cells"][0]["workload"]["seq"] for plan in standin.plans] == [1024, 2048]
    assert all(plan["settings"]["cache"] == "warm" for plan in standin.plans)
    ran = hsbench("compare", "--replay", "then.manifest.json", "--device", "cpu", "--profiler", "ncu")
    assert ran.code == 4 and "this run is on the CPU" in ran.err, "of the device that it is replayed on"


# ---- What can fail -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("empty", "left an empty report profiles/out/decode-"),
        ("missing", "left no report profiles/out/decode-"),
        ("fails", "the run under nsys ended with exit code 7"),
        ("read-fails", "nsys export --type=sqlite"),
        ("no-export", "nsys exported nothing from the report profiles/out/decode-"),
    ],
)
def test_a_report_that_is_none_is_an_error(
    hsbench: Run, bench: object, standin: Standin, mode: str, message: str
) -> None:
    bench.cuda = True
    standin.install("nsys", mode)
    ran = hsbench("decode", "--profile")
    assert ran.code == 1
    assert "hierarchical" in ran.out, "the results are out all the same"
    assert message in ran.err.splitlines()[-1]
    assert "open  " not in ran.err
    if mode == "fails":
        assert "  | first words\n  | the tool's last words\n" in ran.err
        assert standin.files == [], "half a report is no report"


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("DELETE FROM NVTX_EVENTS WHERE eventType = 59", "holds none of hsbench's ranges (update Nsight Systems, "),
        ("DROP TABLE CUPTI_ACTIVITY_KIND_KERNEL", "holds no sample of dense, hierarchical"),
    ],
)
def test_a_report_without_ranges_or_work_is_an_error(
    hsbench: Run, bench: object, standin: Standin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    sql: str, message: str,
) -> None:  # fmt: skip
    bench.cuda = True
    standin.install("nsys")
    lacking = tmp_path / "lacking.sql"
    lacking.write_text(f"{(DATA / 'nsys_export.sql').read_text()}\n{sql};")
    monkeypatch.setenv("STANDIN_HOLDS", str(lacking))
    ran = hsbench("decode", "--profile")
    assert ran.code == 1 and message in ran.err.splitlines()[-1]
    assert "  | words of the export" in ran.err or "  | Generated" in ran.err


def test_on_the_cpu_no_report_means_that_no_range_arrived(hsbench: Run, bench: object, standin: Standin) -> None:
    standin.install("nsys", "missing")
    ran = hsbench("decode", "--profiler", "nsys")
    assert ran.code == 1
    assert "none of hsbench's ranges reached it (update Nsight Systems, " in ran.err.splitlines()[-1]


def test_nsys_without_its_importer(hsbench: Run, bench: object, standin: Standin) -> None:
    bench.cuda = True
    standin.install("nsys", "no-importer")
    ran = hsbench("decode", "--profile")
    assert (ran.code, standin.files) == (4, [])
    assert "lacks QdstrmImporter" in ran.err.splitlines()[-1] and "reinstall it" in ran.err


def test_counters_that_the_driver_keeps(hsbench: Run, bench: object, standin: Standin) -> None:
    bench.cuda = True
    standin.install("ncu", "forbidden")
    ran = hsbench("decode", "--profiler", "ncu")
    assert ran.code == 4
    assert "NVreg_RestrictProfilingToAdminUsers=0" in ran.err.splitlines()[-1]


def test_a_failed_check_is_still_exit_3(hsbench: Run, bench: object, standin: Standin) -> None:
    bench.cuda = True
    bench.rows = lambda workload: [("dense", "ok"), ("hierarchical", "incorrect")]
    standin.install("nsys")
    assert hsbench("decode", "--profile").code == 3
    (given,) = standin.plans
    assert given["cells"][0]["methods"] == ["dense"]


def test_an_interrupted_run_is_not_profiled(hsbench: Run, bench: object, standin: Standin) -> None:
    bench.cuda = True
    bench.interrupt_at = 1
    standin.install("nsys")
    assert hsbench("decode", "--profile").code == 130
    assert standin.asked == []


def test_ctrl_c_under_the_profiler_keeps_the_results(
    hsbench: Run, bench: object, standin: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*given: object) -> None:
        raise KeyboardInterrupt

    bench.cuda = True
    standin.install("nsys")
    monkeypatch.setattr(profiling.PROFILERS["nsys"], "make", interrupt)
    ran = hsbench("decode", "--profile", "--format", "csv")
    assert ran.code == 130 and ran.out.count("\n") == 3
    assert ran.err.endswith("hsbench: interrupted under the profiler; the results above are whole\n")


# ---- For real ----------------------------------------------------------------------------------------------
def run_small(capsys: pytest.CaptureFixture[str], *argv: str, seq: str = "512") -> tuple[int, str, str]:
    shape = [seq if word == "512" else word for word in SMALL]
    code = main(["decode", *shape, "--methods", "sdpa:flash,sdpa:math", *argv])
    return code, *capsys.readouterr()


@pytest.mark.slow
def test_torch_profiler_for_real(standin: Standin, capsys: pytest.CaptureFixture[str]) -> None:
    # Long enough for the product to be among the few operators that the summary names: less is overhead.
    code, out, err = run_small(capsys, "--profiler", "torch", seq="16k")
    assert code == 0, err
    (name,) = standin.files
    assert name == "decode-custom-h4x2x64-16k-b1-fp16-s0.5.trace.json"
    events = json.loads(Path("profiles/out", name).read_text())["traceEvents"]
    ranges = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    assert ranges.count("sample") == 2 * 3, "one sample is one range"
    assert {"sdpa:flash", "sdpa:math", "prepare"} <= set(ranges)
    assert not {"warm-up", "check", "generate"} & set(ranges), "the report opens at the first sample"
    summary = err[err.index("profile    ") :]
    assert "aten::_scaled_dot_product_flash_attention_for_cpu" in summary and "aten::bmm" in summary
    assert "profiled run, no timing" in summary and name in summary.splitlines()[-1]
    assert " ms " not in summary and " us " not in summary
    assert "time" in out and "no timing" not in out, "the table is the unprofiled run's"


@pytest.mark.slow
def test_the_run_under_nsys_times_nothing(standin: Standin, capsys: pytest.CaptureFixture[str]) -> None:
    """The stand-in runs what it is given; its exit code, had anything in it failed, would be the profiler's."""
    standin.install("nsys")
    standin.run_the_command()
    code, out, err = run_small(capsys, "--profiler", "nsys")
    assert code == 0, err
    assert standin.files == ["decode-custom-h4x2x64-512-b1-fp16-s0.5.nsys-rep"]


SMALL_CELL = {"seq": 512, "q_heads": 4, "kv_heads": 2, "head_dim": 64}


def plan_file(folder: Path, *methods: str) -> Path:
    """The plan of a small cell, as a run under a profiler is given it."""
    path = folder / "plan.json"
    path.write_text(json.dumps(make_plan([(make_workload("decode", **SMALL_CELL), None)], methods, CPU).to_dict()))
    return path


@pytest.mark.slow
def test_a_profiled_run_prints_no_number(tmp_path: Path) -> None:
    path = plan_file(tmp_path, "sdpa:flash", "sdpa:math")
    command = child.command(path, profiling.Orders("nsys", 2, tmp_path / "x"))
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    assert list(tmp_path.iterdir()) == [path]
    assert ran.stdout == "".join(f"{name}: ok, profiled run, no timing\n" for name in ("sdpa:flash", "sdpa:math"))


def test_a_row_that_fails_under_the_profiler_alone_fails_the_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def profile_cell(cell: Cell, device: Device, settings: Settings, recording: object, rounds: int) -> Report:
        assert (device, rounds, cell.methods) == (CPU, 2, ("dense", "hierarchical"))
        asked = {"device": device, "cache": "cold", "sustain_s": 0.0}
        rows = [
            Record.of(cell.workload, method="dense", status="ok", **asked),
            Record.of(cell.workload, method="hierarchical", status="oom", reason="made to be oom", **asked),
        ]
        return Report(cell.workload, [Result(row) for row in rows])

    monkeypatch.setattr("hsbench.run.profiled.profile_cell", profile_cell)
    code = child.main([str(plan_file(tmp_path, "dense:16bit", "hierarchical:16bit")), "nsys", "2", "x"])
    out, err = capsys.readouterr()
    assert (code, out.splitlines()[0]) == (1, "dense: ok, profiled run, no timing")
    assert err == "hsbench: hierarchical: oom under the profiler: made to be oom\n"


@pytest.mark.parametrize("deaf", [False, True])
def test_no_process_outlives_ctrl_c(tmp_path: Path, deaf: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the tool, nor what it started, nor a tool that does not listen."""
    from hsbench.profiling import base

    monkeypatch.setattr(base, "_GRACE_S", (0.5, 0.5))
    listens = "signal.signal(signal.SIGINT, signal.SIG_IGN); signal.signal(signal.SIGTERM, signal.SIG_IGN);" * deaf
    sleep = f"import os, signal, time; {listens} open(r'{tmp_path}/%s', 'w').write(str(os.getpid())); time.sleep(60)"
    inner = [sys.executable, "-c", sleep % "inner"]
    outer = f"import subprocess; p = subprocess.Popen({inner!r}); {sleep % 'outer'}"

    def wait(process: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        while not all((tmp_path / name).exists() and (tmp_path / name).read_text() for name in ("inner", "outer")):
            time.sleep(0.01)
        monkeypatch.setattr(subprocess.Popen, "wait", real_wait)
        raise KeyboardInterrupt

    real_wait = subprocess.Popen.wait
    monkeypatch.setattr(subprocess.Popen, "wait", wait)
    with pytest.raises(KeyboardInterrupt):
        base.run_tool([sys.executable, "-c", outer])
    for name in ("inner", "outer"):
        pid = int((tmp_path / name).read_text())
        for _ in range(200):
            if not alive(pid):
                break
            time.sleep(0.01)
        assert not alive(pid), f"{name} lives on"


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and that nobody has waited for does not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_whole_hand_off(standin: Standin, tmp_path: Path, number: int, code: int) -> None:
    """A terminal's Ctrl-C, or a supervisor's SIGTERM, while a tool that takes its time runs: the signal's exit code,
    the results, no report, and no tool that runs on."""
    tool = tmp_path / "bin" / "nsys"
    tool.write_text(
        f"#!{sys.executable}\nimport os, sys, time\n"
        "stem = [w for w in sys.argv if w.startswith('--output=')][0][9:]\n"
        "open(stem + '.nsys-rep', 'w').write('half')\n"
        "open('starting', 'w').write(str(os.getpid())); os.rename('starting', 'started'); time.sleep(60)\n"
    )
    tool.chmod(0o755)
    command = [sys.executable, "-m", "hsbench", "decode", *SMALL, "--methods", "sdpa:flash", "--profiler", "nsys"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not Path("started").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert not alive(int(Path("started").read_text()))
    assert "sdpa:flash" in out and "the results above are whole" in err and "Traceback" not in err
    assert standin.files == []
