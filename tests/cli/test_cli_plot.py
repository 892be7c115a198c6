"""``hsbench plot``: files, endings, looks, mistakes; and its page in a browser."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]
SWEEP = ["--seq", "1k,2k", "--sparsity", "0,0.5"]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WITH_VL_CONVERT = pytest.mark.skipif(importlib.util.find_spec("vl_convert") is None, reason="needs vl-convert-python")
WITH_BROWSER = pytest.mark.skipif(BROWSER is None, reason="needs Chromium")


@pytest.fixture
def sweep(hsbench: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    hsbench("compare", *SWEEP, "--output", "sweep.csv")
    return tmp_path / "sweep.csv"


@WITH_VL_CONVERT
@pytest.mark.parametrize(
    ("ending", "begins"), [("svg", b"<svg"), ("png", b"\x89PNG"), ("html", b"<!doctype html>"), ("json", b"{")]
)
def test_the_ending_says_what_it_is(hsbench: Run, sweep: Path, ending: str, begins: bytes) -> None:
    ran = hsbench("plot", "sweep.csv", "--output", f"a.{ending}")
    assert (ran.code, ran.out) == (0, "")
    assert ran.err == f"hsbench: a.{ending}: scaling, time and speedup by sequence length\n"
    assert Path(f"a.{ending}").read_bytes().startswith(begins)


@WITH_VL_CONVERT
def test_without_output_it_is_named_after_its_file_and_kind(hsbench: Run, sweep: Path) -> None:
    assert "sweep.sparsity.svg: sparsity" in hsbench("plot", "sweep.csv", "--kind", "sparsity").err
    assert Path("sweep.sparsity.svg").read_text().startswith("<svg")


def test_what_is_drawn(hsbench: Run, sweep: Path) -> None:
    """The specification needs nothing that is not there; machine, versions and date are in it."""
    assert hsbench("plot", "sweep.csv", "--output", "a.json", "--methods", "hierarchical", "--theme", "dark").code == 0
    spec = json.loads(Path("a.json").read_text())
    about = " ".join(spec["title"]["subtitle"])
    for words in ("decode", "Llama-3.1-8B", "Test CPU", "torch 2.13.0", "hsbench 0.1.0", "sweep.csv", "20"):
        assert words in about
    assert spec["config"]["background"] == "#15181C" and '"series": "dense"' not in json.dumps(spec)


def test_the_commands_say_how_to_draw(hsbench: Run, sweep: Path) -> None:
    ran = hsbench("compare", *SWEEP, "--output", "again.csv")
    assert ran.err.endswith("hsbench: to draw them: hsbench plot again.csv\n")
    assert "hsbench plot" not in hsbench("compare", *SWEEP).err + hsbench("decode", "--output", "d.csv").err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["sweep.csv", "--output", "a.pdf"], "--output a.pdf: end it in .svg, .png, .html or .json"),
        (["sweep.csv", "--output", "sweep.csv"], "--output sweep.csv: end it in"),
        (["sweep.csv", "--kind", "pie"], "--kind pie: unknown"),
        (["sweep.csv", "--theme", "pink"], "--theme pink: unknown; one of light, dark"),
        (["sweep.csv", "--kind", "layers"], "FILE sweep.csv: has no rows of quality, which --kind layers draws"),
        (["sweep.csv", "--methods", "evict"], "has no rows of decode, prefill or compare of evict"),
        (["none.csv"], "FILE none.csv: cannot be read"),
        (["empty.csv"], "FILE empty.csv: holds no rows"),
        ([], "FILE: missing"),
    ],
)
def test_mistakes(hsbench: Run, sweep: Path, argv: list[str], words: str) -> None:
    Path("empty.csv").write_text("")
    ran = hsbench("plot", *argv)
    assert ran.code == 2 and words in ran.err and ran.err.count("\n") == 1
    assert not list(Path().glob("*.svg"))


def test_all_rows_failed(hsbench: Run, bench: Any, sweep: Path) -> None:
    bench.rows = lambda workload: [("dense", "oom"), ("hierarchical", "oom")]
    hsbench("compare", *SWEEP, "--output", "failed.csv")
    ran = hsbench("plot", "failed.csv")
    assert ran.code == 2 and "has no row that is ok, so there is nothing to draw (oom: made to be oom)" in ran.err


def test_without_vl_convert(hsbench: Run, sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    ran = hsbench("plot", "sweep.csv")
    assert (
        ran.code == 4 and "vl-convert-python is missing, which draws pictures: pip install 'hsbench[plot]'" in ran.err
    )


# Points at a mark, as a mouse would.
_POINTING = """
<script type="module">
while (!document.body.dataset.drawn) await new Promise((done) => setTimeout(done, 50));
const mark = document.querySelector(".mark-symbol path[aria-label]") ?? document.querySelector(".mark-symbol path");
const box = mark.getBoundingClientRect();
const where = { bubbles: true, clientX: box.x + box.width / 2, clientY: box.y + box.height / 2 };
for (const kind of ["pointerover", "pointermove", "mouseover", "mousemove"]) {
  mark.dispatchEvent(new (kind.startsWith("p") ? PointerEvent : MouseEvent)(kind, where));
}
</script>
"""


@WITH_VL_CONVERT
@WITH_BROWSER
@pytest.mark.slow
@pytest.mark.parametrize(("look", "scheme"), [("light", "1"), ("dark", "0")])
def test_the_page_in_a_browser(hsbench: Run, sweep: Path, look: str, scheme: str) -> None:
    """It draws itself without a network, in the reader's colours, and tells what a mark is when pointed at."""
    hsbench("plot", "sweep.csv", "--output", "a.html")
    page = Path("a.html")
    drawn, end, rest = page.read_text().rpartition("</body>")  # the first is in a program's string
    page.write_text(drawn + _POINTING + end + rest)
    options = [
        "--headless", "--no-sandbox", "--disable-gpu", "--proxy-server=127.0.0.1:9", "--virtual-time-budget=20000",
        "--enable-logging=stderr", f"--blink-settings=preferredColorScheme={scheme}", "--dump-dom",
    ]  # fmt: skip
    command = [str(BROWSER), *options, f"--user-data-dir={page.parent.resolve()}/profile", page.resolve().as_uri()]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert f'data-drawn="{look}"' in ran.stdout, ran.stderr
    assert ran.stdout.count("mark-symbol") >= 4 and "Uncaught" not in ran.stderr
    tip = ran.stdout.partition('id="vg-tooltip-element"')[2]
    assert "visible" in tip[:200] and "tokens" in tip and "1.00 ms" in tip
