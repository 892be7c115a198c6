"""Runs over a text of its own, by a model that takes milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hsbench.kernels.device import CPU
from hsbench.models.text import read_text
from hsbench.problem.elements import INPUTS
from hsbench.run.quality.material import material_of
from hsbench.run.quality.plan import QualityPlan
from hsbench.run.quality.running import QualityRun
from hsbench.run.quality.settings import Setting, Task
from hsbench.run.quality.watcher import Watcher
from two_layers import TinyModel

HALF = Setting("hierarchical", 0.5, 0.5, "magnitude")


@pytest.fixture(autouse=True)
def _quick(one_torch_thread: None) -> None:
    """Small operations only."""


@pytest.fixture
def model() -> TinyModel:
    return TinyModel()


@pytest.fixture
def words(tmp_path: Path) -> Path:
    draw = torch.Generator().manual_seed(3)
    letters = (torch.randint(0, 26, (6000,), generator=draw) + ord("a")).tolist()
    path = tmp_path / "words.txt"
    path.write_text(bytes(letters).decode())
    return path


@pytest.fixture
def run_of(words: Path) -> Callable[..., QualityRun]:
    """A run over the text; the task is small unless changed."""

    def make(model: Any, *settings: Setting, watcher: Watcher | None = None, plan: Any = (), **task: Any) -> QualityRun:
        asked = Task(**{"context": 448, "score": 128, "windows": 1, "sink": 64, "local": 128, **task})
        text = read_text(words)
        resolved = QualityPlan("tiny", text, asked, settings or (HALF,), CPU, "fp32", INPUTS["fp16"], **dict(plan))
        material = material_of(model.tokens, text, asked, resolved.depths, 4096)
        return QualityRun(resolved, model, material, watcher or Watcher())

    return make
