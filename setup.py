"""Packaging steps that pyproject.toml cannot express: the CMake build, and a wheel for one platform and any Python.

The install never fails for want of a compiler or of nvcc: what could not be built is left out, `hsbench doctor` and
every report say so. HSBENCH_REQUIRE=cpu or HSBENCH_REQUIRE=cpu,cuda makes a missing library an error instead.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Command, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent.resolve()
CSRC = ROOT / "csrc"
LIBRARIES = {"cpu": "libhsbench_cpu.so", "cuda": "libhsbench_cuda.so"}


class BuildNative(Command):
    """Builds csrc/ with CMake into hsbench/lib (setuptools' SubCommand protocol)."""

    description = "build the compiled libraries"
    user_options = [
        ("build-lib=", "b", "directory to build into"),
        ("build-temp=", "t", "directory for CMake's build tree"),
    ]

    def initialize_options(self) -> None:
        self.build_lib: str | None = None
        self.build_temp: str | None = None
        self.editable_mode = False

    def finalize_options(self) -> None:
        self.set_undefined_options("build", ("build_lib", "build_lib"), ("build_temp", "build_temp"))

    @property
    def _destination(self) -> Path:
        package = ROOT / "hsbench" if self.editable_mode else Path(self.build_lib, "hsbench").resolve()
        return package / "lib"

    def run(self) -> None:
        destination = self._destination
        shutil.rmtree(destination, ignore_errors=True)  # a library from an older build must not survive
        destination.mkdir(parents=True)
        shutil.copy2(CSRC / "params.h", destination)
        reasons = self._build(destination)
        required = [name for name in os.environ.get("HSBENCH_REQUIRE", "").split(",") if name]
        for name, reason in reasons.items():
            print(f"hsbench: built without {LIBRARIES[name]}: {reason}", file=sys.stderr)
            if name in required:
                raise SystemExit(f"hsbench: HSBENCH_REQUIRE={','.join(required)}, but {name} is missing: {reason}")

    def _build(self, destination: Path) -> dict[str, str]:
        """Configures and builds; returns, for each library that is not there, why."""
        tree = Path(self.build_temp, "native").resolve()
        cmake = shutil.which("cmake") or "cmake"
        # A cache from another checkout or another (temporary) build environment would name tools that are gone.
        (tree / "CMakeCache.txt").unlink(missing_ok=True)
        try:
            subprocess.run([cmake, "-S", str(CSRC), "-B", str(tree), "-G", "Ninja"], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            return dict.fromkeys(LIBRARIES, f"no usable C++ compiler found by CMake ({error})")
        reasons = {}
        for name in LIBRARIES:
            try:
                # Ninja runs as many compilers as there are cores.
                subprocess.run([cmake, "--build", str(tree), "--target", f"hsbench_{name}"], check=True)
                subprocess.run(
                    [cmake, "--install", str(tree), "--component", name, "--prefix", str(destination)], check=True
                )
            except subprocess.CalledProcessError as error:
                # CMake writes the variable in any case, with NOTFOUND for a value where no nvcc works.
                cache = (tree / "CMakeCache.txt").read_text().splitlines()
                compilers = [line for line in cache if line.startswith("CMAKE_CUDA_COMPILER:")]
                has_nvcc = any(not line.endswith("NOTFOUND") for line in compilers)
                missing_nvcc = name == "cuda" and not has_nvcc
                reasons[name] = "nvcc not found" if missing_nvcc else f"the compilation failed ({error})"
        return reasons

    def get_outputs(self) -> list[str]:
        return [str(path) for path in sorted(self._destination.glob("*"))]

    def get_output_mapping(self) -> dict[str, str]:
        return {}

    def get_source_files(self) -> list[str]:
        return [str(path.relative_to(ROOT)) for path in sorted(CSRC.rglob("*")) if path.is_file()]


class BuildPy(build_py):
    """The Python part, from nothing each time. A wheel holds whatever lies in the build folder, and setuptools only
    ever adds to that: what was deleted here would live on in every wheel made with an older build/."""

    def run(self) -> None:
        # The package's own folder, not build_lib: that may be any folder a user names, the source folder too.
        built = Path(self.build_lib, "hsbench")
        if not self.editable_mode and built.exists() and built.resolve() != ROOT / "hsbench":
            for path in built.iterdir():
                if path.name == "lib":  # BuildNative's, which does the same there
                    continue
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
        super().run()


class Build(build):
    sub_commands = [*build.sub_commands, ("build_native", None)]


class Wheel(bdist_wheel):
    """A wheel for one platform and any Python 3: the libraries know nothing of Python's ABI."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.root_is_pure = False

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    packages=find_packages(str(ROOT), include=["hsbench", "hsbench.*"]),
    package_data={"hsbench.problem": ["shapes/*.toml"]},
    include_package_data=False,
    cmdclass={"build": Build, "build_py": BuildPy, "build_native": BuildNative, "bdist_wheel": Wheel},
)
