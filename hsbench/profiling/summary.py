"""Kernels by method: how work that a profiler saw is matched with our ranges, added up, and shown."""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from hsbench.report import text

_SHOWN = 4  # lines of a method at most; what is left is one more
_LEAST = 0.01  # of the method's time; what has less is left
_WIDEST = 56  # characters of a kernel's name


@dataclass
class Line:
    """One kernel (or operator) of one method.

    Attributes:
        method: the row of the table; empty where the work lies in no method's samples.
        kernel: its name without parameters.
        calls: how often it ran, over all samples.
        busy: its time under the profiler, in any unit; only its share of the method's is ever shown.
        metrics: what else the profiler says of it, as text, by heading.
    """

    method: str
    kernel: str
    calls: int
    busy: float
    metrics: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Span:
    """Something with a begin and an end on one time line: a method's sample, a kernel, or the launch of one.

    Attributes:
        busy: how long what was launched took; None for ``end - start``.
    """

    name: str
    start: float
    end: float
    busy: float | None = None


def with_unseen(lines: Iterable[Line], samples: Sequence[Span], unseen: str) -> list[Line]:
    """The lines, and one more per method (one call a sample) for what of its samples they leave over."""
    whole: dict[str, list[float]] = {}
    for sample in samples:
        whole.setdefault(sample.name, []).append(sample.end - sample.start)
    seen = list(lines)
    for method, spans in whole.items():
        left = sum(spans) - sum(line.busy for line in seen if line.method == method)
        if left > _LEAST * sum(spans):
            seen.append(Line(method, unseen, len(spans), left))
    return by_share(seen, [sample.name for sample in samples])


def joined(work: Iterable[Span], samples: Sequence[Span]) -> list[Line]:
    """The work by method and kernel, from the largest share down.

    Args:
        work: kernels, each counted where its middle lies in a sample; others (a flush, a poisoned output) are not.
        samples: named by method; they do not overlap.
    """
    samples = sorted(samples, key=lambda sample: sample.start)
    starts = [sample.start for sample in samples]
    lines: dict[tuple[str, str], Line] = {}
    for item in work:
        middle = (item.start + item.end) / 2
        at = bisect.bisect_right(starts, middle) - 1
        if at >= 0 and middle <= samples[at].end:
            method = samples[at].name
            line = lines.setdefault((method, item.name), Line(method, item.name, 0, 0.0))
            line.calls += 1
            line.busy += item.end - item.start if item.busy is None else item.busy
    return by_share(lines.values(), [sample.name for sample in samples])


def by_share(lines: Iterable[Line], methods: Sequence[str]) -> list[Line]:
    """Lines in the methods' order, and each method's from its largest share down."""
    order = {method: at for at, method in reversed(list(enumerate(methods)))}
    return sorted(lines, key=lambda line: (order.get(line.method, len(order)), -line.busy))


def short_name(kernel: str) -> str:
    """A kernel's own name: no return type, namespaces, template or call parameters.

    ``void hsb::cuda::decode_kernel<float, 128>(Args)`` is ``decode_kernel``.
    """
    plain = re.sub(r"\(anonymous namespace\)::|<unnamed>::", "", kernel).strip()
    if plain.startswith("["):  # nsys: [CUDA memset]
        return plain
    plain = re.split(r"[<(]", plain, maxsplit=1)[0].strip()
    return plain.split(" ")[-1].rpartition("::")[2] or kernel


def summary_lines(lines: Sequence[Line], work: str = "kernel") -> list[str]:
    """A table of few lines, no times in it: method, kernel, calls, its share of the method's time, metrics.

    Args:
        work: the heading over what the lines are of.
    """
    rows = [["method", work, "calls", "share", *_headings(lines)]]
    for method in dict.fromkeys(line.method for line in lines):
        own = [line for line in lines if line.method == method]
        whole = sum(line.busy for line in own)
        shown = [line for line in own[:_SHOWN] if line is own[0] or line.busy >= _LEAST * whole]
        for at, line in enumerate(shown):
            extra = [line.metrics.get(heading, "") for heading in _headings(lines)]
            rows.append(
                [method if at == 0 else "", _cut(line.kernel), str(line.calls), _share(line.busy, whole), *extra]
            )
        if rest := own[len(shown) :]:
            calls, busy = sum(line.calls for line in rest), sum(line.busy for line in rest)
            rows.append(["", f"{len(rest)} others", str(calls), _share(busy, whole)])
    return text.aligned(rows, left=2)


def _headings(lines: Sequence[Line]) -> list[str]:
    return list(dict.fromkeys(heading for line in lines for heading in line.metrics))


def _share(busy: float, whole: float) -> str:
    if not whole:
        return ""
    return "<1%" if 0 < busy < 0.005 * whole else f"{busy / whole:.0%}"


def _cut(name: str) -> str:
    return name if len(name) <= _WIDEST else f"{name[: _WIDEST - 3]}..."
