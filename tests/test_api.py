"""The public API against attention written out in fp64 over the tensors that the definition of pruning gives."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

import hsbench
from hsbench.cache.basis import LayerBasis
from hsbench.cache.prune import choose_blocks, plan_blocks, prune_hierarchical
from hsbench.cache.pruner import BALANCED, DEFAULT_PRUNER, MIRROR, PRUNERS
from hsbench.errors import HsbenchError, NonFiniteError, UnavailableError, UnsupportedError, UsageError
from hsbench.kernels import library
from hsbench.problem.elements import STORED_FP8, STORED_INT4

MISSING = library.why_missing("cpu")
needs_native = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))

compress = partial(hsbench.compress, pruner="magnitude")
"""What can be held bit for bit against the definition of pruning alone. Others: tests/cache, tests/kernels."""

TOLERANCE = {torch.float16: 1e-3, torch.bfloat16: 8e-3}
EVERY_DTYPE = [pytest.param(dtype, id=str(dtype)[6:]) for dtype in TOLERANCE]


def tensors(
    dtype: torch.dtype = torch.float16,
    *,
    batch: int = 1,
    q_heads: int = 4,
    kv_heads: int = 2,
    q_len: int = 1,
    seq: int = 200,
    head_dim: int = 64,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random).to(dtype)

    kv = (batch, kv_heads, seq, head_dim)
    return normal(batch, q_heads, q_len, head_dim), normal(*kv), normal(*kv)


def attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Query head by query head, in fp64; query i of q_len sees seq - q_len + i + 1 tokens."""
    batch, q_heads, q_len, head_dim = q.shape
    group, seq = q_heads // k.shape[1], k.shape[2]
    seen = torch.tensor([[t <= seq - q_len + i for t in range(seq)] for i in range(q_len)])
    out = torch.empty(q.shape, dtype=torch.float64)
    lse = torch.empty(q.shape[:3], dtype=torch.float64)
    for b, h in itertools.product(range(batch), range(q_heads)):
        keys, values = k[b, h // group].double(), v[b, h // group].double()
        scores = q[b, h].double() @ keys.T / math.sqrt(head_dim)
        weights = (scores - scores.max()).exp() * seen
        out[b, h] = weights @ values / weights.sum(-1, keepdim=True)
        lse[b, h] = scores.max() + weights.sum(-1).log()
    return out, lse


def prune(x: Tensor, operand: str, sparsity: float, sink: int = 0, local: int = 0) -> Tensor:
    plan = plan_blocks(x.shape[2], sparsity, sink=sink, local=local)
    return prune_hierarchical(x, operand, choose_blocks(x, operand, plan))


def assert_close(got: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], q: Tensor) -> None:
    (out, lse), (want, want_lse) = got, expected
    assert out.shape == q.shape and out.dtype == q.dtype and out.device == q.device
    assert lse.shape == q.shape[:3] and lse.dtype == torch.float32
    assert float((out.double() - want).norm() / want.norm()) < TOLERANCE[q.dtype]
    assert float((lse.double() - want_lse).abs().max()) < 1e-3


# ---- Results -----------------------------------------------------------------------------------------------
@needs_native
@pytest.mark.parametrize("dtype", EVERY_DTYPE)
@pytest.mark.parametrize(
    ("batch", "q_heads", "kv_heads", "seq", "head_dim"),
    [(1, 4, 1, 1, 64), (2, 2, 2, 63, 64), (1, 8, 2, 64, 128), (2, 6, 2, 65, 128), (1, 16, 1, 333, 64)],
)
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5])
def test_decode(
    dtype: torch.dtype, batch: int, q_heads: int, kv_heads: int, seq: int, head_dim: int, sparsity: float
) -> None:
    q, k, v = tensors(dtype, batch=batch, q_heads=q_heads, kv_heads=kv_heads, seq=seq, head_dim=head_dim)
    kv = compress(k, v, sparsity)
    expected = attention(q, prune(k, "k", sparsity), prune(v, "v", sparsity))
    assert_close(hsbench.decode(q, kv), expected, q)


@needs_native
@pytest.mark.parametrize("dtype", EVERY_DTYPE)
@pytest.mark.parametrize(("q_len", "seq", "head_dim"), [(1, 1, 64), (65, 65, 128), (130, 130, 64), (33, 200, 128)])
@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_prefill(dtype: torch.dtype, q_len: int, seq: int, head_dim: int, sparsity: float) -> None:
    q, k, v = tensors(dtype, batch=2, q_len=q_len, seq=seq, head_dim=head_dim)
    kv = compress(k, v, sparsity)
    expected = attention(q, prune(k, "k", sparsity), prune(v, "v", sparsity))
    assert_close(hsbench.prefill(q, kv), expected, q)


