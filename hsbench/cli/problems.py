"""From a request to workloads: the cross product of its lists, of synthetic tensors or of captured ones."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hsbench.cache.pruner import AUTO_PRUNER, CALIBRATED, auto_pruner, check_sources, pruner_of
from hsbench.cli.parse import flag, parse_choice, parse_evict, parse_list, parse_size, parse_sparsity
from hsbench.cli.request import LISTS, Request
from hsbench.errors import UsageError
from hsbench.problem import workload as defaults
from hsbench.problem.elements import INPUTS
from hsbench.problem.phase import PHASES, Phase
from hsbench.problem.shapes import find_shape, load_shapes
from hsbench.problem.workload import TENSORS, make_workload

if TYPE_CHECKING:
    from hsbench.cache.basis import BasisLayer
    from hsbench.problem.captured import Captured
    from hsbench.run.plan import Problem


@dataclass(frozen=True)
class _Case:
    """One combination of what a request lists: names and numbers, None where not given."""

    phase: Phase
    workload: str | None
    dtype: str | None
    seq: int | None
    batch: int | None
    sparsity: float | None
    pruner: str | None
    evict: float | None


def one_problem(phase: Phase, request: Request, captured: Captured | None) -> list[Problem]:
    """The workload of ``decode`` or ``prefill``.

    Raises:
        UsageError: names the field, the value as typed and the remedy.
    """
    for name in LISTS:
        request.one(name)
    return list(_problems((phase,), request, captured))


def all_problems(request: Request, captured: Captured | None) -> list[Problem]:
    """The workloads of ``compare``, in the order they run.

    Raises:
        UsageError: as :func:`one_problem`.
    """
    names = parse_list(request.phase or next(iter(PHASES)), "phase")
    phases = tuple(PHASES[parse_choice(name, "phase", tuple(PHASES))] for name in names)
    if request.q_len is not None and not any(phase.causal for phase in phases):
        raise UsageError("q_len", request.q_len, "only prefill has it; add --phase decode,prefill or leave it out")
    return list(_problems(phases, request, captured))


def open_tensors(request: Request) -> Captured | None:
    """The captured tensors that were asked for; None for synthetic ones.

    Raises:
        UsageError: they cannot be read, or the request contradicts them.
    """
    if request.kv is None:
        if request.layer is not None and request.basis is None and request.plan is None:
            raise UsageError("layer", request.layer, "only a file of captured tensors has layers; give --kv FILE")
        return None
    if request.tensors is not None:
        raise UsageError("tensors", request.tensors, "--kv brings the tensors; leave one of them out")
    from hsbench.problem.captured import open_captured

    return open_captured(request.kv, _size(request.layer, "layer", 0))


def with_plan(request: Request, captured: Captured | None) -> Request:
    """The request with what a plan of layers says of its layer, in place of the plan.

    Raises:
        UsageError: the plan cannot be read, has no such layer, or the request contradicts it.
    """
    if request.plan is None:
        return request
    for name in ("sparsity", "key_sparsity", "value_sparsity"):
        if (typed := getattr(request, name)) is not None:
            raise UsageError(name, typed, "--plan brings the sparsities; leave one of them out")
    from hsbench.run.quality.layer_plan import read_layer_plan

    layers = read_layer_plan(Path(request.plan))
    layer = (_size(request.layer, "layer", 0) or 0) if captured is None else captured.layer
    if layer >= len(layers.layers):
        raise UsageError(
            "layer", layer, f"{request.plan} has the layers 0 to {len(layers.layers) - 1}; give one of these"
        )
    key, value = map(str, layers.layers[layer])
    pruner = layers.pruner if request.pruner is None else request.pruner
    return replace(request, plan=None, key_sparsity=key, value_sparsity=value, pruner=pruner)


def open_basis(request: Request, captured: Captured | None) -> BasisLayer | None:
    """The basis that was asked for: of the layer of the captured tensors, where there are some.

    Raises:
        UsageError: it cannot be read, or has no such layer.
    """
    if request.basis is None:
        return None
    layer = _size(request.layer, "layer", 0) if captured is None else captured.layer
    from hsbench.cache.basis import BasisLayer

    return BasisLayer.open(request.basis, layer)


def warnings_of(problems: Sequence[Problem]) -> Iterator[str]:
    """What the user should know of the workloads before they run."""
    shapes = load_shapes()
    for workload, captured in problems:
        if captured is not None and captured.warning is not None:
            yield f"{flag('kv')} {captured.warning}"
        shape = shapes.get(workload.name)
        if shape is not None and workload.seq > shape.max_seq:
            yield f"{flag('seq')} {workload.seq} is beyond the {shape.max_seq} tokens of {shape.name}"


def _problems(phases: Sequence[Phase], request: Request, captured: Captured | None) -> Iterator[Problem]:
    for case in _cases(phases, request):
        try:
            yield _synthetic(case, request) if captured is None else _from_file(case, request, captured)
        except UsageError as error:
            raise request.as_typed(error) from error


def _cases(phases: Sequence[Phase], request: Request) -> Iterator[_Case]:
    models = [None if name is None else find_shape(name).name for name in _listed(request.workload, "workload")]
    dtypes = [
        None if name is None else parse_choice(name, "dtype", tuple(INPUTS)) for name in _listed(request.dtype, "dtype")
    ]
    seqs = [_size(text, "seq") for text in _listed(request.seq, "seq")]
    batches = [_size(text, "batch") for text in _listed(request.batch, "batch")]
    sparsities = [_share(text, "sparsity") for text in _listed(request.sparsity, "sparsity")]
    evicts = [None if text is None else parse_evict(text) for text in _listed(request.evict, "evict")]
    # In the order of LISTS.
    for cell in itertools.product(phases, models, dtypes, seqs, batches, sparsities, _pruners(request), evicts):
        case = _Case(*cell)
        if case.pruner == AUTO_PRUNER:
            case = replace(case, pruner=auto_pruner(decode_alone=not case.phase.causal))
        yield case


def _synthetic(case: _Case, request: Request) -> Problem:
    tensors = defaults.DEFAULT_TENSORS
    if request.tensors is not None:
        tensors = parse_choice(request.tensors, "tensors", TENSORS)
    workload = make_workload(
        case.phase,
        workload=defaults.DEFAULT_WORKLOAD if case.workload is None else case.workload,
        seq=defaults.DEFAULT_SEQ if case.seq is None else case.seq,
        batch=defaults.DEFAULT_BATCH if case.batch is None else case.batch,
        q_heads=_size(request.q_heads, "q_heads"),
        kv_heads=_size(request.kv_heads, "kv_heads"),
        head_dim=_size(request.head_dim, "head_dim"),
        dtype=defaults.DEFAULT_DTYPE if case.dtype is None else case.dtype,
        q_len=_size(request.q_len, "q_len") if case.phase.causal else None,
        sparsity=defaults.DEFAULT_SPARSITY if case.sparsity is None else case.sparsity,
        key_sparsity=_share(request.key_sparsity, "key_sparsity"),
        value_sparsity=_share(request.value_sparsity, "value_sparsity"),
        sink=_size(request.sink, "sink", 0) or 0,
        local=_size(request.local, "local", 0) or 0,
        tensors=tensors,
        seed=_size(request.seed, "seed", 0) or 0,
        pruner=defaults.PAPER_PRUNER if case.pruner is None else case.pruner,
        evict=case.evict,
    )
    return workload, None


def _from_file(case: _Case, request: Request, captured: Captured) -> Problem:
    """A workload whose shape is the file's; what was typed may repeat it but not contradict it."""
    if case.workload is not None:
        shape = find_shape(case.workload)
        for name in ("q_heads", "kv_heads", "head_dim"):
            if getattr(shape, name) != getattr(captured, name):
                raise _contradiction("workload", case.workload, f"{name} {getattr(captured, name)}", captured)
    typed = {
        "batch": case.batch,
        "q_heads": _size(request.q_heads, "q_heads"),
        "kv_heads": _size(request.kv_heads, "kv_heads"),
        "head_dim": _size(request.head_dim, "head_dim"),
        "seq": case.seq,
    }
    for name, value in typed.items():
        if value is not None and value != getattr(captured, name):
            raise _contradiction(name, value, f"{name} {getattr(captured, name)}", captured)
    if case.dtype is not None and case.dtype != captured.dtype:
        raise _contradiction("dtype", case.dtype, captured.dtype, captured)
    used = captured
    if not case.phase.causal:
        used = captured.last(1)
    elif (q_len := _size(request.q_len, "q_len")) is not None:
        used = captured.last(q_len)
    workload = make_workload(
        case.phase,
        workload=defaults.DEFAULT_WORKLOAD if case.workload is None else case.workload,
        seq=used.seq,
        batch=used.batch,
        q_heads=used.q_heads,
        kv_heads=used.kv_heads,
        head_dim=used.head_dim,
        dtype=used.dtype,
        q_len=used.q_len,
        sparsity=defaults.DEFAULT_SPARSITY if case.sparsity is None else case.sparsity,
        key_sparsity=_share(request.key_sparsity, "key_sparsity"),
        value_sparsity=_share(request.value_sparsity, "value_sparsity"),
        sink=_size(request.sink, "sink", 0) or 0,
        local=_size(request.local, "local", 0) or 0,
        tensors=used.source,
        seed=_size(request.seed, "seed", 0) or 0,
        pruner=defaults.PAPER_PRUNER if case.pruner is None else case.pruner,
        evict=case.evict,
    )
    return (workload if case.workload is not None else replace(workload, name="captured")), used


