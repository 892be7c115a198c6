"""What this machine can run, for people and for programs.

Facts come from ``hsbench.machine.diagnosis.diagnose``::

    {"methods": [{"method", "device", "status", "reason"}],
     "code": {"cpu" and "cuda": {"architectures": {name: runs here}, "runs", "verdict"} or None},
     "probes": [{"name", "value", "unit"}], "missing": [{"what", "why", "remedy"}],
     "libraries": [{"name", "version", "note"}], "links": [{"from", "to", "by"}], "machine": {nested facts},
     "now": {the GPU at this moment},
     "environment": {switch: value}, "git": {"commit", "dirty"} or None}
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console

from hsbench.report.page import Page
from hsbench.report.text import amount, byte_unit, digits, wrapped
from hsbench.results.values import plain

SCHEMA = "hsbench-doctor/1"
_STYLES = {"ok": "green", "unsupported": "dim"}


def document(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts as JSON can hold them, under a schema's name."""
    return {"schema": SCHEMA, **plain(facts)}


def render_doctor(facts: dict[str, Any], console: Console) -> None:
    """Print what can run, with a reason where not; what the kernels are compiled for; probes; what is missing and how
    to get it; libraries; the machine, and the GPU as it is now."""
    page = Page(console)
    _methods(page, facts.get("methods", []))
    _code(page, facts.get("code", {}))
    _probes(page, facts.get("probes", []))
    _links(page, facts.get("links", []))
    _missing(page, facts.get("missing", []))
    _libraries(page, facts.get("libraries", []))
    _facts(page, "machine", facts.get("machine", {}))
    _facts(page, "GPU now", _shown_processes(facts.get("now", {})))
    _facts(page, "source", facts.get("git") or {})
    _facts(page, "environment", facts.get("environment", {}), verbatim=True)


def _methods(page: Page, methods: list[dict[str, Any]]) -> None:
    page.line(("what can run here", "bold"))
    wide = {key: max([len(str(row.get(key, ""))) for row in methods] + [0]) for key in ("method", "device", "status")}
    indent = sum(wide.values()) + 2 * (len(wide) + 1)
    above = ""
    for row in methods:
        style = _STYLES.get(row["status"], "yellow")
        method, device, status = (str(row.get(key, "")).ljust(width) for key, width in wide.items())
        reason = str(row.get("reason") or "")
        first, *more = wrapped("as above" if reason and reason == above else reason, page.width - indent)
        above = reason
        page.line(f"  {method}  {device}  ", (status, style), f"  {first}")
        for line in more:
            page.line(" " * indent + line)
    if not methods:
        page.line("  nothing")


def _code(page: Page, code: dict[str, Any]) -> None:
    """A line per library: each architecture, whether this machine runs it, and what follows."""
    if not any(code.values()):
        return
    page.line()
    page.line(("compiled for", "bold"))
    for device, held in code.items():
        if held is None:
            continue
        answers = {True: " yes", False: " no", None: ""}
        words = ", ".join(name + answers[can] for name, can in held["architectures"].items())
        words += " (no GPU here to run them)" if held["runs"] is None else ""
        style = "yellow" if held["runs"] is False else ""
        page.labelled(f"  {device}", words, style="", indent=8)
        if held["verdict"]:
            page.labelled("", held["verdict"], style=style, indent=8)


def _libraries(page: Page, libraries: list[dict[str, Any]]) -> None:
    if not libraries:
        return
    page.line()
    page.line(("libraries and tools", "bold"))
    indent = max(len(item["name"]) for item in libraries) + 4
    for item in libraries:
        version = "not found" if item["version"] is None else item["version"] or "found"
        words = f"{version} ({item['note']})" if item["note"] else version
        page.labelled(f"  {item['name']}", words, style="", indent=indent)


def _probes(page: Page, probes: list[dict[str, Any]]) -> None:
    if not probes:
        return
    page.line()
    page.line(("measured here, now", "bold"))
    wide = max(len(str(probe["name"])) for probe in probes)
    for probe in probes:
        value = plain(probe["value"])
        shown = "failed" if value is None else f"{digits(value):>8} {probe['unit']}"
        page.line(f"  {str(probe['name']).ljust(wide)}  {shown}")


def _links(page: Page, links: list[dict[str, Any]]) -> None:
    if not links:
        return
    page.line()
    page.line(("links between GPUs", "bold"))
    for link in links:
        page.line(f"  {link['from']} - {link['to']}  {link['by'] or 'cannot be told'}")


def _missing(page: Page, missing: list[dict[str, Any]]) -> None:
    page.line()
    page.line(("missing", "bold"))
    if not missing:
        page.line("  nothing")
    for item in missing:
        page.labelled("  -", f"{item['what']}: {item['why']}", style="yellow", indent=4)
        if item.get("remedy"):
            page.labelled("", f"to get it: {item['remedy']}", style="", indent=4)


def _facts(page: Page, title: str, facts: dict[str, Any], *, verbatim: bool = False) -> None:
    """Facts under a heading, nested ones too; ``verbatim``: names are the user's own."""
    rows = list(facts.items()) if verbatim else list(_flat(facts))
    if not rows:
        return
    page.line()
    page.line((title, "bold"))
    indent = max(len(name) for name, _ in rows) + 4
    for name, value in rows:
        page.labelled(f"  {name}", value, style="", indent=indent)


def _shown_processes(now: dict[str, Any]) -> dict[str, Any]:
    """The same with the other processes in words."""
    others = now.get("other_processes")
    if others is None:
        return now
    words = []
    for process in others:
        used = process["used_bytes"]
        words.append(f"{process['pid']} ({used / 2**30:.1f} GiB)" if used is not None else str(process["pid"]))
    return now | {"other_processes": ", ".join(words) or "none"}


def _flat(facts: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested facts as (name, value) lines; what is unknown or empty is left out."""
    for name, value in facts.items():
        label = f"{prefix}{name}".replace("_", " ")
        if isinstance(value, dict):
            yield from _flat(value, f"{label} ")
        elif isinstance(value, list | tuple):
            if value:
                yield label, ", ".join(map(str, value))
        elif name.endswith("bytes") and isinstance(value, int):
            unit, length = byte_unit([value])
            yield label.removesuffix(" bytes"), f"{amount(value, length)} {unit}"
        elif value is not None and value != "":
            yield label, {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
