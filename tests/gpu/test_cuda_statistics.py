"""Norms of tokens from the CUDA library, bit for bit the definition's; and caches of every pruner, which they weigh."""

from __future__ import annotations

import itertools

import pytest
import torch

from compress_cases import DTYPES, KINDS, every_dtype, make_data, make_fit
from hsbench.cache.fit import fit_pruner
from hsbench.cache.packing import PageCompressor, compress_tensor_torch
from hsbench.cache.prune import plan_blocks
from hsbench.cache.pruner import PRUNERS, pruner_for
from hsbench.cache.statistics import squared_norms, squared_norms_torch
from hsbench.problem.elements import STORED, StoredElements

DEVICE = "cuda"
pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("kind", KINDS)
@every_dtype
def test_norms_equal_the_definition(dtype: torch.dtype, kind: str) -> None:
    for head_dim, seq, fit in itertools.product((64, 128), (1, 333, 2048), ("fold", "shift", "beyond")):
        x = make_data(kind, (2, 2, seq, head_dim), dtype, seed=seq)
        made = make_fit(fit, x, "v")
        shift = None if made.shift is None else made.shift.to(DEVICE)
        norms, largest = squared_norms(x.to(DEVICE), shift)
        expected = squared_norms_torch(made.stored(x))
        assert torch.equal(norms.cpu(), expected[0]), (head_dim, seq, fit)
        assert torch.equal(largest.cpu(), expected[1]), (head_dim, seq, fit)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5])
@pytest.mark.parametrize("name", PRUNERS)
@pytest.mark.parametrize("elements", STORED.values(), ids=str)
def test_bytes_under_every_pruner_are_the_definitions(elements: StoredElements, name: str, share: float) -> None:
    generator = torch.Generator(DEVICE).manual_seed(0)
    for dtype, (head_dim, seq) in itertools.product(DTYPES, ((64, 333), (128, 640))):

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator, device=DEVICE)

        k, v = (
            (5 * normal(2, 3, 1, head_dim) + normal(2, 3, seq, head_dim) * normal(2, 3, seq, 1)).to(dtype)
            for _ in range(2)
        )
        q, rms = normal(2, 6, 40, head_dim).to(dtype), normal(3, head_dim).abs()
        plan = plan_blocks(seq, share, sink=1)
        pruner = pruner_for(PRUNERS[name], elements)
        fits = fit_pruner(pruner, k, v, [plan] * 2, query_rms=rms, queries=q, elements=elements)
        for x, fit in zip((k, v), fits, strict=True):
            compressor = PageCompressor(x, fit.operand, plan, fit, elements)
            for _ in range(2):  # as often as it is called
                compressor.run()
            compressor.check()
            expected = compress_tensor_torch(x, fit.operand, plan, fit, elements)
            assert torch.equal(compressor.pages.map, expected.map)
            for kind, pool in expected.pools.items():
                assert torch.equal(compressor.pages.pools[kind], pool), (fit.operand, kind, dtype, head_dim)
