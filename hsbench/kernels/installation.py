"""Whether the hsbench that Python imported hides the one that was installed.

Python looks in the current folder (``python -m``, ``python -c``) and in PYTHONPATH first. In hsbench's source folder it
finds the source tree there, which has no compiled library unless ``pip install -e .`` put it in.
"""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path


def shadowed(package: Path, file: str) -> Path | None:
    """The folder of the installed hsbench that the ``package`` folder, being in a source tree, keeps from being found.

    None where there is none or ``package`` itself was installed, and where the installation lacks ``file`` as well.
    """
    package = package.resolve()
    if not (package.parent / "csrc").is_dir():
        return None
    # All of that name: a build leaves metadata in the source tree too.
    for found in importlib.metadata.distributions(name="hsbench"):
        installed = Path(str(found.locate_file("hsbench"))).resolve()
        if installed != package and installed.is_dir():
            return installed if (installed / file).is_file() else None
    return None


def how_to_leave(package: Path) -> str:
    """What to do so that Python finds the installation behind a source tree's ``package`` folder."""
    root = package.resolve().parent
    entries = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    if any(Path(entry).resolve() == root for entry in entries):
        return f"take {root} off PYTHONPATH"
    return "run the command `hsbench`, leave that folder, or start Python as `python -P`"
