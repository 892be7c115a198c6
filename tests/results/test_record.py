from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

import hsbench.methods
from hsbench.kernels.device import CPU, CUDA
from hsbench.problem.phase import PHASES
from hsbench.results import COLUMNS, SCHEMA, STATUSES, AttentionMeasures, Record
from hsbench.results.attention import is_dense
from hsbench.results.columns import columns_of
from hsbench.results.values import as_written, plain

# The published schema, written out: a change here is a change for everyone who reads the files.
PUBLISHED = """
schema, benchmark, phase, method, dense, device, workload, batch, q_heads, kv_heads, head_dim, dtype, q_len, seq,
key_sparsity, value_sparsity, pruner, evict, sink, local, tensors, seed, cache, sustain_s, threads, isa, ranks,
status, reason, achieved_sparsity, achieved_evict, evict_by, time_us, time_us_p25, time_us_p75, samples, stop, speedup,
speedup_lo, speedup_hi, baseline, kv_bytes, kv_ratio, read_bytes, gb_per_s, tflop_per_s, ceiling, percent_of_ceiling,
rel_error, cold_by, sm_clock_mhz, memory_clock_mhz, power_w, temperature_c, throttled, throttle_reasons,
throttled_share, shared, estimated_bytes, peak_bytes, gpu_used_bytes,
shard_tokens, device_kv_bytes, collective_us, part_us, efficiency, efficiency_by
"""


def test_columns_are_the_published_schema_in_order(record):
    assert list(COLUMNS) == PUBLISHED.replace(",", " ").split()
    assert SCHEMA == "hsbench/4"
    assert tuple(record(status="interrupted").to_row()) == COLUMNS


def test_units_stand_in_the_names():
    suffixes = {"us": "us", "s": "s", "bytes": "bytes", "GB/s": "gb_per_s", "TFLOP/s": "tflop_per_s"}
    suffixes |= {"MHz": "mhz", "W": "w", "C": "c", "%": "percent"}
    for column in Record.columns():
        if column.unit:
            assert suffixes[column.unit] in column.name, column.name


def test_the_rates_of_the_phases_are_measures():
    units = {column.name: column.unit for column in columns_of(AttentionMeasures) if column.hint == "rate"}
    for phase in PHASES.values():
        assert units[phase.rate.column] == phase.rate.unit


def test_the_workload_fills_its_columns(workload, record):
    row = record(workload(batch=3, tensors="outliers", seed=7, sink=64, local=256), status="interrupted").to_row()
    assert (row["schema"], row["benchmark"]) == (SCHEMA, "attention")
    assert (row["batch"], row["tensors"], row["seed"], row["sink"], row["local"]) == (3, "outliers", 7, 64, 256)
    assert (row["workload"], row["phase"], row["seq"]) == ("Llama-3.1-8B", "decode", 131072)
    assert (row["threads"], row["isa"], row["pruner"]) == (4, "avx2", "magnitude")
    assert row["time_us"] is None and row["throttled"] is None


def test_a_measure_that_there_is_not_is_refused(record):
    with pytest.raises(TypeError, match="tokens_per_s"):
        record(tokens_per_s=3.0)


def test_dense_is_what_the_methods_say():
    for phase in PHASES.values():
        for device in (CPU, CUDA):
            for family in hsbench.methods.FAMILIES:
                for method in hsbench.methods.rows_of(family, phase, device):
                    assert method.dense == is_dense(method.name), method.name
                    assert not method.dense or family in hsbench.methods.DENSE_FAMILIES, method.name
    assert is_dense("dense") and is_dense("dense:sm80") and is_dense("sdpa:math")
    assert not is_dense("dense:fp8") and not is_dense("dense:fp8:sm90") and not is_dense("hierarchical:fp8")


def test_an_unknown_status_is_refused(record):
    assert STATUSES == ("ok", "incorrect", "oom", "unsupported", "unavailable", "interrupted")
    with pytest.raises(ValueError, match="status 'fine': must be one of ok, incorrect"):
        record(status="fine")


@pytest.mark.parametrize("status", ["incorrect", "oom", "unsupported", "unavailable"])
@pytest.mark.parametrize("reason", [None, "", " \n"])
def test_a_row_that_could_not_run_says_why(record, status, reason):
    with pytest.raises(ValueError, match="needs a reason"):
        record(status=status, reason=reason)


def test_a_reason_is_one_line(record):
    assert (
        record(status="oom", reason="CUDA out of memory.\n  Tried to allocate\t2 GiB\n").reason
        == "CUDA out of memory. Tried to allocate 2 GiB"
    )


def test_a_row_that_failed_its_check_carries_no_speedup(record):
    row = record(status="incorrect", reason="error above the limit", speedup=2.0, speedup_lo=1.9, time_us=3.0).to_row()
    assert row["speedup"] is row["speedup_lo"] is row["speedup_hi"] is None
    assert row["time_us"] == 3 and record().to_row()["speedup"] == 2.0


def test_rows_hold_plain_values(record):
    numbers = dict(kv_bytes=np.int64(12), throttled=np.bool_(True), rel_error=float("nan"), power_w=float("inf"))
    row = record(time_us=np.float64(7.5), **numbers).to_row()
    assert row["rel_error"] is None and row["power_w"] is None
    assert row["throttled"] is True
    assert {type(row[name]) for name in ("kv_bytes", "time_us")} == {int, float}


def test_plain_reaches_into_containers():
    facts = {"gpu": None, 1: (np.int32(2), {"nan": math.nan, "path": np}), "flag": False}
    assert plain(facts) == {"gpu": None, "1": [2, {"nan": None, "path": str(np)}], "flag": False}


def test_numbers_are_written_with_six_digits():
    assert [as_written(value) for value in (1 / 3, 1234567.8, 7, "7", None)] == [0.333333, 1234568.0, 7, "7", None]


@pytest.mark.parametrize(
    ("name", "value"), [("samples", 1.5), ("power_w", "350"), ("throttled", 1), ("samples", True), ("baseline", 3)]
)
def test_a_value_of_another_type_is_refused(record, name, value):
    with pytest.raises(TypeError, match=f"{name} {value!r}: the column holds "):
        record(status="interrupted", **{name: value}).to_row()


@pytest.mark.parametrize(("name", "value"), [("seq", 1.5), ("sink", "64"), ("batch", None), ("key_sparsity", math.nan)])
def test_a_case_is_refused_a_value_of_another_type(record, name, value):
    with pytest.raises(TypeError, match=f"{name} .*: the column holds "):
        dataclasses.replace(record().case, **{name: value})


def test_whole_numbers_become_what_their_column_holds(record):
    row = record(status="interrupted", samples=np.float64(3), power_w=np.int64(350)).to_row()
    assert type(row["samples"]) is int and row["samples"] == 3
    assert type(row["power_w"]) is float and row["power_w"] == 350
