"""One cell over the ranks of a group: the stages of any run, of a part each, and what ranks have to agree on.

    rank 0   one rank over all of it | its part: prepare, check, rounds, check | records
    rank 1            waits          | its part: prepare, check, rounds, check |

A row that one rank refuses all refuse, for that reason. Whatever else fails on a rank ends all: those that would wait
for it in a collective cannot go on.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping

import torch

from hsbench import measure
from hsbench.attention.combine import combine
from hsbench.cache.prune import plan_blocks
from hsbench.distributed.clock import GroupClock
from hsbench.distributed.group import Group, RankLostError
from hsbench.distributed.shards import shards_of
from hsbench.errors import HsbenchError
from hsbench.measure.out_of_memory import REMEDY, is_out_of_memory
from hsbench.methods.sharded import Sharded, sharded
from hsbench.problem.inputs import Inputs
from hsbench.results import MeasuredCeiling, Report
from hsbench.run import accounting, check, stages
from hsbench.run.fit import Fit
from hsbench.run.measuring import Measuring
from hsbench.run.observer import Observer
from hsbench.run.plan import Cell, part_of
from hsbench.run.settings import Settings
from hsbench.run.stages import Asked, Packed, Planned, Ready, Refused, Sampled


class _Quiet(Observer):
    """Passes on which stage it is, and nothing else."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def stage(self, text: str) -> None:
        self._observer.stage(f"one rank, for comparison: {text}")


def measure_over_ranks(
    cell: Cell, settings: Settings, observer: Observer, group: Group
) -> tuple[Report, RankLostError | None]:
    """Measures one cell of a plan over the ranks of a group; all of them call it.

    Returns:
        The report, which is rank 0's to tell; and whom it lost on the way, where it is interrupted therefore.

    Raises:
        NonFiniteError: the tensors hold a NaN or an infinity.
        HsbenchError: memory ran out for what the rows share.
    """
    measure.release_memory(group.device)
    run = _Ranked(cell, settings, observer, group)
    return run.run(), run.lost


