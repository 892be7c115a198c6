"""Which pictures there are, and which one suits a file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from hsbench.errors import UsageError, unknown
from hsbench.problem.elements import SIXTEEN_BIT
from hsbench.report import text
from hsbench.report.pictures import layers, quality, roofline, scaling, sparsity, step
from hsbench.report.pictures.picture import Picture
from hsbench.results import Generated, Quality, Record, Row, Stored

KINDS = ("auto", "scaling", "sparsity", "roofline", "quality", "layers", "step")
METRICS = tuple(quality.METRICS)

AnyRow = Row[Any, Any]


def draw(
    files: Sequence[Stored], kind: str = "auto", *, methods: Sequence[str] | None = None, metric: str = METRICS[0]
) -> Picture:
    """The picture of files.

    Args:
        kind: one of `KINDS`, or "auto" for what suits the rows best.
        methods: families or rows to show; None for all.
        metric: of `quality`, one of `METRICS`.

    Raises:
        UsageError: a kind that there is not, or no rows that it could show.
    """
    of: dict[str, Callable[[Sequence[Stored]], Picture]] = {
        "scaling": scaling.picture,
        "sparsity": sparsity.picture,
        "roofline": roofline.picture,
        "quality": lambda shown: quality.picture(shown, metric),
        "layers": layers.picture,
        "step": step.picture,
    }
    if kind not in KINDS:
        raise unknown("kind", kind, KINDS)
    chosen = _suiting(files) if kind == "auto" else kind
    kept = files if methods is None else [_only(file, methods) for file in files]
    wanted, of_what = _DRAWN.get(chosen, (Record, "decode, prefill or compare"))
    rows = [result.record for file in kept for result in file.of(wanted)]
    names = ", ".join(str(file.path) for file in files)
    if not rows:
        chosen_rows = "" if methods is None else f" of {', '.join(methods)}"
        raise UsageError("file", names, f"has no rows of {of_what}{chosen_rows}, which --kind {chosen} draws")
    if all(row.status != "ok" for row in rows):
        ends = text.unique(f"{row.status}: {row.reason}" if row.reason else row.status for row in rows)
        raise UsageError("file", names, f"has no row that is ok, so there is nothing to draw ({ends[0]})")
    return of[chosen](kept)


_DRAWN: dict[str, tuple[type[AnyRow], str]] = {
    "quality": (Quality, "quality"),
    "layers": (Quality, "quality"),
    "step": (Generated, "generate"),
}
"""Which rows a kind draws, where these are not of attention alone."""


def _suiting(files: Sequence[Stored]) -> str:
    rows = [row for file in files for row in file.rows]
    if any(isinstance(row, Generated) for row in rows):
        return "step"
    if any(isinstance(row, Quality) for row in rows):
        settings = [row for row in rows if isinstance(row, Quality) and row.case.layer is None]
        return "quality" if len(settings) > 1 or not _has_heads(rows) else "layers"
    calls = [row for row in rows if isinstance(row, Record)]
    if len({row.case.seq for row in calls}) > 1:
        return "scaling"
    shares = {(row.case.key_sparsity, row.case.value_sparsity) for row in calls if not row.case.dense}
    return "sparsity" if len(shares) > 1 else "roofline"


def _has_heads(rows: Sequence[AnyRow]) -> bool:
    return any(isinstance(row, Quality) and row.case.head is not None for row in rows)


def _only(file: Stored, methods: Sequence[str]) -> Stored:
    """A file with the rows of families, or single rows; ``dense:16bit`` is the row ``dense`` alone."""

    def asked(method: str) -> bool:
        return not {method, method.partition(":")[0], f"{method}:{SIXTEEN_BIT.name}"}.isdisjoint(methods)

    return dataclasses.replace(file, results=[one for one in file.results if asked(one.record.case.method)])