@needs_native
def test_prefill_of_one_query_is_decode() -> None:
    q, k, v = tensors(seq=150)
    kv = compress(k, v)
    assert_close(hsbench.prefill(q, kv), attention(q, *kv.unpack()), q)
    assert_close(hsbench.decode(q, kv), attention(q, *kv.unpack()), q)


@needs_native
def test_inputs_may_be_strided_and_stay_as_they_are() -> None:
    q, k, v = tensors(q_len=70, seq=70)
    before = [x.clone() for x in (q, k, v)]
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    assert not any(x.is_contiguous() for x in strided)
    kv = compress(*strided[1:])
    assert_close(hsbench.prefill(strided[0], kv), attention(q, prune(k, "k", 0.5), prune(v, "v", 0.5)), q)
    assert all(torch.equal(x, old) for x, old in zip(strided, before, strict=True))


@needs_native
def test_outputs_are_the_callers_own() -> None:
    q, k, v = tensors()
    kv = compress(k, v)
    out, lse = hsbench.decode(q, kv)
    first = out.clone(), lse.clone()
    hsbench.decode(-q, kv)
    assert torch.equal(out, first[0]) and torch.equal(lse, first[1])


# ---- Sparsity ----------------------------------------------------------------------------------------------
@needs_native
def test_half_is_the_default() -> None:
    _, k, v = tensors(seq=256)
    kv = compress(k, v)
    assert kv.achieved_sparsity == 0.5
    assert all(int((x == 0).sum()) == x.numel() // 2 for x in kv.unpack())


@needs_native
def test_key_and_value_sparsity_override() -> None:
    _, k, v = tensors(seq=640)

    def pruned(**options: float) -> tuple[float, float]:
        unpacked = compress(k, v, **options).unpack()
        return tuple(float((x == 0).float().mean()) for x in unpacked)

    assert pruned(sparsity=0.2) == pytest.approx((0.2, 0.2))
    assert pruned(sparsity=0.2, key_sparsity=0.4) == pytest.approx((0.4, 0.2))
    assert pruned(sparsity=0.2, value_sparsity=0.0) == pytest.approx((0.2, 0.0))
    assert pruned(key_sparsity=0.1, value_sparsity=0.3) == pytest.approx((0.1, 0.3))
    # 0 overrides too, though it is false; and an overridden sparsity is not looked at.
    assert pruned(sparsity=0.7, key_sparsity=0.0, value_sparsity=0.5) == pytest.approx((0.0, 0.5))


@needs_native
@pytest.mark.parametrize(("sink", "local"), [(0, 0), (1, 0), (64, 0), (65, 0), (0, 1), (0, 41), (70, 70), (999, 0)])
def test_sink_and_local_stay_dense(sink: int, local: int) -> None:
    q, k, v = tensors(seq=400)  # 6 blocks and a tail of 16
    kv = compress(k, v, 0.5, sink=sink, local=local)
    for x, got, operand in zip((k, v), kv.unpack(), "kv", strict=True):
        assert torch.equal(got, prune(x, operand, 0.5, sink, local))
        assert torch.equal(got[:, :, :sink], x[:, :, :sink])
        if local:
            assert torch.equal(got[:, :, -local:], x[:, :, -local:])
        assert torch.equal(got[:, :, 384:], x[:, :, 384:])  # the tail
    assert_close(hsbench.decode(q, kv), attention(q, *kv.unpack()), q)


@needs_native
def test_achieved_sparsity_counts_eligible_blocks() -> None:
    _, k, v = tensors(seq=400)
    assert compress(k, v, 0.25, sink=64, local=17).achieved_sparsity == pytest.approx(0.25)  # 2 of 4 blocks
    assert compress(k, v, 0.3).achieved_sparsity == pytest.approx(0.5 * 4 / 6)
    assert compress(k[:, :, :63], v[:, :, :63]).achieved_sparsity == 0


# ---- The cache ---------------------------------------------------------------------------------------------
@needs_native
@pytest.mark.parametrize("dtype", EVERY_DTYPE)
@pytest.mark.parametrize("seq", [1, 63, 64, 65, 200])
def test_unpack(dtype: torch.dtype, seq: int) -> None:
    _, k, v = tensors(dtype, batch=2, seq=seq, head_dim=128)
    kv = compress(k, v)
    assert isinstance(kv, hsbench.HierarchicalKV)
    assert kv.shape == tuple(k.shape) and kv.dtype == dtype and kv.device == k.device
    for x, got, operand in zip((k, v), kv.unpack(), "kv", strict=True):
        assert got.dtype == dtype and torch.equal(got, prune(x, operand, 0.5))


@needs_native
def test_nbytes() -> None:
    _, k, v = tensors(batch=2, kv_heads=2, seq=65, head_dim=128)
    kv = compress(k, v)
    heads = 2 * 2 * 2  # of K and of V
    # Each head has one 2:4 block, and a tail block that takes a whole dense page.
    assert kv.memory() == {
        "dense": heads * 16_384,
        "2:4 values": heads * 8_192,
        "metadata": heads * 768,
        "map": heads * 2 * 4,
    }
    assert kv.nbytes == sum(kv.memory().values())
    dense = compress(k, v, 0.0)
    assert dense.nbytes == heads * (2 * 16_384 + 2 * 4)


# ---- Errors ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda k, v: (k, v[:, :, :-1]), r"must be alike", id="seq"),
        pytest.param(lambda k, v: (k, v[:, :1]), r"must be alike", id="heads"),
        pytest.param(lambda k, v: (k, v.bfloat16()), r"float16 and v .*bfloat16 must be alike", id="dtypes"),
        pytest.param(lambda k, v: (k, v.to("meta")), r"v on meta: give v\.to\('cpu'\)", id="devices"),
        pytest.param(lambda k, v: (k[0], v[0]), r"\[batch, kv_heads, seq, head_dim\]", id="three dimensions"),
        pytest.param(lambda k, v: (k.float(), v.float()), r"torch\.float32: convert .* torch\.float16", id="float32"),
        pytest.param(lambda k, v: (k.repeat(1, 1, 1, 2)[..., :96],) * 2, r"head_dim must be 64 or 128", id="96"),
        pytest.param(lambda k, v: (k[:, :, :0], v[:, :, :0]), r"no size may be 0", id="empty"),
    ],
)
def test_tensors_that_do_not_fit(change, message: str) -> None:
    _, k, v = tensors()
    with pytest.raises(UnsupportedError, match=message):
        compress(*change(k, v))


