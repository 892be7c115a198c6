"""The matrix that every registered method goes through: small workloads of each kind, checked against fp32.

A method added to the registry is tested here without a line about it.
"""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import warnings
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hsbench.cache.layouts import why_decode_only, why_no_pages
from hsbench.cache.prune import choose_blocks, keep_unstructured, plan_blocks, prune_hierarchical
from hsbench.cache.pruner import PRUNERS
from hsbench.cache.simulate import simulate
from hsbench.errors import UnsupportedError, UsageError
from hsbench.kernels import library
from hsbench.kernels.device import CPU, CUDA, Device
from hsbench.methods import FAMILIES, PRUNER_FAMILIES, check_methods, default_families, find_methods, rows_of
from hsbench.methods.base import Method, Prepared
from hsbench.problem.elements import INPUTS, SIXTEEN_BIT, STORED, StoredElements
from hsbench.problem.inputs import Inputs
from hsbench.problem.phase import DECODE, PHASES, PREFILL, Phase
from hsbench.problem.synthetic import make_inputs
from hsbench.problem.workload import Workload, make_workload
from hsbench.run import check

DEVICES = [CPU] + [CUDA] * torch.cuda.is_available()


@dataclass(frozen=True)
class Case:
    """A workload of the matrix, apart from phase and dtype."""

    heads: tuple[int, int]
    head_dim: int
    seq: int
    q_len: int | None = None
    batch: int = 1
    sparsity: float = 0.5
    sink: int = 0
    local: int = 0
    tensors: str = "gaussian"


CASES = {
    "decode": [
        Case((4, 4), 64, seq=1, batch=2),
        Case((8, 2), 128, seq=256),
        Case((6, 2), 64, seq=65, batch=2),
        Case((16, 1), 128, seq=400, sparsity=0.3, sink=70, local=10, tensors="outliers"),
        Case((4, 2), 64, seq=640, sparsity=0.0),
    ],
    "prefill": [
        Case((4, 2), 64, seq=65, batch=2),
        Case((8, 2), 128, seq=200, sparsity=0.3, sink=1, local=1),
        Case((2, 2), 64, seq=300, q_len=37),
        Case((4, 1), 128, seq=130, q_len=1),
        Case((4, 2), 64, seq=257, q_len=256, sparsity=0.25, tensors="outliers"),
    ],
}


def make(phase: Phase, case: Case, dtype: str) -> Workload:
    return make_workload(
        phase.name,
        batch=case.batch,
        q_heads=case.heads[0],
        kv_heads=case.heads[1],
        head_dim=case.head_dim,
        dtype=dtype,
        seq=case.seq,
        q_len=case.q_len,
        sparsity=case.sparsity,
        sink=case.sink,
        local=case.local,
        tensors=case.tensors,
    )


EVERY_METHOD = [
    pytest.param(phase, device, method, id=f"{phase}-{device}-{method.name}")
    for phase, device in itertools.product(PHASES.values(), DEVICES)
    for family in FAMILIES
    for method in rows_of(family, phase, device)
]
EVERY_RUN = [
    pytest.param(*each.values, case, dtype, id=f"{each.id}-{case.seq}x{case.q_len or ''}x{case.head_dim}-{dtype}")
    for each in EVERY_METHOD
    for case in CASES[each.values[0].name]
    for dtype in INPUTS
]


def can_run(method: Method, workload: Workload, device: Device) -> None:
    """Skips, with the reason, what the method says that it cannot do."""
    if reason := method.unsupported(workload, device) or method.unavailable(device):
        pytest.skip(reason)


def prepare(method: Method, workload: Workload, inputs: Inputs) -> Prepared:
    try:
        return method.prepare(workload, inputs)
    except UnsupportedError as error:
        pytest.skip(str(error))


