"""What a report is about, in words: the problem, its phase, its sparsity."""

from __future__ import annotations

from hsbench.problem.workload import PAPER_PRUNER
from hsbench.report import text
from hsbench.results import Record, Report


def heading(report: Report) -> list[str]:
    """What was measured: workload, phase, shape, sparsity, device, tensors, baseline."""
    workload, records = report.workload, [result.record for result in report.results]
    segments = [
        f"{workload.phase} {workload.name}",
        f"{text.size(workload.seq)} tokens",
        f"batch {workload.batch}",
        f"{workload.q_heads} q / {workload.kv_heads} kv heads × {workload.head_dim}",
        workload.dtype,
        sparsity(workload.key_sparsity, workload.value_sparsity, _achieved(records)),
    ]
    if workload.pruner != PAPER_PRUNER:
        segments.append(workload.pruner)
    if workload.evict is not None:
        segments.append(f"evict {workload.evict:g}")
    if workload.is_chunk:
        segments.insert(2, f"last {text.size(workload.q_len)} as queries")
    segments += [f"{name} {count}" for name, count in (("sink", workload.sink), ("local", workload.local)) if count]
    segments += text.unique(record.case.device for record in records)
    segments += [f"{ranks} ranks" for ranks in text.unique(record.case.ranks for record in records) if ranks != 1]
    segments.append(workload.tensors)
    baselines = text.unique(record.measures.baseline for record in records)
    segments += [f"baseline {name}" for name in baselines]
    if not baselines and any(record.status == "ok" for record in records):
        segments.append("no baseline: no dense method ran")
    return [segment for segment in segments if segment]


def sparsity(key: float, value: float, achieved: list[float] | None = None) -> str:
    """ "sparsity 0.5 (achieved 0.499)"; K and V apart where they differ."""
    words = f"sparsity {key:g}" if key == value else f"sparsity K {key:g} V {value:g}"
    shown = text.unique(f"{share:.4g}" for share in sorted(achieved or []))
    if shown and shown != [f"{(key + value) / 2:.4g}"]:
        words += f" (achieved {'-'.join([shown[0], shown[-1]] if len(shown) > 1 else shown)})"
    return words


def _achieved(records: list[Record]) -> list[float]:
    """Of the methods that prune: 0 of one that is dense, or only evicts, is no news."""
    pruning = [one.measures for one in records if not one.case.dense]
    shares = [m.achieved_sparsity for m in pruning if m.achieved_sparsity or not m.achieved_evict]
    return [share for share in shares if share is not None]
