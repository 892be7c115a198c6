"""The parts that only a real CUDA device can show."""

from __future__ import annotations

import time

import pytest

from hsbench.kernels.device import CUDA
from hsbench.measure import CudaClock, Flusher, last_level_cache_bytes, take_sample
from hsbench.measure.clock import ClockError
from hsbench.measure.probes import copy_ceiling, gemm_ceiling, probe, read_ceiling

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def torch():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch


def test_the_clock_does_not_time_the_host(torch):
    x = torch.ones(1 << 10, device="cuda")
    clock = CudaClock()

    def lazy() -> None:
        x.add_(1)
        time.sleep(0.005)
        x.add_(1)

    assert take_sample(clock, lambda: x.add_(1)) < 100e-6
    assert take_sample(clock, lazy) < 1e-3


def test_a_run_that_waits_is_refused(torch):
    x = torch.ones(1 << 10, device="cuda")
    with pytest.raises(ClockError):
        take_sample(CudaClock(max_block_s=0.02), lambda: x.sum().item())


def test_device_time_agrees_with_a_long_host_time(torch):
    x = torch.randn(4096, 4096, device="cuda")

    def run() -> None:
        for _ in range(50):
            torch.mm(x, x)

    clock = CudaClock()
    take_sample(clock, run)
    device = take_sample(clock, run)
    torch.cuda.synchronize()
    begin = time.perf_counter()
    run()
    torch.cuda.synchronize()
    assert device == pytest.approx(time.perf_counter() - begin, rel=0.15)


def test_a_flush_makes_a_small_read_slower(torch):
    x = torch.ones(last_level_cache_bytes(CUDA) // 16, device="cuda")  # a quarter of the L2
    out = torch.empty((), device="cuda")
    clock, flush = CudaClock(), Flusher(CUDA)

    def run() -> None:
        torch.amax(x, dim=0, out=out)

    take_sample(clock, run)
    warm = sorted(take_sample(clock, run, run) for _ in range(15))[7]
    cold = sorted(take_sample(clock, run, flush) for _ in range(15))[7]
    assert cold > 1.1 * warm


def test_ceilings_are_those_of_a_gpu(torch):
    assert probe(copy_ceiling(CUDA), CudaClock()).value > 100
    assert probe(read_ceiling(CUDA), CudaClock()).value > 100
    assert probe(gemm_ceiling(CUDA, torch.float16, "fp16"), CudaClock()).value > 5
