"""A source tree that hides the installed package: what hsbench says of it, and what a run of the tests does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from hsbench.kernels import library
from tiny_project import CSRC, ROOT

pytestmark = pytest.mark.slow  # builds, and processes of their own

METADATA = "Metadata-Version: 2.1\nName: hsbench\nVersion: 0.1.0\n"
WHY = "from hsbench.kernels import library; print(library.why_missing('cpu'), library.why_missing('cuda'), sep='\\n')"
LEAVE = "run the command `hsbench`, leave that folder, or start Python as `python -P`"


@dataclass
class Both:
    """A source tree, and an installed package on PYTHONPATH; Python starts in the tree."""

    tree: Path
    site: Path

    def python(self, *arguments: str, path: tuple[Path, ...] = ()) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (*path, self.site)))}
        environment.pop("HSBENCH_REQUIRE", None)
        environment.pop("PYTHONSAFEPATH", None)
        return subprocess.run(
            [sys.executable, *arguments], cwd=self.tree, env=environment, capture_output=True, text=True, timeout=120
        )

    def why(self, *arguments: str, path: tuple[Path, ...] = ()) -> list[str]:
        """Why the CPU library is missing, and why the CUDA library."""
        done = self.python(*arguments, "-c", WHY, path=path)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()


@pytest.fixture
def both(tmp_path: Path) -> Both:
    """As after ``pip install .`` where there is no nvcc; the CPU library is a copy of this hsbench's own, or a file
    that only stands for one."""
    both = Both(tmp_path / "tree", tmp_path / "site")
    ignore = shutil.ignore_patterns("__pycache__", "lib")
    for root in (both.tree, both.site):
        shutil.copytree(ROOT / "hsbench", root / "hsbench", ignore=ignore)
    (both.tree / "csrc").mkdir()
    lib = both.site / "hsbench" / "lib"
    lib.mkdir()
    shutil.copy(CSRC / "params.h", lib)
    if library.why_missing("cpu") is None:
        shutil.copy(library.LIB / "libhsbench_cpu.so", lib)
    else:
        (lib / "libhsbench_cpu.so").write_bytes(b"not an ELF file")
    for place in (both.site / "hsbench-0.1.0.dist-info", both.tree / "hsbench.egg-info"):  # a build leaves the latter
        place.mkdir()
        (place / ("METADATA" if place.suffix == ".dist-info" else "PKG-INFO")).write_text(METADATA)
    return both


def told(both: Both, fault: str, remedy: str = LEAVE) -> str:
    installed = both.site / "hsbench"
    return f"the source tree at {both.tree} shadows the installation at {installed}, and {fault}: {remedy}"


def test_a_source_tree_without_libraries_is_named_with_what_it_hides(both: Both) -> None:
    assert both.why()[0] == told(both, "in that tree the CPU library was not built")


def test_another_build_is_the_remedy_where_it_would_help(both: Both) -> None:
    """The installation that the tree hides has this library no more than the tree has."""
    (both.site / "hsbench" / "lib" / "libhsbench_cpu.so").unlink()
    assert both.why()[0].startswith("the CPU library was not built: install a C++17 compiler")


def test_a_source_tree_on_the_pythonpath_has_another_remedy(both: Both) -> None:
    """No ``python -P`` and no other folder would help."""
    assert both.why("-P", path=(both.tree,))[0] == told(
        both, "in that tree the CPU library was not built", f"take {both.tree} off PYTHONPATH"
    )


def test_the_remedy_finds_the_installation(both: Both) -> None:
    said = both.why("-P")[0]
    assert "shadows" not in said
    assert said == "None" or said.startswith("the CPU library does not load")


def test_a_tree_installed_with_pip_install_e_hides_nothing(both: Both) -> None:
    shutil.move(both.site / "hsbench" / "lib", both.tree / "hsbench" / "lib")
    shutil.rmtree(both.site / "hsbench")
    assert "shadows" not in both.why()[0]


def test_a_library_left_in_the_tree_that_does_not_load(both: Both) -> None:
    shutil.copytree(both.site / "hsbench" / "lib", both.tree / "hsbench" / "lib")
    (both.tree / "hsbench" / "lib" / "libhsbench_cpu.so").write_bytes(b"old")
    said = both.why()[0]
    assert said.startswith(told(both, "in that tree the CPU library does not load (").partition(": ")[0])
    assert said.endswith(f": {LEAVE}")


def test_a_command_says_so(both: Both) -> None:
    done = both.python("-m", "hsbench", "decode", "--device", "cpu", "--seq", "128", "--methods", "hierarchical")
    assert done.returncode == 4
    assert told(both, "in that tree the CPU library was not built") in " ".join((done.stdout + done.stderr).split())


# ---- Tests of it -------------------------------------------------------------------------------------------
@pytest.fixture
def tests(both: Both) -> Both:
    """With hsbench's own conftest.py, and one test that needs the CPU library."""
    folder = both.tree / "tests"
    folder.mkdir()
    shutil.copy(ROOT / "tests" / "conftest.py", folder)
    shutil.copy(ROOT / "pyproject.toml", both.tree)
    (folder / "test_one.py").write_text(
        "import pytest\nfrom hsbench.kernels import library\n"
        "@pytest.mark.skipif(library.why_missing('cpu') is not None, reason='no library')\n"
        "def test_one(): pass\n"
    )
    return both


PYTEST = ("-m", "pytest", "-p", "no:cacheprovider")


def test_tests_of_a_tree_without_libraries_fail(tests: Both) -> None:
    done = tests.python(*PYTEST)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR, done.stdout
    assert f"the source tree at {tests.tree} shadows the installation at {tests.site}/hsbench" in done.stderr
    assert "`pytest`, not `python -m pytest`" in done.stderr


@pytest.mark.skipif(library.why_missing("cpu") is not None, reason=str(library.why_missing("cpu")))
def test_tests_of_the_installation_run(tests: Both) -> None:
    done = tests.python("-P", *PYTEST)
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout + done.stderr
    assert f"hsbench: {tests.site}/hsbench, libraries: cpu" in done.stdout


def test_without_a_compiler_tests_that_need_a_library_skip(tests: Both) -> None:
    (tests.site / "hsbench" / "lib" / "libhsbench_cpu.so").unlink()
    done = tests.python("-P", *PYTEST)
    assert done.returncode == 0 and "1 skipped" in done.stdout, done.stdout + done.stderr
    assert f"hsbench: {tests.site}/hsbench, libraries: none" in done.stdout


def test_a_library_that_does_not_load_fails_the_run(tests: Both) -> None:
    (tests.site / "hsbench" / "lib" / "libhsbench_cpu.so").write_bytes(b"old")
    done = tests.python("-P", *PYTEST)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR, done.stdout
    assert "the CPU library does not load" in done.stderr
