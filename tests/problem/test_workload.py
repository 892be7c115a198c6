"""Sizes, sparsities, profiles, and the workloads built from them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsbench.errors import UsageError
from hsbench.problem.elements import INPUTS
from hsbench.problem.workload import (
    HEAD_DIMS,
    MAX_GROUP,
    MAX_SIZE,
    check_geometry,
    find_profile,
    load_profiles,
    make_workload,
    parse_size,
    parse_sparsity,
)


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
        (4096, 4096),
    ],
)
def test_sizes(text: str | int, value: int) -> None:
    assert parse_size(text) == value


@pytest.mark.parametrize(
    "text", ["", "abc", "k", "1kk", "1e3", "1_000", "١", "0x10", "1 k", "--", "nan", ".5k", "5.", "1g", "+4"]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="not a size") as caught:
        parse_size(text, "--batch")
    assert caught.value.option == "--batch"


@pytest.mark.parametrize("text", ["0", "-1", "-128k", 0, -5])
def test_sizes_below_one(text: str | int) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        parse_size(text)


def test_sizes_that_do_not_come_out_whole() -> None:
    with pytest.raises(UsageError, match="whole number"):
        parse_size("0.3k")


def test_sizes_beyond_32_bits() -> None:
    assert parse_size(str(MAX_SIZE)) == MAX_SIZE
    with pytest.raises(UsageError, match="at most"):
        parse_size("2048m")


@given(st.integers(1, MAX_SIZE))
def test_plain_integers_round_trip(value: int) -> None:
    assert parse_size(str(value)) == parse_size(value) == value


@given(st.integers(1, 2**21 - 1), st.sampled_from("kK"))
def test_k_is_1024(value: int, unit: str) -> None:
    assert parse_size(f"{value}{unit}") == value * 1024


@given(st.integers(1, 1024 * 1024))
def test_a_size_in_k_is_exact_or_refused(value: int) -> None:
    # Any whole number over 1024 has a finite decimal expansion, so writing it out in k must give it back.
    whole, rest = divmod(value, 1024)
    digits = f"{rest * 10**10 // 1024:010d}"
    assert parse_size(f"{whole}.{digits}k") == value
    with pytest.raises(UsageError, match="whole number"):
        parse_size(f"{whole}.{digits}1k")


@given(st.text(max_size=12))
def test_parse_size_raises_nothing_else(text: str) -> None:
    try:
        value = parse_size(text)
    except UsageError as error:
        assert "--seq" in str(error)
    else:
        assert 1 <= value <= MAX_SIZE


@given(st.floats(0, 0.5))
def test_sparsities(value: float) -> None:
    assert parse_sparsity(repr(value)) == value


@pytest.mark.parametrize("text", ["0.7", "0.5000001", "-0.1", "nan", "inf", "-inf", "half", "", "50%"])
def test_bad_sparsities(text: str) -> None:
    with pytest.raises(UsageError, match="0 to 0.5"):
        parse_sparsity(text)


def test_minus_zero_is_zero() -> None:
    assert math.copysign(1, parse_sparsity("-0.0")) == 1


def test_profiles_are_complete_and_runnable() -> None:
    profiles = load_profiles()
    llama = {"Llama-3.1-8B", "Llama-3.1-70B", "Llama-3.2-1B"}
    assert llama | {"Mistral-7B-v0.3", "Qwen2.5-7B", "Qwen3-8B", "Qwen3-32B"} <= set(profiles)
    for name, profile in profiles.items():
        assert profile.name == name
        assert profile.head_dim in HEAD_DIMS
        assert 1 <= profile.q_heads // profile.kv_heads <= MAX_GROUP
        assert profile.q_heads % profile.kv_heads == 0
        assert profile.layers > 0 and profile.max_seq >= 32768
        assert profile.source.startswith("https://huggingface.co/")
        assert make_workload("decode", workload=name).name == name


def test_a_profile_is_found_in_any_case() -> None:
    assert find_profile("llama-3.1-8b") is find_profile("LLAMA-3.1-8B")


def test_an_unknown_profile_lists_the_known_and_the_closest() -> None:
    with pytest.raises(UsageError) as caught:
        find_profile("lama-3.1-8b")
    message = str(caught.value)
    assert "--workload lama-3.1-8b" in message
    assert "did you mean Llama-3.1-8B?" in message
    assert "Qwen3-32B" in message


def test_defaults() -> None:
    decode = make_workload("decode")
    assert (decode.q_heads, decode.kv_heads, decode.head_dim, decode.group) == (32, 8, 128, 4)
    assert (decode.seq, decode.batch, decode.q_len, decode.dtype) == (32768, 1, 1, "fp16")
    assert (decode.key_sparsity, decode.value_sparsity, decode.sink, decode.local) == (0.5, 0.5, 0, 0)
    assert (decode.tensors, decode.seed, decode.name) == ("gaussian", 0, "Llama-3.1-8B")
    assert make_workload("prefill").q_len == 32768


def test_overrides() -> None:
    workload = make_workload(
        "prefill", workload="qwen3-8b", seq="8k", batch="2", dtype="BF16", q_len="1k", sparsity="0.25",
        key_sparsity="0", sink="64", local="1k", tensors="outliers", seed="7",
    )  # fmt: skip
    assert (workload.name, workload.seq, workload.batch, workload.dtype) == ("Qwen3-8B", 8192, 2, "bf16")
    assert (workload.key_sparsity, workload.value_sparsity, workload.mean_sparsity) == (0, 0.25, 0.125)
    assert (workload.q_len, workload.sink, workload.local) == (1024, 64, 1024)
    assert (workload.tensors, workload.seed) == ("outliers", 7)


def test_other_heads_make_it_custom() -> None:
    assert make_workload("decode", q_heads=16).name == "custom"
    assert make_workload("decode", q_heads=32).name == "Llama-3.1-8B"


def test_captured_tensors_are_provenance() -> None:
    assert make_workload("decode", tensors="kv.safetensors#layers.3").tensors == "kv.safetensors#layers.3"


def test_workloads_are_values() -> None:
    assert len({make_workload("decode", seq="32k"), make_workload("decode", seq=32768)}) == 1


def test_dense_bytes() -> None:
    # 128k tokens of Llama-3.1-8B: 512 MiB of K and V in one layer.
    assert make_workload("decode", seq="128k").dense_kv_bytes == 512 * 1024**2


@given(seq=st.integers(1, 40), data=st.data())
def test_flops_count_the_causal_pairs(seq: int, data: st.DataObject) -> None:
    q_len = data.draw(st.integers(1, seq))
    workload = make_workload("prefill", seq=seq, q_len=q_len, batch=3)
    pairs = sum(1 for i in range(q_len) for j in range(seq) if j <= seq - q_len + i)
    assert workload.pairs == pairs
    assert workload.flops == 4 * 3 * 32 * 128 * pairs


@pytest.mark.parametrize(
    ("given_", "option", "words"),
    [
        ({"workload": "GPT-9"}, "--workload", "one of"),
        ({"seq": "-1"}, "--seq", "at least 1"),
        ({"batch": 0}, "--batch", "at least 1"),
        ({"q_heads": "x"}, "--q-heads", "not a size"),
        ({"q_heads": 30}, "--q-heads", "multiple of --kv-heads 8"),
        ({"q_heads": 4}, "--q-heads", "multiple of --kv-heads 8"),
        ({"kv_heads": 1}, "--q-heads", "group of 32"),
        ({"head_dim": 96}, "--head-dim", "64 or 128"),
        ({"dtype": "fp32"}, "--dtype", "fp16, bf16"),
        ({"sparsity": 0.7}, "--sparsity", "0 to 0.5"),
        ({"key_sparsity": -0.1}, "--key-sparsity", "0 to 0.5"),
        ({"value_sparsity": float("nan")}, "--value-sparsity", "0 to 0.5"),
        ({"sink": -1}, "--sink", "at least 0"),
        ({"local": "-64"}, "--local", "at least 0"),
        ({"tensors": "gausian"}, "--tensors", "did you mean gaussian?"),
        ({"seed": -1}, "--seed", "at least 0"),
        ({"seq": 64, "q_len": 65}, "--q-len", "at most 64"),
        ({"q_len": 0}, "--q-len", "at least 1"),
    ],
)
def test_bad_input(given_: dict[str, object], option: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        make_workload("prefill", **given_)
    assert caught.value.option == option
    assert "\n" not in str(caught.value)


def test_bad_phase_and_decode_of_many_queries() -> None:
    with pytest.raises(UsageError, match="did you mean decode"):
        make_workload("decod")
    with pytest.raises(UsageError, match="one query"):
        make_workload("decode", q_len=2)


@given(st.integers(1, 64), st.integers(1, 64), st.sampled_from([32, 64, 96, 128, 256]))
def test_geometry(q_heads: int, kv_heads: int, head_dim: int) -> None:
    good = q_heads % kv_heads == 0 and q_heads // kv_heads <= MAX_GROUP and head_dim in HEAD_DIMS
    if good:
        check_geometry(q_heads, kv_heads, head_dim)
        return
    for option in (None, "--kv"):
        with pytest.raises(UsageError):
            check_geometry(q_heads, kv_heads, head_dim, option=option, value="f.safetensors")


def test_dtypes_are_the_two_16_bit_ones() -> None:
    assert tuple(INPUTS) == ("fp16", "bf16")