def _contradiction(field: str, value: object, held: str, captured: Captured) -> UsageError:
    return UsageError(field, value, f"contradicts --kv {captured.path}, which has {held}; leave {flag(field)} out")


def _listed(typed: str | None, field: str) -> list[str | None]:
    return [None] if typed is None else [*parse_list(typed, field)]


def _pruners(request: Request) -> list[str | None]:
    """Names of pruners that have what they need.

    Raises:
        UsageError: an unknown one; one that needs a basis, which is not given; or a basis that none needs.
    """
    names = [None if typed is None else _pruner(typed) for typed in _listed(request.pruner, "pruner")]
    pruners = [pruner_of(name) for name in names if name is not None and name != AUTO_PRUNER]
    for pruner in pruners:
        check_sources(pruner, calibration=request.basis is not None, queries=True)
    if request.basis is not None and not any(pruner.needs_calibration for pruner in pruners):
        remedy = f"only a pruner such as {CALIBRATED} takes it; add --pruner {CALIBRATED}, or leave it out"
        raise UsageError("basis", request.basis, remedy)
    return names


def _pruner(typed: str) -> str:
    name = typed.lower()
    try:
        return name if name == AUTO_PRUNER else pruner_of(name).name
    except UsageError as error:
        raise UsageError("pruner", typed, error.remedy) from None


def _size(typed: str | None, field: str, minimum: int = 1) -> int | None:
    return None if typed is None else parse_size(typed, field, minimum=minimum)


def _share(typed: str | None, field: str) -> float | None:
    return None if typed is None else parse_sparsity(typed, field)
