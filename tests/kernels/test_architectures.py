"""Which code runs on which chip, and what is said where none does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hsbench.kernels import library
from hsbench.kernels.architectures import parse, verdict

SHIPPED = "80-real 89-real 90a-real 90-virtual"


def test_names() -> None:
    assert [code.name for code in parse(SHIPPED)] == ["sm_80", "sm_89", "sm_90a", "compute_90"]
    assert [code.name for code in parse("90a 120f-real")] == ["sm_90a", "compute_90a", "sm_120f"]
    assert parse("") == [] and parse("No CUDA devices found.-real") == []


@pytest.mark.parametrize(
    ("entry", "runs", "does_not"),
    [
        ("80-real", [(8, 0), (8, 6), (8, 9)], [(7, 5), (9, 0), (10, 0)]),
        ("89-real", [(8, 9)], [(8, 0), (8, 6), (9, 0)]),
        ("90a-real", [(9, 0)], [(8, 9), (10, 0), (12, 0)]),
        ("90-virtual", [(9, 0), (10, 0), (12, 1)], [(8, 0), (8, 9)]),
        ("90a-virtual", [(9, 0)], [(10, 0)]),
        ("100f-real", [(10, 0), (10, 3)], [(9, 0), (11, 0), (12, 0)]),
        ("100f-virtual", [(10, 0), (10, 3)], [(12, 0)]),
    ],
)
def test_what_runs_where(entry: str, runs: list[tuple[int, int]], does_not: list[tuple[int, int]]) -> None:
    (code,) = parse(entry)
    assert all(code.runs_on(chip) for chip in runs)
    assert not any(code.runs_on(chip) for chip in does_not)


@pytest.mark.parametrize(
    ("held", "chip", "runs", "said"),
    [
        (SHIPPED, (9, 0), True, "sm_90a: made for this chip"),
        ("90-real 90a-real", (9, 0), True, "sm_90a: made for this chip"),
        (SHIPPED, (8, 0), True, "sm_80: made for this chip"),
        (SHIPPED, (8, 6), True, "sm_80: machine code that this chip (sm_86) runs"),
        (SHIPPED, (8, 9), True, "sm_89: made for this chip"),
        (SHIPPED, (12, 0), True, "compute_90: runs through PTX, "),
        ("90a-real", (10, 3), False, "none fits this chip (sm_103): rebuild with `CUDAARCHS=103 pip install "),
        ("", (9, 0), False, "none fits this chip (sm_90): rebuild"),
        (SHIPPED, (7, 5), False, "none fits this chip (sm_75): the kernels need compute capability 8.0 or newer"),
    ],
)
def test_verdicts(held: str, chip: tuple[int, int], runs: bool, said: str) -> None:
    can, words = verdict(parse(held), chip)
    assert can is runs and words.startswith(said)


def test_the_build_obeys_the_remedy() -> None:
    """CUDAARCHS is read by CMake only where CMakeLists.txt leaves the list to it."""
    text = (Path(__file__).parents[2] / "csrc" / "CMakeLists.txt").read_text()
    assert re.search(r"if\(NOT CMAKE_CUDA_ARCHITECTURES AND NOT DEFINED ENV\{CUDAARCHS\}\)", text)


@pytest.mark.skipif(library.why_missing("cuda") is not None, reason=str(library.why_missing("cuda")))
def test_the_library_tells_what_it_holds() -> None:
    held = library.load("cuda").text("hsb_cuda_architectures")
    assert held is not None and parse(held)
    assert library.load("cuda").text("hsb_no_such_function") is None