@pytest.mark.parametrize("name", ["sparsity", "key_sparsity", "value_sparsity"])
@pytest.mark.parametrize("value", [0.6, -0.1, 0.5000001, math.nan, math.inf])
def test_sparsity_outside_0_to_a_half(name: str, value: float) -> None:
    _, k, v = tensors()
    with pytest.raises(UsageError, match=rf"sparsity {value}: .*0 to 0\.5"):
        compress(k, v, **{name: value})


@pytest.mark.parametrize("name", ["sink", "local"])
def test_negative_sink_and_local(name: str) -> None:
    _, k, v = tensors()
    with pytest.raises(UsageError, match=rf"{name} -1: .*0 or more"):
        compress(k, v, **{name: -1})


@needs_native
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", EVERY_DTYPE)
def test_non_finite_tensors_are_named(dtype: torch.dtype, bad: float) -> None:
    _, k, v = tensors(dtype)
    k[0, 1, 199, 63] = bad
    with pytest.raises(NonFiniteError, match=r"k is not finite at index \[0, 1, 199, 63\]") as caught:
        compress(k, v)
    assert caught.value.tensor == "k" and caught.value.index == (0, 1, 199, 63)
    assert isinstance(caught.value, HsbenchError) and isinstance(caught.value, ValueError)
    with pytest.raises(NonFiniteError, match=r"v is not finite at index \[0, 1, 199, 63\]"):
        compress(v, k, 0.0)  # an all-dense cache is checked too


@needs_native
@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda q: q[0], r"needs \[1, q_heads, q_len, 64\]", id="three dimensions"),
        pytest.param(lambda q: q.repeat(2, 1, 1, 1), r"needs \[1, q_heads", id="batch"),
        pytest.param(lambda q: q.repeat(1, 1, 1, 2), r"128\]: this cache needs .*64\]", id="head_dim"),
        pytest.param(lambda q: q.bfloat16(), r"torch\.bfloat16, .*give q\.to\(torch\.float16\)", id="dtype"),
        pytest.param(lambda q: q[:, :3], r"3 heads: give 1 to 16 times the 2 kv heads", id="3 heads"),
        pytest.param(lambda q: q[:, :1], r"1 heads", id="fewer heads"),
        pytest.param(lambda q: q.repeat(1, 9, 1, 1), r"36 heads", id="a group of 18"),
        pytest.param(lambda q: q[:, :, :0], r"0 queries", id="no query"),
        pytest.param(lambda q: q.repeat(1, 1, 201, 1), r"201 queries", id="more queries than tokens"),
        pytest.param(lambda q: q.to("meta"), r"on meta, .* cpu: give q\.to\('cpu'\)", id="device"),
    ],
)
def test_queries_that_do_not_fit(change, message: str) -> None:
    q, k, v = tensors()
    kv = compress(k, v)
    for attend in (hsbench.decode, hsbench.prefill):
        with pytest.raises(UnsupportedError, match=message):
            attend(change(q), kv)


