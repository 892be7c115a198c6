"""What is installed around hsbench, from where it runs, and which switches are set: for doctor and for manifests."""

from __future__ import annotations

import functools
import glob
import hashlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import hsbench
from hsbench.distributed.environment import LAUNCHER
from hsbench.kernels import library

_PACKAGE = Path(hsbench.__file__).resolve().parent

#: Environment variables that change what runs or how fast. Names, or beginnings of names.
_SWITCHES = (
    *("HSBENCH_", "OMP_", "GOMP_", "KMP_", "MKL_", "CUDA_", "CUBLAS_", "CUDNN_", "PYTORCH_", "TORCH_CUDNN_"),
    *("NVIDIA_TF32_OVERRIDE", "NVIDIA_VISIBLE_DEVICES", "LD_PRELOAD", "MALLOC_ARENA_MAX"),
)
#: Of them, what says how ranks are started, and nothing of what they do.
_OF_A_RUN = (LAUNCHER, "HSBENCH_RANK_START_S")
_SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|KEY", re.IGNORECASE)

#: Programs beside hsbench, and what each is for.
TOOLS = {
    "nsys": "NVIDIA Nsight Systems, for timelines of a run",
    "ncu": "NVIDIA Nsight Compute, for single kernels in detail",
    "nvcc": "CUDA toolkit, builds the CUDA kernels at install",
    "g++": "builds the CPU kernels at install",
}
#: Where installers put programs that they leave off the PATH, as patterns.
_PLACES = {
    "nsys": (
        "/opt/nvidia/nsight-systems*/*/bin/nsys",
        "/opt/nvidia/nsight-systems*/bin/nsys",
        "/usr/local/cuda*/bin/nsys",
    ),
    "ncu": ("/opt/nvidia/nsight-compute/*/ncu", "/usr/local/cuda*/bin/ncu"),
}
#: Python packages that hsbench can do without at a loss.
PACKAGES = ("nvidia-ml-py", "nvidia-nvtx")
_DOTTED = re.compile(r"\d+(?:\.\d+)+")


def versions() -> dict[str, str | None]:
    """Of what takes part in a run: hsbench, torch and the CUDA and cuDNN it is built with, Python."""
    import torch

    return {
        "hsbench": hsbench.__version__,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": _cudnn(),
        "python": platform.python_version(),
    }


def libraries() -> dict[str, str | None]:
    """SHA-256 of each compiled library that is there, and of the params.h (``abi``) that they must agree with."""
    files = {"abi": "params.h", "cpu": "libhsbench_cpu.so", "cuda": "libhsbench_cuda.so"}
    return {name: _sha256(library.LIB / file) for name, file in files.items()}


def find_tool(name: str) -> str | None:
    """A tool's path: from the PATH, else the newest where its installers put it; None where there is no such tool."""
    if found := shutil.which(name):
        return found
    candidates = [path for place in _PLACES.get(name, ()) for path in glob.glob(place) if os.access(path, os.X_OK)]
    return max(candidates, key=lambda path: [int(number) for number in re.findall(r"\d+", path)], default=None)


def tool_version(name: str, *, timeout_s: float = 10.0) -> str | None:
    """The version that a tool tells; "" for one that tells none; None where there is no such tool."""
    path = find_tool(name)
    if path is None:
        return None
    said = _output([path, "--version"], timeout_s)
    match = _DOTTED.search(said or "")
    return match.group() if match else ""


def package_version(name: str) -> str | None:
    """The version of an installed Python package; None where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def git_commit() -> dict[str, object] | None:
    """``{"commit", "dirty"}`` of the source tree that this hsbench runs from; None where it is installed elsewhere, or
    git is not there. Dirty: files that git knows have changed."""
    root = _PACKAGE.parent
    if not (root / ".git").exists():  # not any folder further up: that would be another project's
        return None
    commit = _output(["git", "-C", str(root), "rev-parse", "HEAD"], 5.0)
    status = _output(["git", "-C", str(root), "status", "--porcelain", "--untracked-files=no"], 5.0)
    if not commit or status is None:
        return None
    return {"commit": commit.strip(), "dirty": bool(status.strip())}


def environment() -> dict[str, str]:
    """The switches that are set, by name; never what looks like a secret."""
    return {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith(_SWITCHES) and not _SECRET.search(name) and name not in _OF_A_RUN
    }


def _cudnn() -> str | None:
    """91900 -> "9.19.0"; before version 9 the major version stood at the thousands."""
    import torch

    try:
        number = torch.backends.cudnn.version()
    except RuntimeError:  # torch refuses a cuDNN that is not the one that it was built with
        return None
    if number is None:
        return None
    major, rest = divmod(number, 10_000 if number >= 90_000 else 1000)
    return f"{major}.{rest // 100}.{rest % 100}"


def _output(command: Sequence[str], timeout_s: float) -> str | None:
    """What a command prints; None if it fails, hangs, or is not there."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=True, text=True,
            errors="replace",
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout + done.stderr


@functools.cache
def _sha256(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None
