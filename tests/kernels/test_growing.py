"""A cache that lives, on every device: what append stores is the definition's, page by page, and what decode and
prefill give is attention over what is stored, for ragged batches, whatever is appended when.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from growing_cases import APART, DEVICES, Grown, make_cache, prefill_kernels, that_grows
from hsbench.attention.growing import Cache
from hsbench.cache.fitted import compress_kv
from hsbench.cache.growing import JUDGED, SPARSE
from hsbench.cache.layouts import why_no_pages
from hsbench.cache.prune import BLOCK
from hsbench.cache.pruner import pruner_of
from hsbench.errors import NonFiniteError, UnsupportedError, UsageError
from hsbench.kernels.device import Device
from hsbench.problem.elements import SIXTEEN_BIT, STORED, STORED_FP8, CacheElements, StoredElements

pytestmark = pytest.mark.usefixtures("one_torch_thread")

DTYPES = (torch.float16, torch.bfloat16)
PRUNERS = ("magnitude", "mirror", "centered", "magnitude:hd", "attentive:hd")
SHARES = (0.5, 0.0, 0.2)
WINDOW = {"sink": 64, "local": 100}


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return that_grows(request.param)


def skip_without_pages(device: str, elements: CacheElements, pruner: str) -> None:
    if reason := why_no_pages(elements, Device.of(device), pruner_of(pruner).value_axis):
        pytest.skip(reason)


# ---- Every way to store ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("elements", STORED.values(), ids=str)
@pytest.mark.parametrize("pruner", PRUNERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [64, 128])
def test_every_way_to_store(
    device: str, head_dim: int, dtype: torch.dtype, pruner: str, elements: CacheElements
) -> None:
    check_way_to_store(device, head_dim, dtype, pruner, elements)


@pytest.mark.parametrize("elements", APART, ids=str)
@pytest.mark.parametrize(
    ("head_dim", "dtype", "pruner"),
    [(64, torch.float16, "magnitude:hd"), (128, torch.bfloat16, "centered")],
    ids=["64, fp16, along head_dim", "128, bf16"],
)
def test_k_and_v_apart(device: str, head_dim: int, dtype: torch.dtype, pruner: str, elements: CacheElements) -> None:
    check_way_to_store(device, head_dim, dtype, pruner, elements)


def check_way_to_store(device: str, head_dim: int, dtype: torch.dtype, pruner: str, elements: CacheElements) -> None:
    skip_without_pages(device, elements, pruner)
    for share in SHARES:
        options: dict[str, Any] = {"pruner": pruner, "elements": elements, "dtype": dtype, "head_dim": head_dim}
        cache = make_cache(device, sparsity=share, sink=64, local=70, batch=1, capacity=520, **options)
        grown = Grown(cache, seed=head_dim)
        for n in (200, 1, 1, 55, 64, 130, 1):
            grown.append(n)
        grown.assert_attends()
        for kernel in prefill_kernels(device, elements, pruner):
            grown.assert_attends(130, kernel=kernel)


# ---- Whatever comes when -------------------------------------------------------------------------------------------
appends = st.lists(
    st.tuples(
        st.sampled_from([1, 1, 1, 2, 17, 63, 64, 65, 150]), st.lists(st.integers(0, 150), min_size=3, max_size=3)
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sink=st.sampled_from([0, 1, 64, 100]),
    local=st.sampled_from([0, 1, 64, 130]),
    chunk=st.sampled_from([1, 64, 100]),
    shares=st.tuples(st.sampled_from(SHARES), st.sampled_from([*SHARES, 0.4])),
    elements=st.sampled_from([*STORED.values(), *APART]),
    appended=appends,
    seed=st.integers(0, 1000),
)
def test_random_appends_to_ragged_sequences(
    device: str,
    sink: int,
    local: int,
    chunk: int,
    shares: tuple[float, float],
    elements: CacheElements,
    appended: list[tuple[int, list[int]]],
    seed: int,
) -> None:
    options: dict[str, Any] = {"sink": sink, "local": local, "chunk": chunk, "elements": elements}
    options |= {"key_sparsity": shares[0], "value_sparsity": shares[1], "pruner": "centered"}
    grown = Grown(make_cache(device, batch=3, capacity=500, **options), seed=seed)
    for n, wanted in appended:
        counts = [min(count, n, 500 - length) for count, length in zip(wanted, grown.lengths, strict=True)]
        if not any(counts):
            continue
        grown.append(n, counts)
        for kernel in prefill_kernels(device, elements):
            grown.assert_attends(n, counts, kernel=kernel)
    if any(grown.lengths):
        grown.assert_attends()


# ---- What part 1 says ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("elements", STORED.values(), ids=str)
@pytest.mark.parametrize("share", SHARES)
def test_a_first_chunk_is_what_compress_makes(device: str, share: float, elements: StoredElements) -> None:
    cache = make_cache(device, capacity=900, sparsity=share, elements=elements, **WINDOW)
    grown = Grown(cache)
    k, v = grown.tokens(555)
    cache.append(k, v)
    how: dict[str, Any] = {
        "key_sparsity": share,
        "value_sparsity": share,
        "elements": elements,
        "sink": 64,
        "local": 100,
    }
    whole = compress_kv(k, v, pruner=pruner_of("centered"), **how)
    for got, expected in zip(cache.unpack(), whole.unpack(), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("elements", STORED.values(), ids=str)
@pytest.mark.parametrize("share", [0.5, 0.0])
def test_token_by_token_leaves_what_one_compression_leaves(device: str, share: float, elements: StoredElements) -> None:
    """Where all blocks are judged alike, once the pruner has been fitted."""
    cache = make_cache(device, batch=1, sparsity=share, elements=elements, **WINDOW)
    grown = Grown(cache)
    k, v = grown.tokens(420)
    cache.append(k[:, :, :150], v[:, :, :150])
    fits = [
        tensor.fit.with_rows(shift=tensor.shift, scale=tensor.scale, weights=tensor.weights) for tensor in grown.tensors
    ]
    for at in range(150, 420):
        cache.append(k[:, :, at : at + 1], v[:, :, at : at + 1])
    how: dict[str, Any] = {
        "key_sparsity": share,
        "value_sparsity": share,
        "elements": elements,
        "sink": 64,
        "local": 100,
    }
    whole = compress_kv(k, v, pruner=pruner_of("centered"), fits=tuple(fits), **how)
    for got, expected in zip(cache.unpack(), whole.unpack(), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("share", [0.1, 0.2, 0.35, 0.49])
def test_the_share_of_2_4_blocks_holds_as_it_grows(device: str, share: float) -> None:
    grown = Grown(make_cache(device, batch=1, capacity=BLOCK * 30, sparsity=share, sink=0, local=0))
    k, v = grown.tokens(BLOCK * 30)
    for block in range(30):
        # Losses that rise, which no quantile of those before would ever take.
        part = slice(block * BLOCK, (block + 1) * BLOCK)
        grown.cache.append(k[:, :, part] * (1 + block), v[:, :, part] * (1 + block))
        for tensor in grown.tensors:
            state = tensor.state.cpu()
            assert ((state[..., SPARSE] - 2 * share * state[..., JUDGED]).abs() <= 1 + 1e-6).all()


def test_a_chunk_sees_itself_and_its_window_open(device: str) -> None:
    grown = Grown(make_cache(device, batch=1, capacity=1000, sink=0, local=64, chunk=128, pruner="magnitude"))
    k, v = grown.tokens(640)
    for at in range(0, 640, 128):
        grown.cache.append(k[:, :, at : at + 128], v[:, :, at : at + 128])
        stored = grown.cache.unpack()
        for x, kept in zip((k, v), stored, strict=True):
            open_from = max(0, at + 1 - 64) // BLOCK * BLOCK
            assert torch.equal(kept[:, :, open_from:], x[:, :, open_from : at + 128])
            if open_from >= BLOCK:
                assert (kept[:, :, :open_from] == 0).float().mean() > 0.49


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("elements", [SIXTEEN_BIT, STORED_FP8], ids=str)
def test_prefill_where_sequences_are_shorter_than_q(device: str, elements: StoredElements, head_dim: int) -> None:
    """Their first queries come before all tokens: a few of a kernel's tile, all of it, all of a block's."""
    grown = Grown(make_cache(device, batch=6, capacity=700, head_dim=head_dim, elements=elements, chunk=64))
    grown.append(500, [500, 0, 1, 70, 200, 399])
    for kernel in prefill_kernels(device, elements):
        for n in (2, 64, 65, 400, 500):
            grown.assert_attends(n, kernel=kernel)


# ---- Limits ----------------------------------------------------------------------------------------------------------
def test_more_than_the_capacity_is_refused_before_anything_is_written(device: str) -> None:
    grown = Grown(make_cache(device, capacity=130))
    grown.append(100)
    k, v = grown.tokens(31)
    with pytest.raises(UsageError, match="sequence 0 has 100 of 130"):
        grown.cache.append(k, v)
    with pytest.raises(UsageError, match="sequence 1 has 100 of 130"):
        grown.cache.append(k, v, lengths=[30, 31])
    grown.assert_as_defined()
    grown.append(30)
    grown.assert_attends()


def test_what_the_device_alone_knows_to_be_too_much_is_not_written(device: str) -> None:
    grown = Grown(make_cache(device, capacity=130))
    grown.append(100)
    k, v = grown.tokens(31)
    grown.cache._kv.append_later(k, v, torch.tensor([30, 31], dtype=torch.int32).to(device))
    for tensor, x in zip(grown._shadow, (k, v), strict=True):
        grown_by_definition(tensor, x, grown.lengths)
    grown.lengths = [130, 100]
    grown.assert_as_defined()
    with pytest.raises(UsageError, match=r"of sequences \[1\]"):
        grown.cache.check()
    grown.cache.check()


def test_counts_that_k_has_not_are_not_written(device: str) -> None:
    grown = Grown(make_cache(device, capacity=130))
    grown.append(100)
    grown.cache._kv.append_later(*grown.tokens(3), torch.tensor([4, -1], dtype=torch.int32).to(device))
    grown.assert_as_defined()
    with pytest.raises(UsageError, match=r"of sequences \[0\]"):
        grown.cache.check()


def grown_by_definition(tensor: Any, x: torch.Tensor, lengths: list[int]) -> None:
    from hsbench.cache.growing_torch import append_torch

    append_torch(tensor, x.cpu(), lengths, [30, 31])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_said(device: str, value: float) -> None:
    grown = Grown(make_cache(device))
    k, v = grown.tokens(70)
    bad = v.clone()
    bad[1, 1, 3, 5] = value
    with pytest.raises(NonFiniteError, match=r"v is not finite at index \[1, 1, 3, 5\]"):
        grown.cache.append(k, bad)
    assert grown.cache.lengths.tolist() == [0, 0]
    grown.append(70)
    with pytest.raises(NonFiniteError, match="v is not finite"):
        grown.cache.append(k[:, :, :9], bad[:, :, :9])
        grown.cache.check()
    grown.cache.reset()
    grown.lengths = [0, 0]
    grown.append(70)
    grown.append(1)
    grown.assert_attends()
    grown.cache.append(k[:, :, :1], bad[:, :, 3:4], lengths=[1, 0])
    grown.cache.check()  # what a sequence does not get may be anything


def test_a_cache_is_as_new_once_it_is_reset(device: str) -> None:
    grown = Grown(make_cache(device, sparsity=0.3))
    for n in (300, 1, 200):
        grown.append(n)
    grown.cache.reset()
    assert grown.cache.lengths.tolist() == [0, 0] and grown.cache.unpack()[0].shape[2] == 0
    grown.lengths, grown._shadow = [0, 0], []
    for n in (100, 1, 64):
        grown.append(n)
    grown.assert_attends()


# ---- Memory ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("elements", STORED.values(), ids=str)
def test_memory_is_what_is_allocated_and_in_use(device: str, elements: StoredElements) -> None:
    cache = make_cache(device, capacity=6400, elements=elements, sparsity=0.5)
    grown, kv = Grown(cache), cache._kv
    reserved = sum(
        x.nbytes
        for tensor in grown.tensors
        for x in (*tensor.pools.values(), tensor.map, tensor.free, tensor.state, tensor.shift, tensor.scale)
        if x is not None
    )
    memory = cache.memory()
    assert memory.reserved_nbytes == reserved + kv.lengths.nbytes + kv._non_finite.nbytes + kv._overflow.nbytes
    assert memory.used_nbytes < 0.05 * memory.reserved_nbytes
    k, v = grown.tokens(6400)
    cache.append(k, v)
    memory = cache.memory()
    window = sum(4 * t.growth.open_pages * t.pools[t.open_kind].shape[1] for t in grown.tensors)
    assert memory.used_nbytes <= memory.reserved_nbytes <= 1.02 * memory.used_nbytes + window


# ---- What it refuses -------------------------------------------------------------------------------------------------
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no capacity": ({"capacity": 0}, "capacity 0: give 1 or more"),
    "head_dim": ({"head_dim": 80}, "head_dim 80: the kernels take 64 and 128"),
    "dtype": ({"dtype": torch.float32}, "dtype torch.float32"),
    "pruner": ({"pruner": "balanced"}, "pruner balanced: weighs V's tokens .* take centered, or balanced:hd"),
    "share": ({"value_sparsity": 0.7}, "value_sparsity 0.7"),
    "chunk": ({"chunk": 0}, "chunk 0: give 1 or more"),
    "local": ({"local": -1}, "local -1"),
}


@pytest.mark.parametrize(("options", "message"), WRONG.values(), ids=WRONG)
def test_what_it_refuses(device: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_cache(device, **options)


def test_tensors_that_do_not_fit(device: str) -> None:
    grown = Grown(make_cache(device))
    k, v = grown.tokens(5)
    for bad in (k[:1], k[:, :1], k.float(), k[..., :32]):
        with pytest.raises(UnsupportedError):
            grown.cache.append(bad, bad.clone())
    for lengths in ([6, 1], [1], [-1, 2]):
        with pytest.raises(UsageError, match="lengths"):
            grown.cache.append(k, v, lengths=lengths)
    with pytest.raises(UsageError, match="queries"):
        Grown(make_cache(device, pruner="attentive:hd")).cache.append(k, v)
    grown.append(5)
    with pytest.raises(UnsupportedError, match="decode takes one"):
        grown.cache.decode(grown.queries(2))
    hd = Grown(make_cache(device, pruner="centered:hd"))
    hd.append(70)
    with pytest.raises(UnsupportedError, match="take a pruner without :hd"):
        hd.cache.prefill(hd.queries(2))


def test_two_caches_do_not_know_each_other(device: str) -> None:
    """Nothing is shared: they may be used by turns, or on two streams."""
    one, other = (Grown(make_cache(device), seed=seed) for seed in (1, 2))
    for n in (100, 1, 64, 1):
        one.append(n)
        other.append(n + 1)
    one.assert_attends()
    other.assert_attends()


def test_it_is_public() -> None:
    import hsbench

    assert hsbench.Cache is Cache
    assert list(itertools.islice(hsbench.__all__, 1)) == ["Cache"]
