"""What a pruner leaves by its definition alone, against real caches and by hand where there are none."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from hsbench.cache.fit import channel_order
from hsbench.cache.fitted import compress_kv
from hsbench.cache.pruner import PRUNERS, pruner_of
from hsbench.cache.simulate import simulate
from hsbench.errors import NonFiniteError, UsageError
from hsbench.kernels import library

DTYPES = [pytest.param(dtype, id=str(dtype)[6:]) for dtype in (torch.float16, torch.bfloat16)]
MISSING = library.why_missing("cpu")
needs_library = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
pytestmark = pytest.mark.usefixtures("one_torch_thread")


def tensors(dtype: torch.dtype = torch.float16, seq: int = 333, head_dim: int = 64) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seq + head_dim)
    k, v = (torch.randn(2, 3, seq, head_dim, generator=random) for _ in range(2))
    return (k + 4).to(dtype), v.to(dtype)


def sources(head_dim: int = 64) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(1)
    queries = torch.randn(2, 6, 9, head_dim, generator=random).half()
    return {"queries": queries, "query_rms": torch.rand(3, head_dim, generator=random)}


@pytest.mark.parametrize("shares", [(0.0, 0.5), (0.5, 0.5), (0.3, 0.2)])
@pytest.mark.parametrize("name", PRUNERS)
@pytest.mark.parametrize("dtype", DTYPES)
@needs_library
def test_it_is_what_a_real_cache_gives_back(dtype: torch.dtype, name: str, shares: tuple[float, float]) -> None:
    k, v = tensors(dtype)
    how = dict(key_sparsity=shares[0], value_sparsity=shares[1], sink=3, local=70, pruner=PRUNERS[name], **sources())
    simulated, real = simulate(k, v, **how), compress_kv(k, v, **how)
    for ours, theirs in zip((simulated.k, simulated.v), real.unpack(), strict=True):
        assert torch.equal(ours, theirs) and ours.dtype == theirs.dtype
    assert simulated.achieved_sparsity == real.achieved_sparsity
    again = simulate(k, v, **{**how, "fits": simulated.fits})
    assert torch.equal(again.k, simulated.k) and torch.equal(again.v, simulated.v) and again.fits == simulated.fits


@pytest.mark.parametrize("name", PRUNERS)
@pytest.mark.parametrize("head_dim", [4, 80, 96])
def test_any_head_dim_of_groups(head_dim: int, name: str) -> None:
    """Of each four, in the order of what is stored, two come back as what a shift left them."""
    k, v = tensors(seq=128, head_dim=head_dim)
    pruner = PRUNERS[name]
    simulated = simulate(k, v, key_sparsity=0.5, value_sparsity=0.5, pruner=pruner, **sources(head_dim))
    shift = simulated.fits[0].shift
    stored = simulated.k.float() - (0.0 if shift is None else shift.unsqueeze(2))
    groups = stored[..., channel_order(pruner.order, head_dim)].unflatten(-1, (-1, 4))
    assert ((groups != 0).sum(-1) <= 2).all()
    assert torch.isfinite(simulated.k).all() and torch.isfinite(simulated.v).all()


@pytest.mark.parametrize("name", PRUNERS)
def test_v_along_head_dim(name: str) -> None:
    """Every token keeps the two of each four of its own dims that lie farthest from the shift, in place, as they were,
    and the shift stands in for the others; K is what it is without."""
    k, v = tensors()
    how = dict(key_sparsity=0.5, value_sparsity=0.5, **sources())
    along, tokens = (simulate(k, v, pruner=pruner_of(name + end), **how) for end in (":hd", ""))
    assert torch.equal(along.k, tokens.k)
    fit = along.fits[1]
    shift = torch.zeros(2, 3, 64) if fit.shift is None else fit.shift
    assert (fit.shift is not None) == (name in ("attentive", "calibrated"))
    assert along.v.dtype == (v.dtype if fit.shift is None else torch.float32)
    stored = (v.float() - shift.unsqueeze(2)).to(v.dtype)
    dense = stored[:, :, 320:].float() + shift.unsqueeze(2)  # the tail is dense
    assert torch.equal(along.v[:, :, 320:].float(), dense)
    for b, h, t in itertools.product(range(2), range(3), range(0, 320, 37)):
        for first in range(0, 64, 4):
            four, own = stored[b, h, t, first : first + 4], shift[b, h, first : first + 4]
            kept = sorted(range(4), key=lambda i: (-abs(float(four[i])), i))[:2]  # noqa: B023
            left = torch.tensor([float(four[i]) if i in kept else 0.0 for i in range(4)])
            assert torch.equal(along.v[b, h, t, first : first + 4].float(), left + own)


def test_bytes_by_hand() -> None:
    """A 2:4 block of 64 x d is half its 16-bit values and 4 bits a group; every block has an entry of 4 bytes."""
    k, v = tensors(seq=300)
    blocks, heads, dense = 5, 6, 64 * 64 * 2
    for name, shift in (("magnitude", 0), ("centered", 4 * 64)):
        made = simulate(k, v, key_sparsity=0.5, value_sparsity=0.25, pruner=PRUNERS[name])
        key = 4 * (dense // 2 + 64 * 64 // 8) + dense
        value = 2 * (dense // 2 + 64 * 64 // 8) + 3 * dense
        assert made.nbytes == heads * (key + value + 2 * (4 * blocks + shift))
        assert made.achieved_sparsity == pytest.approx((4 + 2) * 0.5 / 8)
    none = simulate(k, v, key_sparsity=0.5, value_sparsity=0.5, local=300, pruner=PRUNERS["magnitude"])
    assert none.achieved_sparsity == 0.0 and torch.equal(none.k, k) and torch.equal(none.v, v)


def test_what_is_refused() -> None:
    k, v = tensors()
    how = dict(key_sparsity=0.5, value_sparsity=0.5)
    v[1, 2, 7, 9] = float("inf")
    for name in ("magnitude", "balanced", "mirror:hd"):
        with pytest.raises(NonFiniteError) as caught:
            simulate(k, v, pruner=pruner_of(name), **how)
        assert (caught.value.tensor, caught.value.index) == ("v", (1, 2, 7, 9))
    for name in ("attentive", "calibrated", "calibrated:hd"):
        with pytest.raises(UsageError, match=f"pruner {name}: needs"):
            simulate(*tensors(), pruner=pruner_of(name), **how)
