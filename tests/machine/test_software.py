"""Versions, tools, switches and the source tree: each may be missing, hang or lie, and nothing may fail for it."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest
import torch

from hsbench.kernels import library
from hsbench.machine import software


def test_versions() -> None:
    found = software.versions()
    assert found["torch"] == torch.__version__ and found["cuda"] == torch.version.cuda
    assert list(found) == ["hsbench", "torch", "cuda", "cudnn", "python"]


@pytest.mark.parametrize(("number", "version"), [(None, None), (91900, "9.19.0"), (90201, "9.2.1"), (8902, "8.9.2")])
def test_cudnn(number: int | None, version: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: number)
    assert software.versions()["cudnn"] == version


def test_a_cudnn_that_torch_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise RuntimeError("cuDNN version incompatibility")

    monkeypatch.setattr(torch.backends.cudnn, "version", refuse)
    assert software.versions()["cudnn"] is None


def script(folder: Path, name: str, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ("echo NVIDIA Nsight Systems version 2024.6.2.225-246235244400v0", "2024.6.2.225"),
        (
            "echo 'NVIDIA (R) Nsight Compute Command Line Profiler'; echo 'Copyright (c) 2018-2025 NVIDIA';"
            "echo 'Version 2025.3.0.0 (build 36273991) (public-release)'",
            "2025.3.0.0",
        ),
        ("echo 'Cuda compilation tools, release 13.0, V13.0.48'", "13.0"),
        ("echo 'g++ (Debian 12.2.0-14) 12.2.0'", "12.2.0"),
        ("echo tool 3.1 >&2", "3.1"),
        ("echo no number", ""),
        ("exit 3", ""),
        ("sleep 30", ""),
        ("printf '\\377\\376 1.2'", "1.2"),
    ],
)
def test_what_tools_say(said: str, version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(tmp_path, "tool-of-this-test", said, monkeypatch)
    assert software.tool_version("tool-of-this-test", timeout_s=2.0) == version


def test_a_tool_that_is_not_there() -> None:
    assert software.tool_version("no-such-tool-of-this-test") is None
    assert software.package_version("no-such-package-of-this-test") is None
    assert software.package_version("pytest") == pytest.__version__


def test_a_tool_beside_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(software, "_PLACES", {"tool": (f"{tmp_path}/*/tool",)})
    assert software.find_tool("tool") is None
    for version in ("9.2", "10.1"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "tool").touch(0o755)
    assert software.find_tool("tool") == str(tmp_path / "10.1" / "tool")
    (tmp_path / "tool").touch(0o755)
    assert software.find_tool("tool") == str(tmp_path / "tool"), "the PATH first"


def test_switches_but_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in software.environment():
        monkeypatch.delenv(name)
    given = {"OMP_NUM_THREADS": "4", "HSBENCH_ISA": "avx2", "CUDA_VISIBLE_DEVICES": "1"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    for name in ("HSBENCH_TOKEN", "CUDA_API_KEY", "PYTORCH_SECRET", "NVIDIA_API_KEY", "AWS_SECRET_ACCESS_KEY", "USER"):
        monkeypatch.setenv(name, "hidden")
    assert software.environment() == given


def test_libraries_are_known_by_their_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "LIB", tmp_path)
    assert software.libraries() == {"abi": None, "cpu": None, "cuda": None}
    software._sha256.cache_clear()
    (tmp_path / "libhsbench_cpu.so").write_bytes(b"code")
    assert software.libraries() == {"abi": None, "cpu": hashlib.sha256(b"code").hexdigest(), "cuda": None}
    software._sha256.cache_clear()


def git(folder: Path, *words: str) -> None:
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *who, *words], check=True, capture_output=True)


def test_the_commit_of_the_source_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if software.tool_version("git") is None:
        pytest.skip("needs git")
    package = tmp_path / "tree" / "hsbench"
    package.mkdir(parents=True)
    monkeypatch.setattr(software, "_PACKAGE", package)
    assert software.git_commit() is None
    git(tmp_path, "init")  # of a folder further up: somebody else's project
    assert software.git_commit() is None
    git(package.parent, "init")
    assert software.git_commit() is None  # no commit yet
    (package / "a.py").write_text("1")
    git(package.parent, "add", ".")
    git(package.parent, "commit", "-m", "first")
    found = software.git_commit()
    assert found["dirty"] is False and len(found["commit"]) == 40
    (package / "untracked").touch()
    assert software.git_commit() == found
    (package / "a.py").write_text("2")
    assert software.git_commit() == found | {"dirty": True}


def test_without_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    monkeypatch.setattr(software, "_PACKAGE", tmp_path / "hsbench")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert software.git_commit() is None
