"""``hsbench.distributed.decode`` over NCCL: in a group of one rank, which one GPU is enough for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

import hsbench
import hsbench.distributed

pytestmark = pytest.mark.gpu

Tensor = torch.Tensor


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of this process."""
    if not dist.is_nccl_available():
        pytest.skip("torch is built without NCCL")
    device = torch.device("cuda", torch.cuda.current_device())
    dist.init_process_group(
        "cpu:gloo,cuda:nccl", store=dist.HashStore(), rank=0, world_size=1, device_id=device
    )  # fmt: skip
    yield
    torch.cuda.synchronize()
    dist.destroy_process_group()


def problem() -> tuple[Tensor, hsbench.HierarchicalKV]:
    torch.manual_seed(0)
    q = torch.randn(2, 16, 1, 128, device="cuda", dtype=torch.bfloat16)
    k, v = (torch.randn(2, 4, 1000, 128, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return q, hsbench.compress(k, v)


def test_one_rank_is_one_cache(alone: None) -> None:
    q, kv = problem()
    for found, right in zip(hsbench.distributed.decode(q, kv), hsbench.decode(q, kv), strict=True):
        assert torch.equal(found, right)


def test_a_graph_holds_it(alone: None) -> None:
    q, kv = problem()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # loads what is loaded once
        hsbench.distributed.decode(q, kv)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, lse = hsbench.distributed.decode(q, kv)
    for seed in range(3):
        torch.manual_seed(seed)
        q.normal_()
        graph.replay()
        right, right_lse = hsbench.decode(q, kv)
        assert torch.equal(out, right) and torch.equal(lse, right_lse)
    del graph  # before the communicator that it uses
