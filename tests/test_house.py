"""The house: imports run one way, rooms are where they belong, modules stay small, and what the pages link to is there.

Each rule is a function from a source tree to its violations. It is held against this tree, and against a small one in
which the rule is broken, so that none is a check that cannot fail.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# From top to bottom. A module imports from its own room and from those above it. ``api`` stands beside the rooms below
# ``attention``: none of them uses it. ``hsbench`` itself is its face: the version, the names of ``api``, and ``load``.
ROOMS = (
    "errors",
    "kernels",
    "measure",
    "problem",
    "cache",
    "attention",
    "api",
    "distributed",
    "methods",
    "models",
    "results",
    "machine",
    "report",
    "profiling",
    "run",
    "cli",
)
OF_THE_FACE = {"hsbench.results.frame"}  # what it takes from below ``api``
AT_THE_TOP = {"__init__.py", "__main__.py", "api.py", "errors.py", "py.typed"}
NOT_SOURCE = {"lib", "__pycache__"}  # what a build leaves in a source tree
MOST_LINES = 400
MOST_LINES_OF_README = 180


# ---- Imports -----------------------------------------------------------------------------------------------
def modules(root: Path) -> dict[str, Path]:
    """The modules of the package by name; a package has its folder's."""
    found = {}
    for path in sorted((root / "hsbench").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(name: str, path: Path, known: dict[str, Path]) -> Iterator[tuple[str, int]]:
    """Modules of ours that one imports, with the line: at its top, in functions, and for a type checker alone."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            wanted = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*start, *([node.module] if node.module else [])])
            wanted = [(source, alias.name) for alias in node.names]
        else:
            continue
        for source, attribute in wanted:
            module = f"{source}.{attribute}" if f"{source}.{attribute}" in known else source
            if module.split(".")[0] == "hsbench":
                yield module, node.lineno


def room(module: str) -> str:
    """Its room; empty for ``hsbench`` itself."""
    return module.split(".")[1] if "." in module else ""


def against_the_order(root: Path) -> list[str]:
    known, wrong = modules(root), []
    for name, path in known.items():
        here = room(name)
        if here == "__main__":
            continue
        if here and here not in ROOMS:
            wrong.append(f"{name}: no such room")
            continue
        for module, line in dict.fromkeys(imported(name, path, known)):
            there = room(module)
            if there and there not in ROOMS:
                fits = False
            elif not here:
                fits = not there or ROOMS.index(there) <= ROOMS.index("api") or module in OF_THE_FACE
            elif there == "api":
                fits = here == "api"
            else:
                fits = not there or ROOMS.index(there) <= ROOMS.index(here)
            if not fits:
                wrong.append(f"{path.relative_to(root)}:{line} imports {module}")
    return wrong


def circles(root: Path) -> list[str]:
    """Modules that import one another, each circle once, as ``a -> b -> a``."""
    known = modules(root)
    uses = {name: sorted({m for m, _ in imported(name, path, known)} & known.keys()) for name, path in known.items()}
    found, done = [], set()

    def visit(name: str, way: list[str]) -> None:
        if name in way:
            found.append(" -> ".join([*way[way.index(name) :], name]))
        elif name not in done:
            for module in uses[name]:
                visit(module, [*way, name])
            done.add(name)

    for name in known:
        visit(name, [])
    return found


# ---- Files -------------------------------------------------------------------------------------------------
def misplaced(root: Path) -> list[str]:
    """What lies at the top of the package and is no room of it."""
    return [
        path.name
        for path in sorted((root / "hsbench").iterdir())
        if path.name not in AT_THE_TOP | NOT_SOURCE and not (path.is_dir() and path.name in ROOMS)
    ]


def too_long(root: Path) -> list[str]:
    lengths = {path: len(path.read_text().splitlines()) for path in modules(root).values()}
    wrong = [f"{path.relative_to(root)}: {lines}" for path, lines in lengths.items() if lines > MOST_LINES]
    lines = len((root / "README.md").read_text().splitlines())
    return wrong + [f"README.md: {lines}"] * (lines > MOST_LINES_OF_README)


def dead_links(root: Path) -> list[str]:
    """Relative links of the pages to files that are not there."""
    pages = [root / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "csrc/README.md")]
    wrong = []
    for page in (*(page for page in pages if page.exists()), *sorted((root / "docs").rglob("*.md"))):
        text = re.sub(r"^ {4}.*$|`[^`\n]*`", "", page.read_text(), flags=re.MULTILINE)  # code has brackets, too
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            file = target.partition("#")[0]
            if file and not re.match(r"[a-z]+:", file) and not (page.parent / file).exists():
                wrong.append(f"{page.relative_to(root)}: {target}")
    return wrong


RULES = (against_the_order, circles, misplaced, too_long, dead_links)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_this_tree(rule: Callable[[Path], list[str]]) -> None:
    assert rule(ROOT) == []


# ---- Each rule, broken -------------------------------------------------------------------------------------
SOUND = {
    "README.md": "[how](docs/how.md#here), [who](https://example.org/none), `a[i](x)`\n\n    b[i](y)\n",
    "docs/how.md": "![picture](picture.svg) [back](../README.md)\n",
    "docs/picture.svg": "",
    "hsbench/__init__.py": '__version__ = "1"\nif False:\n    from hsbench.api import compress\n',
    "hsbench/__main__.py": "from hsbench.cli.main import main\n",
    "hsbench/api.py": "from hsbench.attention.calls import decode\n\ncompress = decode\n",
    "hsbench/errors.py": "",
    "hsbench/py.typed": "",
    "hsbench/lib/libhsbench_cpu.so": "",
    "hsbench/kernels/__init__.py": "from .library import load\n",
    "hsbench/kernels/library.py": "import ctypes\nfrom hsbench.errors import Error\n",
    "hsbench/attention/__init__.py": "",
    "hsbench/attention/calls.py": "from hsbench import kernels\nfrom hsbench.kernels import library\n",
    "hsbench/cli/__init__.py": "",
    "hsbench/cli/main.py": "import hsbench\nfrom ..attention import calls\n" + "#\n" * (MOST_LINES - 2),
}


def tree(root: Path, **changes: str) -> Path:
    for name, text in (SOUND | changes).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_a_sound_tree(tmp_path: Path) -> None:
    tree(tmp_path)
    assert {rule.__name__: rule(tmp_path) for rule in RULES} == {rule.__name__: [] for rule in RULES}


@pytest.mark.parametrize(
    "text",
    [
        "from hsbench.attention.calls import decode",
        "from hsbench.attention import calls",
        "from hsbench import attention",
        "import hsbench.attention.calls",
        "from ..attention import calls",
        "from .. import attention",
        "def lazy():\n    from hsbench.attention import calls",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from hsbench.attention import calls",
        "import hsbench.nowhere",
        "from hsbench.api import compress",
    ],
)
def test_an_import_from_below(tmp_path: Path, text: str) -> None:
    tree(tmp_path, **{"hsbench/kernels/device.py": text + "\n"})
    (wrong,) = against_the_order(tmp_path)
    assert wrong.startswith("hsbench/kernels/device.py:") and "imports hsbench." in wrong


@pytest.mark.parametrize(
    ("name", "text", "wrong"),
    [
        ("hsbench/cli/other.py", "from hsbench.api import decode", "hsbench/cli/other.py:1 imports hsbench.api"),
        ("hsbench/__init__.py", "import hsbench.cli.main", "hsbench/__init__.py:1 imports hsbench.cli.main"),
        ("hsbench/errors.py", "import hsbench.kernels", "hsbench/errors.py:1 imports hsbench.kernels"),
        ("hsbench/attic/old.py", "import os", "hsbench.attic.old: no such room"),
    ],
)
def test_what_else_the_order_forbids(tmp_path: Path, name: str, text: str, wrong: str) -> None:
    assert against_the_order(tree(tmp_path, **{name: text + "\n"})) == [wrong]


@pytest.mark.parametrize(
    ("changes", "circle"),
    [
        (
            {
                "hsbench/kernels/library.py": "from . import memory\n",
                "hsbench/kernels/memory.py": "def f():\n    from .library import load\n",
            },
            "hsbench.kernels.library -> hsbench.kernels.memory -> hsbench.kernels.library",
        ),
        (
            {"hsbench/attention/calls.py": "import hsbench\n"},
            "hsbench -> hsbench.api -> hsbench.attention.calls -> hsbench",
        ),
        (
            {"hsbench/kernels/library.py": "from hsbench.kernels import load\n"},
            "hsbench.kernels -> hsbench.kernels.library -> hsbench.kernels",
        ),
    ],
)
def test_a_circle(tmp_path: Path, changes: dict[str, str], circle: str) -> None:
    assert circles(tree(tmp_path, **changes)) == [circle]


@pytest.mark.parametrize("name", ["hsbench/native.py", "hsbench/attic/old.py", "hsbench/notes.txt"])
def test_a_file_at_the_top(tmp_path: Path, name: str) -> None:
    assert misplaced(tree(tmp_path, **{name: ""})) == [name.split("/")[1]]


@pytest.mark.parametrize(("name", "most"), [("hsbench/cli/main.py", MOST_LINES), ("README.md", MOST_LINES_OF_README)])
def test_a_line_too_many(tmp_path: Path, name: str, most: int) -> None:
    assert too_long(tree(tmp_path, **{name: "#\n" * most})) == []
    assert too_long(tree(tmp_path, **{name: "#\n" * (most + 1)})) == [f"{name}: {most + 1}"]


@pytest.mark.parametrize(
    "name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "csrc/README.md", "docs/deep/page.md"]
)
def test_a_dead_link(tmp_path: Path, name: str) -> None:
    assert dead_links(tree(tmp_path, **{name: "[there](no/such.md#part)\n"})) == [f"{name}: no/such.md#part"]
