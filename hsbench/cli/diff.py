"""``hsbench diff``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hsbench.cli import file_options as f
from hsbench.cli import options as o
from hsbench.cli.exit_codes import INCORRECT, OK
from hsbench.cli.file_options import DIFF_FORMATS, DIFF_METRICS
from hsbench.cli.output import results_stdout, writing
from hsbench.cli.parse import parse_choice, parse_number
from hsbench.cli.places import check_writable, names_stdout, open_for_writing, same
from hsbench.cli.streams import say
from hsbench.errors import UsageError

if TYPE_CHECKING:
    from hsbench.results import Stored

_ENDINGS = {".txt": "table", ".json": "json", ".md": "markdown", ".xml": "junit"}


def diff(
    base: f.BaseFile,
    new: f.NewFile,
    fail_over: f.FailOver = None,
    metric: f.DiffMetric = None,
    across_machines: f.AcrossMachines = False,
    format: f.DiffFormat = None,
    output: o.Output = None,
) -> int:
    """Say what has become worse or better between two runs, by more than their intervals and a threshold.

    Rows are joined by all that a number depends on. A change counts where its whole 95 % interval lies beyond
    --fail-over. Exit code 3 where something became worse, or does not run any more; nothing is printed where nothing
    has changed.

    Example: hsbench diff before.csv after.csv --fail-over 5%
    """
    over = 0.05 if fail_over is None else _share(fail_over)
    wanted = None if metric is None else parse_choice(metric, "metric", DIFF_METRICS)
    path = None if output is None or names_stdout(output) else Path(output)
    if format is not None:
        form = parse_choice(format, "format", DIFF_FORMATS)
    else:
        form = "table" if path is None else _ENDINGS.get(path.suffix.lower(), "")
    if path is not None:
        _check(path, form, (("base", base), ("new", new)))

    from hsbench.cli.stored import warn_of
    from hsbench.report.diff import WRITERS, summary
    from hsbench.results import read_filled
    from hsbench.results.diff import compare_files
    from hsbench.run.manifest import differences

    then, now = (read_filled(Path(typed), name) for typed, name in ((base, "base"), (new, "new")))
    for stored in (then, now):
        warn_of(stored)
    words = [] if then.manifest is None or now.manifest is None else differences(then.manifest, now.manifest)
    found = compare_files(then, now, metric=wanted, fail_over=over, circumstances=words)
    other = _other_machine(then, now)
    if other and not across_machines and any(change.metric.name == "time" for change in found.changes):
        remedy = (
            f"is of another machine than {base} ({other}); give --across-machines to compare its times all the same"
        )
        raise UsageError("new", new, remedy)
    if then.manifest is None or now.manifest is None:
        say("hsbench: without a manifest beside both it cannot be told what else differs")
    written = WRITERS[form](found)
    with writing(path):
        if path is None:
            results_stdout().write(written)
        else:
            with open_for_writing(path) as file:
                file.write(written)
    if form != "table" or path is not None or not written:
        say(f"hsbench: {summary(found)}")
    return INCORRECT if found.having("regression") else OK


def _share(typed: str) -> float:
    """``5%`` or ``0.05``."""
    text = typed.strip()
    value = parse_number(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    if not 0 <= value < 1:
        raise UsageError("fail_over", text or '""', "give a share such as 5% or 0.05")
    return value


def _check(path: Path, form: str, inputs: tuple[tuple[str, str], ...]) -> None:
    if not form:
        raise UsageError("output", path, "end it in .txt, .json, .md or .xml (JUnit), or give --format")
    check_writable(path)
    for name, typed in inputs:
        if same(path, Path(typed)):
            raise UsageError("output", path, f"is the file of `{name}`; give another")


def _other_machine(then: Stored, now: Stored) -> str:
    """What tells the machines apart: the GPU where there is one, else the processor; "" where nothing does."""

    def names(stored: Stored) -> tuple[str, str | None]:
        for part, name in (("gpu", "name"), ("cpu", "model")):
            if isinstance(facts := stored.machine.get(part), dict) and facts.get(name):
                return part, str(facts[name])
        return "", None

    (part, before), (_, after) = names(then), names(now)
    return f"{part} was {before}, is {after}" if before and after and before != after else ""
