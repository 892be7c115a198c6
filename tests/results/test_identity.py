from __future__ import annotations

import dataclasses

import pytest

from hsbench.results import AttentionCase, key, may_match
from hsbench.results.columns import columns_of

OTHER = {
    "phase": "prefill", "method": "dense", "device": "cuda", "workload": "custom", "batch": 2, "q_heads": 16,
    "kv_heads": 4, "head_dim": 64, "dtype": "bf16", "q_len": 2, "seq": 4096, "key_sparsity": 0.25,
    "value_sparsity": 0.25, "pruner": "another", "evict": 0.5, "sink": 4096, "local": 64, "tensors": "outliers",
    "seed": 1, "cache": "warm", "sustain_s": 0.3, "threads": 8, "isa": "avx512", "ranks": 2,
}  # fmt: skip


def test_every_column_of_the_case_is_identity_but_what_follows_from_the_method():
    assert [column.name for column in columns_of(AttentionCase) if column.name not in OTHER] == ["dense"]


@pytest.mark.parametrize("name", OTHER)
def test_records_that_differ_in_what_a_number_depends_on_are_of_two_cases(record, name):
    case = record().case
    other = dataclasses.replace(case, **{name: OTHER[name]})
    assert key(case) != key(other) and len({case, other}) == 2 and not may_match(case, other)
    if name not in ("q_heads", "kv_heads", "head_dim"):  # which follow from the workload's name
        assert case.label != other.label


def test_sink_of_the_workload_is_identity(workload, record):
    # Blocks in the sink stay dense: with 4096 of 128k other bytes are read.
    assert key(record(workload(sink=0)).case) != key(record(workload(sink=4096)).case)


def test_two_runs_of_a_case_are_comparable(record):
    first, second = record(time_us=10.0), record(status="oom", reason="no room")
    assert first.case == second.case and hash(first.case) == hash(second.case)
    assert key(first.case) == key(second.case) and dict(key(first.case))["seq"] == 131072


def test_a_gpu_has_neither_threads_nor_isa(record):
    case = record(device="cuda:1").case
    assert (case.device, case.threads, case.isa) == ("cuda", None, None)


def test_what_an_older_file_does_not_tell_may_match(record):
    case = record().case
    older = dataclasses.replace(case, sink=None, threads=None)
    assert key(older) != key(case)
    assert may_match(older, case) and may_match(case, older)
    assert not may_match(older, dataclasses.replace(case, local=64))


def test_a_label_leaves_out_what_is_as_usual(workload, record):
    assert record().case.label == (
        "hierarchical: decode Llama-3.1-8B, 131072 tokens, fp16, sparsity 0.5, cpu, 4 threads, avx2"
    )
    unusual = workload(sink=64, batch=8, key_sparsity=0.25, tensors="outliers", seed=3)
    assert record(unusual, cache="warm", sustain_s=0.3, device="cuda").case.label == (
        "hierarchical: decode Llama-3.1-8B, 131072 tokens, batch 8, fp16, sparsity K 0.25 V 0.5, sink 64, outliers, "
        "seed 3, warm, sustained 0.3 s, cuda"
    )