@needs_native
def test_decode_takes_one_query() -> None:
    q, k, v = tensors(q_len=2)
    with pytest.raises(UnsupportedError, match="2 queries: decode takes one; use prefill"):
        hsbench.decode(q, compress(k, v))


def test_a_device_without_kernels() -> None:
    _, k, v = tensors()
    with pytest.raises(UnavailableError, match="meta"):
        compress(k.to("meta"), v.to("meta"))


# ---- Import ------------------------------------------------------------------------------------------------
def python(code: str) -> str:
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_importing_hsbench_imports_no_torch_and_loads_no_library() -> None:
    code = """
import sys, hsbench
print(sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "numpy", "ctypes", "pynvml", "nvtx"}))
try:
    loaded = [line.split()[-1] for line in open("/proc/self/maps") if "libhsbench" in line or "libcuda" in line]
except OSError:
    loaded = []
print(loaded)
"""
    assert python(code).splitlines() == ["[]", "[]"]


def test_names_come_on_first_use() -> None:
    code = """
import sys, hsbench
assert "torch" not in sys.modules
print(sorted(set(dir(hsbench)) & {"compress"}), hsbench.__version__)
from hsbench import HierarchicalKV, compress, decode, prefill
assert "torch" in sys.modules
try:
    hsbench.no_such_name
except AttributeError as error:
    print(error)
"""
    lines = python(code).splitlines()
    assert lines[-1] == "module 'hsbench' has no attribute 'no_such_name'"
    assert lines[0].endswith(hsbench.__version__)


# ---- Pruners -----------------------------------------------------------------------------------------------
def calibrated(kv_heads: int = 2, head_dim: int = 64) -> LayerBasis:
    return LayerBasis(*(torch.rand(kv_heads, head_dim) for _ in range(3)))


@needs_native
@pytest.mark.parametrize("dtype", EVERY_DTYPE)
@pytest.mark.parametrize("name", PRUNERS)
def test_attention_over_what_a_pruner_leaves(name: str, dtype: torch.dtype) -> None:
    q, k, v = tensors(dtype, q_len=20)
    kv = hsbench.compress(k + 9, v, 0.3, sink=3, pruner=name, queries=q, basis=calibrated())
    assert kv.pruner is PRUNERS[name]
    kept = kv.unpack()
    assert_close(hsbench.prefill(q, kv), attention(q, *kept), q)
    last = q[:, :, -1:].contiguous()
    assert_close(hsbench.decode(last, kv), attention(last, *kept), last)


@needs_native
@pytest.mark.parametrize("dtype", EVERY_DTYPE)
def test_values_of_8_bits(dtype: torch.dtype) -> None:
    q, k, v = tensors(dtype, q_heads=4, kv_heads=2, seq=200, q_len=70)
    kv = hsbench.compress(k + 9, v, 0.3, elements="fp8")
    assert kv.k.elements is kv.v.elements is STORED_FP8 and kv.nbytes < 0.7 * (k.nbytes + v.nbytes)  # a tail is wide
    assert kv.pruner.key_shift and kv.pruner.value_shift
    unpacked = kv.unpack()
    assert_close(hsbench.decode(q[:, :, -1:].contiguous(), kv), attention(q[:, :, -1:], *unpacked), q[:, :, -1:])
    assert_close(hsbench.prefill(q, kv), attention(q, *unpacked), q)
    same = hsbench.compress(k + 9, v, 0.3, elements=STORED_FP8)
    assert all(torch.equal(a, b) for a, b in zip(same.unpack(), unpacked, strict=True))


@needs_native
@pytest.mark.parametrize("dtype", EVERY_DTYPE)
def test_values_of_4_bits(dtype: torch.dtype) -> None:
    q, k, v = tensors(dtype, q_heads=4, kv_heads=2, seq=640, q_len=70)
    kv = hsbench.compress(k + 9, v, elements="int4")
    assert kv.k.elements is kv.v.elements is STORED_INT4 and kv.nbytes < 0.23 * (k.nbytes + v.nbytes)
    unpacked = kv.unpack()
    assert_close(hsbench.decode(q[:, :, -1:].contiguous(), kv), attention(q[:, :, -1:], *unpacked), q[:, :, -1:])
    assert_close(hsbench.prefill(q, kv), attention(q, *unpacked), q)
    same = hsbench.compress(k + 9, v, key_elements="int4", value_elements=STORED_INT4)
    assert all(torch.equal(a, b) for a, b in zip(same.unpack(), unpacked, strict=True))


