"""``hsbench generate``, by a model of three layers with random weights, through a cache that compresses nothing."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="needs pip install 'hsbench[models]'")

from cache_standin import StandIn
from hsbench.cli.main import main
from hsbench.results import Generated, read_rows
from tiny_models import make_folder

Run = Callable[..., tuple[int, str, str]]
SMALL = ("--context", "40", "--new-tokens", "6")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("model"), "llama-64")


@pytest.fixture
def words(tmp_path: Path) -> Path:
    path = tmp_path / "words.txt"
    path.write_text("All happy families are alike. " * 20)  # 600 bytes, as many tokens
    return path


@pytest.fixture
def generate(
    model: Path,
    words: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    one_torch_thread: None,
) -> Run:
    monkeypatch.setattr("hsbench.models.living.GrowingCache", StandIn)

    def run(*argv: str, of: str | None = None, text: Path | None = words) -> tuple[int, str, str]:
        given = () if text is None else ("--text", str(text))
        code = main(["generate", of or str(model), *given, "--device", "cpu", *argv])
        streams = capsys.readouterr()
        return code, streams.out, streams.err

    return run


def test_a_table(generate: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    code, out, err = generate(*SMALL, "--batch", "2", "--show-text", "--methods", "sdpa,dense,hierarchical:fp8")
    assert code == 0 and err == ""
    for piece in (
        "words.txt · 40 + 6 tokens x 2 sequences · fp32 weights · sink 64",
        "ms/token",
        "baseline",
        "hierarchical:fp8, attentive:hd",
        "of a step, ms",
        "append",
        "step       launched one by one",
        "kernels against fp32 on their own caches",
    ):
        assert piece in out, piece
    assert "\x1b" not in out


def test_files_and_what_reads_them(generate: Run, tmp_path: Path, words: Path, capsys, model: Path) -> None:
    path = tmp_path / "rows.json"
    how = ("--temperature", "0.5", "--seed", "3", "--sink", "0", "--local", "128", "--pruner", "mirror")
    code, out, err = generate("--context", "30,40", "--new-tokens", "6", *how, "--output", str(path))
    assert code == 0 and out == "" and "ms/token" in err
    document = json.loads(path.read_text())
    run = document["manifest"]["run"]
    assert run["schema"] == "hsbench-generate/1" and run["prompt"]["path"] == str(words) and document["complete"]
    assert run["task"]["contexts"] == [30, 40] and document["memory"][0].keys() == {"row", "dense"}
    rows = read_rows(path)
    assert all(isinstance(row, Generated) for row in rows)
    assert [(row.case.context, row.case.method) for row in rows] == [
        (context, method) for context in (30, 40) for method in ("sdpa", "dense", "hierarchical")
    ]
    case = rows[2].case
    assert (case.temperature, case.seed, case.sink, case.local, case.pruner) == (0.5, 3, 0, 128, "mirror")
    assert "sink 0, local 128, temperature 0.5, seed 3, cpu" in case.label
    assert main(["show", str(path), "--format", "csv"]) == 0
    assert len(list(csv.DictReader(io.StringIO(capsys.readouterr().out)))) == 6
    assert main(["show", str(path), "--format", "markdown"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("### generate") == 2 and "| hierarchical, mirror |" in shown and "Of a step, ms:" in shown
    assert main(["diff", str(path), str(path)]) == 0
    assert main(["diff", str(path), str(path), "--metric", "token_time"]) == 0


def test_a_prompt_that_was_typed(generate: Run) -> None:
    code, out, _ = generate("--prompt", "Once", "--new-tokens", "4", "--show-text", "--format", "csv", text=None)
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 0 and len(rows) == 3
    assert {(row["text"], row["context"]) for row in rows} == {("prompt", "4")}
    assert len({row["completion"] for row in rows}) == 1 and rows[0]["completion"]
    assert float(rows[1]["tokens_equal"]) == 1.0


def test_a_wrong_kernel_is_exit_code_3(generate: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    right = StandIn.decode
    monkeypatch.setattr(StandIn, "decode", lambda self, q: tuple(x.roll(1, 1) for x in right(self, q)))
    code, out, _ = generate(*SMALL, "--methods", "hierarchical")
    assert code == 3 and "INCORRECT" in out and "disagrees with its own cache" in out


def test_ctrl_c_keeps_what_is_done(generate: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from hsbench.run.generate import measuring

    right, calls = measuring._steps, []

    def impatient(*given) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        right(*given)

    monkeypatch.setattr(measuring, "_steps", impatient)
    code, out, _ = generate(*SMALL, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 130 and [row["status"] for row in rows] == ["ok", "ok", "interrupted"]
    assert rows[0]["token_ms"] and not rows[2]["token_ms"]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--context", "x"], "--context x: not a size"),
        (["--context", "1k"], "--context 1k: is more than the model's 512 positions; give at most that"),
        (["--context", "400", "--batch", "2"], "has 600 tokens, and 2 stretches of 400 tokens are asked for"),
        (["--new-tokens", "1"], "--new-tokens 1"),
        (["--batch", "0"], "--batch 0"),
        (["--temperature", "-1"], "--temperature -1: must be a number from 0"),
        (["--temperature", "hot"], "--temperature hot: must be a number from 0"),
        (["--methods", "hierarchicl"], "--methods hierarchicl: unknown (did you mean hierarchical?)"),
        (["--methods", "dense:fp9"], "--methods dense:fp9: no such elements"),
        (["--methods", "sdpa:flsh"], "--methods sdpa:flsh: unknown (did you mean sdpa:flash?)"),
        (["--elements", "fp9"], "--elements fp9: no such elements"),
        (["--pruner", "balanced"], "--pruner balanced: weighs V's tokens against each other"),
        (["--pruner", "calibrated:hd"], "--pruner calibrated:hd: needs a calibration"),
        (["--sparsity", "0.6"], "--sparsity 0.6"),
        (["--key-sparsity", "0.6"], "--key-sparsity 0.6"),
        (["--prompt", "Once"], "--prompt Once: there is --text, too"),
        (["--plan", "no.json"], "--plan no.json: cannot be read"),
        (["--basis", "no.safetensors"], "--basis no.safetensors"),
        (["--dtype", "fp8"], "--dtype fp8: unknown"),
        (["--output", "/"], "--output /"),
    ],
)
def test_bad_input_is_one_line(generate: Run, argv: list[str], said: str) -> None:
    code, out, err = generate(*argv, *(() if "--context" in argv else ("--context", "40")))
    assert (code, out) == (2, ""), err
    assert err.count("\n") == 1 and said in err


def test_what_is_missing(generate: Run, model: Path) -> None:
    code, _, err = generate(*SMALL, text=None)
    assert code == 2 and "--text FILE: missing; give the file of a text to continue, or --prompt TEXT" in err
    code, _, err = generate(*SMALL, of=str(model / "nowhere"))
    assert code == 2 and err.count("\n") == 1 and "no such file or folder" in err
    code, _, err = generate("--prompt", " ", text=None)
    assert code == 2 and "--prompt" in err and "is empty" in err


def test_a_plan_gives_each_layer_its_own(generate: Run, tmp_path: Path, model: Path, monkeypatch) -> None:
    from hsbench.models.sources import find_source
    from hsbench.run.quality.layer_plan import LayerPlan

    source = find_source(str(model))
    shares = ((0.5, 0.0), (0.0, 0.25), (0.0, 0.0))
    plan = tmp_path / "plan.json"
    made = LayerPlan("plan.json", source.name, source.identity, "magnitude", shares)
    plan.write_text(json.dumps(made.to_dict()))
    asked: list[tuple[float, float]] = []
    right = StandIn.__init__

    def remember(self, *sizes, **how) -> None:
        asked.append((how["key_sparsity"], how["value_sparsity"]))
        right(self, *sizes, **how)

    monkeypatch.setattr(StandIn, "__init__", remember)
    code, out, err = generate(*SMALL, "--methods", "hierarchical", "--plan", str(plan))
    assert code == 0 and "plan.json" in out, err
    assert tuple(asked) == shares * 2  # once to rehearse


# ---- compare --phase generate --------------------------------------------------------------------------------------
@pytest.fixture
def sweep(generate: Run, model: Path, words: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*argv: str) -> tuple[int, str, str]:
        phase = () if "--phase" in argv else ("--phase", "generate")
        code = main(["compare", *phase, "--device", "cpu", *argv])
        streams = capsys.readouterr()
        return code, streams.out, streams.err

    return run


def test_compare_sweeps_contexts(sweep: Run, model: Path, words: Path) -> None:
    code, out, err = sweep(
        "--model", str(model), "--text", str(words), "--seq", "40,60", "--new-tokens", "4", "--methods", "sdpa,dense"
    )
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 0, err
    assert [(row["context"], row["method"]) for row in rows] == [
        (context, method) for context in ("40", "60") for method in ("sdpa", "dense")
    ]
    assert all(row["status"] == "ok" for row in rows)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((), "--model MODEL: missing"),
        (("--model", "m", "--ranks", "2"), "--ranks 2: is not of --phase generate"),
        (("--model", "m", "--profile"), "--profile"),
        (("--model", "m", "--batch", "1,8"), "--batch 1,8: --phase generate takes a list of --seq alone"),
        (("--model", "m", "--seq", "x"), "--seq x:"),
        (("--phase", "decode,generate", "--model", "m"), "generate runs a model: compare the other phases apart"),
        (("--phase", "decode", "--model", "m"), "--model m: is of --phase generate"),
    ],
)
def test_what_a_sweep_of_generate_refuses(sweep: Run, argv: tuple[str, ...], message: str) -> None:
    code, out, err = sweep(*argv)
    assert code == 2 and out == "" and err.count("\n") == 1 and message in err
