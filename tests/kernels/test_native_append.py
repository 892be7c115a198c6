"""Append, and decode by lengths, on each of the CPU's instruction sets and by several threads: what they leave is the
definition's. What a cache that lives is asked besides, on every device: test_growing.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cpu_calls import ISAS, THREADS, needs_library
from growing_cases import Grown, make_cache
from hsbench.attention.growing import Cache
from hsbench.errors import HsbenchError
from hsbench.kernels import library
from hsbench.problem.elements import STORED_FP8, STORED_INT4

pytestmark = [needs_library, pytest.mark.usefixtures("one_torch_thread")]

WAYS: dict[str, dict[str, Any]] = {
    "16bit": {"pruner": "magnitude", "sparsity": 0.5},
    "16bit mirror bf16": {"pruner": "mirror", "sparsity": 0.2, "dtype": torch.bfloat16},
    "16bit head_dim": {"pruner": "centered:hd", "sparsity": 0.5, "head_dim": 128},
    "fp8 mirror": {"pruner": "mirror", "sparsity": 0.2, "elements": STORED_FP8},
    "fp8 head_dim": {"pruner": "centered:hd", "sparsity": 0.5, "elements": STORED_FP8, "dtype": torch.bfloat16},
    "int4": {"pruner": "centered", "sparsity": 0.5, "elements": STORED_INT4, "head_dim": 128},
}
"""One of each kind of page, order and axis."""


def cache_on(isa: str, threads: int, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Cache:
    """A cache whose every call runs so."""
    monkeypatch.setattr(library, "on_device", lambda device: {"threads": threads, "isa": library.ISAS[isa]})
    return make_cache("cpu", **options)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
def test_every_instruction_set_stores_what_is_defined(
    isa: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for threads in THREADS:
        cache = cache_on(isa, threads, monkeypatch, batch=1, capacity=400, sink=64, local=70, **options)
        assert cache._kv._operation.params.isa == library.ISAS[isa]
        grown = Grown(cache, seed=threads)
        for n in (130, 1, 63, 130):
            grown.append(n)
        grown.assert_attends()


@pytest.mark.parametrize("isa", ISAS)
def test_decode_of_ragged_sequences_repeats_bit_for_bit(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where most have no tokens, or splits end with a block's first one."""
    outputs = []
    for threads in (1, 3):
        cache = cache_on(isa, threads, monkeypatch, batch=5, capacity=1200, sparsity=0.5)
        grown = Grown(cache)
        grown.append(1100, [1, 0, 64, 513, 1100])
        q = torch.randn(5, 8, 1, 64, generator=torch.Generator().manual_seed(2)).half()
        outputs.append(cache.decode(q))
        grown.assert_attends()
    for x, y in zip(*outputs, strict=True):
        assert torch.equal(x, y)


def params_of(cache: Cache) -> Any:
    return cache._kv._operation.params


WRONG: dict[str, tuple[str, str, Any, str]] = {
    "ratio": ("key", "ratio", 1.5, "ratio must be from 0 to 1"),
    "losses": ("value", "ratio", 0.5, "losses are required"),
    "elements": ("key", "stored", 9, "stored is not an hsb_stored"),
    "scale": ("key", "stored", 1, "elements have a scale, or they have 16 bits"),
    "axis": ("key", "value_axis", 1, "K has no value_axis"),
    "map": ("value", "map", None, "map, free and state are required"),
}


@pytest.mark.parametrize(("operand", "field", "value", "message"), WRONG.values(), ids=WRONG)
def test_what_append_refuses_leaves_all_as_it_was(operand: str, field: str, value: Any, message: str) -> None:
    grown = Grown(make_cache("cpu", pruner="magnitude", sparsity=0.5))
    grown.append(100)
    setattr(getattr(params_of(grown.cache), operand), field, value)
    k, v = grown.tokens(1)
    with pytest.raises(HsbenchError, match=message):
        grown.cache._kv.append_later(k, v, None)
    grown.assert_as_defined()


def test_counts_that_append_cannot_take() -> None:
    """More than k has is an overflow of that sequence alone; fewer than none is none."""
    grown = Grown(make_cache("cpu", batch=2))
    grown.append(100)
    k, v = grown.tokens(5)
    grown.cache._kv.append_later(k, v, torch.tensor([6, -1], dtype=torch.int32))
    grown.assert_as_defined()
    assert grown.cache._kv._overflow.tolist() == [1, 0]
