"""What the commands run, what goes to which stream, and the exit codes."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from hsbench.cli.main import main
from hsbench.kernels.device import CPU
from hsbench.methods import find_methods
from hsbench.problem.phase import DECODE
from hsbench.results import COLUMNS

Run = Callable[..., object]


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_decode_by_default(hsbench: Run, bench: object) -> None:
    ran = hsbench("decode")
    assert ran.code == 0
    assert ran.err == ""
    assert "hierarchical" in ran.out and "Llama-3.1-8B" in ran.out
    (call,) = bench.calls
    assert (call["workload"].phase.name, call["workload"].seq, call["workload"].q_len) == ("decode", 32768, 1)
    assert (call["device"], call["captured"]) == (CPU, None)
    assert call["methods"] == [method.name for method in find_methods(None, DECODE, CPU)], "every row by its name"
    assert (call["settings"].budget_s, call["settings"].cache, call["settings"].sustain_s) == (4.0, "cold", 0.0)


def test_options_reach_the_run(hsbench: Run, bench: object) -> None:
    ran = hsbench(
        "prefill", "--workload", "qwen3-8b", "--seq", "8k", "--batch", "2", "--dtype", "bf16",
        "--sparsity", "0.25", "--key-sparsity", "0", "--sink", "64", "--local", "128", "--q-len", "1k",
        "--methods", "dense,hierarchical,dense", "--seed", "7", "--tensors", "outliers", "--cache", "warm",
        "--time", "0.5", "--sustain", "0.3", "--device", "cpu",
    )  # fmt: skip
    assert ran.code == 0
    (call,) = bench.calls
    workload = call["workload"]
    assert (workload.name, workload.seq, workload.batch, workload.dtype) == ("Qwen3-8B", 8192, 2, "bf16")
    assert (workload.key_sparsity, workload.value_sparsity, workload.sink, workload.local) == (
        0,
        0.25,
        64,
        128,
    )
    assert (workload.q_len, workload.seed, workload.tensors) == (1024, 7, "outliers")
    assert call["methods"] == [
        *("dense", "dense:fp8", "dense:int4"),
        *("hierarchical", "hierarchical:fp8", "hierarchical:int4"),
    ]
    assert (call["settings"].budget_s, call["settings"].cache, call["settings"].sustain_s) == (0.5, "warm", 0.3)


@pytest.mark.parametrize("command", ["decode", "prefill", "compare"])
@pytest.mark.parametrize(("typed", "seconds"), [("0", 0), ("-0", 0), ("1e-1", 0.1), ("60", 60)])
def test_how_long_to_sustain(hsbench: Run, bench: object, command: str, typed: str, seconds: float) -> None:
    assert hsbench(command, "--seq", "1k", "--sustain", typed).code == 0
    given = bench.calls[0]["settings"].sustain_s
    assert str(given) == str(float(seconds))


def test_prefill_asks_every_token(hsbench: Run, bench: object) -> None:
    hsbench("prefill", "--seq", "1k")
    assert bench.workloads[0].q_len == 1024


@pytest.mark.parametrize("format", ["csv", "json", "markdown"])
def test_a_machine_format_has_stdout_for_itself(hsbench: Run, bench: object, format: str) -> None:
    ran = hsbench("decode", "--format", format)
    assert ran.code == 0
    if format == "csv":
        assert [row["method"] for row in rows(ran.out)] == ["dense", "hierarchical"]
        assert tuple(rows(ran.out)[0]) == COLUMNS
    elif format == "json":
        assert [row["method"] for row in json.loads(ran.out)["rows"]] == ["dense", "hierarchical"]
    else:
        assert ran.out.startswith("#")
    assert "hierarchical" in ran.err  # the summary table


@pytest.mark.parametrize(
    ("name", "argv", "start"),
    [
        ("r.csv", [], "schema,benchmark,phase"),
        ("r.json", [], "{"),
        ("r.md", [], "#"),
        ("r.out", [], "decode"),
        ("r.txt", ["--format", "csv"], "schema,benchmark,phase"),
    ],
)
def test_output(hsbench: Run, bench: object, tmp_path: Path, name: str, argv: list[str], start: str) -> None:
    path = tmp_path / name
    path.write_text("earlier results that are longer than nothing")
    ran = hsbench("decode", "--output", str(path), *argv)
    assert (ran.code, ran.out) == (0, "")
    text = path.read_text()
    assert text.lower().startswith(start) or start == "decode" and "hierarchical" in text
    assert "earlier" not in text
    assert "hierarchical" in ran.err


def test_compare_runs_the_cross_product(hsbench: Run, bench: object) -> None:
    ran = hsbench(
        "compare", "--phase", "decode,prefill", "--seq", "8k,32k", "--batch", "1,8",
        "--sparsity", "0,0.25,0.5", "--dtype", "fp16,bf16", "--workload", "Llama-3.1-8B,Qwen3-8B",
    )  # fmt: skip
    assert ran.code == 0
    assert len(bench.calls) == 2 * 2 * 2 * 3 * 2 * 2
    assert len(set(bench.workloads)) == len(bench.workloads)
    found = rows(ran.out)
    assert len(found) == 2 * len(bench.calls)
    # Sparsity changes fastest: neighbours share their tensors.
    assert [w.key_sparsity for w in bench.workloads[:4]] == [0, 0.25, 0.5, 0]
    assert "summary" in ran.err


def test_compare_runs_a_duplicate_once(hsbench: Run, bench: object) -> None:
    hsbench("compare", "--seq", "32k,32768,32K", "--sparsity", "0.5,0.50", "--phase", "decode,decode")
    assert len(bench.calls) == 1
    bench.calls.clear()
    hsbench("compare", "--sparsity", "0,0.5", "--key-sparsity", "0.1", "--value-sparsity", "0.1")
    assert len(bench.calls) == 1


def test_compare_is_decode_by_default_and_q_len_is_prefill_s(hsbench: Run, bench: object) -> None:
    hsbench("compare", "--seq", "1k")
    hsbench("compare", "--seq", "1k", "--phase", "decode,prefill", "--q-len", "64")
    assert [(w.phase.name, w.q_len) for w in bench.workloads] == [("decode", 1), ("decode", 1), ("prefill", 64)]


def test_rows_are_written_as_they_finish(hsbench: Run, bench: object, tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    seen: list[int] = []

    def look(call: int) -> None:
        seen.append(len(rows(path.read_text())) if path.exists() else -1)

    bench.before = look
    assert hsbench("compare", "--seq", "1k,2k,4k", "--output", str(path)).code == 0
    assert seen == [-1, 2, 4]


def test_rows_without_a_call_of_finished_are_written_too(hsbench: Run, bench: object) -> None:
    bench.rows = lambda workload: [("dense", "ok"), ("hierarchical", "oom"), ("unstructured", "unsupported")]
    ran = hsbench("decode", "--format", "csv")
    assert [row["status"] for row in rows(ran.out)] == ["ok", "oom", "unsupported"]
    assert ran.code == 0


@pytest.mark.parametrize(
    ("statuses", "methods", "code"),
    [
        ({"dense": "ok", "hierarchical": "ok"}, None, 0),
        ({"dense": "ok", "hierarchical": "incorrect"}, None, 3),
        ({"dense": "unavailable", "hierarchical": "incorrect"}, "dense", 3),
        ({"dense": "ok", "hierarchical": "unavailable"}, None, 0),
        ({"dense": "ok", "hierarchical": "unavailable"}, "dense,hierarchical", 4),
        ({"sdpa:flash": "unavailable", "sdpa:math": "ok"}, "sdpa", 0),
        ({"sdpa:flash": "unavailable", "sdpa:math": "unavailable", "dense": "ok"}, "sdpa,dense", 4),
        ({"dense": "ok", "unstructured": "unsupported"}, "dense,unstructured", 0),
        ({"dense": "oom", "hierarchical": "oom"}, None, 4),
        ({"dense": "unsupported"}, "dense", 4),
    ],
)
def test_exit_codes(hsbench: Run, bench: object, statuses: dict[str, str], methods: str | None, code: int) -> None:
    bench.rows = lambda workload: list(statuses.items())
    argv = ["--methods", methods] if methods else []
    assert hsbench("decode", *argv).code == code


def test_a_method_that_runs_in_one_cell_is_available(hsbench: Run, bench: object) -> None:
    bench.rows = lambda w: [("dense", "ok"), ("hierarchical", "ok" if w.seq == 1024 else "unavailable")]
    assert hsbench("compare", "--seq", "1k,2k", "--methods", "dense,hierarchical").code == 0


def test_an_interrupted_sweep_keeps_its_rows(hsbench: Run, bench: object) -> None:
    bench.interrupt_at = 2
    ran = hsbench("compare", "--seq", "1k,2k,4k", "--methods", "dense:16bit,hierarchical:16bit")
    assert ran.code == 130
    found = [(row["seq"], row["method"], row["status"]) for row in rows(ran.out)]
    assert found == [
        ("1024", "dense", "ok"),
        ("1024", "hierarchical", "ok"),
        ("2048", "dense", "ok"),
        ("2048", "hierarchical", "interrupted"),
        ("4096", "dense", "interrupted"),
        ("4096", "hierarchical", "interrupted"),
    ]
    assert len(bench.calls) == 2
    assert "summary" in ran.err and "Traceback" not in ran.err


def test_an_interrupt_between_cells(hsbench: Run, bench: object) -> None:
    def interrupt(call: int) -> None:
        if call == 2:
            raise KeyboardInterrupt

    bench.before = interrupt
    ran = hsbench("compare", "--seq", "1k,2k", "--format", "json", "--methods", "dense:16bit,hierarchical:16bit")
    assert ran.code == 130
    document = json.loads(ran.out)
    assert [row["status"] for row in document["rows"]] == ["ok", "ok", "interrupted", "interrupted"]


def test_an_interrupt_of_the_first_cell_names_the_rows(hsbench: Run, bench: object) -> None:
    def interrupt(call: int) -> None:
        raise KeyboardInterrupt

    bench.before = interrupt
    ran = hsbench("decode", "--format", "csv")
    assert ran.code == 130
    assert {row["status"] for row in rows(ran.out)} == {"interrupted"}
    assert [row["method"] for row in rows(ran.out)] == [method.name for method in find_methods(None, DECODE, CPU)]


def test_an_interrupt_before_anything(hsbench: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(name: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("hsbench.machine.hardware.resolve_device", interrupt)
    ran = hsbench("decode")
    assert (ran.code, ran.out, ran.err) == (130, "", "hsbench: interrupted\n")


def test_warnings_once_on_stderr(hsbench: Run, bench: object) -> None:
    bench.before = lambda call: bench.calls[-1]["observer"].warning("the machine is\nshared")
    ran = hsbench("compare", "--seq", "1k,2k")
    assert ran.err.count("hsbench: warning: the machine is shared\n") == 1
    assert "warning: the machine" not in ran.out


def test_a_sequence_beyond_the_model_is_a_warning(hsbench: Run, bench: object) -> None:
    ran = hsbench("decode", "--workload", "Mistral-7B-v0.3", "--seq", "128k")
    assert ran.code == 0
    assert ran.err == "hsbench: warning: --seq 131072 is beyond the 32768 tokens of Mistral-7B-v0.3\n"


def save(path: Path, *, q_len: int = 5) -> Path:
    named = {f"layers.2.{n}": torch.zeros(1, 2, 96, 64).half() for n in "kv"}
    named["layers.2.q"] = torch.arange(q_len).half().view(1, 1, q_len, 1).expand(1, 8, q_len, 64).contiguous()
    save_file(named, path)
    return path


def test_captured_tensors_give_the_shape(hsbench: Run, bench: object, tmp_path: Path) -> None:
    path = save(tmp_path / "kv.safetensors")
    assert hsbench("decode", "--kv", str(path), "--seq", "96", "--layer", "2").code == 0
    assert hsbench("prefill", "--kv", str(path)).code == 0
    assert hsbench("prefill", "--kv", str(path), "--q-len", "2").code == 0
    for workload in bench.workloads:
        assert (workload.name, workload.tensors) == ("captured", "kv.safetensors#layers.2")
        assert (workload.q_heads, workload.kv_heads, workload.head_dim, workload.seq) == (8, 2, 64, 96)
    assert [workload.q_len for workload in bench.workloads] == [1, 5, 2]
    queries = [call["captured"].load("cpu").q[0, 0, :, 0].tolist() for call in bench.calls]
    assert queries == [[4], [0, 1, 2, 3, 4], [3, 4]]


def test_a_captured_sweep(hsbench: Run, bench: object, tmp_path: Path) -> None:
    path = save(tmp_path / "kv.safetensors")
    ran = hsbench("compare", "--kv", str(path), "--phase", "decode,prefill", "--sparsity", "0,0.5")
    assert ran.code == 0 and len(bench.calls) == 4
    assert [call["captured"].q_len for call in bench.calls] == [1, 1, 5, 5]


def test_heads_that_exceed_tokens_are_warned_of_once(hsbench: Run, bench: object, tmp_path: Path) -> None:
    path = tmp_path / "kv.safetensors"
    save_file({f"layers.0.{name}": torch.zeros(1, 96, 8, 64).half() for name in "qkv"}, path)
    ran = hsbench("compare", "--kv", str(path), "--phase", "decode,prefill", "--sparsity", "0,0.5")
    assert ran.code == 0 and len(bench.calls) == 4
    assert ran.err.count("warning") == 1
    assert "96 kv heads but only 8 tokens; if the tensors are [batch, seq, heads, head_dim]" in ran.err
    assert "save them with .transpose(1, 2)" in ran.err


def test_an_internal_error_is_one_line_and_a_hint(hsbench: Run, bench: object, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(call: int) -> None:
        raise ZeroDivisionError("two\nlines")

    bench.before = fail
    monkeypatch.delenv("HSBENCH_TRACEBACK", raising=False)
    ran = hsbench("decode")
    assert (ran.code, ran.out) == (1, "")
    first, hint = ran.err.splitlines()
    assert first == "hsbench: internal error: ZeroDivisionError: two lines"
    assert "HSBENCH_TRACEBACK=1" in hint
    monkeypatch.setenv("HSBENCH_TRACEBACK", "1")
    assert "Traceback (most recent call last)" in hsbench("decode").err


def test_rows_before_an_internal_error_are_kept(hsbench: Run, bench: object, tmp_path: Path) -> None:
    def fail(call: int) -> None:
        if call == 2:
            raise ZeroDivisionError

    bench.before = fail
    path = tmp_path / "r.json"
    assert hsbench("compare", "--seq", "1k,2k", "--output", str(path)).code == 1
    assert len(json.loads(path.read_text())["rows"]) == 2


def test_a_full_disk_says_so(hsbench: Run) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    ran = hsbench("decode", "--format", "csv", "--output", "/dev/full")
    assert ran.code == 1
    assert "cannot be written (No space left on device)" in ran.err
    assert "internal" not in ran.err


def test_doctor_to_a_full_disk_says_so(bench: object, monkeypatch: pytest.MonkeyPatch, capsys: object) -> None:
    class Full(io.StringIO):
        def flush(self) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("sys.stdout", Full())
    assert main(["doctor", "--format", "json"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("hsbench: error: stdout: cannot be written (No space left on device)")
    assert err.count("\n") == 1


def test_a_broken_pipe_is_quiet(bench: object, monkeypatch: pytest.MonkeyPatch, capsys: object) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr("sys.stdout", Gone())
    assert main(["compare", "--seq", "1k,2k,4k"]) == 0
    assert len(bench.calls) == 1  # nobody reads the rest, so it is not run
    assert capsys.readouterr().err == ""


def test_progress_on_a_terminal_stays_on_stderr(bench: object, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out, err = io.StringIO(), Terminal()
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", err)
    bench.before = lambda call: bench.calls[-1]["observer"].warning("shared")
    assert main(["compare", "--seq", "1k,2k"]) == 0
    assert len(rows(out.getvalue())) == 4
    assert "0/2" in err.getvalue() and "1/2" in err.getvalue()
    assert "decode Llama-3.1-8B seq 1024" in err.getvalue() and "generate" in err.getvalue()
    assert "hsbench: warning: shared" in err.getvalue()


def test_rows_on_a_terminal_step_around_the_bar(bench: object, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setattr("sys.stderr", screen)
    assert main(["compare", "--seq", "1k"]) == 0
    lines = screen.getvalue().splitlines()
    assert any(line.endswith(",".join(COLUMNS)) for line in lines)


def test_no_thread_redraws_during_samples(bench: object, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stderr", Terminal())
    counts: list[int] = []
    before = threading.active_count()
    bench.before = lambda call: counts.append(threading.active_count())
    main(["compare", "--seq", "1k"])
    assert counts == [before]


def test_settings_are_the_run_s_own(bench: object, hsbench: Run) -> None:
    from hsbench.run.settings import Settings

    hsbench("decode", "--time", "2")
    settings = bench.calls[0]["settings"]
    assert isinstance(settings, Settings) and not isinstance(settings, SimpleNamespace)
