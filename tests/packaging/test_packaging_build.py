"""The build steps of setup.py: what happens without a compiler, without nvcc, with sources that do not compile."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tiny_project import (
    BROKEN,
    CSRC,
    NO_COMPILER,
    NO_NVCC,
    Project,
    needs_build_tools,
    needs_compiler,
    needs_nvcc,
)

pytestmark = pytest.mark.slow  # builds, and processes of their own


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
from hsbench.kernels import library
library.LIB = Path(sys.argv[1])
print(library.why_missing("cpu"), library.load("cpu").number("hsb_cpu_best_isa"), library.why_missing("cuda"))
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
