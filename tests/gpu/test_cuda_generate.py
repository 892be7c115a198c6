"""Steps as CUDA graphs: what they say is what eager steps say, captured once or anew for each length."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers", reason="needs pip install 'hsbench[models]'")

import torch
import torch.nn.functional as F

from cache_standin import StandIn
from hsbench.kernels.device import CUDA
from hsbench.models.loading import open_model
from hsbench.models.model import Model
from hsbench.models.pointwise import EAGER, Pointwise, compiled
from hsbench.models.step import fused_step
from hsbench.problem.elements import INPUTS
from hsbench.run.generate.methods import SDPA_BACKENDS
from hsbench.run.generate.plan import GeneratePlan, Prompt, drawn_prompts
from hsbench.run.generate.running import GenerateRun
from hsbench.run.generate.settings import Generation, all_settings
from hsbench.run.quality.watcher import Watcher
from tiny_models import make_folder

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = make_folder(tmp_path_factory.mktemp("model"), "llama-64", max_position_embeddings=4096)
    return open_model(str(folder), device="cuda", dtype="bf16", for_speed=True)


def rows(model: Model, *methods: str, **task):
    asked = Generation(**{"contexts": (700,), "new_tokens": 100, "batch": 2, **task})
    settings = all_settings(methods, ["16bit"], "auto", (0.5, 0.5), None, SDPA_BACKENDS)
    plan = GeneratePlan("tiny", Prompt.drawn(0), asked, tuple(settings), CUDA, "bf16", INPUTS["bf16"], told=True)
    run = GenerateRun(plan, model, drawn_prompts(256, asked.contexts, asked.batch, 0), Watcher())
    found = [result.record for result in run.run().results]
    assert [row.status for row in found] == ["ok"] * len(methods), [row.reason for row in found]
    return [row.measures for row in found]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("kept", ["ours", "in torch"])
def test_a_graph_says_what_eager_steps_say(model: Model, monkeypatch, kept: str, temperature: float) -> None:
    if kept == "in torch":
        monkeypatch.setattr("hsbench.models.living.GrowingCache", StandIn)
    methods = "sdpa:flash", "dense", "hierarchical"
    graphs = rows(model, *methods, temperature=temperature)
    eager = rows(model, *methods, temperature=temperature, eager=True)
    assert [m.completion for m in graphs] == [m.completion for m in eager]
    assert [m.stepping for m in graphs] == ["a graph per step", "graph", "graph"]
    assert {m.stepping for m in eager} == {"eager"}
    assert all(m.samples >= 90 for m in graphs)
    for m in (*graphs, *eager):
        shares = (m.attention_share, m.append_share, m.projection_share, m.mlp_share, m.norm_share, m.head_share)
        assert all(share > 0 for share in shares) and sum(shares) + m.other_share == pytest.approx(1.0)


def test_the_fastest_of_torchs_backends_is_named(model: Model) -> None:
    (found,) = rows(model, "sdpa", new_tokens=4)
    assert found.backend in SDPA_BACKENDS and found.peak_bytes > 0
    torch._C._cuda_clearCublasWorkspaces()  # 32 MiB of each stream, and a graph's rows take streams of their own
    assert torch.cuda.memory_allocated() < 1 << 30


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("batch", [1, 3])
def test_what_is_compiled_says_what_eager_kernels_say(dtype: torch.dtype, batch: int) -> None:
    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device="cuda", dtype=dtype)

    ours = compiled()
    product, angle = draw(batch, 1, (32 + 8 + 8) * 128), draw(batch, 1, 64).repeat(1, 1, 2)
    qkv = [part.view(batch, 1, -1, 128).transpose(1, 2) for part in product.split([4096, 1024, 1024], -1)]
    norm = draw(batch, 1, 4096), draw(batch, 1, 4096), draw(4096), 1e-5
    rounding = {"rtol": 2**-6, "atol": 2**-6}
    with torch.no_grad():
        torch.testing.assert_close(ours.add_norm(*norm), EAGER.add_norm(*norm), **rounding)
        torch.testing.assert_close(ours.gate(norm[0]), EAGER.gate(norm[0]), **rounding)
        turned = ours.rope(*qkv, angle.cos(), angle.sin())
        torch.testing.assert_close(turned, EAGER.rope(*qkv, angle.cos(), angle.sin()), **rounding)
    assert all(part.is_contiguous() for part in turned)


def test_what_is_compiled_waits_for_what_is_before_it() -> None:
    """In a graph, where its kernels may start early."""
    ours, width = compiled(), 4096
    first = torch.randn(2, 1, width, device="cuda", dtype=torch.bfloat16)
    weights = torch.randn(2 * width, width, device="cuda", dtype=torch.bfloat16) / width**0.5
    scale = torch.ones(width, device="cuda", dtype=torch.bfloat16)

    def chain(by: Pointwise) -> torch.Tensor:
        total = out = first
        for _ in range(20):
            total, normed = by.add_norm(total, out, scale, 1e-5)
            out = by.gate(F.linear(normed, weights))
        return out

    with torch.no_grad():
        chain(ours)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = chain(ours)
        for _ in range(20):
            first.normal_()
            graph.replay()
            expected = chain(EAGER).float()
            assert (found.float() - expected).norm() < 2**-5 * expected.norm()


def test_a_step_is_compiled(model: Model) -> None:
    with fused_step(model, 2) as (kinds, notes):
        assert (kinds, notes) == (("attention", "mlp", "layer"), ())
