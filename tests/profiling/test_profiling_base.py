"""Names of reports, and tools as processes."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from hsbench.problem.workload import make_workload
from hsbench.profiling import base, report_stem, unused_stem
from hsbench.profiling.base import ProfilerError, ask, remove_reports, run_tool


@pytest.mark.parametrize(
    ("phase", "options", "stem"),
    [
        ("decode", {"seq": 131072}, "decode-Llama-3.1-8B-128k-b1-fp16-s0.5"),
        ("decode", {"seq": 1000, "dtype": "bf16", "batch": 8}, "decode-Llama-3.1-8B-1000-b8-bf16-s0.5"),
        ("prefill", {"seq": 8192, "sparsity": 0.25}, "prefill-Llama-3.1-8B-8k-b1-fp16-s0.25"),
        ("prefill", {"seq": 32768, "q_len": 2048}, "prefill-Llama-3.1-8B-32k-b1-fp16-q2k-s0.5"),
        ("decode", {"seq": 2048, "key_sparsity": 0}, "decode-Llama-3.1-8B-2k-b1-fp16-k0-v0.5"),
        ("decode", {"seq": 2048, "q_heads": 4, "kv_heads": 2}, "decode-custom-h4x2x128-2k-b1-fp16-s0.5"),
    ],
)
def test_a_report_is_named_after_phase_shape_and_sparsity(phase: str, options: dict[str, object], stem: str) -> None:
    workload = make_workload(phase, **options)
    assert report_stem(workload) == stem
    assert report_stem(workload, "sdpa:flash-rows") == f"{stem}-sdpa-flash-rows"


def test_reports_of_a_sweep_differ_in_name() -> None:
    cells = [
        make_workload(phase, workload=name, seq=seq, batch=batch, dtype=dtype, sparsity=sparsity)
        for phase in ("decode", "prefill")
        for name in ("Llama-3.1-8B", "Mistral-7B-v0.3")
        for seq in (1024, 1025)
        for batch in (1, 2)
        for dtype in ("fp16", "bf16")
        for sparsity in (0.25, 0.5)
    ]
    assert len({report_stem(cell) for cell in cells}) == len(set(cells))


def test_unused_stem(tmp_path: Path) -> None:
    assert unused_stem(tmp_path, "x-s0.5") == "x-s0.5"
    (tmp_path / "x-s0.5.sqlite").touch()  # nsys would write that too
    (tmp_path / "x-s0.55.nsys-rep").touch()
    assert unused_stem(tmp_path, "x-s0.5") == "x-s0.5-2"
    (tmp_path / "x-s0.5-2.nsys-rep").touch()
    assert unused_stem(tmp_path, "x-s0.5") == "x-s0.5-3"


def test_remove_reports_leaves_others_alone(tmp_path: Path) -> None:
    for name in ("x-s0.5.nsys-rep", "x-s0.5.sqlite", "x-s0.5-2.nsys-rep", "x-s0.55.nsys-rep", "y"):
        (tmp_path / name).touch()
    remove_reports(tmp_path / "x-s0.5")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x-s0.5-2.nsys-rep", "x-s0.55.nsys-rep", "y"]


def test_run_tool_gives_both_streams_and_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIVEN", "err")
    code = "import sys, os; print('out', flush=True); print(os.environ['GIVEN'], file=sys.stderr); sys.exit(3)"
    assert run_tool([sys.executable, "-c", code]) == (3, "out\nerr\n")


def test_run_tool_does_not_wait_for_what_the_tool_leaves_behind() -> None:
    """A service that a tool starts once, and that holds its streams open."""
    inner = [sys.executable, "-c", "import time; time.sleep(5)"]
    begin = time.monotonic()
    assert run_tool([sys.executable, "-c", f"import subprocess; subprocess.Popen({inner!r})"])[0] == 0
    assert time.monotonic() - begin < 4


def test_ask() -> None:
    def say(text: str) -> list[str]:
        return [sys.executable, "-c", f"print({text!r})"]

    assert ask(say("12"), int) == 12
    with pytest.raises(ProfilerError, match="something else than expected") as caught:
        ask(say("twelve"), int)
    assert caught.value.output == "twelve"


def test_run_tool_ends_the_tool_that_is_no_longer_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although no signal interrupts the wait itself."""
    monkeypatch.setattr(base, "_LOOK_S", 0.01)
    looks: list[int] = []

    def still_wanted() -> None:
        if (tmp_path / "pid").exists():
            looks.append(int((tmp_path / "pid").read_text() or 0))
        if looks and looks[-1]:
            raise KeyboardInterrupt

    code = f"import os, time; open(r'{tmp_path}/pid', 'w').write(str(os.getpid())); time.sleep(60)"
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_tool([sys.executable, "-c", code], still_wanted)
    assert time.monotonic() - begin < 30
    with pytest.raises(ProcessLookupError):
        os.kill(looks[-1], 0)
