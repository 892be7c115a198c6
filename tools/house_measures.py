"""Counts the measures of the house (CONTRIBUTING.md): how many existing files a new kind of thing would touch.

    python tools/house_measures.py

What counts is a tracked file that names a *member*: ``HSB_SPARSE_2_4``, ``DenseKind``, ``FP16``, ``"decode"``. What
handles the type and asks the value (``phase.causal``, ``element.nbytes``) needs no change when there is one more, and
does not count. Nor do files that are a member's own, and so are new with it.
Exit code 1 if a count is above its limit.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Measure:
    """Files that name a member of a set.

    Attributes:
        what: the new thing.
        most: as many existing files may be touched by it.
        members: an extended regular expression of the members that there are.
        where: pathspecs of git.
    """

    what: str
    most: int
    members: str
    where: tuple[str, ...]

    @property
    def command(self) -> list[str]:
        """The grep that lists the files."""
        return ["git", "grep", "-lE", "-e", self.members, "--", *self.where]

    def files(self, root: Path) -> list[str]:
        """The files, sorted.

        Raises:
            RuntimeError: git cannot search there.
        """
        done = subprocess.run(self.command, cwd=root, capture_output=True, text=True, check=False)
        if done.returncode > 1:  # 1: nothing found
            raise RuntimeError(done.stderr.strip())
        return sorted(done.stdout.split())


CODE = ("hsbench/*.py", "csrc/*.h", "csrc/*.cpp", "csrc/*.cu", "csrc/*.cuh", "csrc/*.in", "csrc/CMakeLists.txt")
PYTHON = ("hsbench/*.py",)

MEASURES = (
    # A kind's own files are new with a new kind; its type names it elsewhere.
    Measure(
        "block kind",
        8,
        r"\bBlockKind\.[A-Z]|\bclass BlockKind\b|\bHSB_(DENSE|SPARSE_2_4|WIDE)\b"
        r"|\b(Dense|Sparse24|Wide)Kind\b|\bkinds/(dense|sparse_2_4|wide)\b",
        (*CODE, ":!csrc/cpu/kinds/*", ":!csrc/cuda/kinds/*"),
    ),
    Measure(
        "element type",
        10,
        r'\bHSB_(FP|BF)16\b|\b(FP|BF|Fp|Bf)16\b|"(fp|bf)16"|\b__half\b|\b__nv_bfloat16\b|\btorch\.b?float16\b',
        CODE,
    ),
    # A phase's own command is a new file with a new phase.
    Measure(
        "phase",
        4,
        r'\b(DECODE|PREFILL)\b|"(decode|prefill)"',
        (*PYTHON, ":!hsbench/cli/decode.py", ":!hsbench/cli/prefill.py"),
    ),
    Measure("command", 4, r"\bhsbench\.cli\.(decode|prefill|compare|doctor)\b", PYTHON),
    # A format's own modules, and the method that stores by it, are new files with a new format.
    Measure(
        "storage format",
        4,
        r"\bhsbench\.cache\.(hierarchical|bitmap)\b|\bhsbench\.cache import .*\b(hierarchical|bitmap)\b",
        (*PYTHON, ":!hsbench/methods/*", ":!hsbench/cache/fitted.py"),
    ),
)


def report(root: Path, measures: tuple[Measure, ...] = MEASURES) -> bool:
    """Prints each measure, its files and its grep; whether all are within their limits."""
    within = True
    for measure in measures:
        files = measure.files(root)
        within &= len(files) <= measure.most
        verdict = "" if len(files) <= measure.most else "  TOO MANY"
        print(f"a new {measure.what}: {len(files)} files, at most {measure.most}{verdict}")
        print(f"    {shlex.join(measure.command)}")
        print(*(f"    {name}" for name in files), sep="\n", end="\n\n")
    return within


if __name__ == "__main__":
    sys.exit(not report(Path(__file__).resolve().parents[1]))
