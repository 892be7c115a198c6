"""Out of memory: which errors mean it, what they keep alive, and that a cell which meets one is rows, wherever it does.

The cells here are small and real. What fails is put in the way of one of their steps; one test has a real limit.
"""

from __future__ import annotations

import csv
import errno
import gc
import io
import mmap
import os
import resource
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hsbench import measure
from hsbench.errors import UnavailableError, UnsupportedError
from hsbench.kernels import library
from hsbench.kernels.device import CPU
from hsbench.kernels.library import NativeError
from hsbench.machine import ceilings
from hsbench.measure.out_of_memory import is_out_of_memory, let_go
from hsbench.methods import sdpa
from hsbench.methods.reference import Reference
from hsbench.problem.captured import open_captured
from hsbench.problem.synthetic import make_inputs
from hsbench.problem.workload import Workload, make_workload
from hsbench.results import Report
from hsbench.run import accounting, check, stages
from hsbench.run.measuring import run_workload
from hsbench.run.settings import Settings

MISSING = library.why_missing("cpu")
needs_native = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
QUICK = Settings(budget_s=0.02, min_samples=3, max_samples=3, target=0.0)
METHODS = ("reference", "sdpa:flash")


# ---- Which errors ------------------------------------------------------------------------------------------
def of(failing: Callable[[], object]) -> Exception:
    try:
        failing()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def chained(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


MEANT = {
    "Python": lambda: MemoryError(),
    "numpy": lambda: of(lambda: np.zeros(1 << 60, np.uint8)),
    "torch, CPU": lambda: of(lambda: torch.empty(1 << 60, dtype=torch.uint8)),
    "torch, CUDA": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "a driver's": lambda: RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
    "cuBLAS": lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "a mapping": lambda: of(lambda: mmap.mmap(-1, 1 << 60)),
    "a file's mapping": lambda: RuntimeError("unable to mmap 1073743120 bytes from <f>: Cannot allocate memory (12)"),
    "our C++": lambda: NativeError("hsb_cpu_compress: std::bad_alloc"),
    "our CUDA": lambda: NativeError("hsb_cuda_decode: csrc/x.cu:7: cudaMalloc(&p, n): out of memory"),
    "the system": lambda: OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
    "wrapped": lambda: chained(UnavailableError("--kv f: no room"), MemoryError()),
}
NOT_MEANT = {
    "a bug": lambda: ZeroDivisionError("out of memory"),
    "a value": lambda: ValueError("'out of memory' is no name"),
    "another of C++": lambda: NativeError("hsb_cpu_decode: csrc/x.cpp:7: seq > 0: seq must be positive"),
    "another of the system": lambda: OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    "another of torch": lambda: of(lambda: torch.ones(2) @ torch.ones(3)),
    "a refusal": lambda: UnsupportedError("torch says: out of memory formats"),
    "met on the way": lambda: of(lambda: met_on_the_way()),
}


def met_on_the_way() -> None:
    try:
        raise MemoryError
    except MemoryError:
        raise KeyError("a bug in the handler")  # noqa: B904 - not raised from it


@pytest.mark.parametrize("kind", MEANT)
def test_errors_that_mean_it(kind: str) -> None:
    assert is_out_of_memory(MEANT[kind]())


@pytest.mark.parametrize("kind", NOT_MEANT)
def test_errors_that_do_not(kind: str) -> None:
    assert not is_out_of_memory(NOT_MEANT[kind]())


@pytest.mark.parametrize(
    "error",
    [RuntimeError("can't start new thread"), NativeError("hsb_cpu_decode: Resource temporarily unavailable")],
    ids=["Python", "C++"],
)
def test_a_thread_may_lack_memory_or_may_not_be_allowed(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "free_memory", lambda device: measure.FreeMemory(4 << 20, "ulimit -v"))
    assert is_out_of_memory(error)
    monkeypatch.setattr(measure, "free_memory", lambda device: measure.FreeMemory(1 << 40))  # too many of them, then
    assert not is_out_of_memory(error)


def test_what_the_frames_held_is_free() -> None:
    held: list[weakref.ref[torch.Tensor]] = []

    def inner() -> None:
        tensor = torch.empty(1000)
        held.append(weakref.ref(tensor))
        raise MemoryError

    def outer() -> None:
        try:
            inner()
        except MemoryError as error:
            raise UnavailableError("no room") from error

    error = of(outer)
    assert held[0]() is not None
    let_go(error)
    assert held[0]() is None and error.__traceback__ is None


# ---- Cells -------------------------------------------------------------------------------------------------
def quick(device: str, kind: str) -> measure.Ceiling:
    return measure.Ceiling(kind, "GB/s", 1e-3, lambda: None, "native")


@pytest.fixture(autouse=True)
def quick_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "ceiling", quick)
    monkeypatch.setattr(measure, "OtherLoad", lambda: SimpleNamespace(share=lambda: 0.0))


