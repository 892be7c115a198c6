"""Stands for nsys and ncu: an executable that notes its command line, runs the command, and leaves report files.

Installed by copying under the tool's name (see ``install``). The variables say what it does besides:
    STANDIN_LOG     file to which each command line is added, as a line of JSON; to FILE.plans, the plan it was given
    STANDIN_MODE    ok; empty or missing (the report); fails; forbidden (ncu's counters); no-importer (nsys);
                    read-fails, or no-export (nsys), where the tool is asked what a report holds
    STANDIN_RUN     "" leaves the command out
    STANDIN_HOLDS   file with that: ncu's raw page, or nsys's export as SQL
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

#: Options of the real tools that are followed by a value of their own.
VALUED = ("--target-processes", "--profile-from-start", "--clock-control", "--set", "--launch-count", "--export", "-o")


def install(folder: Path, name: str) -> Path:
    """Put the stand-in into a folder under a tool's name."""
    folder.mkdir(parents=True, exist_ok=True)
    tool = folder / name
    tool.write_text(f"#!{sys.executable}\n" + Path(__file__).read_text())
    tool.chmod(0o755)
    return tool


def main() -> int:
    tool, words = Path(sys.argv[0]).name, sys.argv[1:]
    with open(os.environ["STANDIN_LOG"], "a") as log:
        log.write(json.dumps([tool, *words]) + "\n")
    if "hsbench.run.child" in words:
        plan = json.loads(Path(words[words.index("hsbench.run.child") + 1]).read_text())
        with open(os.environ["STANDIN_LOG"] + ".plans", "a") as log:
            log.write(json.dumps(plan) + "\n")
    mode = os.environ.get("STANDIN_MODE", "ok")
    if "--import" in words:
        print(Path(os.environ["STANDIN_HOLDS"]).read_text())
        return 3 if mode == "read-fails" else 0
    if words[0] == "export":
        (output,) = [word.removeprefix("--output=") for word in words if word.startswith("--output=")]
        if mode == "ok":
            with closing(sqlite3.connect(output)) as export:
                export.executescript(Path(os.environ["STANDIN_HOLDS"]).read_text())
        print("words of the export")
        return 3 if mode == "read-fails" else 0
    words = words[1:] if tool == "nsys" else words
    options: dict[str, str] = {}
    while words and words[0].startswith("-"):
        name, equals, value = words.pop(0).partition("=")
        options[name] = value if equals else words.pop(0) if name in VALUED else ""
    report = options.get("--output", "") + ".nsys-rep" if tool == "nsys" else options.get("--export", "")
    if mode == "forbidden":
        print("==ERROR== ERR_NVGPUCTRPERM - The user does not have permission to access NVIDIA GPU counters")
        return 1
    if mode == "no-importer":
        print("Importer error status: The importer binary and its dependencies were not found.")
        Path(options["--output"] + ".qdstrm").write_bytes(b"records")
        return 0
    if mode == "fails":
        print("first words\n\nthe tool's last words", file=sys.stderr)
        Path(report).write_bytes(b"half a report")
        return 7
    code = subprocess.run(words).returncode if os.environ.get("STANDIN_RUN", "1") else 0
    if mode != "missing":
        Path(report).write_bytes(b"" if mode == "empty" else b"a report")
    if tool == "nsys":
        print(f"Generated:\n    {report}")
    return code


if __name__ == "__main__":
    raise SystemExit(main())
