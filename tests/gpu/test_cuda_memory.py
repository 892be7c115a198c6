"""Memory of a GPU over several cells: each finds what the first one found, whatever ran before it."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch

from hsbench import measure
from hsbench.kernels.device import CUDA
from hsbench.problem.inputs import Inputs
from hsbench.problem.workload import Workload, make_workload
from hsbench.results import Report
from hsbench.run import stages
from hsbench.run.measuring import run_workload
from hsbench.run.settings import Settings

pytestmark = pytest.mark.gpu

QUICK = Settings(budget_s=0.05, min_samples=3, max_samples=3, target=0.0)
SEQ = 65536
OF_16_BITS = ("dense:16bit", "hierarchical:16bit")  # their families would bring a row of fp8 each
_PER_BATCH = 2 * 8 * SEQ * 128 * 2  # bytes of K and V: 256 MiB


@pytest.fixture(autouse=True)
def empty_card(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tensors made on the GPU, for these tests are not about their values; nothing left over from other tests."""

    def inputs(workload: Workload, device: str) -> Inputs:
        def normal(heads: int, tokens: int) -> torch.Tensor:
            shape = (workload.batch, heads, tokens, workload.head_dim)
            return torch.randn(shape, dtype=torch.float16, device=str(device))

        q, k, v = normal(workload.q_heads, workload.q_len), *(normal(workload.kv_heads, workload.seq) for _ in "kv")
        return Inputs(q, k, v, source=workload.tensors)

    monkeypatch.setattr(stages, "make_inputs", inputs)
    gc.collect()
    torch.cuda.empty_cache()
    yield
    gc.collect()
    torch.cuda.empty_cache()


def cell(share: float) -> Workload:
    """Decode over a K and V that take a share of what is free now."""
    batch = int(share * torch.cuda.mem_get_info()[0] / _PER_BATCH)
    return make_workload("decode", batch=batch, q_heads=32, kv_heads=8, head_dim=128, seq=SEQ)


def run(workload: Workload, *methods: str) -> Report:
    return run_workload(workload, methods=methods, device=CUDA, settings=QUICK)


def rows(report: Report) -> dict[str, str]:
    return {result.record.method: result.record.reason or result.record.status for result in report.results}


def test_a_cell_that_fits_runs_after_a_large_one() -> None:
    large, small = cell(0.2), make_workload("decode", batch=1, q_heads=32, kv_heads=8, head_dim=128, seq=SEQ)
    before = torch.cuda.memory_allocated()
    assert rows(run(large, *OF_16_BITS)) == {"dense": "ok", "hierarchical": "ok"}
    assert torch.cuda.memory_allocated() - before < 64 << 20, "what a cell made is gone with it (cuBLAS keeps some)"
    assert rows(run(large, *OF_16_BITS)) == {"dense": "ok", "hierarchical": "ok"}
    assert rows(run(small, OF_16_BITS[0])) == {"dense": "ok"}
    assert rows(run(large, *OF_16_BITS)) == {"dense": "ok", "hierarchical": "ok"}


def test_what_torch_keeps_is_free_and_is_given_back() -> None:
    empty = measure.free_memory(CUDA).nbytes
    block = torch.empty(8 << 30, dtype=torch.uint8, device="cuda")
    assert abs(empty - measure.free_memory(CUDA).nbytes - (8 << 30)) < 64 << 20
    del block
    assert torch.cuda.mem_get_info()[0] < empty - (7 << 30), "torch keeps it"
    assert abs(empty - measure.free_memory(CUDA).nbytes) < 64 << 20
    measure.release_memory(CUDA)
    assert torch.cuda.mem_get_info()[0] > empty - (64 << 20)


def test_a_cell_that_ran_out_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unseen by the estimate: the second copy of 0.6 of the card does not fit, and the cell after it does."""
    large = cell(0.6)
    before = torch.cuda.memory_allocated()
    with monkeypatch.context() as patch:
        patch.setattr("hsbench.run.fit.Fit.refusal", lambda self, method: None)
        assert rows(run(large, OF_16_BITS[0]))["dense"].startswith("ran out of memory")
    assert torch.cuda.memory_allocated() - before < 64 << 20
    assert rows(run(cell(0.2), *OF_16_BITS)) == {"dense": "ok", "hierarchical": "ok"}