def cell(**overrides: Any) -> Workload:
    return make_workload("decode", **({"q_heads": 4, "kv_heads": 2, "head_dim": 64, "seq": 300} | overrides))


def run(*methods: str, **options: Any) -> Report:
    return run_workload(cell(), methods=methods or METHODS, device=CPU, settings=QUICK, **options)


def statuses(report: Report) -> dict[str, str]:
    return {result.record.method: result.record.status for result in report.results}


def failing(error: Callable[[], Exception]) -> Callable[..., Any]:
    def fail(*arguments: object, **named: object) -> Any:
        raise error()

    return fail


STEPS = {
    "inputs": (stages, "make_inputs", "generating q, k, v"),
    "cache policy": (measure, "policy", "making the buffers that measuring takes"),
    "ceiling": (ceilings, "ceiling", "making the buffers that measuring takes"),
    "sampling": (measure, "sample_in_turn", "sampling in turn"),
}


@pytest.mark.parametrize("step", STEPS)
def test_what_all_rows_share_is_all_rows(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, doing = STEPS[step]
    monkeypatch.setattr(owner, name, failing(MEANT["torch, CPU"]))
    report = run()
    assert statuses(report) == dict.fromkeys(METHODS, "oom") and not report.interrupted
    for result in report.results:
        assert result.record.reason.startswith(f"ran out of memory while {doing}: give a smaller --seq")
    monkeypatch.undo()
    monkeypatch.setattr(ceilings, "ceiling", quick)
    assert statuses(run()) == dict.fromkeys(METHODS, "ok"), "the sweep goes on"


@pytest.mark.parametrize("step", STEPS)
def test_a_bug_in_the_same_place_is_no_row(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, _ = STEPS[step]
    monkeypatch.setattr(owner, name, failing(lambda: ZeroDivisionError("a bug")))
    with pytest.raises(ZeroDivisionError, match="a bug"):
        run()


def test_a_flush_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hsbench.measure.cache._slice_bytes", lambda: {0: 1 << 60})
    assert statuses(run()) == dict.fromkeys(METHODS, "oom")


def test_a_flush_without_room_for_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    real = measure.free_memory
    started: list[threading.Thread] = []

    def start(thread: threading.Thread) -> None:
        started.append(thread)
        raise RuntimeError("can't start new thread")

    def free_memory(device: str) -> measure.FreeMemory | None:
        return measure.FreeMemory(1 << 20, "ulimit -v") if started else real(device)

    monkeypatch.setattr("hsbench.measure.cache.threading.Thread", type("Thread", (threading.Thread,), {"start": start}))
    monkeypatch.setattr(measure, "free_memory", free_memory)
    assert statuses(run()) == dict.fromkeys(METHODS, "oom") and started


def test_a_check_that_cannot_be_made_after_the_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = check.compare, []

    def compare(*arguments: Any) -> check.Verdict:
        calls.append(arguments)
        if len(calls) == len(METHODS) + 1:  # the first row's, after its samples
            raise MEANT["torch, CPU"]()
        return real(*arguments)

    monkeypatch.setattr(check, "compare", compare)
    report = run()
    assert statuses(report) == {"reference": "oom", "sdpa:flash": "ok"}
    assert report.results[0].record.measures.time_us is None


@needs_native
def test_what_our_library_could_not_allocate_is_the_methods_row(monkeypatch: pytest.MonkeyPatch) -> None:
    real = library.Library.call

    def call(self: library.Library, function: str, params: Any) -> None:
        if function == "hsb_cpu_compress_bitmap":
            raise MEANT["our C++"]()
        real(self, function, params)

    monkeypatch.setattr(library.Library, "call", call)
    assert statuses(run("dense:16bit", "unstructured")) == {"dense": "ok", "unstructured": "oom"}


@pytest.mark.parametrize("error", ["Python", "a file's mapping", "the system"])
def test_a_file_that_has_no_room_is_not_damaged(error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "kv.safetensors"
    q, k, v = torch.ones(1, 4, 1, 64).half(), torch.ones(1, 2, 300, 64).half(), torch.ones(1, 2, 300, 64).half()
    save_file({"layers.0.q": q, "layers.0.k": k, "layers.0.v": v}, path)
    captured = open_captured(path)
    monkeypatch.setattr("safetensors.safe_open", failing(MEANT[error]))
    with pytest.raises(UnavailableError, match="no room in memory for it"):
        open_captured(path)
    assert set(statuses(run(captured=captured)).values()) == {"oom"}


def test_a_backend_that_has_no_room_to_try_does_not_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    def attention(*arguments: Any, **named: Any) -> torch.Tensor:
        raise MEANT["torch, CPU"]()

    monkeypatch.setattr(sdpa, "scaled_dot_product_attention", attention)
    assert statuses(run()) == {"reference": "ok", "sdpa:flash": "oom"}


@needs_native
def test_a_note_that_cannot_be_made_does_not_cost_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounting, "compress_note", failing(MEANT["our C++"]))
    report = run("dense:16bit", "hierarchical:16bit")
    assert statuses(report) == {"dense": "ok", "hierarchical": "ok"}
    assert "ran out of memory" in report.results[1].note and report.results[1].record.measures.speedup is not None


# ---- Nothing of a cell stays -------------------------------------------------------------------------------
@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[weakref.ref[torch.Tensor]]]:
    """The tensors of the cells, by weak references; nothing but reference counts frees what comes after a cell."""
    refs: list[weakref.ref[torch.Tensor]] = []

    def remembered(workload: Workload, device: str) -> Any:
        inputs = make_inputs(workload, device)
        refs.extend(map(weakref.ref, (inputs.q, inputs.k, inputs.v)))
        return inputs

    monkeypatch.setattr(stages, "make_inputs", remembered)
    gc.collect()
    gc.disable()
    yield refs
    gc.enable()


def left_over(refs: list[weakref.ref[torch.Tensor]]) -> int:
    return sum(ref() is not None for ref in refs)


def test_a_cell_that_is_done_is_gone(made: list[weakref.ref[torch.Tensor]]) -> None:
    report = run(*METHODS, *(() if MISSING else ("dense", "hierarchical", "unstructured")))
    assert set(statuses(report).values()) == {"ok"}
    assert len(made) == 3 and left_over(made) == 0


@pytest.mark.parametrize("step", ["prepare", "check", "cache policy", "ceiling", "sampling"])
def test_a_cell_that_ran_out_is_gone(
    step: str, made: list[weakref.ref[torch.Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = STEPS | {"prepare": (Reference, "prepare", None), "check": (check, "expect", None)}
    owner, name, _ = steps[step]
    monkeypatch.setattr(owner, name, failing(MEANT["torch, CPU"]))
    report = run("reference")
    assert statuses(report) == {"reference": "oom"} and len(made) == 3 and left_over(made) == 0


def test_a_cell_whose_sample_ran_out_is_gone(
    made: list[weakref.ref[torch.Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first run is the check's, the second the warm-up's, the third a sample's.
    monkeypatch.setattr("hsbench.methods.sdpa._Prepared.run", ran_out_at(3, sdpa._Prepared.run))
    monkeypatch.setattr(sdpa, "_refusal", lambda prepared, workload: None)
    report = run("sdpa:flash")
    assert statuses(report) == {"sdpa:flash": "oom"} and len(made) == 3 and left_over(made) == 0


def ran_out_at(at: int, real: Callable[[Any], None]) -> Callable[[Any], None]:
    calls = []

    def run(self: Any) -> None:
        calls.append(1)
        large = torch.empty_like(self.inputs.k)  # a local of a frame that the error keeps
        if len(calls) == at:
            raise MemoryError(str(large.shape))
        real(self)

    return run


def test_ceilings_do_not_outlive_their_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(ceilings, "_PROBE_BYTES", {CPU.kind: 1 << 20})
    monkeypatch.setattr(measure, "last_level_cache_bytes", lambda device: 1 << 16)
    ceiling = ceilings.ceiling(CPU, "read")
    gone = weakref.ref(ceiling.run)
    del ceiling
    assert gone() is None


# ---- A real limit ------------------------------------------------------------------------------------------
_MAPPED = """
from hsbench import measure
from hsbench.machine import hardware
from hsbench.run import measuring
print(int(open("/proc/self/statm").read().split()[0]) * 4096)
"""
_UNSEEING = """
from hsbench.run import fit
fit.Fit.refusal = lambda self, method: None
from hsbench.cli.main import main
raise SystemExit(main())
"""
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@pytest.fixture(scope="module")
def room() -> tuple[int, int]:
    """A limit on address space under which small cells fit, and a number of tokens that does not."""
    mapped = subprocess.run([sys.executable, "-c", _MAPPED], capture_output=True, text=True, check=True)
    heaps = (os.cpu_count() or 1) * (80 << 20)  # what the C library sets aside per thread, and a stack
    free = (3 << 29) + 8 * measure.last_level_cache_bytes(CPU) + heaps
    return int(mapped.stdout) + free, free >> 20 << 10


def sweep(limit: int, *seqs: object, code: str | None = None) -> list[tuple[str, str, str, str]]:
    """Length, method, status and reason of each row of a sweep with so much address space."""
    command = ["compare", "--device", "cpu", "--methods", "sdpa:flash,reference", "--time", "0.1", "--format", "csv"]
    shape = ["--q-heads", "4", "--kv-heads", "4", "--head-dim", "64", "--seq", ",".join(map(str, seqs))]
    done = subprocess.run(
        [sys.executable, *(["-c", code] if code else ["-m", "hsbench"]), *command, *shape],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert done.returncode == 0, done.stderr
    rows = csv.DictReader(io.StringIO(done.stdout))
    return [(row["seq"], row["method"], row["status"], row["reason"]) for row in rows]


@pytest.mark.slow
@linux
def test_the_order_of_cells_does_not_decide_what_runs_under_a_limit(room: tuple[int, int]) -> None:
    limit, large = room
    first, second = sweep(limit, 1024, large, 2048), sweep(limit, large, 2048, 1024)
    assert len(first) == len(second) == 6
    assert {row[:3] for row in first} == {row[:3] for row in second}
    for seq, _, status, reason in first + second:
        assert status == ("oom" if seq == str(large) else "ok")
        assert status == "ok" or "GiB is free under ulimit -v: give a smaller --seq" in reason


@pytest.mark.slow
@linux
def test_a_sweep_that_did_not_see_it_coming_goes_on(room: tuple[int, int]) -> None:
    """Without estimates, the large cell meets the limit by itself."""
    limit, large = room
    rows = sweep(limit, 1024, large, 2048, code=_UNSEEING)
    assert [status for _, _, status, _ in rows] == ["ok", "ok", "oom", "oom", "ok", "ok"]
    assert all("ran out of memory" in reason for _, _, status, reason in rows if status == "oom")
