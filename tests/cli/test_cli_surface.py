"""The program as a process: help, version, imports, pipes, width, colour; and the doctor."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

import hsbench as package
from hsbench.cli.request import Request

Run = Callable[..., object]


def spawn(*argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"COLUMNS": "100"} | environment
    return subprocess.run([sys.executable, *argv], capture_output=True, text=True, env=env, timeout=60, check=False)


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        ["--version"],
        [],
        ["decode", "--help"],
        ["compare", "--help"],
        ["quality", "--help"],
        ["generate", "--help"],
        ["doctor", "--help"],
        ["capture", "--help"],
        ["calibrate", "--help"],
        ["show", "--help"],
        ["plot", "--help"],
        ["diff", "--help"],
    ],
)
def test_help_and_version_import_no_torch(argv: list[str]) -> None:
    code = f"""
import sys
from hsbench.cli.main import main
code = main({argv!r})
heavy = {{"torch", "transformers", "numpy", "safetensors", "pynvml", "hsbench.run.plan"}} & set(sys.modules)
sys.exit(f"imported {{heavy}}" if heavy else code)
"""
    ran = spawn("-c", code)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "hsbench" in ran.stdout


@pytest.mark.parametrize(
    "argv",
    [
        ["decode", "--sparsity", "0.7"],
        ["decode", "--output", "/"],
        ["decod"],
        ["quality", "model", "--text", "text.txt", "--context", "z"],
        ["quality", "--text", "no.txt"],
        ["generate", "model", "--context", "z"],
    ],
)
def test_typing_errors_are_answered_before_torch(argv: list[str]) -> None:
    code = f"""
import sys
from hsbench.cli.main import main
assert main({argv!r}) == 2
assert "torch" not in sys.modules
"""
    assert spawn("-c", code).returncode == 0


def test_version() -> None:
    ran = spawn("-m", "hsbench", "--version")
    assert ran.stdout == f"hsbench {package.__version__}\n"


def test_help_shows_every_option_and_the_exit_codes() -> None:
    ran = spawn("-m", "hsbench", "--help")
    words = [
        "decode",
        "prefill",
        "compare",
        "quality",
        "generate",
        "doctor",
        "capture",
        "calibrate",
        "show",
        "plot",
        "diff",
        "130",
        "143",
        "129",
    ]
    for word in (*words, "Exit codes"):
        assert word in ran.stdout
    ran = spawn("-m", "hsbench", "compare", "--help")
    fields = {field.name.replace("_", "-") for field in dataclasses.fields(Request)}
    for option in fields:
        assert f" --{option} " in ran.stdout


def test_a_closed_pipe_is_quiet() -> None:
    for argv in (["--help"], ["--version"], ["decode", "--help"]):
        read, write = os.pipe()
        os.close(read)
        ran = subprocess.run(
            [sys.executable, "-m", "hsbench", *argv],
            stdout=write,
            stderr=subprocess.PIPE,
            check=False,
        )
        os.close(write)
        assert (ran.returncode, ran.stderr) == (0, b"")


def test_piped_tables_are_not_cut_at_80_columns_and_not_coloured(hsbench: Run, bench: object) -> None:
    bench.rows = lambda workload: [("dense", "ok"), ("sdpa:mem-efficient-rows", "unavailable")]
    out = hsbench("decode").out
    assert "\x1b" not in out and "…" not in out
    assert "sdpa:mem-efficient-rows" in out and "made to be unavailable" in out
    assert max(map(len, out.splitlines())) > 80


def test_doctor(hsbench: Run, bench: object) -> None:
    ran = hsbench("doctor")
    assert (ran.code, ran.err) == (0, "")
    for word in (
        "dense",
        "unavailable",
        "read",
        "36.5",
        "GB/s",
        "nvcc",
        "install the CUDA toolkit",
        "Test CPU",
    ):
        assert word in ran.out
    assert "governor" not in ran.out  # unknown facts are left out
    assert " ".join(ran.out.split()).count("no GPU driver") == 12  # a long reason is wrapped, not cut
    assert ran.out.count("as above") == 1
    assert "cpu memory  32.0 MiB" in ran.out
    assert max(map(len, ran.out.splitlines())) <= 100


def test_doctor_as_json_and_without_probes(hsbench: Run, bench: object) -> None:
    document = json.loads(hsbench("doctor", "--format", "json", "--no-probe").out)
    assert document["schema"] == "hsbench-doctor/1"
    assert document["probes"] == [] and document["missing"][0]["what"] == "nvcc"
    hsbench("doctor", "--probe")
    assert bench.probed == [False, True]


def test_no_color_is_honoured_on_a_terminal(monkeypatch: pytest.MonkeyPatch, bench: object) -> None:
    import io

    from hsbench.cli.main import main

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm-256color")
    shown = {}
    for setting in ("", "1"):
        monkeypatch.setenv("NO_COLOR", setting)
        screen = Terminal()
        monkeypatch.setattr("sys.stdout", screen)
        assert main(["doctor"]) == 0
        shown[setting] = screen.getvalue()
    assert "\x1b[32m" in shown[""]  # a method that can run is green
    assert "\x1b[3" not in shown["1"]
