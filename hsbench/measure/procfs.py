"""Small files of /proc and /sys, which may be missing, unreadable, or another than expected: then they say nothing."""

from __future__ import annotations

from pathlib import Path


def text(path: Path) -> str:
    """What a file holds, without blanks around it; "" where it cannot be read."""
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return ""


def fields(path: Path) -> dict[str, str]:
    """The lines "name : value" of a file, the first of each name."""
    found: dict[str, str] = {}
    for line in text(path).splitlines():
        name, colon, value = line.partition(":")
        if colon:
            found.setdefault(name.strip(), value.strip())
    return found


def kib_fields(path: Path) -> dict[str, int]:
    """The lines "name: value kB" of a file, in bytes."""
    sizes = {name: value.split() for name, value in fields(path).items()}
    return {n: int(v[0]) * 1024 for n, v in sizes.items() if len(v) == 2 and v[1] == "kB" and v[0].isdecimal()}
