"""Steps in few kernels: they say what the model's own modules say, and other formulas are left alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="needs pip install 'hsbench[models]'")

import torch
import torch.nn.functional as F

from cache_standin import StandIn
from hsbench.models import HierarchicalCache
from hsbench.models.fused import join_projections
from hsbench.models.living import DenseLayer, LivingCache
from hsbench.models.loading import open_model
from hsbench.models.model import Model
from hsbench.models.pointwise import EAGER, NotCompiledError, Pointwise, add_norm, gate, rope, rope_flat, taken_apart
from hsbench.models.step import fused_step
from hsbench.run.generate.parts import NORM, HostParts, watching

Folders = Callable[[str], Path]

CONTEXT, TOKENS = 60, 70
FLAT = Pointwise(add_norm, taken_apart(rope_flat), gate)
"""What is compiled, without a compiler."""

ALL = ("attention", "mlp", "layer")


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch, one_torch_thread: None) -> None:
    monkeypatch.setattr("hsbench.models.living.GrowingCache", StandIn)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


def logits(model: Model, cache: LivingCache) -> torch.Tensor:
    """Behind a prompt and each token after it, ``[2, n, vocab]``."""
    ids = torch.randint(0, 256, (2, TOKENS), generator=torch.Generator().manual_seed(2))
    found = [model.prompt(ids[:, :CONTEXT], cache)]
    for at in range(CONTEXT, TOKENS):
        found.append(model.step(ids[:, at : at + 1], torch.full((2, 1), at), cache))
    return torch.stack(found, 1)


def ours(model: Model) -> LivingCache:
    return HierarchicalCache(model.hf, 2, TOKENS, attended=model.attended, dtype=torch.float32)


def torchs(model: Model) -> LivingCache:
    g = model.geometry
    shape = 2, g.kv_heads, TOKENS, g.head_dim
    return LivingCache([DenseLayer(shape, model.dtype, "cpu") for _ in range(g.layers)])


@pytest.mark.parametrize("pointwise", [EAGER, FLAT], ids=["eager", "flat"])
@pytest.mark.parametrize(
    ("family", "kinds"),
    [
        ("llama", ALL),
        ("mistral", ALL),
        ("qwen2", ALL),
        ("qwen3", ALL),
        ("mistral-window", ALL[1:]),
        ("gemma", ("attention",)),
        ("gemma3", ("attention",)),
        ("gpt-oss", ()),
        ("phi3", ALL[2:]),
    ],
)
def test_a_fused_step_says_the_same(
    family: str, kinds: tuple[str, ...], pointwise: Pointwise, folders: Folders
) -> None:
    model = open_model(str(folders(family)))
    expected = logits(model, ours(model))
    join_projections(model.hf)
    own = {name: module.forward for name, module in model.hf.named_modules()}
    with fused_step(model, 2, lambda: pointwise) as (found, notes):
        assert (found, notes) == (kinds, ())
        torch.testing.assert_close(logits(model, ours(model)), expected, rtol=1e-4, atol=1e-4)
        if len(model.attended) == model.geometry.layers:
            torch.testing.assert_close(logits(model, torchs(model)), expected, rtol=1e-4, atol=1e-4)
    assert {name: module.forward for name, module in model.hf.named_modules()} == own


def test_a_step_calls_each_function_once_where_it_may(folders: Folders) -> None:
    calls: dict[str, int] = {}

    def counted(function: Callable):
        def call(*arguments):
            calls[function.__name__] = calls.get(function.__name__, 0) + 1
            return function(*arguments)

        return call

    model = open_model(str(folders("llama")))
    cache = torchs(model)
    with fused_step(model, 2, lambda: Pointwise(counted(add_norm), counted(rope), counted(gate))):
        calls.clear()
        model.prompt(torch.zeros(2, 5, dtype=torch.long), cache)
        assert calls == {}
        model.step(torch.zeros(2, 1, dtype=torch.long), torch.full((2, 1), 5), cache)
        assert calls == {"rope": 3, "add_norm": 6, "gate": 3}


def test_residual_sums_count_as_norms(folders: Folders) -> None:
    class Open(HostParts):
        def __init__(self) -> None:
            super().__init__()
            self.names: list[str] = []

        @contextmanager
        def span(self, name: str) -> Iterator[None]:
            self.names.append(name)
            yield
            self.names.pop()

    parts, seen = Open(), []

    def watched(*arguments):
        seen.append(parts.names[:])
        return add_norm(*arguments)

    model = open_model(str(folders("llama")))
    with fused_step(model, 2, lambda: Pointwise(watched, rope, gate)), watching(model.hf, parts):
        seen.clear()
        model.step(torch.zeros(2, 1, dtype=torch.long), torch.zeros(2, 1, dtype=torch.long), torchs(model))
    assert seen == [[NORM]] * 6


@pytest.mark.parametrize("part", ["norm", "rope", "gate", "residual"])
def test_another_formula_is_left_alone(part: str, folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_model(str(folders("llama")))
    for layer in model.hf.model.layers:
        if part == "norm":
            layer.post_attention_layernorm.forward = lambda x, own=layer.post_attention_layernorm.forward: own(x) + 1.0
        elif part == "gate":
            layer.mlp.act_fn = torch.nn.GELU()
        elif part == "residual":
            layer.forward = lambda x, own=layer.forward, **named: x + 0.5 * (own(x, **named) - x)
    if part == "rope":  # of neighbours
        home = "transformers.models.llama.modeling_llama.rotate_half"
        monkeypatch.setattr(home, lambda x: torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2))
    kept = {"norm": ALL[:2], "rope": ALL[1:], "gate": (ALL[0], ALL[2]), "residual": ALL[:2]}[part]
    expected = logits(model, torchs(model))
    with fused_step(model, 2, lambda: EAGER) as (found, _):
        assert found == kept
        torch.testing.assert_close(logits(model, torchs(model)), expected, rtol=1e-4, atol=1e-4)


def test_without_a_compiler_a_note_says_so(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: torch.Tensor) -> torch.Tensor:
        raise NotCompiledError("no C compiler")

    model = open_model(str(folders("llama")))
    expected = logits(model, torchs(model))
    for make in (lambda: Pointwise(add_norm, rope, broken), lambda: broken()):
        with fused_step(model, 2, make) as (found, notes):
            assert found == ALL and len(notes) == 1 and notes[0].endswith("not compiled: no C compiler")
            torch.testing.assert_close(logits(model, torchs(model)), expected, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with fused_step(model, 2) as (found, notes):
        assert found == ALL and notes[0].endswith("triton is missing")


def test_each_function_by_its_formula() -> None:
    x, added, weight = draw(3, 1, 64), draw(3, 1, 64).flip(-1), draw(64)
    total, normed = add_norm(x, added, weight, 1e-5)
    torch.testing.assert_close(total, x + added)
    torch.testing.assert_close(normed, total / (total.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight)
    torch.testing.assert_close(gate(x), F.silu(x[..., :32]) * x[..., 32:])
    product = draw(3, 1, (4 + 2 + 2) * 16)
    q, k, v = (part.view(3, 1, -1, 16).transpose(1, 2) for part in product.split([64, 32, 32], -1))
    angle = torch.cat([draw(3, 1, 8)] * 2, -1)
    cos, sin = angle.cos(), angle.sin()
    pairs = [torch.view_as_complex(torch.stack((part[..., :8], part[..., 8:]), -1).contiguous()) for part in (q, k)]
    turn = torch.polar(torch.ones(3, 1, 1, 8), angle[..., :8].unsqueeze(1))
    expected = [torch.cat((turned.real, turned.imag), -1) for turned in (pair * turn for pair in pairs)]
    for function in (rope, taken_apart(rope_flat)):
        for found, right in zip(function(q, k, v, cos, sin), (*expected, v), strict=True):
            torch.testing.assert_close(found, right)
    assert all(part.is_contiguous() for part in taken_apart(rope_flat)(q, k, v, cos, sin))
