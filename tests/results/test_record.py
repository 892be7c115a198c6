from __future__ import annotations

import math

import numpy as np
import pytest

from hsbench.results import COLUMNS, SCHEMA, STATUSES, Record
from hsbench.results.record import plain

# The published schema, written out: a change here is a change for everyone who reads the files.
PUBLISHED = """
schema, phase, method, device, workload, batch, q_heads, kv_heads, head_dim, dtype, q_len, seq,
key_sparsity, value_sparsity, achieved_sparsity, status, reason, time_us, time_us_p25, time_us_p75,
samples, stop, speedup, speedup_lo, speedup_hi, baseline, kv_bytes, kv_ratio, read_bytes, gb_per_s,
tflop_per_s, percent_of_peak, peak, rel_error, cache, sm_clock_mhz, power_w, throttled, seed, tensors,
memory_clock_mhz, temperature_c, throttle_reasons, throttled_share, shared, estimated_bytes, peak_bytes,
gpu_used_bytes, sustain_s
"""


def test_columns_are_the_published_schema_in_order(row_failed, workload):
    assert list(COLUMNS) == PUBLISHED.replace(",", " ").split()
    assert SCHEMA == "hsbench/3"
    assert tuple(row_failed(workload(), "dense", "interrupted", None).record.to_row()) == COLUMNS


def test_the_workload_fills_its_columns(workload):
    shape = workload(batch=3, tensors="outliers", seed=7)
    row = Record.of(shape, method="dense", device="cpu", status="ok").to_row()
    assert (row["schema"], row["batch"], row["tensors"], row["seed"]) == (SCHEMA, 3, "outliers", 7)
    assert (row["workload"], row["phase"], row["seq"]) == ("Llama-3.1-8B", "decode", 131072)
    assert row["time_us"] is None and row["throttled"] is None


def test_an_unknown_status_is_refused(workload):
    assert STATUSES == ("ok", "incorrect", "oom", "unsupported", "unavailable", "interrupted")
    with pytest.raises(ValueError, match="status 'fine': must be one of ok, incorrect"):
        Record.of(workload(), method="dense", device="cpu", status="fine")


@pytest.mark.parametrize("status", ["incorrect", "oom", "unsupported", "unavailable"])
@pytest.mark.parametrize("reason", [None, "", " \n"])
def test_a_row_that_could_not_run_says_why(workload, status, reason):
    with pytest.raises(ValueError, match="needs a reason"):
        Record.of(workload(), method="dense", device="cpu", status=status, reason=reason)


def test_a_reason_is_one_line(row_failed, workload):
    record = row_failed(workload(), "dense", "oom", "CUDA out of memory.\n  Tried to allocate\t2 GiB\n").record
    assert record.reason == "CUDA out of memory. Tried to allocate 2 GiB"


def test_a_row_that_failed_its_check_carries_no_speedup(row_ok, workload):
    columns = dict(status="incorrect", reason="error above the limit", speedup=2.0, speedup_lo=1.9, speedup_hi=2.1)
    row = Record.of(workload(), method="hierarchical", device="cpu", **columns).to_row()
    assert row["speedup"] is row["speedup_lo"] is row["speedup_hi"] is None
    assert row_ok(workload(), "hierarchical", 3700.0, {"map": 1}).record.to_row()["speedup"] == 2.0


def test_rows_hold_plain_values(row_ok, workload):
    numbers = dict(kv_bytes=np.int64(12), throttled=np.bool_(True), rel_error=float("nan"), power_w=float("inf"))
    row = row_ok(workload(), "dense", np.float64(7.5), {"dense": 1}, **numbers).record.to_row()
    assert row["rel_error"] is None and row["power_w"] is None
    assert row["throttled"] is True
    assert {type(row[name]) for name in ("kv_bytes", "time_us")} == {int, float}


def test_plain_reaches_into_containers():
    facts = {"gpu": None, 1: (np.int32(2), {"nan": math.nan, "path": np}), "flag": False}
    assert plain(facts) == {"gpu": None, "1": [2, {"nan": None, "path": str(np)}], "flag": False}


@pytest.mark.parametrize(
    ("name", "value"), [("samples", 1.5), ("power_w", "350"), ("throttled", 1), ("samples", True), ("baseline", 3)]
)
def test_a_value_of_another_type_is_refused(row_failed, workload, name, value):
    record = row_failed(workload(), "dense", "interrupted", None, **{name: value}).record
    with pytest.raises(TypeError, match=f"{name} {value!r}: the column holds "):
        record.to_row()


def test_whole_numbers_become_what_their_column_holds(row_failed, workload):
    record = row_failed(workload(), "dense", "interrupted", None, samples=np.float64(3), power_w=np.int64(350)).record
    row = record.to_row()
    assert type(row["samples"]) is int and row["samples"] == 3
    assert type(row["power_w"]) is float and row["power_w"] == 350
