"""What the public API cannot use, it refuses in one line that names argument and remedy; what it can use, it uses."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import hsbench
from hsbench.errors import UnavailableError, UsageError
from hsbench.kernels import library

MISSING = library.why_missing("cpu")
pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


def tensors(seq: int = 640, q_len: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    shapes = ((1, 4, q_len, 64), (1, 2, seq, 64), (1, 2, seq, 64))
    return tuple(torch.randn(*shape, generator=random).half() for shape in shapes)


Q, K, V = tensors()
KV = hsbench.compress(K, V) if MISSING is None else None

CALLS: dict[str, Callable[[Any], Any]] = {
    "k": lambda x: hsbench.compress(x, V),
    "v": lambda x: hsbench.compress(K, x),
    "q": lambda x: hsbench.decode(x, KV),
    "q of prefill": lambda x: hsbench.prefill(x, KV),
}
PLACES = [pytest.param(place.split()[0], call, id=place) for place, call in CALLS.items()]
RIGHT = {"k": K, "v": V, "q": Q}


def refused(call: Callable[[Any], Any], value: Any, error: type[Exception] = UsageError) -> str:
    with pytest.raises(error) as caught:
        call(value)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 250
    return message


class Own(Tensor):
    pass


def wants_gradient(x: Tensor) -> Tensor:
    return x.clone().requires_grad_()


# ---- Not a tensor ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "call"), PLACES)
@pytest.mark.parametrize(
    ("make", "said"),
    [
        pytest.param(
            lambda x: x.numpy(), r"of type numpy.ndarray: not a tensor; give torch\.from_numpy\(NAME\)", id="numpy",
        ),
        pytest.param(lambda x: "a string", "of type str: not a tensor; give a torch.Tensor", id="str"),
        pytest.param(lambda x: None, "of type NoneType: not a tensor; give a torch.Tensor", id="None"),
        pytest.param(lambda x: x.tolist(), "of type list: not a tensor; give a torch.Tensor", id="list"),
        pytest.param(lambda x: (x, x), "of type tuple: not a tensor; give a torch.Tensor", id="tuple"),
        pytest.param(lambda x: 0.5, "of type float: not a tensor; give a torch.Tensor", id="float"),
        pytest.param(lambda x: Tensor, "of type torch._C.*: not a tensor; give a torch.Tensor", id="class"),
        pytest.param(lambda x: KV, "HierarchicalKV: not a tensor; .*decode\\(q, kv\\).* give the tensor NAME", id="kv"),
    ],
)  # fmt: skip
def test_what_is_no_tensor(name: str, call: Any, make: Callable[[Tensor], Any], said: str) -> None:
    assert re.match(f"{name} .*{said.replace('NAME', name)}$", refused(call, make(RIGHT[name])))


@pytest.mark.parametrize("attend", [hsbench.decode, hsbench.prefill])
@pytest.mark.parametrize("kv", [None, "kv", (K, V), K, Q, {"k": K}], ids=lambda kv: type(kv).__name__)
def test_what_is_no_cache(attend: Any, kv: Any) -> None:
    message = refused(lambda kv: attend(Q, kv), kv)
    assert re.match(r"kv of type \S+: not a compressed cache; give what hsbench\.compress\(k, v\) returned$", message)


@pytest.mark.parametrize("attend", [hsbench.decode, hsbench.prefill])
def test_swapped_arguments(attend: Any) -> None:
    assert "a compressed cache comes second: decode(q, kv)" in refused(lambda q: attend(KV, q), Q)


# ---- Tensors that kernels cannot read ----------------------------------------------------------------------
@pytest.mark.parametrize(("name", "call"), PLACES)
@pytest.mark.parametrize(
    ("make", "said"),
    [
        pytest.param(
            lambda x: x.as_subclass(Own), r"Own: not a plain tensor; give NAME\.as_subclass\(torch\.Tensor\)", id="own",
        ),
        pytest.param(lambda x: x.to_sparse(), r"layout torch\.sparse_coo: .* give NAME\.to_dense\(\)", id="sparse"),
        pytest.param(lambda x: x.float().to_mkldnn(), r"layout torch\._mkldnn: .*NAME\.to_dense\(\)", id="mkldnn"),
        pytest.param(lambda x: x[0].to_sparse_csr(), r"layout torch\.sparse_csr: .*to_dense", id="csr"),
        pytest.param(lambda x: torch.nested.nested_tensor(list(x)), "nested: .*one sequence at a time", id="nested"),
        pytest.param(
            lambda x: torch.nested.nested_tensor(list(x), layout=torch.jagged), "not a plain tensor", id="jagged",
        ),
        pytest.param(
            lambda x: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.qint8),
            r"quantised: .* give NAME\.dequantize\(\)\.to\(torch\.float16\)", id="quantised",
        ),
        pytest.param(wants_gradient, r"requires a gradient: .*NAME\.detach\(\).*torch\.no_grad\(\)", id="gradient"),
        pytest.param(torch.nn.Parameter, r"requires a gradient: .*NAME\.detach\(\)", id="parameter"),
        pytest.param(
            lambda x: torch._efficientzerotensor(x.shape, dtype=x.dtype), "without memory of its own", id="zero tensor",
        ),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*(prototype|beta|deprecated).*:UserWarning", "ignore:.*torch.ao.quantization")
def test_tensors_of_another_kind(name: str, call: Any, make: Callable[[Tensor], Any], said: str) -> None:
    message = refused(call, make(RIGHT[name].clone()))
    assert message.startswith(f"{name} ") and re.search(said.replace("NAME", name), message)


@pytest.mark.parametrize(("name", "call"), PLACES)
def test_storage_that_was_freed(name: str, call: Any) -> None:
    x = RIGHT[name].clone()
    x.untyped_storage().resize_(0)
    assert "without memory of its own" in refused(call, x)


@pytest.mark.parametrize(("name", "call"), PLACES)
def test_inside_a_transform(name: str, call: Any) -> None:
    stacked = torch.stack([RIGHT[name]] * 2)
    assert "outside of torch.func's transforms" in refused(torch.vmap(call), stacked)


@pytest.mark.parametrize(("name", "call"), PLACES)
def test_complex_tensors(name: str, call: Any) -> None:
    with pytest.raises(hsbench.errors.UnsupportedError, match="complex64"):
        call(RIGHT[name].to(torch.complex64).conj())


@pytest.mark.parametrize(("name", "call"), PLACES)
def test_cuda_in_a_forked_process(name: str, call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch itself says it of a process that forked after CUDA was used."""
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    monkeypatch.setattr(Tensor, "is_cuda", property(lambda self: self is RIGHT[name]))
    assert re.match(rf"{name} is on .* forked process .*spawn", refused(call, RIGHT[name], UnavailableError))