# ---- The matrix --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("phase", "device", "method", "case", "dtype"), EVERY_RUN)
def test_matrix(phase: Phase, device: Device, method: Method, case: Case, dtype: str) -> None:
    workload = make(phase, case, dtype)
    can_run(method, workload, device)
    inputs = make_inputs(workload, str(device))
    before = [x.clone() for x in (inputs.q, inputs.k, inputs.v)]
    prepared = prepare(method, workload, inputs)

    # The output: right after the first run, and again, as a sample is.
    expected = check.expect(inputs, prepared.pruned, workload.seed, prepared.left)
    for _ in range(2):
        prepared.poison()
        assert torch.isnan(prepared.out).all() and (prepared.lse is None or torch.isnan(prepared.lse).all())
        prepared.run()
        assert prepared.out.shape == inputs.q.shape and prepared.out.dtype == inputs.q.dtype
        verdict = check.compare(expected, prepared.out, prepared.lse, prepared.products)
        assert verdict.reason is None, verdict.reason
    if prepared.lse is not None:
        assert prepared.lse.shape == inputs.q.shape[:3] and prepared.lse.dtype == torch.float32
    assert all(torch.equal(x, old) for x, old in zip((inputs.q, inputs.k, inputs.v), before, strict=True))

    # What is stored: all of it counted, nothing empty, and the pruned tensors are what it holds.
    assert prepared.kv_bytes == sum(prepared.memory.values()) > 0
    assert all(isinstance(size, int) and size > 0 for size in prepared.memory.values())
    pruned = [[prepared.pruned(b, h) for h in range(workload.kv_heads)] for b in range(workload.batch)]
    if method.dense:
        assert prepared.achieved_sparsity is None and prepared.compress is None
        assert all(head is None for heads in pruned for head in heads), "dense methods attend to the inputs"
        return
    assert prepared.compress is not None
    assert (
        prepared.achieved_sparsity is None
        if method.name.startswith("dense:")
        else 0 <= prepared.achieved_sparsity <= 0.5
    )
    for b, h, which in itertools.product(range(workload.batch), range(workload.kv_heads), range(2)):
        got, full = pruned[b][h][which], (inputs.k, inputs.v)[which][b, h]
        if (left := prepared.left(b, h)) is not None:
            full = full[left]
        assert got.shape == full.shape
        if not is_narrow(method):
            assert got.dtype == full.dtype
            assert torch.equal(got, torch.where(got != 0, full, 0)), "pruning only zeroes"
        elif method.name.startswith("dense"):
            # Half a step is at most 2^-4 of a value of e4m3, 1/15 of the largest of int4: tests/cache/test_fp8.py and
            # test_int4.py have each one's bound.
            most = 0.04 if ":fp8" in method.name else 0.15
            assert (got - full.float()).norm() <= most * full.float().norm()


def elements(method: Method) -> StoredElements:
    """Of its pages; of what has none, 16 bits."""
    stored: StoredElements = getattr(method, "elements", SIXTEEN_BIT)
    return stored


def is_narrow(method: Method) -> bool:
    return elements(method).has_scale


def narrow_rows(family: str) -> list[str]:
    return [f"{family}:{stored}" for stored in STORED.values() if stored.has_scale]


@pytest.mark.parametrize(("phase", "device", "method"), EVERY_METHOD)
def test_a_wrong_input_would_fail_the_matrix(phase: Phase, device: Device, method: Method) -> None:
    """The check has teeth for every method: the reference of other tensors is refused."""
    workload = make(phase, CASES[phase.name][1], "fp16")
    can_run(method, workload, device)
    prepared = prepare(method, workload, make_inputs(workload, str(device)))
    prepared.poison()
    prepared.run()
    other = make_inputs(replace(workload, seed=1), device)
    expected = check.expect(other, lambda batch, head: None, 0)
    assert check.compare(expected, prepared.out, prepared.lse, prepared.products).reason is not None


def known_bytes(value: Any, seen: dict[int, int]) -> int:
    """Bytes of all tensors that an object reaches, each storage once."""
    if isinstance(value, torch.Tensor):
        storage = value.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
    elif isinstance(value, (list, tuple)):
        for item in value:
            known_bytes(item, seen)
    elif isinstance(value, dict):
        for item in value.values():
            known_bytes(item, seen)
    elif type(value).__module__.startswith("hsbench."):
        known_bytes(getattr(value, "__dict__", {}), seen)
    return sum(seen.values())


@pytest.mark.parametrize("dtype", INPUTS)
@pytest.mark.parametrize(("phase", "device", "method"), EVERY_METHOD)
def test_the_estimate_covers_what_is_held(phase: Phase, device: Device, method: Method, dtype: str) -> None:
    for case in (CASES[phase.name][1], Case((4, 2), 128, seq=4096, q_len=1), Case((16, 16), 64, seq=1000, q_len=1)):
        workload = make(phase, case, dtype)
        can_run(method, workload, device)
        inputs = make_inputs(workload, str(device))
        prepared = prepare(method, workload, inputs)
        prepared.run()
        seen: dict[int, int] = {}
        held = known_bytes(prepared, seen)
        given = sum(seen.pop(x.untyped_storage().data_ptr(), 0) for x in (inputs.q, inputs.k, inputs.v))
        assert 0 < held - given <= method.estimate_bytes(workload)
        if given == 0:  # it attends to what it has stored itself
            assert held >= prepared.kv_bytes


