"""Runs by a model of three layers with random weights, through a cache that compresses nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("transformers", reason="needs pip install 'hsbench[models]'")

import torch

from cache_standin import StandIn
from hsbench.kernels.device import CPU
from hsbench.models.loading import open_model
from hsbench.models.model import Model
from hsbench.problem.elements import INPUTS
from hsbench.run.generate.methods import SDPA_BACKENDS
from hsbench.run.generate.plan import GeneratePlan, Prompt, drawn_prompts
from hsbench.run.generate.running import GenerateRun
from hsbench.run.generate.settings import Generation, all_settings
from hsbench.run.quality.watcher import Watcher
from tiny_models import make_folder


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch, one_torch_thread: None) -> type[StandIn]:
    monkeypatch.setattr("hsbench.models.living.GrowingCache", StandIn)
    return StandIn


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return open_model(str(make_folder(tmp_path_factory.mktemp("model"), "llama-64")))


@pytest.fixture
def run_of(model: Model) -> Callable[..., GenerateRun]:
    """A run over drawn prompts; the task is small unless changed."""

    def make(*methods: str, watcher: Watcher | None = None, told: bool = False, **task: Any) -> GenerateRun:
        asked = Generation(**{"contexts": (40,), "new_tokens": 10, **task})
        names = methods or ("sdpa", "dense", "hierarchical")
        settings = all_settings(names, ["16bit"], "auto", (0.5, 0.5), None, SDPA_BACKENDS)
        plan = GeneratePlan(
            "tiny", Prompt.drawn(asked.seed), asked, tuple(settings), CPU, "fp32", INPUTS["fp16"], told=told
        )
        prompts = drawn_prompts(256, asked.contexts, asked.batch, asked.seed)
        return GenerateRun(plan, model, prompts, watcher or Watcher())

    return make


def measures_of(run: GenerateRun) -> dict[str, Any]:
    """By method."""
    return {result.record.case.method: result.record.measures for result in run.run().results}


@pytest.fixture
def greedy(model: Model) -> Callable[[torch.Tensor, int], torch.Tensor]:
    """The model's own continuation of ``ids [batch, n]`` by so many tokens."""

    def generate(ids: torch.Tensor, count: int) -> torch.Tensor:
        for _ in range(count):
            ids = torch.cat([ids, model.forward(ids, None)[:, -1:].argmax(-1)], 1)
        return ids[:, -count:]

    return generate
