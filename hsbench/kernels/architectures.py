"""What the CUDA library holds code for, and whether a chip can run it.

Machine code (``sm_90``) runs on chips of the same major version and the same or a later minor one; PTX (``compute_90``)
is compiled by the driver for any later chip. An ``a`` ties either to one chip, an ``f`` to a family (CUDA C++
Programming Guide, "Compute Capability" and "Feature Set Compiler Targets").
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

OLDEST = (8, 0)  # the kernels are written with instructions that came with it


@dataclass(frozen=True)
class Code:
    """Code for one architecture: machine code, or PTX.

    Attributes:
        major, minor: the compute capability.
        feature: "a" for one chip only, "f" for its family, "" for all that follow the rules.
    """

    major: int
    minor: int
    feature: str
    ptx: bool

    @property
    def name(self) -> str:
        """``sm_90a``, or ``compute_90`` for PTX."""
        return f"{'compute' if self.ptx else 'sm'}_{self.major}{self.minor}{self.feature}"

    def runs_on(self, capability: tuple[int, int]) -> bool:
        """Whether a chip of that compute capability can run it."""
        own = (self.major, self.minor)
        if self.feature == "a":
            return capability == own
        if self.ptx and not self.feature:
            return capability >= own
        return capability[0] == self.major and capability[1] >= self.minor


def parse(text: str) -> list[Code]:
    """Reads a list as CMake names it, such as ``"80-real 90a-real 90-virtual"``; without a suffix an entry is both.
    What cannot be read is left out."""
    found = []
    for word in text.split():
        match = re.fullmatch(r"(\d+)(\d)([af]?)(-real|-virtual)?", word)
        if match is not None:
            major, minor, feature, kind = match.groups()
            kinds = {"-real": (False,), "-virtual": (True,)}.get(kind, (False, True))
            found += [Code(int(major), int(minor), feature, ptx) for ptx in kinds]
    return found


def verdict(codes: Iterable[Code], capability: tuple[int, int]) -> tuple[bool, str]:
    """Whether a chip can run any of it, and a line that says by which, or how to get code that it can run."""
    codes = list(codes)
    chip = f"sm_{capability[0]}{capability[1]}"
    machine = [code for code in codes if not code.ptx and code.runs_on(capability)]
    if machine:
        # The driver takes the most particular.
        best = max(machine, key=lambda code: (code.minor, code.feature))
        return True, f"{best.name}: made for this chip" if (best.major, best.minor) == capability else (
            f"{best.name}: machine code that this chip ({chip}) runs"
        )
    ptx = [code for code in codes if code.runs_on(capability)]
    if ptx:
        best = max(ptx, key=lambda code: (code.major, code.minor, code.feature))
        return True, f"{best.name}: runs through PTX, compiled by the driver at first use for this chip ({chip})"
    if capability < OLDEST:
        return False, f"none fits this chip ({chip}): the kernels need compute capability 8.0 or newer"
    rebuild = f"CUDAARCHS={chip.removeprefix('sm_')} pip install --force-reinstall --no-deps ."
    return False, f"none fits this chip ({chip}): rebuild with `{rebuild}` in hsbench's source folder"