class _Ranked(Measuring):
    def __init__(self, cell: Cell, settings: Settings, observer: Observer, group: Group) -> None:
        super().__init__(cell, group.device, settings, observer)
        self.group, self.ranks = group, group.size
        self.shards = shards_of(self.workload.seq, group.size)
        self.part = part_of(self.workload, self.shards[group.rank])
        self.lost: RankLostError | None = None
        self._clock = GroupClock(group)
        self.now = group.clock(time.monotonic)
        self._parts_s: dict[str, list[float]] = {}
        self._alone: Mapping[str, float] = {}

    # ---- The stages, of a part ------------------------------------------------------------------------------
    def fit(self) -> Fit:
        self._alone = self._measured_alone()
        cold = self.settings.cache == "cold"
        return Fit(self.part, self.device, cold=cold, ceiling=True, sharing=self.group.place.local_size)

    def plan(self, row: Asked, fit: Fit) -> Planned | Refused:
        if reason := row.method.why_not_sharded(self.part):
            return Refused("unsupported", f"over ranks: {reason}")
        return stages.plan(row, self.part, self.device, fit)

    def load(self) -> Inputs:
        shard = self.shards[self.group.rank]
        tokens = slice(shard.first, shard.last)
        return stages.load(self.workload, self.cell.captured, self.device, self.cell.basis, tokens)

    def prepare(self, row: Planned, inputs: Inputs) -> Packed:
        with measure.annotate(row.method.name), row.footprint.preparing():
            prepared = row.method.prepare_part(self.part, inputs)
        return Packed(row.method, row.footprint, prepared)

    def reference(self, inputs: Inputs) -> stages.Reference:
        return _Reference(inputs, self.workload.seed, self.group)

    def agreed(self, after: Asked | Refused) -> Asked | Refused:
        said = self.group.all((after.status, after.reason) if isinstance(after, Refused) else None)
        refusals = {rank: refusal for rank, refusal in enumerate(said) if refusal is not None}
        if not refusals:
            return self._joined(after) if type(after) is Packed else after
        rank, (status, reason) = next(iter(refusals.items()))
        if len(refusals) < len(said) or len(set(refusals.values())) > 1:
            reason = f"rank {rank}: {reason}"
        return Refused(status, reason, after.footprint if isinstance(after, Planned | Refused) else None)

    def _joined(self, row: Packed) -> Packed:
        """The row, once all ranks hold their parts of it."""
        part = self.part
        eligible = plan_blocks(part.seq, 0.0, sink=part.sink, local=part.local).eligible
        prepared = sharded(row.prepared, eligible, self.group, self._clock.split)
        return Packed(row.method, row.footprint, prepared)

    def _failed(self, error: Exception) -> bool:
        if isinstance(error, RankLostError):
            self.lost = error
            return True
        if is_out_of_memory(error):  # on this rank, while the others go on
            raise HsbenchError(f"ran out of memory while {self._doing}: {REMEDY}") from error
        raise error

    # ---- Time -----------------------------------------------------------------------------------------------
    def sample(self, rows: list[Ready]) -> measure.Sampling:
        sampling = super().sample(rows)
        failed = next((samples for samples in sampling if samples.error is not None), None)
        if failed is not None and failed.error is not None:
            if isinstance(failed.error, measure.ClockError):  # agreed on
                return sampling
            raise failed.error
        if sampling.interrupted:  # ranks need not have been at the same place: they cannot run on together
            raise KeyboardInterrupt
        return sampling

    def clock(self) -> measure.Clock:
        return self._clock

    def others(self) -> measure.OtherLoad:
        place = self.group.place
        first = place.rank - place.local_rank

        def own_cpu_s() -> float:  # of the ranks on this machine
            return sum(self.group.all(measure.process_cpu_s())[first : first + place.local_size])

        return measure.OtherLoad(own_cpu_s=own_cpu_s)

    def after_sample(self, method: str) -> None:
        self._parts_s.setdefault(method, []).append(self._clock.part_s)

    def cache(self, rows: list[Ready]) -> measure.CachePolicy:
        least = min(min(_prepared(row).device_bytes) for row in rows)
        return measure.policy(least, self.device, self.settings.cache)

    def of_all(self, ceiling: MeasuredCeiling) -> MeasuredCeiling:
        return MeasuredCeiling(f"{self.ranks} x {ceiling.name}", self.ranks * ceiling.value, ceiling.unit)

    def _measured_alone(self) -> Mapping[str, float]:
        """Medians of one rank over all tokens, in seconds, by method: of those that fit on rank 0's device."""
        times: dict[str, float] = {}
        if self.group.rank == 0:
            report = Measuring(self.cell, self.device, self.settings, _Quiet(self.observer)).run()
            if report.interrupted:
                raise KeyboardInterrupt
            records = [result.record for result in report.results]
            times = {r.method: r.measures.time_us * 1e-6 for r in records if r.measures.time_us and r.status == "ok"}
            measure.release_memory(self.device)
        return self.group.tell(times)

    # ---- What is reported -----------------------------------------------------------------------------------
    def _columns(self, row: Sampled, median_s: float) -> dict[str, object]:
        name, prepared = row.method.name, _prepared(row)
        parts_s = self._parts_s[name]
        rest_s = [whole - part for whole, part in zip(row.samples.times_s, parts_s, strict=True)]
        part_s = measure.summarize(parts_s).median
        alone_s = self._alone.get(name)
        return {
            **super()._columns(row, median_s),
            "shard_tokens": max(shard.tokens for shard in self.shards),
            "device_kv_bytes": max(prepared.device_bytes),
            "collective_us": measure.summarize(rest_s).median * 1e6,
            "part_us": part_s * 1e6,
            "efficiency": (alone_s or self.ranks * part_s) / (self.ranks * median_s),
            "efficiency_by": "part" if alone_s is None else "one rank",
        }

    def _compress_note(self, row: Sampled, gain_s: float) -> str:
        compress = row.prepared.compress
        if compress is None or self.group.rank != 0:
            return ""
        own = _prepared(row).device_bytes[0]
        note = accounting.compress_note(self.part, own, compress, measure.clock_for(self.device), gain_s)
        return f"on each rank {note}" if note else ""


def _prepared(row: Packed) -> Sharded:
    assert isinstance(row.prepared, Sharded)
    return row.prepared


class _Reference(stages.Reference):
    """The fp32 reference over all tokens: each rank's over its own, combined in fp32."""

    def __init__(self, inputs: Inputs, seed: int, group: Group) -> None:
        super().__init__(inputs, seed)
        self._group = group

    def combined(self, expected: check.Expected) -> check.Expected:
        parts = self._group.all((expected.out.cpu(), expected.lse.cpu()))
        outs, lses = (torch.stack(of_ranks).to(expected.out.device) for of_ranks in zip(*parts, strict=True))
        out, lse = combine(outs, lses)
        return dataclasses.replace(expected, out=out, lse=lse)
