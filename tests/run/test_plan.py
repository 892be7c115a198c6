"""Plans: what is resolved, how they are written, and what is no plan."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from hsbench.cache.basis import Basis, BasisLayer, BasisSource, LayerBasis
from hsbench.errors import UnavailableError, UsageError
from hsbench.kernels.device import CPU, CUDA, Device
from hsbench.problem.captured import open_captured
from hsbench.problem.workload import Workload, make_workload
from hsbench.run.plan import SCHEMA, MethodsGoneError, Plan, TensorsGoneError, make_plan
from hsbench.run.settings import Settings

DECODE, PREFILL = (
    make_workload(phase, seq=300, q_heads=4, kv_heads=2, head_dim=64, dtype="bf16", seed=3)
    for phase in ("decode", "prefill")
)


def plan(*workloads: Workload, methods: list[str] | None = None, settings: Settings | None = None) -> Plan:
    return make_plan([(workload, None) for workload in workloads], methods, CPU, settings)


def through_json(values: dict[str, Any]) -> dict[str, Any]:
    copy: dict[str, Any] = json.loads(json.dumps(values))
    return copy


def test_a_cell_has_the_rows_that_run() -> None:
    decode, prefill = plan(DECODE, PREFILL, methods=["sdpa", "dense", "sdpa"]).cells
    ours = ("dense", "dense:fp8", "dense:int4")
    assert decode.methods == ("sdpa:flash", "sdpa:flash-rows", "sdpa:math", "sdpa:math-rows", *ours)
    assert prefill.methods == ("sdpa:flash", "sdpa:math", *ours)
    assert plan(DECODE, methods=["sdpa", "dense"]).methods == ("sdpa", "dense"), "what was asked for is kept as it was"


def test_rows_named_again_are_the_same_rows() -> None:
    for workload in (DECODE, PREFILL):
        (cell,) = plan(workload).cells
        assert plan(workload, methods=list(cell.methods)).cells == (cell,)


def test_each_cell_once() -> None:
    assert [cell.workload for cell in plan(DECODE, PREFILL, DECODE).cells] == [DECODE, PREFILL]


def test_a_variant_that_one_phase_lacks() -> None:
    with pytest.raises(UsageError, match="sdpa:flash-rows.*for prefill on cpu"):
        plan(DECODE, PREFILL, methods=["sdpa:flash-rows"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there() -> None:
    with pytest.raises(UnavailableError, match="--device cuda"):
        Plan.from_dict(plan(DECODE).to_dict(), "cuda")


@pytest.mark.parametrize("methods", [None, ["sdpa", "dense"]])
def test_written_and_read(methods: list[str] | None) -> None:
    made = plan(DECODE, PREFILL, methods=methods, settings=Settings(budget_s=0.5, cache="warm", sustain_s=0.3))
    assert Plan.from_dict(through_json(made.to_dict())) == made


def test_one_cell_alone() -> None:
    made = plan(DECODE, PREFILL, settings=Settings(cache="warm"))
    one = made.of(made.cells[1], ["dense"])
    assert [cell.workload for cell in one.cells] == [PREFILL] and one.cells[0].methods == one.methods == ("dense",)
    assert (one.device, one.settings) == (made.device, made.settings)
    assert Plan.from_dict(through_json(one.to_dict())) == one


def test_version_one_may_name_families() -> None:
    values = through_json(plan(PREFILL, methods=["sdpa"]).to_dict())
    del values["schema"]
    values["cells"][0]["methods"] = ["sdpa"]
    assert Plan.from_dict(values).cells[0].methods == ("sdpa:flash", "sdpa:math")


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p.update(schema="hsbench-plan/3"),
        lambda p: p.update(schema="hsbench/3"),
        lambda p: p.update(device="tpu"),
        lambda p: p.update(methods="dense"),
        lambda p: p.update(methods=[1]),
        lambda p: p.update(cells=[]),
        lambda p: p.pop("settings"),
        lambda p: p["settings"].update(min_samples=0),
        lambda p: p["settings"].update(min_samples=300),
        lambda p: p["settings"].update(target=-1.0),
        lambda p: p["settings"].update(budget_s=0),
        lambda p: p["cells"][0].pop("methods"),
        lambda p: p["cells"][0]["workload"].update(seq=0),
        lambda p: p["cells"][0]["workload"].pop("sink"),
    ],
)
def test_what_is_no_plan(change: Callable[[dict[str, Any]], object]) -> None:
    values = through_json(plan(DECODE).to_dict())
    assert values["schema"] == SCHEMA and Plan.from_dict(values)
    change(values)
    with pytest.raises((KeyError, TypeError, ValueError, UsageError)):
        Plan.from_dict(values)


def test_another_device_has_the_methods_that_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hsbench.run.plan.resolve_device", lambda name: Device(name))
    values = through_json(plan(DECODE, methods=["sdpa"]).to_dict())
    moved = Plan.from_dict(values, "cuda")
    assert moved.device == CUDA and "sdpa:cudnn" in moved.cells[0].methods
    there = make_plan([(DECODE, None)], ["sdpa:cudnn"], CUDA).to_dict()
    with pytest.raises(MethodsGoneError, match="it has flash"):
        Plan.from_dict(there, "cpu")


def test_captured_tensors_are_looked_for(tmp_path: Path) -> None:
    path = tmp_path / "kv.safetensors"

    def save(seq: int) -> None:
        named = {f"layers.1.{name}": torch.zeros(1, 2, seq, 64).half() for name in "kv"}
        save_file({**named, "layers.1.q": torch.zeros(1, 4, 5, 64).half()}, path)

    save(96)
    captured = open_captured(path).last(1)
    workload = make_workload("decode", seq=96, q_heads=4, kv_heads=2, head_dim=64, tensors=captured.source)
    made = make_plan([(workload, captured)], ["sdpa:flash"], CPU)
    values = through_json(made.to_dict())
    assert Plan.from_dict(values) == made
    save(128)
    with pytest.raises(TensorsGoneError, match="has another seq than then"):
        Plan.from_dict(values)
    path.unlink()
    with pytest.raises(TensorsGoneError, match="cannot be had"):
        Plan.from_dict(values)


def test_a_basis_goes_to_the_cells_that_take_one(tmp_path: Path) -> None:
    geometry = {"layers": 9, "q_heads": 4, "kv_heads": 2, "head_dim": 64}
    layer = LayerBasis(*(torch.rand(2, 64) for _ in range(3)))
    path = tmp_path / "b.safetensors"
    Basis(BasisSource("A", "1234", geometry, "ab", 7), {4: layer, 6: layer}).save(path)
    basis = BasisLayer.open(path)
    assert basis.layer == 4 and torch.equal(basis.query_rms, layer.query_rms)
    problems = [(replace(DECODE, pruner=name), None) for name in ("magnitude", "calibrated", "mirror")]
    made = make_plan(problems, ["hierarchical"], CPU, basis=basis)
    assert [cell.basis for cell in made.cells] == [None, basis, None]
    values = through_json(made.to_dict())
    assert ["basis" in cell for cell in values["cells"]] == [False, True, False]
    again = Plan.from_dict(values)
    assert again == made and again.cells[1].basis is not None
    assert made.of(made.cells[1], ["hierarchical"]).cells[0].basis == basis
    with pytest.raises(UsageError, match="pruner calibrated: needs a calibration"):
        make_plan(problems, ["hierarchical"], CPU)
    with pytest.raises(UsageError, match="is for 2 kv heads x 64"):
        make_plan([(replace(DECODE, pruner="calibrated", kv_heads=1), None)], None, CPU, basis=basis)
    with pytest.raises(UsageError, match="pruner nosuch: unknown"):
        make_plan([(replace(DECODE, pruner="nosuch"), None)], None, CPU)
    del values["cells"][1]["basis"]
    with pytest.raises(UsageError, match="pruner calibrated: needs a calibration"):
        Plan.from_dict(values)
    values["cells"][1]["basis"] = {"path": str(tmp_path / "gone"), "layer": 4}
    with pytest.raises(TensorsGoneError, match="its basis cannot be had"):
        Plan.from_dict(values)


def test_a_plan_of_before_there_was_a_choice_means_the_papers() -> None:
    values = through_json(plan(DECODE).to_dict())
    del values["cells"][0]["workload"]["pruner"]
    assert Plan.from_dict(values) == plan(DECODE)
    values["cells"][0]["workload"]["pruner"] = "nosuch"
    with pytest.raises(UsageError, match="pruner nosuch: unknown"):
        Plan.from_dict(values)
