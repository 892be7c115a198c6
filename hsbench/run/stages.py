"""The stages of a row, each a type that has all that the row got until then, and the steps between them.

    Asked -> Planned -> Packed -> Ready -> Sampled -> (a record)
      |         |          |        |         |
      +---------+----------+--------+---------+-> Refused: a status and a reason

    Planned   the method can run this workload here, and fits
    Packed    it holds its K and V
    Ready     one run of it was held against the fp32 reference
    Sampled   it had its turns

A step raises where the method fails; :func:`refused` tells whether that is a row, or a bug. Nothing here times
anything: what measures, what profiles and what only wants a checked output take the same steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hsbench import measure
from hsbench.cache.basis import BasisLayer
from hsbench.cache.fit import QUERIES
from hsbench.cache.pruner import pruner_of
from hsbench.errors import UnavailableError, UnsupportedError
from hsbench.kernels.device import Device
from hsbench.measure.out_of_memory import REMEDY, is_out_of_memory, let_go
from hsbench.methods.base import Method, Prepared
from hsbench.problem.captured import Captured
from hsbench.problem.inputs import Inputs
from hsbench.problem.synthetic import make_inputs
from hsbench.problem.workload import Workload
from hsbench.run import check
from hsbench.run.fit import Fit


@dataclass(frozen=True, eq=False)
class Asked:
    """A row that was asked for."""

    method: Method


@dataclass(frozen=True, eq=False)
class Planned(Asked):
    """A row that can run here, and the account of its memory."""

    footprint: measure.Footprint


@dataclass(frozen=True, eq=False)
class Packed(Planned):
    """A row whose method holds its K and V."""

    prepared: Prepared


@dataclass(frozen=True, eq=False)
class Ready(Packed):
    """A row whose first output was checked; ``verdict`` says how it did."""

    expected: check.Expected
    verdict: check.Verdict


@dataclass(frozen=True, eq=False)
class Sampled(Ready):
    """A row that had its turns."""

    samples: measure.Samples


@dataclass(frozen=True)
class Refused:
    """Why a row goes no further: a status and a reason, and what it was estimated to take where that is it."""

    status: str
    reason: str
    footprint: measure.Footprint | None = None


def load(
    workload: Workload,
    captured: Captured | None,
    device: Device,
    basis: BasisLayer | None = None,
    tokens: slice | None = None,
) -> Inputs:
    """The tensors of a workload on a device, captured ones or made, and what its pruner looks at.

    Args:
        tokens: those of K and V; None for all.

    Raises:
        UsageError: the file of captured tensors is damaged, or holds an element that is not finite.
    """
    with measure.annotate("generate"):
        some = () if tokens is None else (tokens,)
        inputs = make_inputs(workload, device, *some) if captured is None else captured.load(device, *some)
        # Eviction looks at them wherever they are known; which of the rows evict is for these to say.
        if captured is not None and (pruner_of(workload.pruner).needs_queries or workload.evict != 0):
            inputs.context = captured.context(device, QUERIES)
        if basis is not None:
            inputs.query_rms = basis.query_rms.to(str(device))
        return inputs


def plan(row: Asked, workload: Workload, device: Device, fit: Fit) -> Planned | Refused:
    """Whether the method can run the workload here, beside those that ``fit`` has counted so far."""
    method = row.method
    if reason := method.unsupported(workload, device):
        return Refused("unsupported", reason)
    if reason := method.unavailable(device):
        return Refused("unavailable", reason)
    footprint = measure.Footprint(device, method.estimate_bytes(workload))
    if reason := fit.refusal(method):
        return Refused("oom", reason, footprint)
    return Planned(method, footprint)


def prepare(row: Planned, workload: Workload, inputs: Inputs) -> Packed:
    """Has the method prune, pack and allocate.

    Raises:
        NonFiniteError: K or V holds a NaN or an infinity.
        UnsupportedError, UnavailableError: the method refuses.
    """
    with measure.annotate(row.method.name), row.footprint.preparing():
        prepared = row.method.prepare(workload, inputs)
    return Packed(row.method, row.footprint, prepared)


class Reference:
    """What outputs must be, by the fp32 reference. All methods that attend to the inputs themselves share one."""

    def __init__(self, inputs: Inputs, seed: int) -> None:
        self._inputs, self._seed = inputs, seed
        self._shared: check.Expected | None = None

    def combined(self, expected: check.Expected) -> check.Expected:
        """Over all of the sequence, of what these inputs give."""
        return expected

    def expect(self, prepared: Prepared) -> check.Expected:
        """What a prepared method's output must be, on its own pruned K and V."""
        if prepared.pruned(0, 0) is not None:
            return self.combined(check.expect(self._inputs, prepared.pruned, self._seed, prepared.left))
        if self._shared is None:
            self._shared = self.combined(check.expect(self._inputs, prepared.pruned, self._seed))
        return self._shared

    def check(self, row: Packed, used_bytes: Callable[[], int | None] = lambda: None) -> Ready:
        """Runs the method once, and holds its output against the reference.

        Args:
            row: whose method holds its K and V.
            used_bytes: asked right after the run, for the account of its memory.

        Raises:
            UnsupportedError: no output could be right, since attention over these tensors is not finite.
        """
        prepared = row.prepared
        with measure.annotate(row.method.name), measure.annotate("check"):
            expected = self.expect(prepared)
            with row.footprint.running():
                prepared.poison()
                prepared.run()
            row.footprint.gpu_used_bytes = used_bytes()
            verdict = check.compare(expected, prepared.out, prepared.lse, prepared.products)
            if verdict.reason is not None:
                check.refuse_overflow(
                    self._inputs, prepared.pruned, expected, prepared.out, prepared.lse, prepared.left
                )
        return Ready(row.method, row.footprint, prepared, expected, verdict)


def sampled(row: Ready, samples: measure.Samples) -> Sampled:
    """The row with what its turns gave."""
    return Sampled(row.method, row.footprint, row.prepared, row.expected, row.verdict, samples)


def check_after(row: Sampled, *, again: bool) -> Sampled:
    """Holds the output of the last sample against the reference.

    Args:
        row: one without samples, or that was wrong before, stays as it is.
        again: of one more run, for Ctrl-C may have cut a turn short and left an output poisoned.

    Raises:
        Exception: what one of its turns raised.
    """
    if row.samples.error is not None:
        raise row.samples.error
    if row.verdict.reason is not None or not row.samples.times_s:
        return row
    prepared = row.prepared
    with measure.annotate(row.method.name), measure.annotate("check"):
        if again:
            prepared.poison()
            prepared.run()
        after = check.compare(row.expected, prepared.out, prepared.lse, prepared.products)
    if after.reason is None:
        return row
    verdict = check.Verdict(after.rel_error, f"after the timed runs: {after.reason}")
    return Sampled(row.method, row.footprint, prepared, row.expected, verdict, row.samples)


def refused(error: Exception, device: Device) -> Refused:
    """Why a method that raised goes no further; what is not a known kind of failure is raised again.

    The error lets go of what it keeps alive.
    """
    if isinstance(error, UnsupportedError):
        known = Refused("unsupported", str(error))
    elif isinstance(error, UnavailableError):
        known = Refused("unavailable", str(error))
    elif isinstance(error, measure.ClockError):
        known = Refused("unsupported", f"cannot be timed on {device}: {error}")
    elif is_out_of_memory(error):
        known = Refused("oom", f"ran out of memory: {REMEDY}")
    else:
        raise error
    let_go(error)
    return known
