"""tools/house_measures.py: it counts the files that name a member, and says where there are too many."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from house_measures import MEASURES, Measure, report

NAMES = {
    "block kind": ("BlockKind.DENSE", "BlockKind", "csrc/x.h", "case HSB_SPARSE_2_4:"),
    "element type": ("dtype = FP16", "element: Element", "csrc/x.cu", "run<__half>();"),
    "phase": ('phase == "decode"', "phase.causal", "hsbench/x.py", "PREFILL.rate"),
    "command": ("from hsbench.cli.doctor import doctor", "from hsbench.cli import output", "hsbench/x.py", None),
    "storage format": ("from hsbench.cache.bitmap import pack", "from hsbench import cache", "hsbench/x.py", None),
}


OTHERS = {
    "block kind": [
        "class BlockKind(IntEnum):", "kind is BlockKind.SPARSE_2_4", "case HSB_DENSE:", "score_page(DenseKind, page)",
        "KindList<Sparse24Kind>", '#include "cpu/kinds/dense.h"',
    ],
}  # fmt: skip
"""More ways to name a member."""

OWN_FILES = {
    "block kind": ["csrc/cpu/kinds/dense.h", "csrc/cpu/kinds/sparse_2_4/page.h", "csrc/cuda/kinds/dense/page.cuh"],
    "phase": ["hsbench/cli/decode.py"],
}
"""New with a new member, so that they are none of the existing files that it touches."""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    return tmp_path


def write(tree: Path, name: str, text: str) -> None:
    (tree / name).parent.mkdir(parents=True, exist_ok=True)
    (tree / name).write_text(text + "\n")
    subprocess.run(["git", "add", name], cwd=tree, check=True)


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.what)
def test_members_count_and_types_do_not(tree: Path, measure: Measure) -> None:
    member, type_alone, elsewhere, other = NAMES[measure.what]
    assert measure.files(tree) == []
    write(tree, "hsbench/room/asks.py", type_alone)
    write(tree, "tests/test_room.py", member)
    assert measure.files(tree) == []
    write(tree, "hsbench/room/names.py", member)
    write(tree, elsewhere, other or member)
    assert measure.files(tree) == sorted(["hsbench/room/names.py", elsewhere])


@pytest.mark.parametrize(("what", "member"), [(what, text) for what, texts in OTHERS.items() for text in texts])
def test_every_way_to_name_a_member_counts(tree: Path, what: str, member: str) -> None:
    measure = next(measure for measure in MEASURES if measure.what == what)
    write(tree, "csrc/cpu/room/names.h", member)
    assert measure.files(tree) == ["csrc/cpu/room/names.h"]


@pytest.mark.parametrize(("what", "name"), [(what, name) for what, names in OWN_FILES.items() for name in names])
def test_a_member_s_own_files_do_not_count(tree: Path, what: str, name: str) -> None:
    measure = next(measure for measure in MEASURES if measure.what == what)
    write(tree, name, NAMES[what][0])
    assert measure.files(tree) == []


def test_too_many_is_said(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    phase = next(measure for measure in MEASURES if measure.what == "phase")
    for number in range(phase.most):
        write(tree, f"hsbench/m{number}.py", "DECODE")
    assert report(tree)
    write(tree, "hsbench/one_more.py", "DECODE")
    assert not report(tree)
    assert f"a new phase: {phase.most + 1} files, at most {phase.most}  TOO MANY" in capsys.readouterr().out


def test_a_search_that_fails_is_no_count_of_none(tmp_path: Path) -> None:
    (tmp_path / ".git").write_text("gitdir: nowhere\n")
    with pytest.raises(RuntimeError, match="git"):
        MEASURES[0].files(tmp_path)
