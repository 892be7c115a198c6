"""The process that runs one cell under a profiler: ``python -m hsbench.run.child PLAN.json PROFILER ROUNDS REPORT``.

It is given a plan as :mod:`hsbench.run.plan` writes it, so that what is profiled is what was measured. No interface:
what starts it is ``--profile``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from hsbench.errors import HsbenchError
from hsbench.profiling.child import Orders, recording

_FAILED, _INTERRUPTED = 1, 130


def command(plan: Path, orders: Orders) -> tuple[str, ...]:
    """The command line that runs the plan in a file."""
    return (sys.executable, "-m", "hsbench.run.child", str(plan), *orders.words())


def run(plan_file: Path, orders: Orders) -> int:
    """Carries out a plan of one cell under the profiler that started this process: few samples, no times.

    Returns:
        0; 1 where a row that ran ok without a profiler did not now, with its reason on stderr; 130 after Ctrl-C.

    Raises:
        KeyError, TypeError, ValueError, UsageError: the plan is damaged, or captured tensors of it are gone.
        UnavailableError: its device is not there.
    """
    from hsbench import measure
    from hsbench.run.plan import Plan
    from hsbench.run.profiled import profile_cell

    plan = Plan.from_dict(json.loads(plan_file.read_text(encoding="utf-8")))
    (cell,) = plan.cells
    with measure.annotate("run"):
        report = profile_cell(cell, plan.device, plan.settings, recording(orders, plan.device), orders.rounds)
    for result in report.results:
        print(f"{result.record.method}: {result.record.status}, profiled run, no timing", flush=True)
    failed = [result.record for result in report.results if result.record.status != "ok"]
    for record in failed:
        print(f"hsbench: {record.method}: {record.status} under the profiler: {record.reason}", file=sys.stderr)
    return _INTERRUPTED if report.interrupted else _FAILED if failed else 0


def main(words: Sequence[str]) -> int:
    """Runs a command line of this module, without the program's name, and returns its exit code."""
    try:
        return run(Path(words[0]), Orders.of(words[1:]))
    except HsbenchError as error:
        print(f"hsbench: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("hsbench: interrupted", file=sys.stderr)
        return _INTERRUPTED


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