@needs_native
@pytest.mark.parametrize("dtype", EVERY_DTYPE)
def test_k_and_v_of_different_elements(dtype: torch.dtype) -> None:
    q, k, v = tensors(dtype, q_heads=4, kv_heads=2, seq=333, q_len=70)
    for key, value in itertools.permutations(("16bit", "fp8", "int4"), 2):
        kv = hsbench.compress(k + 9, v, key_elements=key, value_elements=value)
        assert (kv.k.elements.name, kv.v.elements.name) == (key, value)
        unpacked = kv.unpack()
        last = q[:, :, -1:].contiguous()
        assert_close(hsbench.decode(last, kv), attention(last, *unpacked), last)
        assert_close(hsbench.prefill(q, kv), attention(q, *unpacked), q)


@needs_native
def test_a_pruner_as_a_value_by_its_name_and_by_default() -> None:
    _, k, v = tensors()
    one, other, default = (hsbench.compress(k, v, **how) for how in ({"pruner": "balanced"}, {"pruner": BALANCED}, {}))
    assert DEFAULT_PRUNER == "balanced" and one.pruner is other.pruner is default.pruner is BALANCED
    for got in (other.unpack(), default.unpack()):
        assert all(torch.equal(a, b) for a, b in zip(got, one.unpack(), strict=True))
    own = replace(MIRROR, name="mine", key_shift=True)
    assert hsbench.compress(k, v, pruner=own).pruner is own


@needs_native
@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"pruner": "mirorr"}, r"pruner mirorr: unknown \(did you mean mirror\?\)"),
        ({"pruner": None}, "pruner None: not the name of a pruner; give one of magnitude"),
        ({"pruner": 3}, "pruner .*: not the name of a pruner"),
        ({"elements": "fp4"}, "elements 'fp4': not what a cache stores; give one of 16bit, fp8, int4"),
        ({"elements": 8}, "elements .*: not what a cache stores"),
        ({"value_elements": "int3"}, "value_elements 'int3': not what a cache stores"),
        ({"pruner": "attentive"}, "pruner attentive: needs the context's last queries"),
        ({"pruner": "calibrated"}, "pruner calibrated: needs a calibration"),
        ({"pruner": "calibrated", "basis": torch.zeros(2, 64)}, "basis of type .*Tensor: not the basis of a layer"),
        ({"pruner": "calibrated", "basis": calibrated(3)}, "basis of 3 x 64: does not fit; k has 2 kv heads x 64"),
        ({"queries": 1}, "queries of type int: not a tensor"),
    ],
)
def test_a_pruner_that_lacks_something(given: dict[str, object], what: str) -> None:
    _, k, v = tensors()
    with pytest.raises(UsageError, match=f"^{what}"):
        hsbench.compress(k, v, **given)


@needs_native
@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda q: q[:, :3], "queries has 3 heads: give 1 to 16 times the 2 kv heads"),
        (lambda q: q.float(), "queries is torch.float32, but the cache torch.float16"),
        (lambda q: q[..., :32], "queries is"),
        (lambda q: q.repeat(1, 1, 300, 1), "queries has 300 queries"),
    ],
)
def test_queries_to_look_at_that_do_not_fit(change: Callable[[Tensor], Tensor], what: str) -> None:
    q, k, v = tensors()
    with pytest.raises(UnsupportedError, match=what):
        hsbench.compress(k, v, pruner="attentive", queries=change(q).contiguous())


@needs_native
def test_v_along_head_dim_is_for_decode() -> None:
    q, k, v = tensors()
    kv = hsbench.compress(k, v, pruner="mirror:hd")
    keys, values = kv.unpack()
    assert ((values[:, :, :64].unflatten(-1, (-1, 4)) != 0).sum(-1) == 2).all()
    last = q[:, :, -1:].contiguous()
    assert_close(hsbench.decode(last, kv), attention(last, keys, values), last)
    with pytest.raises(UnsupportedError, match="prefill reads V in groups along tokens alone.*without :hd"):
        hsbench.prefill(q, kv)
    narrow = hsbench.compress(k, v, pruner="mirror:hd", elements="int4")
    assert_close(hsbench.decode(last, narrow), attention(last, *narrow.unpack()), last)
