"""Pages of V in groups along head_dim: nothing lost between pack and unpack, in as many bytes as along tokens, and of
what 2:4 along head_dim keeps. What a tensor core makes of CUDA's is in test_cuda_layout.py."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from hsbench.cache.fit import Fit, fit_pruner
from hsbench.cache.layouts import HEAD_DIM_LAYOUTS, LAYOUTS
from hsbench.cache.packing import compress_tensor_torch
from hsbench.cache.prune import BLOCK, BlockKind, choose_blocks, keep_2_of_4, plan_blocks, prune_hierarchical
from hsbench.cache.pruner import pruner_of
from hsbench.cache.quantise import ROUNDED
from hsbench.problem.elements import SIXTEEN_BIT, STORED_FP8, StoredElements, element_by

DTYPES = (torch.float16, torch.bfloat16)
HEAD_DIMS = (64, 128)
TABLES = [(device, elements) for device, table in HEAD_DIM_LAYOUTS.items() for elements in table]

for_every_table = pytest.mark.parametrize(("device", "elements"), TABLES, ids=str)
for_every_block = [pytest.mark.parametrize("head_dim", HEAD_DIMS), pytest.mark.parametrize("dtype", DTYPES)]
pytestmark = pytest.mark.usefixtures("one_torch_thread")


def blocks_of(dtype: torch.dtype, head_dim: int, pages: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(head_dim)
    x = torch.randn(pages, BLOCK, head_dim, generator=generator)
    x[0] = x[0].mul(4).round().div(4)  # ties, zeros
    return x.to(dtype)


@for_every_table
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_comes_back(device: str, elements: StoredElements, dtype: torch.dtype, head_dim: int) -> None:
    """2 of 4 along head_dim, and of what is not 2:4 everything, in as many bytes as pages along tokens have."""
    x = blocks_of(dtype, head_dim)
    element = elements.of(element_by(dtype))
    for kind, page in HEAD_DIM_LAYOUTS[device][elements].items():
        stored = x.float() if elements.has_scale else x
        pages = page.pack(stored, "v", None)
        assert pages.dtype == torch.uint8 and pages.is_contiguous()
        assert pages.shape == (len(x), page.nbytes(head_dim, element))
        along_tokens = LAYOUTS[device][elements][kind].nbytes(head_dim, element)
        assert device == "cpu" or pages.shape[1] == along_tokens
        assert along_tokens <= pages.shape[1] <= 1.09 * along_tokens
        back = page.unpack(pages, "v", dtype, head_dim)
        want = ROUNDED[elements](stored, "v") if elements.has_scale and kind != BlockKind.WIDE else stored
        if kind == BlockKind.SPARSE_2_4:
            want = torch.where(keep_2_of_4(stored, -1), want, 0.0)
        assert torch.equal(back, want)


@for_every_table
def test_every_pair_of_kept_positions(device: str, elements: StoredElements) -> None:
    pairs = list(itertools.combinations(range(4), 2))
    page = HEAD_DIM_LAYOUTS[device][elements][BlockKind.SPARSE_2_4]
    for shift in range(len(pairs)):
        groups = torch.full((BLOCK * 16, 4), 0.25)
        for i, group in enumerate(groups):
            first, second = pairs[(i + i // 16 + shift) % len(pairs)]
            group[first], group[second] = 1 + i % 8 / 8, -2 - i % 8 / 4  # numbers of e4m3
        block = groups.view(1, BLOCK, BLOCK)
        block = block if elements.has_scale else block.half()
        got = page.unpack(page.pack(block, "v", None), "v", torch.float16, BLOCK)
        want = ROUNDED[elements](block, "v") if elements.has_scale else block
        assert torch.equal(got, torch.where(block.abs() >= 1, want, 0))


@pytest.mark.parametrize("elements", [SIXTEEN_BIT, STORED_FP8], ids=str)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_cache_is_the_definition(dtype: torch.dtype, head_dim: int, elements: StoredElements) -> None:
    """Blocks are chosen, and elements kept, by what 2:4 along head_dim loses, wherever the tensor lies."""
    generator = torch.Generator().manual_seed(head_dim)
    v = (torch.randn(2, 2, 700, head_dim, generator=generator) + 1).to(dtype)
    plan = plan_blocks(700, 0.3, sink=3, local=70)
    _, fit = fit_pruner(pruner_of("mirror:hd"), v, v, [plan, plan], elements=elements)
    assert fit.groups == "k" and fit.value_axis == "head_dim" and Fit("v").groups == "v"
    pages = compress_tensor_torch(v, "v", plan, fit, elements)
    assert pages.value_axis == "head_dim"
    chosen = choose_blocks(v, "k", plan)
    assert not torch.equal(chosen, choose_blocks(v, "v", plan)), "the data must tell them apart"
    left = prune_hierarchical(v, "k", chosen)
    if not elements.has_scale:
        assert torch.equal(pages.unpack(), left)
        return
    error = (pages.unpack() - left.float()).abs()
    assert bool((error <= left.float().abs() / 16 + fit.scale.unsqueeze(2) * 2**-10).all())