# ---- Tensors that need a step more -------------------------------------------------------------------------
def lazily_negated(x: Tensor) -> Tensor:
    view = torch._neg_view(-x)
    assert view.is_neg() and torch.equal(view, x)
    return view


def imaginary_part(x: Tensor) -> Tensor:
    view = torch.complex(torch.zeros_like(x).float(), -x.float()).to(torch.complex32).conj().imag
    assert view.is_neg() and not view.is_contiguous() and torch.equal(view, x)
    return view


@pytest.mark.parametrize(
    "make",
    [
        lazily_negated,
        imaginary_part,
        lambda x: x.mT.contiguous().mT,
        lambda x: x.expand(3, -1, -1, -1)[2:],
        lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),  # two bytes off every alignment
    ],
    ids=["negated", "imaginary part", "transposed", "expanded", "unaligned"],
)
@pytest.mark.filterwarnings("ignore:ComplexHalf support:UserWarning")
def test_views_of_every_kind_are_used(make: Callable[[Tensor], Tensor]) -> None:
    q, k, v = tensors(seq=200, q_len=3)
    assert all(torch.equal(make(x), x) for x in (q, k, v))
    expected = hsbench.prefill(q, hsbench.compress(k, v))
    got = hsbench.prefill(make(q), hsbench.compress(make(k), make(v)))
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_gradients_are_no_matter_where_none_are_recorded(off: Any) -> None:
    q, k, v = tensors(seq=200)
    expected = hsbench.decode(q, hsbench.compress(k, v))
    with off():
        kv = hsbench.compress(wants_gradient(k), torch.nn.Parameter(v))
        out, lse = hsbench.decode(wants_gradient(q), kv)
    assert not out.requires_grad and torch.equal(out, expected[0]) and torch.equal(lse, expected[1])


