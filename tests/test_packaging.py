"""The build steps of setup.py: what happens without a compiler, without nvcc, with sources that do not compile.

They run on a project of a few lines with hsbench's own setup.py and CMakeLists.txt, so that a build takes seconds.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
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


@dataclass
class Project:
    """A copy of what the build needs, with a CPU library of one function."""

    root: Path
    environment: dict[str, str]

    def setup(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "setup.py", *arguments],
            cwd=self.root,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def build(self, **environment: str) -> subprocess.CompletedProcess[str]:
        folders = (f"--build-lib={self.root}/out", f"--build-temp={self.root}/tree")
        return self.setup("build_native", *folders, **environment)

    @property
    def built(self) -> list[str]:
        return sorted(path.name for path in (self.root / "out" / "hsbench" / "lib").iterdir())


@pytest.fixture
def project(tmp_path: Path) -> Project:
    shutil.copy(ROOT / "setup.py", tmp_path)
    for name in ("CMakeLists.txt", "params.h", "api.h", "error.h", "abi.cpp"):
        (tmp_path / "csrc").mkdir(exist_ok=True)
        shutil.copy(CSRC / name, tmp_path / "csrc")
    tiny = tmp_path / "csrc" / "cpu" / "tiny"
    tiny.mkdir(parents=True)
    (tiny / "tiny.h").write_text("#pragma once\n")
    (tiny / "tiny_kernel.cpp").write_text(KERNEL)
    (tiny / "tiny.cpp").write_text(LAUNCHER)
    hidden = ("CXX", "CC", "CUDACXX", "CUDAHOSTCXX", "HSBENCH_REQUIRE", "CXXFLAGS", "CMAKE_GENERATOR", "PYTHONPATH")
    return Project(tmp_path, {name: value for name, value in os.environ.items() if name not in hidden})


NO_COMPILER = {"CXX": "/nonexistent/c++", "CC": "/nonexistent/cc", "CUDACXX": "/nonexistent/nvcc"}
NO_NVCC = {"CUDACXX": "/nonexistent/nvcc"}


# ---- Without a compiler ------------------------------------------------------------------------------------
@needs_build_tools
def test_without_a_compiler_the_install_succeeds_and_says_so(project: Project) -> None:
    run = project.build(**NO_COMPILER)
    assert run.returncode == 0, run.stderr
    assert project.built == ["params.h"]
    for library in ("libhsbench_cpu.so", "libhsbench_cuda.so"):
        assert f"hsbench: built without {library}: no usable C++ compiler" in run.stderr


@needs_build_tools
@pytest.mark.parametrize("required", ["cpu", "cpu,cuda", "cuda"])
def test_a_required_library_that_cannot_be_built_fails_the_install(project: Project, required: str) -> None:
    run = project.build(**NO_COMPILER, HSBENCH_REQUIRE=required)
    assert run.returncode != 0
    missing = required.partition(",")[0]
    assert f"HSBENCH_REQUIRE={required}, but {missing} is missing: no usable C++ compiler" in run.stderr


@needs_build_tools
def test_without_cmake_the_install_succeeds_and_says_so(project: Project) -> None:
    python = project.root / "bin"  # a PATH with nothing else on it
    python.mkdir()
    run = project.build(PATH=str(python))
    assert run.returncode == 0, run.stderr
    assert project.built == ["params.h"]
    assert "built without libhsbench_cpu.so" in run.stderr and "cmake" in run.stderr


@needs_build_tools
def test_a_library_of_an_older_build_does_not_survive(project: Project) -> None:
    lib = project.root / "out" / "hsbench" / "lib"
    lib.mkdir(parents=True)
    (lib / "libhsbench_cpu.so").write_bytes(b"old")
    (lib / "params.h").write_text("old")
    assert project.build(**NO_COMPILER).returncode == 0
    assert project.built == ["params.h"]
    assert (lib / "params.h").read_bytes() == (CSRC / "params.h").read_bytes()


# ---- With one ----------------------------------------------------------------------------------------------
LOAD = """
import sys
from pathlib import Path
from hsbench import native
native.LIB = Path(sys.argv[1])
print(native.why_missing("cpu"), native.library("cpu").number("hsb_cpu_best_isa"), native.why_missing("cuda"))
"""


@needs_build_tools
@needs_compiler
def test_without_nvcc_the_cpu_library_alone_is_built(project: Project) -> None:
    run = project.build(**NO_NVCC, HSBENCH_REQUIRE="cpu")
    assert run.returncode == 0, run.stdout + run.stderr
    assert project.built == ["libhsbench_cpu.so", "params.h"]
    assert "hsbench: built without libhsbench_cuda.so: nvcc not found" in run.stderr
    assert "built without libhsbench_cpu.so" not in run.stderr
    # It loads, under the stamp of the header that was installed beside it.
    lib = project.root / "out" / "hsbench" / "lib"
    loaded = subprocess.run([sys.executable, "-c", LOAD, lib], capture_output=True, text=True, timeout=60)
    assert loaded.stdout.startswith("None 1 the CUDA library was not built: install nvcc"), loaded.stderr

    # And once more in the same tree with CUDA required: the reason is nvcc, not the CPU side.
    again = project.build(**NO_NVCC, HSBENCH_REQUIRE="cpu,cuda")
    assert again.returncode != 0 and "but cuda is missing: nvcc not found" in again.stderr


@needs_build_tools
@needs_compiler
@pytest.mark.parametrize("where", ["tiny.cpp", "tiny_kernel.cpp"])
def test_sources_that_do_not_compile_are_told_from_a_missing_compiler(project: Project, where: str) -> None:
    (project.root / "csrc" / "cpu" / "tiny" / where).write_text(BROKEN)
    run = project.build(**NO_NVCC)
    assert run.returncode == 0, run.stderr
    assert project.built == ["params.h"]
    assert "hsbench: built without libhsbench_cpu.so: the compilation failed" in run.stderr
    assert "this does not compile" in run.stdout + run.stderr, "the compiler's own words are in the log"


@needs_build_tools
@needs_compiler
@needs_nvcc
def test_cuda_sources_that_do_not_compile_leave_the_cpu_library(project: Project) -> None:
    (project.root / "csrc" / "cuda").mkdir()
    (project.root / "csrc" / "cuda" / "broken.cu").write_text(BROKEN)
    run = project.build(HSBENCH_REQUIRE="cpu")
    assert run.returncode == 0, run.stderr
    assert project.built == ["libhsbench_cpu.so", "params.h"]
    assert "hsbench: built without libhsbench_cuda.so: the compilation failed" in run.stderr


# ---- What a wheel holds ------------------------------------------------------------------------------------
@pytest.fixture
def installed(project: Project) -> Path:
    """The Python part of a wheel, built from a copy of the source tree."""
    ignore = shutil.ignore_patterns("__pycache__", "lib")
    for folder in ("hsbench", "profiles"):
        shutil.copytree(ROOT / folder, project.root / folder, ignore=ignore)
    run = project.setup("-q", "build_py", f"--build-lib={project.root}/site")
    assert run.returncode == 0, run.stderr
    for folder in ("hsbench", "profiles"):
        shutil.rmtree(project.root / folder)  # nothing may be found beside the package
    return project.root / "site"


@pytest.fixture
def python_in(installed: Path, project: Project) -> Callable[[str], str]:
    def run(code: str) -> str:
        environment = project.environment | {"PYTHONPATH": str(installed)}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=installed, env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


@needs_build_tools
def test_the_wheel_holds_every_module_and_the_profiles(installed: Path, python_in: Callable[[str], str]) -> None:
    def modules(root: Path) -> set[str]:
        return {str(path.relative_to(root)) for path in root.rglob("*.py") if "profiles" not in path.parts}

    assert modules(installed / "hsbench") == modules(ROOT / "hsbench")
    names = sorted(path.stem for path in (ROOT / "profiles").glob("*.toml"))
    assert len(names) >= 3
    assert sorted(path.stem for path in (installed / "hsbench" / "profiles").glob("*.toml")) == names
    code = "import hsbench.workload as w; print(w.__file__); print(*sorted(w.load_profiles()), sep='\\n')"
    file, *loaded = python_in(code).splitlines()
    assert Path(file).is_relative_to(installed) and sorted(loaded) == names


@needs_build_tools
def test_without_any_library_the_package_says_what_to_do(python_in: Callable[[str], str]) -> None:
    said = python_in("from hsbench import native; print(native.why_missing('cpu'))")
    assert "\n" not in said and "pip install" in said


def test_the_profiles_are_found_from_here() -> None:
    """From wherever the package under test lies, installed or in its source tree."""
    from hsbench.workload import load_profiles

    assert {"Llama-3.1-8B", "Qwen3-8B"} <= set(load_profiles())
