"""Compiler flags of the user's: those that would break the kernels, or the process that loads them, are overruled."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tiny_project import CSRC, NO_NVCC, Project, needs_build_tools, needs_compiler, needs_nvcc

pytestmark = pytest.mark.slow  # builds, and processes of their own

# One bit per rule of IEEE 754 that the kernels count on, and that a flag lets the compiler break.
KERNEL = """
#include "cpu/tiny/tiny.h"
namespace hsb::cpu {
struct HSB_ISA {};
int faults(HSB_ISA, const float *x) {
    const float nan = x[0], infinity = x[1], small = x[2], large = x[3], negative_zero = x[4];
    return (nan != nan ? 0 : 1) | (infinity - infinity != 0 ? 0 : 2) | (small * 0.5f != 0 ? 0 : 4) |
           ((large + 1.0f) - large == 0 ? 0 : 8) | (1.0f / (negative_zero + 0.0f) > 0 ? 0 : 16);
}
}
"""
LAUNCHER = """
#include "api.h"
namespace hsb::cpu { struct Portable {}; int faults(Portable, const float *); }
extern "C" __attribute__((visibility("default"))) int tiny_faults(const float *x) {
    return hsb::cpu::faults({}, x);
}
"""
LOAD = """
import ctypes, math, sys
library = ctypes.CDLL(sys.argv[1])
print(library.tiny_faults((ctypes.c_float * 5)(math.nan, math.inf, 2.0**-126, 1e8, -0.0)))
print(float(sys.argv[2]) / 4)  # of the whole process, from here on
"""
SMALLEST_NORMAL = "2.2250738585072014e-308"


@pytest.fixture
def tiny(project: Project) -> Project:
    folder = project.root / "csrc" / "cpu" / "tiny"
    (folder / "tiny_kernel.cpp").write_text(KERNEL)
    (folder / "tiny.cpp").write_text(LAUNCHER)
    return project


def words(run: subprocess.CompletedProcess[str]) -> str:
    """All that a build said, on one line: CMake breaks its messages into several."""
    return " ".join((run.stdout + run.stderr).split())


def check(project: Project) -> None:
    library = project.root / "out" / "hsbench" / "lib" / "libhsbench_cpu.so"
    done = subprocess.run(
        [sys.executable, "-c", LOAD, library, SMALLEST_NORMAL], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    faults, quarter = done.stdout.splitlines()
    assert float(quarter) > 0, "loading the library set flush-to-zero for the whole process"
    assert int(faults) == 0


FLAGS = {
    "fast-math": {"CXXFLAGS": "-ffast-math"},
    "Ofast": {"CXXFLAGS": "-g -Ofast -Ofast"},
    "parts": {"CXXFLAGS": "-funsafe-math-optimizations -ffinite-math-only -fno-signed-zeros -fno-trapping-math"},
    "linker": {"LDFLAGS": "-Ofast -ffast-math"},
    "compiler": {"CXX": "g++ -Ofast -ffast-math"},
    "debugging": {"CXXFLAGS": "-O0 -g"},
}


@needs_build_tools
@needs_compiler
@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
def test_the_library_keeps_to_ieee_754(tiny: Project, flags: dict[str, str]) -> None:
    run = tiny.build(**NO_NVCC, HSBENCH_REQUIRE="cpu", **flags)
    assert run.returncode == 0, run.stdout + run.stderr
    check(tiny)
    asked = " ".join(flags.values())
    assert ("hsbench needs IEEE 754 arithmetic: of " in words(run)) == ("-Ofast" in asked)


@needs_build_tools
@needs_compiler
def test_daz_and_ftz_by_name(tiny: Project) -> None:
    flag = "-mdaz-ftz"
    knows = subprocess.run(["g++", flag, "-x", "c++", "-fsyntax-only", "/dev/null"], capture_output=True)
    if knows.returncode:
        pytest.skip(f"this compiler has no {flag}")
    assert tiny.build(**NO_NVCC, HSBENCH_REQUIRE="cpu", CXXFLAGS=flag, LDFLAGS=flag).returncode == 0
    check(tiny)


@needs_build_tools
@needs_compiler
@pytest.mark.parametrize(
    ("flag", "word"),
    [("-ffast-math", "compile it without -ffast-math"), ("-Ofast", "was linked with crtfastmath.o")],
)
def test_a_compiler_that_cannot_be_overruled_is_refused(tiny: Project, flag: str, word: str) -> None:
    """A script that puts a flag of its own behind all others. With -Ofast, those before it hold but at the link."""
    compiler = tiny.root / "c++"
    compiler.write_text(f'#!/bin/sh\nexec g++ "$@" {flag}\n')
    compiler.chmod(0o755)
    run = tiny.build(**NO_NVCC, CXX=str(compiler))
    assert run.returncode == 0
    if tiny.built != ["params.h"]:
        check(tiny)
        pytest.skip("this compiler links no crtfastmath.o into shared libraries")
    assert "built without libhsbench_cpu.so: the compilation failed" in run.stderr
    assert "hsbench needs IEEE 754 arithmetic: " in words(run) and word in words(run)


@needs_compiler
@pytest.mark.parametrize("flags", ["", "-ffast-math", "-ffinite-math-only", "-funsafe-math-optimizations"])
def test_the_header_refuses(flags: str) -> None:
    command = ["g++", *flags.split(), "-fsyntax-only", "-x", "c++", str(CSRC / "arithmetic.h")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode != 0) == ("hsbench needs IEEE 754 arithmetic" in done.stderr) == bool(flags)


CUDA_KERNEL = """
__global__ void kernel(float *x) { x[0] = sqrtf(x[0] / x[1] + x[2]); }
extern "C" void tiny(float *x) { kernel<<<1, 1>>>(x); }
"""
FAST = "--use_fast_math --ftz=true --prec-div=false --prec-sqrt=false"


@needs_build_tools
@needs_nvcc
@pytest.mark.parametrize("variables", [("CUDAFLAGS",), ("NVCC_APPEND_FLAGS", "NVCC_PREPEND_FLAGS")], ids="-".join)
def test_cuda_code_keeps_to_ieee_754(tiny: Project, variables: tuple[str, ...], tmp_path: Path) -> None:
    (tiny.root / "csrc" / "cuda").mkdir()
    (tiny.root / "csrc" / "cuda" / "tiny.cu").write_text(CUDA_KERNEL)
    kept = tmp_path / "kept"
    kept.mkdir()
    flags = {"CUDAFLAGS": f"--keep --keep-dir={kept}"}
    for variable in variables:
        flags[variable] = f"{flags.get(variable, '')} {FAST} -Xcompiler=-Ofast,-ffast-math"
    run = tiny.build(HSBENCH_REQUIRE="cuda", CUDAARCHS="90-virtual", **flags)
    assert run.returncode == 0, run.stdout + run.stderr
    ptx = (kept / "tiny.ptx").read_text()
    assert set(re.findall(r"\b(?:add|div|sqrt)\.[.\w]+", ptx)) == {"add.f32", "div.rn.f32", "sqrt.rn.f32"}
    for variable in variables:
        name = variable.replace("CUDAFLAGS", "CMAKE_CUDA_FLAGS")
        assert f"hsbench needs IEEE 754 arithmetic: of {name}, " in words(run)