# ---- Numbers -----------------------------------------------------------------------------------------------
SHARES = ["sparsity", "key_sparsity", "value_sparsity"]
TOKENS = ["sink", "local"]


@pytest.mark.parametrize("name", [*SHARES, *TOKENS])
@pytest.mark.parametrize(
    ("value", "said"),
    [
        (True, "NAME True: not a .*number; "),
        (False, "NAME False: not a .*number; "),
        (np.bool_(True), r"NAME of type numpy\.bool\w*: not a .*number; "),
        ("0", "NAME '0': not a .*number; "),
        ("0\n5", r"NAME '0\\n5': not a .*number; "),
        ("0" * 99, "NAME of type str: not a .*number; "),
        ([0], "NAME of type list: not a .*number; "),
        (1j, "NAME of type complex: not a .*number; "),
        (torch.zeros(2), r"NAME of type torch\.Tensor: not a .*number; "),
        (torch.tensor(0.5), r"NAME of type torch\.Tensor: not a .*number; give NAME\.item\(\)$"),
        (torch.tensor(64), r"NAME of type torch\.Tensor: not a .*number; give NAME\.item\(\)$"),
        (np.array(0.5), r"NAME of type numpy\.ndarray: not a .*number; give NAME\.item\(\)$"),
        (math.nan, "NAME nan: "),
        (-1, "NAME -1: "),
        (math.inf, "NAME inf: "),
    ],
    ids=str,
)
def test_what_is_no_number(name: str, value: Any, said: str) -> None:
    message = refused(lambda value: hsbench.compress(K, V, **{name: value}), value)
    assert re.match(said.replace("NAME", name), message)
    assert ".item()" in message or message.endswith("give 0 to 0.5" if name in SHARES else "of tokens, 0 or more")


@pytest.mark.parametrize("name", TOKENS)
@pytest.mark.parametrize("value", [64.5, 64.0, np.float64(64), Fraction(64), None])
def test_tokens_are_whole(name: str, value: Any) -> None:
    message = refused(lambda value: hsbench.compress(K, V, **{name: value}), value)
    assert message.startswith(f"{name} ") and "not a whole number; give a number of tokens, 0 or more" in message


def test_no_sparsity() -> None:
    assert refused(lambda value: hsbench.compress(K, V, value), None).startswith("sparsity None: not a number")


@pytest.mark.parametrize(
    ("sparsity", "tokens"), [(np.float64(0.25), np.int64(64)), (np.float32(0.25), np.uint8(64)), (Fraction(1, 4), 64)]
)
def test_numbers_of_every_kind_are_used(sparsity: Any, tokens: Any) -> None:
    expected = hsbench.compress(K, V, 0.25, sink=64, local=64)
    kv = hsbench.compress(K, V, sparsity, sink=tokens, local=tokens)
    assert kv.memory() == expected.memory() and kv.achieved_sparsity == 0.25
    assert all(torch.equal(got, right) for got, right in zip(kv.unpack(), expected.unpack(), strict=True))
    assert all(type(part) is int for part in (kv.k.plan.first, kv.k.plan.last, kv.k.plan.sparse))
