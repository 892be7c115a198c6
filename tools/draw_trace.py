"""Draws one round of a Chrome trace that ``hsbench ... --profiler torch`` made, as an SVG for a page.

    python tools/draw_trace.py profiles/out/NAME.trace.json docs/trace.svg

Rows are methods, their phases, torch's operators below them, and kernels where the run was on a GPU; the time axis is
the trace's own, under the profiler. The colours stand on a background of their own, so that the picture reads alike on
light and dark pages.
"""

from __future__ import annotations

import argparse
import json
from html import escape
from pathlib import Path
from typing import Any

from hsbench.profiling.torch_trace import ranges_of, samples_of

Event = dict[str, Any]

WIDTH, LEFT, RIGHT, TOP = 960, 76, 16, 40
ROW, GAP = 24, 5
LETTER = 6.3  # width of one, at 11 px
NESTED = 2  # levels of operators that are drawn
COLOURS = {"method": "#d6dde6", "prepare": "#eceff3", "sample": "#2f6fb5", "operator": "#e0a63c", "kernel": "#3d9a62"}
DARK_TEXT, LIGHT_TEXT, PAPER, LINE = "#1f2933", "#ffffff", "#fbfcfd", "#c4ccd6"


def bars(events: list[Event], number: int) -> tuple[list[tuple[str, str, Event]], float, float]:
    """The bars of one round, as (row, kind of colour, event), and where the round begins and ends."""
    ranges = ranges_of(events)
    methods = {span.name for span, _ in samples_of(events)}
    turns = [event for event in ranges if event["name"] in methods]
    seen: dict[str, list[Event]] = {}
    for turn in sorted(turns, key=lambda event: event["ts"]):
        seen.setdefault(turn["name"], []).append(turn)
    if not seen or any(len(turns) <= number for turns in seen.values()):
        raise SystemExit(f"the trace has no round {number}: it must come from hsbench with --profiler torch")
    round_ = [turns[number] for turns in seen.values()]
    begin, end = min(turn["ts"] for turn in round_), max(turn["ts"] + turn["dur"] for turn in round_)
    drawn = [("method", "method", turn) for turn in round_]
    for event in ranges:
        if begin <= event["ts"] < end and event["name"] in ("prepare", "sample"):
            drawn.append(("phase", event["name"], event))
    threads = {(turn["pid"], turn["tid"]) for turn in round_}
    open_until: list[float] = []
    for event in sorted(events, key=lambda event: (event.get("ts", 0), -event.get("dur", 0))):
        if not begin <= event.get("ts", 0) < end:
            continue
        if event.get("cat") == "cpu_op" and (event["pid"], event["tid"]) in threads:
            open_until = [stop for stop in open_until if stop > event["ts"]]
            if len(open_until) < NESTED:
                drawn.append((f"operator{len(open_until)}", "operator", event))
            open_until.append(event["ts"] + event["dur"])
        elif event.get("cat") == "kernel":
            drawn.append(("kernel", "kernel", event))
    return drawn, begin, end


def draw(events: list[Event], number: int, title: str) -> str:
    """The SVG's text."""
    drawn, begin, end = bars(events, number)
    rows = [row for row in ("method", "phase", "operator0", "operator1", "kernel") if any(b[0] == row for b in drawn)]
    names = {"method": "method", "phase": "phase", "operator0": "operators", "operator1": "", "kernel": "GPU"}
    scale = (WIDTH - LEFT - RIGHT) / (end - begin)
    bottom = TOP + len(rows) * (ROW + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 34}" '
        'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{bottom + 34}" rx="6" fill="{PAPER}" stroke="{LINE}"/>',
        f'<text x="14" y="24" font-size="13" font-weight="600" fill="{DARK_TEXT}">{escape(title)}</text>',
    ]
    for at, row in enumerate(rows):
        parts.append(f'<text x="14" y="{TOP + at * (ROW + GAP) + 16}" fill="{DARK_TEXT}">{names[row]}</text>')
    for row, kind, event in drawn:
        left, width = LEFT + (event["ts"] - begin) * scale, event["dur"] * scale
        if width < 0.4:  # thousands of operators that nobody could see
            continue
        top = TOP + rows.index(row) * (ROW + GAP)
        parts.append(
            f'<rect x="{left:.1f}" y="{top}" width="{max(width - 0.6, 0.4):.1f}" height="{ROW}" rx="2" '
            f'fill="{COLOURS[kind]}"><title>{escape(event["name"])}</title></rect>'
        )
        if label := fitting(event["name"].removeprefix("aten::"), width - 8):
            colour = LIGHT_TEXT if kind in ("sample", "kernel") else DARK_TEXT
            parts.append(f'<text x="{left + 4:.1f}" y="{top + 16}" fill="{colour}">{escape(label)}</text>')
    parts += axis(end - begin, scale, bottom)
    return "\n".join([*parts, "</svg>", ""])


def axis(length_us: float, scale: float, top: float) -> list[str]:
    """Ticks in ms, five to ten of them."""
    step = next(s for n in range(-3, 7) for s in (10.0**n, 2 * 10.0**n, 5 * 10.0**n) if length_us / 1e3 / s <= 10)
    parts = []
    for tick in range(int(length_us / 1e3 / step) + 1):
        x = LEFT + tick * step * 1e3 * scale
        parts.append(f'<line x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{top + 6}" stroke="{DARK_TEXT}"/>')
        parts.append(f'<text x="{x:.1f}" y="{top + 20}" text-anchor="middle" fill="{DARK_TEXT}">{tick * step:g}</text>')
    parts.append(f'<text x="14" y="{top + 20}" fill="{DARK_TEXT}">ms</text>')
    return parts


def fitting(label: str, width: float) -> str:
    """The label, or its beginning, or nothing, in that many pixels."""
    letters = int(width / LETTER)
    if len(label) <= letters:
        return label
    return f"{label[: letters - 1]}…" if letters >= 6 else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trace", type=Path)
    parser.add_argument("svg", type=Path)
    parser.add_argument("--round", type=int, default=1, help="which one, from 0 (1)")
    given = parser.parse_args()
    title = f"{given.trace.name.removesuffix('.trace.json')} · one round, under torch.profiler"
    given.svg.write_text(draw(json.loads(given.trace.read_text())["traceEvents"], given.round, title), encoding="utf-8")


if __name__ == "__main__":
    main()
