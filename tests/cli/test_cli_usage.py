"""Bad input: one line that names the option, the value and the remedy; exit code 2; before any work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hsbench.methods import find_methods

Run = Callable[..., object]


def save(path: Path, **shapes: object) -> Path:
    """A file of captured tensors; a value is a shape, a dtype, or None to leave the tensor out."""
    given = {"q": (1, 8, 5, 64), "k": (1, 2, 96, 64), "v": (1, 2, 96, 64)} | shapes
    named = {}
    for name, what in given.items():
        if what is not None:
            shape, dtype = what if isinstance(what[-1], torch.dtype) else (what, torch.float16)
            named[f"layers.0.{name}"] = torch.zeros(shape, dtype=dtype)
    save_file(named, path)
    return path


def refused(hsbench: Run, bench: object, *argv: str) -> str:
    ran = hsbench(*argv)
    assert ran.code == 2, ran
    assert ran.out == ""
    assert ran.err.startswith("hsbench: error: ") and ran.err.count("\n") == 1, ran.err
    assert not bench.calls
    return ran.err


@pytest.mark.parametrize("command", ["decode", "prefill", "compare"])
@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--workload", "Lama-3.1-8B"], "did you mean Llama-3.1-8B?"),
        (["--seq", "-4"], "at least 1"),
        (["--seq=-4"], "at least 1"),
        (["--seq", "0"], "at least 1"),
        (["--batch", "0"], "at least 1"),
        (["--q-heads", "-32"], "at least 1"),
        (["--seq", "128q"], "not a size"),
        (["--seq", ""], "--seq"),
        (["--seq", "12.3"], "not a whole number"),
        (["--sparsity", "0.7"], "must be 0 to 0.5"),
        (["--sparsity", "-0.1"], "must be 0 to 0.5"),
        (["--sparsity", "nan"], "0 to 0.5"),
        (["--key-sparsity", "0.51"], "--key-sparsity 0.51"),
        (["--value-sparsity", "x"], "--value-sparsity x"),
        (["--q-heads", "30"], "multiple of --kv-heads 8"),
        (["--q-heads", "32", "--kv-heads", "5"], "multiple of --kv-heads 5"),
        (["--head-dim", "96"], "must be 64 or 128"),
        (["--q-heads", "32", "--kv-heads", "1"], "group of 32"),
        (["--methods", "hierarchicl"], "hierarchicl"),
        (["--methods", "dense,,sdpa"], "empty item"),
        (["--methods", ""], "empty item"),
        (["--format", "cvs"], "did you mean csv?"),
        (["--dtype", "fp32"], "one of fp16, bf16"),
        (["--device", "gpu"], "one of auto, cuda, cpu"),
        (["--cache", "hot"], "one of cold, warm"),
        (["--tensors", "gauss"], "one of gaussian, outliers"),
        (["--seed", "-1"], "at least 0"),
        (["--time", "0"], "above 0"),
        (["--time", "inf"], "above 0"),
        (["--time", "soon"], "above 0"),
        (["--sustain", "-0.1"], "--sustain -0.1: must be a number of seconds from 0 to 60, such as 0.3"),
        (["--sustain", "60.1"], "from 0 to 60"),
        (["--sustain", "inf"], "from 0 to 60"),
        (["--sustain", "nan"], "from 0 to 60"),
        (["--sustain", "long"], "from 0 to 60"),
        (["--sustain", "0.1,0.3"], "from 0 to 60"),
        (["--sustain", ""], "from 0 to 60"),
        (["--sink", "-1"], "--sink -1: must be at least 0"),
        (["--local", "-64"], "--local -64: must be at least 0"),
        (["--layer", "1"], "give --kv FILE"),
        (["--sparsty", "0.5"], "did you mean --sparsity?"),
        (["-seq", "4"], "did you mean --seq?"),
        (["--frobnicate"], "no such option"),
        (["--seq"], "--seq: needs a value"),
        (["--seq", "--batch", "2"], "--seq: needs a value"),
        (["--seq", "1k", "--seq", "2k"], "given twice"),
        (["128k"], "not an option"),
        (["--seq", "1k\n2k"], "not a size"),
    ],
)
def test_bad_values(hsbench: Run, bench: object, command: str, argv: list[str], words: str) -> None:
    assert words in refused(hsbench, bench, command, *argv)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["decod"], "did you mean decode?"),
        (["frobnicate"], "one of decode, prefill, compare, quality, generate, show"),
        (["--seq", "4"], "follow the command"),
        (["--versoin"], "did you mean --version?"),
        (["doctor", "--seq", "4"], "no such option"),
        (["doctor", "--format", "csv"], "one of table, json"),
        (["doctor", "--no-probe=1"], "takes no value"),
        (["decode", "--q-len", "4"], "no such option"),
        (["decode", "--phase", "prefill"], "no such option"),
        (["decode", "--seq", "8k,32k"], "hsbench compare takes lists"),
        (["prefill", "--seq", "1k", "--q-len", "2k"], "--q-len 2k: more queries than the 1024 tokens"),
        (["prefill", "--q-len", "0"], "at least 1"),
        (["compare", "--q-len", "64"], "only prefill has it"),
        (["compare", "--phase", "decode,prefil"], "did you mean prefill?"),
        (["compare", "--seq", "8k,,32k"], "--seq 8k,,32k: has an empty item"),
        (["compare", "--seq", "8k,"], "empty item"),
        (["compare", "--sparsity", ","], "empty item"),
        (["compare", "--workload", ""], "empty item"),
        (["compare", "--phase", "decode,"], "empty item"),
        (["compare", "--seq", "8k,32k,-1"], "--seq -1"),
        (["compare", "--sparsity", "0,0.25,0.7"], "--sparsity 0.7"),
        (["compare", "--phase", "decode,prefill", "--methods", "dense:decode-only"], "variant for prefill"),
        (["compare", "--phase", "decode,prefill", "--seq", "128k,1k", "--q-len", "2k"], "--q-len 2k"),
    ],
)
def test_bad_commands_and_lists(hsbench: Run, bench: object, argv: list[str], words: str) -> None:
    assert words in refused(hsbench, bench, *argv)


def test_a_variant_that_is_not_there_names_those_that_are(
    hsbench: Run, bench: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hsbench.run.plan.find_methods", find_methods)
    bench.cuda = True
    message = refused(hsbench, bench, "prefill", "--methods", "dense,hierarchical:sm70")
    assert "--methods hierarchical:sm70: " in message
    assert "for prefill on cuda: it has 16bit, sm80, sm90, fp8, int4" in message
    assert "for prefill on cpu" in refused(hsbench, bench, "prefill", "--methods", "dense:sm80", "--device", "cpu")
    sweep = ("compare", "--phase", "prefill,decode", "--methods", "dense:sm80")
    assert "for decode on cuda" in refused(hsbench, bench, *sweep)
    assert hsbench("prefill", "--methods", "dense:16bit,hierarchical:sm90,dense:sm80").code == 0
    assert bench.calls[-1]["methods"] == ["dense", "hierarchical:sm90", "dense:sm80"]


@pytest.mark.parametrize("command", ["decode", "compare"])
@pytest.mark.parametrize(
    ("saved", "argv", "words"),
    [
        ({"k": None}, [], "lacks layers.0.k"),
        ({"v": (1, 2, 95, 64)}, [], "but v is"),
        ({"q": (1, 7, 5, 64)}, [], "multiple of kv_heads"),
        ({"v": ((1, 2, 96, 64), torch.bfloat16)}, [], "mixes dtypes"),
        ({n: ((1, 2, 96, 64), torch.float32) for n in "qkv"}, [], ".to(torch.float16)"),
        ({}, ["--seq", "128"], "--seq 128: contradicts --kv"),
        ({}, ["--batch", "2"], "has batch 1"),
        ({}, ["--q-heads", "32"], "has q_heads 8"),
        ({}, ["--kv-heads", "8"], "has kv_heads 2"),
        ({}, ["--head-dim", "128"], "has head_dim 64"),
        ({}, ["--dtype", "bf16"], "has fp16"),
        ({}, ["--workload", "Llama-3.1-8B"], "--workload Llama-3.1-8B: contradicts"),
        ({}, ["--tensors", "outliers"], "--kv brings the tensors"),
        ({}, ["--layer", "3"], "--layer 3: not in"),
        ({}, ["--layer", "x"], "--layer x"),
    ],
)
def test_bad_captured_tensors(
    hsbench: Run,
    bench: object,
    tmp_path: Path,
    command: str,
    saved: dict[str, object],
    argv: list[str],
    words: str,
) -> None:
    path = save(tmp_path / "kv.safetensors", **saved)
    message = refused(hsbench, bench, command, "--kv", str(path), *argv)
    assert words in message and str(path) in message or "--layer x" in message or "brings" in message


def test_a_layer_out_of_range_lists_the_layers(hsbench: Run, bench: object, tmp_path: Path) -> None:
    path = tmp_path / "kv.safetensors"
    save_file({f"layers.{i}.{n}": torch.zeros(1, 1, 4, 64).half() for i in (0, 1, 5) for n in "qkv"}, path)
    assert "holds 0-1, 5" in refused(hsbench, bench, "decode", "--kv", str(path), "--layer", "3")


def test_more_queries_than_captured(hsbench: Run, bench: object, tmp_path: Path) -> None:
    path = save(tmp_path / "kv.safetensors")
    assert "holds 5 queries" in refused(hsbench, bench, "prefill", "--kv", str(path), "--q-len", "6")


def test_a_missing_file(hsbench: Run, bench: object, tmp_path: Path) -> None:
    assert "no such file" in refused(hsbench, bench, "decode", "--kv", str(tmp_path / "none.safetensors"))
    assert "not a file" in refused(hsbench, bench, "decode", "--kv", str(tmp_path))


def test_a_damaged_file(hsbench: Run, bench: object, tmp_path: Path) -> None:
    path = save(tmp_path / "kv.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    assert "not a whole safetensors file" in refused(hsbench, bench, "decode", "--kv", str(path))


def test_non_finite_k_is_found_when_loaded(hsbench: Run, bench: object, tmp_path: Path) -> None:
    path = tmp_path / "kv.safetensors"
    named = {f"layers.0.{n}": torch.zeros(1, 2, 96, 64).half() for n in "qkv"}
    named["layers.0.k"][0, 1, 7, 9] = float("nan")
    save_file(named, path)
    bench.before = lambda call: bench.calls[-1]["captured"].load("cpu")
    output = tmp_path / "results.csv"
    output.write_text("earlier results")
    ran = hsbench("decode", "--kv", str(path), "--output", str(output))
    assert ran.code == 2 and ran.out == ""
    assert ran.err.count("\n") == 1
    assert f"--kv {path}: layers.0.k is not finite at index [0, 1, 7, 9]" in ran.err
    assert output.read_text() == "earlier results"


@pytest.mark.parametrize("where", ["folder", "none/x.csv", "/proc/hsbench.csv", "file/x.csv"])
def test_output_that_cannot_be_written(hsbench: Run, bench: object, tmp_path: Path, where: str) -> None:
    if where.startswith("/proc") and not Path("/proc").is_dir():
        pytest.skip("no /proc")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    message = refused(hsbench, bench, "decode", "--output", str(tmp_path / where))
    assert f"--output {tmp_path / where}: " in message
    assert ("is a directory" in message) == (where == "folder")


def test_output_must_not_be_the_input(hsbench: Run, bench: object, tmp_path: Path) -> None:
    path = save(tmp_path / "kv.safetensors")
    held = path.read_bytes()
    assert "is the file of --kv" in refused(hsbench, bench, "decode", "--kv", str(path), "--output", str(path))
    assert path.read_bytes() == held


def test_a_bad_run_leaves_output_alone(hsbench: Run, bench: object, tmp_path: Path) -> None:
    old, new = tmp_path / "old.csv", tmp_path / "new.csv"
    old.write_text("earlier results")
    for path in (old, new):
        refused(hsbench, bench, "decode", "--methods", "nope", "--output", str(path))
    assert old.read_text() == "earlier results"
    assert not new.exists()


def test_cuda_without_a_gpu_is_exit_code_4(hsbench: Run, bench: object) -> None:
    ran = hsbench("decode", "--device", "cuda")
    assert (ran.code, ran.out) == (4, "")
    assert ran.err == "hsbench: error: --device cuda: no CUDA device; install a driver\n"
    assert not bench.calls