@pytest.mark.parametrize(("phase", "device", "method"), EVERY_METHOD)
def test_estimates_grow_with_the_workload(phase: Phase, device: Device, method: Method) -> None:
    """An estimate that forgot a term would let a run at full length die of it."""
    small = make_workload(phase.name, seq=32768, q_len=1)
    large = make_workload(phase.name, seq=131072, q_len=1, batch=2)
    if method.unsupported(large, device) is None and not (method.dense and method.name.startswith("sdpa:flash")):
        assert method.estimate_bytes(large) > method.estimate_bytes(small)
    own = not method.name.startswith(("sdpa", "reference"))
    if own and method.unsupported(large, device) is None:
        kept = 1 if method.dense else 3 / 16 if is_narrow(method) else 9 / 16 * 0.9
        assert method.estimate_bytes(large) >= kept * large.dense_kv_bytes


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("phase", PHASES.values(), ids=str)
def test_hierarchical_prunes_what_was_asked_for(phase: Phase, device: Device) -> None:
    workload = make_workload(
        phase.name,
        q_heads=2,
        kv_heads=2,
        head_dim=64,
        seq=600,
        key_sparsity=0.5,
        value_sparsity=0.25,
        sink=65,
        local=30,
    )
    (method,) = find_methods(["hierarchical:16bit"], phase, device)
    can_run(method, workload, device)
    inputs = make_inputs(workload, str(device))
    prepared = method.prepare(workload, inputs)
    for which, (operand, sparsity) in enumerate((("k", 0.5), ("v", 0.25))):
        x = (inputs.k, inputs.v)[which]
        chosen = choose_blocks(x, operand, plan_blocks(600, sparsity, sink=65, local=30))
        expected = prune_hierarchical(x, operand, chosen)
        assert all(torch.equal(prepared.pruned(0, head)[which], expected[0, head]) for head in range(2))
    # Blocks 2 .. 7 of K, and 3 of those 6 of V.
    assert prepared.achieved_sparsity == pytest.approx((0.5 + 0.25) / 2)


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("name", PRUNERS)
def test_the_pruner_is_the_workloads_where_a_method_has_the_choice(name: str, device: Device) -> None:
    workload = make_workload("decode", seq=300, q_heads=4, kv_heads=2, head_dim=64, sparsity=0.3, pruner=name)
    captured = replace(workload, tensors="file#layers.0")
    inputs = make_inputs(workload, device)
    inputs.context, inputs.query_rms = inputs.q.expand(-1, -1, 8, -1), torch.rand(2, 64).to(str(device))
    how = dict(key_sparsity=0.3, value_sparsity=0.3, queries=inputs.context, query_rms=inputs.query_rms)
    each = {e: simulate(inputs.k, inputs.v, pruner=PRUNERS[name], elements=e, **how) for e in STORED.values()}
    for family in FAMILIES:
        for method in rows_of(family, DECODE, device):
            if family == "hierarchical" and PRUNERS[name].needs_queries:
                assert "needs the context's last queries" in str(method.unsupported(workload, device))
                with pytest.raises(UnsupportedError, match="needs the context's last queries"):
                    method.prepare(workload, replace(inputs, context=inputs.q))
            if method.unavailable(device) or method.unsupported(captured, device):
                continue
            got, left = method.prepare(captured, inputs).pruned(0, 1), each[elements(method)]
            of_pruner = got is not None and torch.equal(got[0], left.k[0, 1]) and torch.equal(got[1], left.v[0, 1])
            assert of_pruner == (family in PRUNER_FAMILIES)
            dear = method.estimate_bytes(captured) - method.estimate_bytes(replace(captured, pruner="magnitude"))
            # An order takes no room, means and weights do. Few bits have a pruner that shifts, whichever it is: only
            # attention takes more than that.
            cheap = name in ("magnitude", "mirror") or (is_narrow(method) and not PRUNERS[name].needs_queries)
            assert (dear > 0) == (family in PRUNER_FAMILIES and not cheap)


