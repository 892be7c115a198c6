"""Each method's part of a sequence: what it gives, combined over the parts, is attention over all of it."""

from __future__ import annotations

import pytest
import torch

from hsbench.attention.combine import combine
from hsbench.attention.reference import attention
from hsbench.distributed.shards import shards_of
from hsbench.kernels.device import Device
from hsbench.methods import find_methods
from hsbench.problem.phase import PHASES
from hsbench.problem.synthetic import make_inputs
from hsbench.problem.workload import Workload, make_workload
from hsbench.run.plan import part_of

#: Of decode and of prefill.
METHODS = {
    "decode": [
        "dense",
        "dense:fp8",
        "hierarchical",
        "hierarchical:fp8",
        "reference",
        "sdpa:flash-rows",
        "unstructured",
    ],
    "prefill": ["dense", "hierarchical"],
}
ON_CUDA = {"decode": ["sdpa:cudnn-rows", "sdpa:mem-efficient-rows"], "prefill": ["dense:sm80", "hierarchical:sm80"]}


def workload(phase: str, head_dim: int = 64) -> Workload:
    more = {"q_len": 150} if phase == "prefill" else {}
    return make_workload(
        phase, q_heads=8, kv_heads=2, head_dim=head_dim, seq=1000, batch=2, sink=70, local=100, pruner="mirror", **more
    )


def cases() -> list[tuple[str, str]]:
    return [(phase, name) for phase, names in METHODS.items() for name in names]


def check_parts(phase: str, name: str, device: Device, ranks: int, head_dim: int = 64) -> None:
    """Runs a method's parts one after another, and holds their combination against fp32."""
    whole = workload(phase, head_dim)
    (method,) = find_methods([name], whole.phase, device, rows_alone=True)
    parts, keys, values = [], [], []
    for shard in shards_of(whole.seq, ranks):
        part = part_of(whole, shard)
        assert method.why_not_sharded(part) is None and method.unsupported(part, device) is None
        inputs = make_inputs(whole, device, slice(shard.first, shard.last))
        prepared = method.prepare_part(part, inputs)
        prepared.poison()
        prepared.run()
        assert prepared.lse is not None
        parts.append((prepared.out, prepared.lse))
        heads = [[prepared.pruned(b, h) or (inputs.k[b, h], inputs.v[b, h]) for h in range(2)] for b in range(2)]
        keys.append(torch.stack([torch.stack([k for k, _ in row]) for row in heads]).float())
        values.append(torch.stack([torch.stack([v for _, v in row]) for row in heads]).float())
    outs, lses = zip(*parts, strict=True)
    out, lse = combine(torch.stack(outs), torch.stack(lses))
    right, right_lse = attention(inputs.q, torch.cat(keys, 2), torch.cat(values, 2))
    assert (out - right).norm() <= 1e-3 * right.norm()
    assert (lse - right_lse).abs().max() <= 1e-3 * right_lse.abs().max().clamp(min=1.0)


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize(("phase", "name"), cases())
def test_parts_are_the_whole(phase: str, name: str, ranks: int) -> None:
    check_parts(phase, name, Device("cpu"), ranks)


@pytest.mark.gpu
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize(
    ("phase", "name"), cases() + [(phase, name) for phase, names in ON_CUDA.items() for name in names]
)
def test_parts_are_the_whole_on_a_gpu(phase: str, name: str, head_dim: int) -> None:
    check_parts(phase, name, Device("cuda"), 3, head_dim)


@pytest.mark.parametrize(
    ("phase", "name", "why"),
    [
        ("decode", "evict", "over the whole sequence"),
        ("decode", "sdpa:math-rows", "no log-sum-exp"),
        ("decode", "sdpa:flash", "ask for sdpa:flash-rows"),
        ("prefill", "sdpa:flash", "causal"),
    ],
)
def test_methods_that_have_no_parts_say_why(phase: str, name: str, why: str) -> None:
    (method,) = find_methods([name], PHASES[phase], Device("cpu"), rows_alone=True)
    assert why in (method.why_not_sharded(workload(phase)) or "")
