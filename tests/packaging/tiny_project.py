"""A project of a few lines with hsbench's own setup.py and CMakeLists.txt, so that a build takes seconds."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"


def why_not() -> str | None:
    """What this machine lacks for a build by hand; pip brings its own cmake, ninja and setuptools."""
    missing = [tool for tool in ("cmake", "ninja") if shutil.which(tool) is None]
    if missing:
        return f"needs {' and '.join(missing)} on the PATH"
    if not (ROOT / "setup.py").exists():
        return "needs hsbench's source folder"
    if importlib.util.find_spec("setuptools") is None:
        return "needs setuptools"
    if importlib.util.find_spec("setuptools.command.bdist_wheel") is None:
        return "needs setuptools 70.1 or newer"
    return None


REASON = why_not()
needs_build_tools = pytest.mark.skipif(REASON is not None, reason=str(REASON))
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++ on the PATH")
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc on the PATH")

KERNEL = """
#include "cpu/tiny/tiny.h"
namespace hsb::cpu { struct HSB_ISA {}; int tiny_kernel(HSB_ISA) { return __LINE__; } }
"""
LAUNCHER = """
#include "api.h"
#include "cpu/tiny/tiny.h"
extern "C" int32_t hsb_cpu_best_isa(void) { return HSB_ISA_PORTABLE; }
"""
BROKEN = "#error this does not compile\n"

STEERING = ("CXX", "CC", "CUDACXX", "CUDAHOSTCXX", "CXXFLAGS", "CFLAGS", "LDFLAGS", "CUDAFLAGS", "CUDAARCHS")
STEERING += ("NVCC_APPEND_FLAGS", "NVCC_PREPEND_FLAGS", "CMAKE_GENERATOR", "HSBENCH_REQUIRE", "PYTHONPATH")
NO_COMPILER = {"CXX": "/nonexistent/c++", "CC": "/nonexistent/cc", "CUDACXX": "/nonexistent/nvcc"}
NO_NVCC = {"CUDACXX": "/nonexistent/nvcc"}


@dataclass
class Project:
    """A copy of what the build needs, with a CPU library of one function."""

    root: Path
    environment: dict[str, str]

    def run(self, *command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.root,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def setup(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "setup.py", *arguments, **environment)

    def build(self, **environment: str) -> subprocess.CompletedProcess[str]:
        folders = (f"--build-lib={self.root}/out", f"--build-temp={self.root}/tree")
        return self.setup("build_native", *folders, **environment)

    @property
    def built(self) -> list[str]:
        return sorted(path.name for path in (self.root / "out" / "hsbench" / "lib").iterdir())


def make_project(tmp_path: Path) -> Project:
    """It, in a folder of its own, and an environment in which no variable steers the build."""
    shutil.copy(ROOT / "setup.py", tmp_path)
    tiny = tmp_path / "csrc" / "cpu" / "tiny"
    tiny.mkdir(parents=True)
    for path in CSRC.iterdir():
        if path.is_file():
            shutil.copy(path, tmp_path / "csrc")
    (tiny / "tiny.h").write_text("#pragma once\n")
    (tiny / "tiny_kernel.cpp").write_text(KERNEL)
    (tiny / "tiny.cpp").write_text(LAUNCHER)
    return Project(tmp_path, {name: value for name, value in os.environ.items() if name not in STEERING})