def test_v_along_head_dim_is_for_decode() -> None:
    for phase in (DECODE, PREFILL):
        workload = make_workload(phase.name, seq=300, pruner="balanced:hd")
        for hierarchical in rows_of("hierarchical", phase, CPU):
            reason = hierarchical.unsupported(workload, CPU)
            if phase.causal:
                assert str(reason).startswith("prefill reads V in groups along tokens alone")
            else:
                assert reason is None
    assert rows_of("dense", DECODE, CPU)[0].unsupported(workload, CPU) is None


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_unstructured_prunes_each_token_of_its_own_tensor(device: Device) -> None:
    """At the workload's sparsities; sink and local tokens too, as the published method does."""
    workload = make_workload(
        "decode", q_heads=2, kv_heads=2, head_dim=64, seq=200, key_sparsity=0.5, value_sparsity=0.25, sink=65, local=30
    )
    (method,) = find_methods(["unstructured"], DECODE, device)
    can_run(method, workload, device)
    inputs = make_inputs(workload, str(device))
    prepared = method.prepare(workload, inputs)
    for head, (which, sparsity) in itertools.product(range(2), enumerate((0.5, 0.25))):
        x = (inputs.k, inputs.v)[which][0, head]
        assert torch.equal(prepared.pruned(0, head)[which], torch.where(keep_unstructured(x, sparsity), x, 0))
    assert prepared.achieved_sparsity == pytest.approx(0.375)


def test_unstructured_prefill_says_why_not() -> None:
    for device in DEVICES:
        (method,) = find_methods(["unstructured"], PREFILL, device)
        reason = method.unsupported(make(PREFILL, CASES["prefill"][0], "fp16"), device)
        assert reason is not None and "decode only" in reason and "\n" not in reason
        (method,) = find_methods(["unstructured"], DECODE, device)
        assert method.unsupported(make(DECODE, CASES["decode"][0], "fp16"), device) is None


@pytest.mark.parametrize("change", [{"head_dim": 96}, {"q_heads": 34, "kv_heads": 2}])
@pytest.mark.parametrize("family", ["dense", "hierarchical", "unstructured"])
def test_shapes_that_our_kernels_do_not_take(family: str, change: dict[str, int]) -> None:
    workload = make(DECODE, CASES["decode"][1], "fp16")
    for name, value in change.items():
        object.__setattr__(workload, name, value)  # past its own check, which knows no shape that only torch takes
    named = "head_dim 96" if "head_dim" in change else "17 query heads per kv head"
    for method in find_methods([family], DECODE, CPU):
        reason = method.unsupported(workload, CPU)
        assert reason is not None and reason.startswith(named) and "kernels take" in reason


def test_torchs_own_words_come_with_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    import hsbench.methods.sdpa as sdpa

    def refuse(*_: Any, **__: Any) -> None:
        warnings.warn("Flash wants another shape. (Triggered internally at x.cpp:1.)", UserWarning, stacklevel=1)
        raise RuntimeError("No available kernel. Aborting execution.\nmore")

    workload = make(DECODE, CASES["decode"][1], "fp16")
    (method,) = find_methods(["sdpa:flash"], DECODE, CPU)
    inputs = make_inputs(workload, "cpu")
    monkeypatch.setattr(sdpa, "scaled_dot_product_attention", refuse)
    with pytest.raises(UnsupportedError, match=r"torch's flash backend refuses this: Flash wants another shape\.$"):
        method.prepare(workload, inputs)


# ---- The registry ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
@pytest.mark.parametrize("phase", PHASES.values(), ids=str)
def test_names_are_unique_and_of_their_family(phase: Phase, device: Device) -> None:
    found = [method for family in FAMILIES for method in rows_of(family, phase, device)]
    names = [method.name for method in found]
    assert len(set(names)) == len(names)
    families = [name.partition(":")[0] for name in names]
    assert list(dict.fromkeys(families)) == list(FAMILIES)
    assert families == sorted(families, key=FAMILIES.index), "rows stand in the families' order"
    for name in names:
        (again,) = find_methods([name], phase, device, rows_alone=True)
        assert again.name == name


def test_some_dense_method_of_ours_and_of_torchs_can_be_the_baseline() -> None:
    for phase in PHASES.values():
        dense = {method.name.partition(":")[0] for method in find_methods(None, phase, CPU) if method.dense}
        assert {"sdpa", "dense"} <= dense and not dense & {"hierarchical", "unstructured"}


def test_default_families() -> None:
    assert default_families(DECODE) == list(FAMILIES)
    assert default_families(PREFILL) == [family for family in FAMILIES if family != "reference"]
    names = [method.name for method in find_methods(None, PREFILL, CPU)]
    assert "reference" not in names and "hierarchical" in names
    assert [method.name for method in find_methods(["reference"], PREFILL, CPU)] == ["reference"]


