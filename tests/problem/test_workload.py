"""Shapes of models, and the workloads built from them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsbench.errors import UsageError
from hsbench.problem.elements import INPUTS
from hsbench.problem.shapes import find_shape, load_shapes
from hsbench.problem.workload import (
    HEAD_DIMS,
    MAX_GROUP,
    MAX_SIZE,
    Workload,
    check_geometry,
    make_workload,
)


def test_shapes_are_complete_and_runnable() -> None:
    shapes = load_shapes()
    llama = {"Llama-3.1-8B", "Llama-3.1-70B", "Llama-3.2-1B"}
    assert llama | {"Mistral-7B-v0.3", "Qwen2.5-7B", "Qwen3-8B", "Qwen3-32B"} <= set(shapes)
    for name, shape in shapes.items():
        assert shape.name == name
        assert shape.head_dim in HEAD_DIMS
        assert 1 <= shape.q_heads // shape.kv_heads <= MAX_GROUP
        assert shape.q_heads % shape.kv_heads == 0
        assert shape.layers > 0 and shape.max_seq >= 32768
        assert shape.source.startswith("https://huggingface.co/")
        assert make_workload("decode", workload=name).name == name


def test_a_shape_is_found_in_any_case() -> None:
    assert find_shape("llama-3.1-8b") is find_shape("LLAMA-3.1-8B")


def test_an_unknown_shape_lists_the_known_and_the_closest() -> None:
    with pytest.raises(UsageError) as caught:
        find_shape("lama-3.1-8b")
    message = str(caught.value)
    assert "workload lama-3.1-8b" in message
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
        "prefill", workload="qwen3-8b", seq=8192, batch=2, dtype="bf16", q_len=1024, sparsity=0.25,
        key_sparsity=0, sink=64, local=1024, tensors="outliers", seed=7,
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
    assert len({make_workload("decode", seq=32768, sparsity=-0.0), make_workload("decode", sparsity=0)}) == 1


def test_dense_bytes() -> None:
    # 128k tokens of Llama-3.1-8B: 512 MiB of K and V in one layer.
    assert make_workload("decode", seq=131072).dense_kv_bytes == 512 * 1024**2


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
        ({"workload": "GPT-9"}, "workload", "one of"),
        ({"seq": -1}, "seq", "at least 1"),
        ({"batch": 0}, "batch", "at least 1"),
        ({"q_heads": "4"}, "q_heads", "not a whole number"),
        ({"q_heads": 30}, "q_heads", "multiple of `kv_heads` 8"),
        ({"q_heads": 4}, "q_heads", "multiple of `kv_heads` 8"),
        ({"kv_heads": 1}, "q_heads", "group of 32"),
        ({"head_dim": 96}, "head_dim", "64 or 128"),
        ({"dtype": "fp32"}, "dtype", "fp16, bf16"),
        ({"sparsity": 0.7}, "sparsity", "0 to 0.5"),
        ({"key_sparsity": -0.1}, "key_sparsity", "0 to 0.5"),
        ({"value_sparsity": float("nan")}, "value_sparsity", "0 to 0.5"),
        ({"sink": -1}, "sink", "at least 0"),
        ({"local": -64}, "local", "at least 0"),
        ({"tensors": "gausian"}, "tensors", "did you mean gaussian?"),
        ({"seed": -1}, "seed", "at least 0"),
        ({"seq": 64, "q_len": 65}, "q_len", "at most 64"),
        ({"q_len": 0}, "q_len", "at least 1"),
        ({"seq": True}, "seq", "not a whole number"),
        ({"seq": 2.0}, "seq", "not a whole number"),
        ({"batch": MAX_SIZE + 1}, "batch", "at most"),
        ({"key_sparsity": "0.5"}, "key_sparsity", "0 to 0.5"),
    ],
)
def test_bad_input(given_: dict[str, Any], option: str, words: str) -> None:
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
    with pytest.raises(UsageError):
        check_geometry(q_heads, kv_heads, head_dim)


@pytest.mark.parametrize(
    "change",
    [{"seq": 0}, {"q_len": 2}, {"kv_heads": 5}, {"value_sparsity": 0.6}, {"tensors": "x"}, {"name": ""}, {"seed": -1}],
)
def test_no_workload_is_invalid(change: dict[str, Any]) -> None:
    """However it is made."""
    with pytest.raises(UsageError):
        dataclasses.replace(make_workload("decode"), **change)
    with pytest.raises(UsageError):
        Workload.from_dict(make_workload("decode").to_dict() | change)


@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_a_workload_is_written_and_read(phase: str) -> None:
    workload = make_workload(phase, workload="Qwen3-8B", seq=300, dtype="bf16", key_sparsity=0.1, sink=64, seed=3)
    assert Workload.from_dict(workload.to_dict()) == workload


def test_dtypes_are_the_two_16_bit_ones() -> None:
    assert tuple(INPUTS) == ("fp16", "bf16")
