"""What wheels and source distributions hold: all of the package, and nothing that an older build left behind."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tiny_project import NO_COMPILER, ROOT, Project, needs_build_tools

pytestmark = pytest.mark.slow  # builds, and processes of their own


# ---- What a wheel holds ------------------------------------------------------------------------------------
@pytest.fixture
def installed(project: Project) -> Path:
    """The Python part of a wheel, built from a copy of the source tree."""
    ignore = shutil.ignore_patterns("__pycache__", "lib")
    shutil.copytree(ROOT / "hsbench", project.root / "hsbench", ignore=ignore)
    run = project.setup("-q", "build_py", f"--build-lib={project.root}/site")
    assert run.returncode == 0, run.stderr
    shutil.rmtree(project.root / "hsbench")  # nothing may be found beside the package
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
def test_the_wheel_holds_every_module_and_the_shapes(installed: Path, python_in: Callable[[str], str]) -> None:
    def modules(root: Path) -> set[str]:
        return {str(path.relative_to(root)) for path in root.rglob("*.py")}

    assert modules(installed / "hsbench") == modules(ROOT / "hsbench")
    names = sorted(path.stem for path in (ROOT / "hsbench" / "problem" / "shapes").glob("*.toml"))
    assert len(names) >= 3
    assert sorted(path.stem for path in (installed / "hsbench" / "problem" / "shapes").glob("*.toml")) == names
    code = "import hsbench.problem.shapes as s; print(s.__file__); print(*sorted(s.load_shapes()), sep='\\n')"
    file, *loaded = python_in(code).splitlines()
    assert Path(file).is_relative_to(installed) and sorted(loaded) == names


@needs_build_tools
def test_without_any_library_the_package_says_what_to_do(python_in: Callable[[str], str]) -> None:
    said = python_in("from hsbench.kernels import library; print(library.why_missing('cpu'))")
    assert "\n" not in said and "pip install" in said


def test_the_shapes_are_found_from_here() -> None:
    """From wherever the package under test lies, installed or in its source tree."""
    from hsbench.problem.shapes import load_shapes

    assert {"Llama-3.1-8B", "Qwen3-8B"} <= set(load_shapes())


# ---- And what it does not hold -----------------------------------------------------------------------------
FILES = (
    "README.md",
    "LICENSE",
    "hsbench/__init__.py",
    "hsbench/kept.py",
    "hsbench/gone.py",
    "hsbench/leaving/__init__.py",
    "hsbench/leaving/module.py",
    "hsbench/room/__init__.py",
    "hsbench/room/deeper/__init__.py",
    "hsbench/room/deeper/kept.py",
    "hsbench/room/deeper/gone.py",
    "hsbench/problem/__init__.py",
    "hsbench/problem/shapes/Kept.toml",
    "hsbench/problem/shapes/Gone.toml",
)
GONE = ("hsbench/gone.py", "hsbench/leaving", "hsbench/room/deeper/gone.py", "hsbench/problem/shapes/Gone.toml")
BACKEND = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"


class Checkout:
    """A source folder with a small package, and the hooks that pip and build call (without their isolation)."""

    def __init__(self, project: Project) -> None:
        self.project = project
        for name in ("pyproject.toml", "MANIFEST.in"):
            shutil.copy(ROOT / name, project.root)
        for name in FILES:
            path = project.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("")

    def delete(self) -> None:
        for name in GONE:
            path = self.project.root / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def wheel(self) -> set[str]:
        """Builds one in the folder, and names the files of its package."""
        with zipfile.ZipFile(self._build("build_wheel")) as archive:
            # The package stands under a folder of the wheel that says where it goes.
            names = [name.partition(".data/purelib/")[2] for name in archive.namelist()]
            return {name for name in names if name}

    def sdist(self) -> Path:
        return self._build("build_sdist")

    def _build(self, hook: str) -> Path:
        done = self.project.run(sys.executable, "-c", BACKEND, hook, "dist", **NO_COMPILER)
        assert done.returncode == 0, done.stdout + done.stderr
        return self.project.root / "dist" / done.stdout.splitlines()[-1]


def in_wheel(files: tuple[str, ...]) -> set[str]:
    """What a wheel has of these files of the source folder, and lib/params.h."""
    return {name for name in files if name.startswith("hsbench/")} | {"hsbench/lib/params.h"}


LEFT = tuple(name for name in FILES if not name.startswith(GONE))


@needs_build_tools
def test_a_second_wheel_has_nothing_that_was_deleted(project: Project) -> None:
    """A module, a package folder, a model's shape; the build folder of the first wheel is still there."""
    checkout = Checkout(project)
    assert checkout.wheel() == in_wheel(FILES)
    assert (project.root / "build" / "lib" / "hsbench" / "gone.py").exists()
    checkout.delete()
    assert checkout.wheel() == in_wheel(LEFT)


@needs_build_tools
def test_a_module_that_becomes_a_package_and_back(project: Project) -> None:
    checkout = Checkout(project)
    checkout.wheel()
    (project.root / "hsbench" / "kept.py").unlink()
    (project.root / "hsbench" / "kept").mkdir()
    (project.root / "hsbench" / "kept" / "__init__.py").touch()
    assert checkout.wheel() == in_wheel(FILES) - {"hsbench/kept.py"} | {"hsbench/kept/__init__.py"}
    shutil.rmtree(project.root / "hsbench" / "kept")
    (project.root / "hsbench" / "kept.py").touch()
    assert checkout.wheel() == in_wheel(FILES)


@needs_build_tools
def test_a_source_distribution_has_the_sources_as_they_are(project: Project, tmp_path: Path) -> None:
    """And a wheel that is made from it, as ``python -m build`` does, has the same as one from the folder."""
    checkout = Checkout(project)
    checkout.wheel()
    checkout.sdist()
    checkout.delete()
    (project.root / "csrc" / "__pycache__").mkdir()
    (project.root / "csrc" / "__pycache__" / "helper.cpython-311.pyc").touch()
    with tarfile.open(checkout.sdist()) as archive:
        top = archive.getnames()[0]
        archive.extractall(tmp_path / "unpacked", filter="data")
    unpacked = tmp_path / "unpacked" / top
    files = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    assert set(LEFT) < files and not [name for name in files if name.startswith(GONE)]
    assert {"csrc/CMakeLists.txt", "csrc/params.h", "csrc/cpu/tiny/tiny_kernel.cpp", "setup.py"} < files
    assert not [name for name in files if name.endswith(".pyc")]

    from_sdist = Checkout.__new__(Checkout)
    from_sdist.project = Project(unpacked, project.environment)
    assert from_sdist.wheel() == checkout.wheel() == in_wheel(LEFT)


@needs_build_tools
def test_building_into_the_source_folder_deletes_nothing(project: Project) -> None:
    """``--build-lib`` may be any folder: only what lies in it under the package's name is this build's to clean."""
    checkout = Checkout(project)
    assert project.setup("-q", "build_py", "--build-lib=.").returncode == 0
    others = project.root / "elsewhere" / "other"
    others.mkdir(parents=True)
    (others / "module.py").touch()
    assert project.setup("-q", "build_py", "--build-lib=elsewhere").returncode == 0
    assert (others / "module.py").exists()
    assert all((project.root / name).exists() for name in FILES)
    assert checkout.wheel() >= in_wheel(FILES)


@needs_build_tools
def test_type_checkers_are_told_to_read_the_hints(installed: Path) -> None:
    assert (installed / "hsbench" / "py.typed").is_file()