def test_variants() -> None:
    sdpa = [method.name for method in find_methods(["sdpa"], DECODE, CPU)]
    assert sdpa == ["sdpa:flash", "sdpa:flash-rows", "sdpa:math", "sdpa:math-rows"]
    assert [method.name for method in find_methods(["sdpa"], PREFILL, CPU)] == ["sdpa:flash", "sdpa:math"]
    both = find_methods(["sdpa:math", "dense", "sdpa"], DECODE, CPU)
    ours = ["dense", "dense:fp8", "dense:int4"]
    assert [method.name for method in both] == ["sdpa:math", *ours, "sdpa:flash", "sdpa:flash-rows", "sdpa:math-rows"]
    assert find_methods([], DECODE, CPU) == []


def test_a_variant_that_is_not_there() -> None:
    with pytest.raises(UsageError, match=r"--methods sdpa:flash-rows: .*prefill on cpu: it has flash, math$"):
        find_methods(["sdpa:flash-rows"], PREFILL, CPU)
    with pytest.raises(UsageError, match=r"--methods dense:fast: .*it has 16bit, fp8, int4$"):
        find_methods(["dense:fast"], DECODE, CPU)
    with pytest.raises(UsageError, match=r"--methods unstructured:fp8: .*it has no variants$"):
        find_methods(["unstructured:fp8"], DECODE, CPU)


@pytest.mark.parametrize("family", ["dense", "hierarchical"])
def test_a_family_of_more_elements(family: str) -> None:
    """Its name stands for all that the device has pages for, but for a row's that a plan has; and each can be asked for
    alone."""
    for phase, device in itertools.product(PHASES.values(), (CPU, CUDA)):
        found = find_methods([family], phase, device)
        why_not = [why_no_pages, why_decode_only] if phase.causal else [why_no_pages]
        stored = [one for one in STORED.values() if one.has_scale and not any(why(one, device) for why in why_not)]
        assert [method.name for method in found] == [family, *(f"{family}:{one}" for one in stored)]
        assert [method.dense for method in found] == [family == "dense", *[False] * len(stored)]
        for name, row in ((f"{family}:16bit", family), *((row, row) for row in narrow_rows(family))):
            assert [method.name for method in find_methods([name], phase, device)] == [row]
        assert [method.name for method in find_methods([family], phase, device, rows_alone=True)] == [family]


def test_a_gpu_without_fp8_prefill_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    (method,) = find_methods(["hierarchical:fp8"], PREFILL, CUDA)
    workload = make(PREFILL, CASES["prefill"][0], "fp16")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    reason = str(method.unsupported(workload, CUDA))
    assert reason.startswith("prefill reads fp8 pages by the sm90 kernel alone: ")
    assert reason.endswith("this one has 8.0: take elements 16bit")
    assert method.unsupported(workload, CPU) is None
    (method,) = find_methods(["hierarchical:fp8"], DECODE, CUDA)
    assert method.unsupported(make(DECODE, CASES["decode"][0], "fp16"), CUDA) is None


def test_cuda_prefills_no_int4_and_says_so() -> None:
    for phase, family in itertools.product((PREFILL, DECODE), ("dense", "hierarchical")):
        (method,) = find_methods([f"{family}:int4"], phase, CUDA)
        workload = make(phase, CASES[phase.name][0], "fp16")
        why = "no CUDA prefill kernel reads int4 pages: decode's does" if phase.causal else None
        assert method.unsupported(workload, CUDA) == why and method.on_request == (why is not None)
        assert method.unsupported(workload, CPU) is None


KERNELS = ("sm80", "sm90")


@pytest.mark.parametrize("family", ["dense", "hierarchical"])
def test_prefill_kernels_run_on_request_only(family: str) -> None:
    """On CUDA each prefill kernel is a variant; neither the default nor the family's name brings it in."""
    variants = [f"{family}:{kernel}" for kernel in KERNELS]
    assert [method.name for method in rows_of(family, PREFILL, CUDA)] == [family, *variants, *narrow_rows(family)]
    for names in (None, FAMILIES, [family]):
        found = [method.name for method in find_methods(names, PREFILL, CUDA)]
        assert family in found and not set(variants) & set(found)
    both = find_methods([variants[1], f"{family}:16bit"], PREFILL, CUDA)
    assert [method.name for method in both] == [variants[1], family], "in the order asked for"
    assert all(method.dense is (family == "dense") for method in both), "a kernel by name may be the baseline too"
    for phase, device in ((DECODE, CUDA), (PREFILL, CPU), (DECODE, CPU)):
        assert [method.name for method in rows_of(family, phase, device)] == [family, *narrow_rows(family)]
        with pytest.raises(UsageError, match=f"no such variant for {phase} on {device}: it has 16bit, fp8, int4$"):
            find_methods([variants[0]], phase, device)
    with pytest.raises(
        UsageError,
        match=rf"--methods {family}:sm70: .*prefill on cuda: it has 16bit, sm80, sm90, fp8, int4$",
    ):
        find_methods([f"{family}:sm70"], PREFILL, CUDA)


