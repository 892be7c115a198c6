"""What a picture is, whatever it shows: a specification, and what is said around it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hsbench.report import text
from hsbench.report.pictures import theme
from hsbench.results import Stored

SCHEMA = "https://vega.github.io/schema/vega-lite/v5.json"


@dataclass(frozen=True)
class Picture:
    """A picture before it is drawn.

    Attributes:
        kind: its name.
        body: its Vega-Lite specification, without title and configuration.
        title: one line.
        about: what is the same in all of it.
        series: labels, each with whether it is dense, in the order of their colours.
        files: what it was made from.
    """

    kind: str
    body: dict[str, Any]
    title: str
    about: str
    series: tuple[tuple[str, bool], ...]
    files: tuple[Stored, ...]

    def spec(self, look: str = theme.THEMES[0]) -> dict[str, Any]:
        """The whole specification in a theme."""
        lines = [
            *text.joined(self.about.split(" · "), 110),
            *(line for file in self.files for line in _origin(file)),
            *self.signs,
        ]
        title = {"text": self.title, "subtitle": [line for line in dict.fromkeys(lines) if line]}
        return {"$schema": SCHEMA, "title": title, **self.body, "config": theme.config(look, self.series)}

    @property
    def signs(self) -> list[str]:
        """What the marks mean that ask for care; rows without numbers are counted by how they ended."""
        rows = [row for file in self.files for row in file.rows]
        failed = [row.status for row in rows if row.status != "ok"]
        lines = []
        if failed:
            counts = ", ".join(f"{failed.count(status)} {status}" for status in text.unique(failed))
            lines.append(f"× without numbers: {counts}")
        if any(getattr(row.measures, "throttled", None) or getattr(row.measures, "shared", None) for row in rows):
            lines.append("○ around a point: clocks were held down, or others used the device meanwhile")
        return lines


def _origin(file: Stored) -> list[str]:
    """Machine, versions, date and name of a file, as far as it tells."""
    cpu, gpu = (file.machine.get(part) for part in ("cpu", "gpu"))
    versions = file.machine.get("versions")
    words = []
    if isinstance(gpu, dict):
        words.append(", ".join(filter(None, [gpu.get("name"), gpu.get("driver") and f"driver {gpu['driver']}"])))
    elif isinstance(cpu, dict):
        threads = cpu.get("threads") and f"{cpu['threads']} threads"
        words.append(", ".join(filter(None, [cpu.get("model"), threads, cpu.get("isa")])))
    else:
        words.append("machine not told")
    if isinstance(versions, dict):
        words.append(", ".join(f"{name} {versions[name]}" for name in ("torch", "hsbench") if versions.get(name)))
    words += [(file.started or "")[:10] or "date not told", file.path.name]
    return text.joined([word for word in words if word], 110)
