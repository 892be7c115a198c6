"""Ranks of a program of this folder's, under torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from hsbench.kernels import library


def found_by_ranks(program: str, ranks: int, folder: Path, **environment: str) -> list[dict[str, Any]]:
    """Runs ``program FOLDER`` on gloo's ranks, and gives what each left in the folder, ``RANK.pt``."""
    words = [str(Path(__file__).with_name(program)), str(folder)]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), *words]
    around = os.environ | {"PYTHONPATH": str(library.LIB.parents[1])} | environment
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=around)
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{rank}.pt") for rank in range(ranks)]
