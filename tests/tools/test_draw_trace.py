"""tools/draw_trace.py: the picture is drawn from the trace, and from one round of it."""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

import draw_trace as tool


def event(cat: str, name: str, ts: float, dur: float) -> dict[str, object]:
    return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "pid": 1, "tid": 1}


def trace() -> list[dict[str, object]]:
    """Two rounds of a and b, 100 us each turn; in the second, b's sample runs a matmul and a kernel."""
    events = []
    for at, name in enumerate(["a", "b", "a", "b"]):
        begin = 1000.0 + 100 * at
        events += [
            event("user_annotation", name, begin, 100),
            event("user_annotation", "prepare", begin, 40),
            event("user_annotation", "sample", begin + 40, 60),
        ]
    return [*events, event("cpu_op", "aten::mat<mul>", 1350, 50), event("kernel", "k", 1360, 10)]


def boxes(svg: str) -> dict[str, list[tuple[float, float]]]:
    """Left edge and width of each named bar."""
    found: dict[str, list[tuple[float, float]]] = {}
    for rect in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}rect"):
        title = rect.find("{http://www.w3.org/2000/svg}title")
        if title is not None:
            found.setdefault(title.text, []).append((float(rect.get("x")), float(rect.get("width"))))
    return found


def test_one_round_is_drawn_to_scale() -> None:
    drawn = boxes(tool.draw(trace(), 1, "a & b"))
    assert {name: len(bars) for name, bars in drawn.items()} == {
        "a": 1, "b": 1, "prepare": 2, "sample": 2, "aten::mat<mul>": 1, "k": 1,
    }  # fmt: skip
    whole = tool.WIDTH - tool.LEFT - tool.RIGHT
    assert drawn["b"][0] == pytest.approx((tool.LEFT + whole / 2, whole / 2), abs=1)
    assert drawn["aten::mat<mul>"][0] == pytest.approx((tool.LEFT + whole * 0.75, whole / 4), abs=1)
    first = boxes(tool.draw(trace(), 0, "the first round"))
    assert set(first) == {"a", "b", "prepare", "sample"}


def test_a_trace_of_something_else_is_refused() -> None:
    with pytest.raises(SystemExit, match="--profiler torch"):
        tool.draw([event("cpu_op", "aten::add", 0, 1)], 0, "")


def test_from_file_to_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.trace.json").write_text(json.dumps({"traceEvents": trace()}))
    monkeypatch.setattr(sys, "argv", ["draw_trace.py", str(tmp_path / "x.trace.json"), str(tmp_path / "x.svg")])
    tool.main()
    svg = (tmp_path / "x.svg").read_text(encoding="utf-8")
    assert "x · one round" in svg and boxes(svg)


def test_the_picture_in_the_docs_is_one_of_these() -> None:
    picture = Path(__file__).parents[2] / "docs" / "trace.svg"
    assert {"dense", "hierarchical", "sample"} <= set(boxes(picture.read_text(encoding="utf-8")))