@pytest.mark.parametrize(
    ("capability", "refused"), [((8, 0), ["sm90"]), ((8, 9), ["sm90"]), ((9, 0), []), ((12, 0), ["sm90"])]
)
def test_a_kernel_for_another_gpu_is_unavailable(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], refused: list[str]
) -> None:
    monkeypatch.setattr(library, "why_cannot", lambda operation, device: None)
    monkeypatch.setattr(
        library, "load", lambda kind: SimpleNamespace(text=lambda function: "80-real 90a-real 90-virtual")
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    reasons = {method.name: method.unavailable(CUDA) for method in rows_of("dense", PREFILL, CUDA)}
    assert [name for name, reason in reasons.items() if reason] == [f"dense:{kernel}" for kernel in refused]
    for reason in filter(None, reasons.values()):
        major, minor = capability
        assert "compute capability 9.x" in reason and f"this one has {major}.{minor}" in reason, reason
        assert reason.endswith("ask for sm80, or name no kernel") and "\n" not in reason
    # What keeps every kernel from running comes first, and a GPU that is not there is not asked for its capability.
    monkeypatch.setattr(library, "why_cannot", lambda operation, device: "no library")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: pytest.fail("asked"))
    assert {method.unavailable(CUDA) for method in rows_of("dense", PREFILL, CUDA)} == {"no library"}


def test_a_kernel_that_the_library_was_built_without_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The chip could run it; the run goes on without it."""
    held = SimpleNamespace(text=lambda function: "80-real 90-virtual")
    monkeypatch.setattr(library, "why_cannot", lambda operation, device: None)
    monkeypatch.setattr(library, "load", lambda kind: held)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    (method,) = find_methods(["dense:sm90"], PREFILL, CUDA)
    reason = method.unavailable(CUDA)
    assert reason is not None and "needs code for sm_90a, and this library was built for sm_80, compute_90: " in reason
    assert "CUDAARCHS=90a-real pip install" in reason
    held.text = lambda function: None  # a library that does not tell
    assert method.unavailable(CUDA) is None


def test_each_variant_asks_for_its_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """The struct that goes to the library names the path, params.h's own number."""
    asked = []

    def run(operation: library.Operation) -> None:
        if hasattr(operation.params, "path"):  # packing runs through the same class
            asked.append(operation.params.path)

    monkeypatch.setattr(library.Operation, "run", run)
    workload = make(PREFILL, CASES["prefill"][0], "fp16")
    can_run(rows_of("hierarchical", PREFILL, CPU)[0], workload, CPU)
    inputs = make_inputs(workload, "cpu")
    for method in rows_of("hierarchical", PREFILL, CUDA):
        if not is_narrow(method):
            method.prepare(workload, inputs).run()
    assert asked == list(library.PATHS.values())
    header = library.LIB.joinpath("params.h").read_text()
    for name, number in library.PATHS.items():
        assert re.search(rf"\bHSB_PATH_{name.upper()} = {number}\b", header)


def test_check_methods() -> None:
    assert check_methods(["dense", "sdpa:flash", "dense", "sdpa"]) == ["dense", "sdpa:flash", "sdpa"]
    with pytest.raises(UsageError, match=r"--methods hierarchicl: did you mean hierarchical\?.*known: reference, sdpa"):
        check_methods(["dense", "hierarchicl"])
    with pytest.raises(UsageError, match=r"--methods xyz:flash: known:") as caught:
        check_methods(["xyz:flash"])
    assert caught.value.exit_code == 2
    with pytest.raises(UsageError):
        check_methods([""])


def test_listing_the_families_imports_no_torch() -> None:
    code = (
        "import sys, hsbench.methods as m; from hsbench.problem.phase import DECODE; "
        "m.check_methods(['dense', 'sdpa:flash']); m.default_families(DECODE); "
        "print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.stdout.strip() == "False", run.stderr
