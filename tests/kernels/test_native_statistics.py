"""What pruners are fitted by, from the native library: norms of tokens, bit for bit the definition's, and means."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from compress_cases import DTYPES, KINDS, every_dtype, make_data, make_fit
from cpu_calls import ISAS, THREADS, needs_library
from hsbench.cache import statistics
from hsbench.cache.statistics import has_kernel, mean_of, squared_norms, squared_norms_torch
from hsbench.kernels import library

pytestmark = needs_library


@pytest.fixture(params=list(itertools.product(ISAS, THREADS)), ids=str)
def how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Every instruction set, by one thread and by several."""
    isa, threads = request.param
    monkeypatch.setenv("HSBENCH_ISA", isa)
    monkeypatch.setattr(library, "threads", lambda: threads)


def test_sums_by_halves_by_hand() -> None:
    x = torch.randn(1, 1, 3, 80).half()
    norms, largest = squared_norms_torch(x)
    torch.testing.assert_close(norms, x.double().square().sum(-1))
    assert torch.equal(largest, x.abs().amax(-1))
    y = [float(value) ** 2 for value in x[0, 0, 1]] + [0.0] * 48
    while len(y) > 1:
        half = len(y) // 2
        y = [y[c] + y[c + half] for c in range(half)]
    assert float(norms[0, 0, 1]) == y[0]


@pytest.mark.parametrize("kind", KINDS)
@every_dtype
def test_norms_equal_the_definition(dtype: torch.dtype, kind: str, how: None) -> None:
    for head_dim, seq, fit in itertools.product((64, 128), (1, 333), ("fold", "shift", "beyond")):
        x = make_data(kind, (2, 2, seq, head_dim), dtype, seed=seq)
        made = make_fit(fit, x, "v")
        norms, largest = squared_norms(x, made.shift)
        expected = squared_norms_torch(made.stored(x))
        assert torch.equal(norms, expected[0]), (head_dim, seq, fit)
        assert torch.equal(largest, expected[1]), (head_dim, seq, fit)


def test_flushing_subnormals_to_zero_changes_no_norm() -> None:
    for dtype in DTYPES:
        x = make_data("subnormals", (1, 2, 100, 64), dtype, seed=1)
        expected = squared_norms_torch(x)[0]
        torch.set_flush_denormal(True)
        try:
            got = squared_norms(x, None)[0]
        finally:
            torch.set_flush_denormal(False)
        assert torch.equal(got, expected)


@pytest.mark.parametrize("kind", KINDS)
@every_dtype
def test_means(dtype: torch.dtype, kind: str, how: None) -> None:
    for head_dim, (seq, first, last) in itertools.product((64, 128), ((1, 0, 1), (1200, 64, 1152), (600, 0, 600))):
        x = make_data(kind, (2, 2, seq, head_dim), dtype, seed=seq)
        exact = x[:, :, first:last].mean(2, dtype=torch.float64)
        room = 2e-7 * x.double().abs().amax() + torch.finfo(torch.float32).tiny
        assert ((mean_of(x, first, last).double() - exact).abs() <= room).all()


def test_a_mean_is_the_same_by_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(1, 2, 5000, 64).half()
    means = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(library, "threads", lambda threads=threads: threads)
        means.append(mean_of(x, 64, 4992))
    assert torch.equal(means[0], means[1]) and torch.equal(means[0], means[2])


def test_what_kernels_do_not_take_goes_by_torch() -> None:
    x = torch.randn(1, 2, 200, 80).half()
    assert not has_kernel("mean", x) and not has_kernel("mean", torch.zeros(1, 1, 4, 64))
    assert has_kernel("mean", torch.zeros(1, 1, 4, 64).half())
    torch.testing.assert_close(mean_of(x, 0, 200), x.float().mean(2))


def test_tensors_that_are_not_contiguous() -> None:
    x = torch.randn(2, 300, 3, 64).bfloat16().transpose(1, 2)
    assert torch.equal(mean_of(x, 64, 192), mean_of(x.contiguous(), 64, 192))
    for got, expected in zip(squared_norms(x, None), squared_norms_torch(x), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize(("field", "value"), [("head_dim", 96), ("dtype", 2), ("seq", 0), ("batch", 0), ("x", None)])
@pytest.mark.parametrize("operation", ["mean", "token_norms"])
def test_bad_parameters_are_refused(operation: str, field: str, value: int | None) -> None:
    x = torch.zeros(1, 1, 8, 64).half()
    outputs: dict[str, Any] = (
        dict(mean=torch.empty(1, 1, 64), first_token=0, last_token=8)
        if operation == "mean"
        else dict(squares=torch.empty(1, 1, 8).double(), largest=torch.empty(1, 1, 8).half())
    )
    statistics._run(operation, x, **outputs)
    fields = dict(batch=1, kv_heads=1, head_dim=64, seq=8, dtype=0, x=x) | outputs | {field: value}
    params = library.make(f"hsb_{operation}_params", **fields, threads=1)
    with pytest.raises(library.NativeError):
        library.load("cpu").call(f"hsb_cpu_{operation}", params)


@pytest.mark.parametrize(("first", "last"), [(-1, 4), (4, 4), (0, 9)])
def test_tokens_that_are_not_there(first: int, last: int) -> None:
    with pytest.raises(library.NativeError, match="at least one token"):
        mean_of(torch.zeros(1, 1, 8, 64).half(), first, last)
