"""Sizes, shares, choices and lists as they are typed; fields as options."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsbench.cli.parse import as_option, flag, parse_choice, parse_list, parse_number, parse_size, parse_sparsity
from hsbench.cli.request import Request
from hsbench.errors import UsageError
from hsbench.problem.workload import MAX_SIZE, make_workload


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("128k", 131072),
        ("128K", 131072),
        (" 32k ", 32768),
        ("2m", 2 * 1024**2),
        ("0.5k", 512),
        ("1.5M", 1572864),
        ("64.0", 64),
        ("4096", 4096),
    ],
)
def test_sizes(text: str, value: int) -> None:
    assert parse_size(text, "seq") == value


@pytest.mark.parametrize(
    "text", ["", "abc", "k", "1kk", "1e3", "1_000", "١", "0x10", "1 k", "--", "nan", ".5k", "5.", "1g", "+4"]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="not a size") as caught:
        parse_size(text, "batch")
    assert caught.value.option == "batch"


@pytest.mark.parametrize("text", ["0", "-1", "-128k", "-5"])
def test_sizes_below_one(text: str) -> None:
    with pytest.raises(UsageError, match="at least 1") as caught:
        parse_size(text, "seq")
    assert caught.value.value == text, "as typed"


def test_sizes_that_do_not_come_out_whole() -> None:
    with pytest.raises(UsageError, match="whole number"):
        parse_size("0.3k", "seq")


def test_sizes_beyond_32_bits() -> None:
    assert parse_size(str(MAX_SIZE), "seq") == MAX_SIZE
    with pytest.raises(UsageError, match="at most"):
        parse_size("2048m", "seq")


@given(st.integers(1, MAX_SIZE))
def test_plain_integers_round_trip(value: int) -> None:
    assert parse_size(str(value), "seq") == value


@given(st.integers(1, 2**21 - 1), st.sampled_from("kK"))
def test_k_is_1024(value: int, unit: str) -> None:
    assert parse_size(f"{value}{unit}", "seq") == value * 1024


@given(st.integers(1, 1024 * 1024))
def test_a_size_in_k_is_exact_or_refused(value: int) -> None:
    # Any whole number over 1024 has a finite decimal expansion, so writing it out in k must give it back.
    whole, rest = divmod(value, 1024)
    digits = f"{rest * 10**10 // 1024:010d}"
    assert parse_size(f"{whole}.{digits}k", "seq") == value
    with pytest.raises(UsageError, match="whole number"):
        parse_size(f"{whole}.{digits}1k", "seq")


@given(st.text(max_size=12))
def test_parse_size_raises_nothing_else(text: str) -> None:
    try:
        value = parse_size(text, "seq")
    except UsageError as error:
        assert str(as_option(error)).startswith("--seq ")
    else:
        assert 1 <= value <= MAX_SIZE


@given(st.floats(0, 0.5))
def test_sparsities(value: float) -> None:
    assert parse_sparsity(repr(value)) == value


@pytest.mark.parametrize("text", ["0.7", "0.5000001", "-0.1", "nan", "inf", "-inf", "half", "", "50%"])
def test_bad_sparsities(text: str) -> None:
    with pytest.raises(UsageError, match="0 to 0.5") as caught:
        parse_sparsity(text, "key_sparsity")
    assert (caught.value.option, caught.value.value) == ("key_sparsity", text or '""')


def test_minus_zero_is_zero() -> None:
    assert math.copysign(1, parse_sparsity("-0.0")) == 1


def test_numbers_and_what_is_none() -> None:
    assert parse_number("1e-1") == 0.1 and math.isnan(parse_number("soon")) and math.isnan(parse_number(""))


def test_choices_in_any_case() -> None:
    assert parse_choice(" FP16 ", "dtype", ("fp16", "bf16")) == "fp16"
    with pytest.raises(UsageError, match=r"unknown \(did you mean fp16\?\); one of fp16, bf16") as caught:
        parse_choice("fp61", "dtype", ("fp16", "bf16"))
    assert (caught.value.option, caught.value.value) == ("dtype", "fp61")


def test_lists() -> None:
    assert parse_list("8k, 32k", "seq") == ["8k", "32k"]
    with pytest.raises(UsageError, match="empty item"):
        parse_list("8k,", "seq")


def test_fields_become_options_in_the_remedy_too() -> None:
    with pytest.raises(UsageError) as caught:
        make_workload("decode", q_heads=30)
    assert str(caught.value) == "q_heads 30: must be a multiple of `kv_heads` 8"
    assert str(as_option(caught.value)) == "--q-heads 30: must be a multiple of --kv-heads 8"
    assert flag("budget_s") == "--time" and flag("profile_dir") == "--profile-dir"
    assert as_option(UsageError("--format", "x", "no")).option == "--format"


@pytest.mark.parametrize(
    ("request_", "field", "shown"),
    [
        (Request(q_len="2k"), "q_len", "2k"),
        (Request(sustain="61"), "sustain_s", "61"),
        (Request(time=""), "budget_s", '""'),
        (Request(sparsity="0,0.7"), "sparsity", "0.7"),
        (Request(), "q_len", "0.7"),
    ],
)
def test_values_are_shown_as_typed(request_: Request, field: str, shown: str) -> None:
    assert str(request_.as_typed(UsageError(field, 0.7, "no")).value) == shown
