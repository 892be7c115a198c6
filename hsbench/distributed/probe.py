"""What the collective of a decode step costs here: ``python -m hsbench.distributed.probe DEVICE FILE``, by each rank.

What is timed is what a step adds: all-gather and combination, at the message of a real model. No interface: what starts
it is ``doctor``.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hsbench.distributed.environment import place
from hsbench.distributed.launch import end_with_launcher, launch
from hsbench.errors import HsbenchError
from hsbench.kernels.device import Device
from hsbench.problem.elements import DEFAULT_INPUT

SHAPE = (1, 32, 1, 128)
"""Of the probe's ``out``: batch, query heads, queries, head_dim."""

_SAMPLES = 50


def collective_cost(device: Device, ranks: int) -> dict[str, Any]:
    """Starts ranks on this machine that measure it: ``us``, the median, and ``bytes`` of a rank's message.

    Raises:
        HsbenchError: they could not.
    """
    with tempfile.TemporaryDirectory(prefix="hsbench-probe-") as folder:
        file = Path(folder) / "cost.json"
        code = launch(ranks, ["-m", __name__, device.kind, str(file)])
        if code or not file.exists():
            raise HsbenchError(f"{ranks} ranks could not measure their collective")
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return found


def measure_as_rank(device: Device, file: Path) -> None:
    """One rank's part; rank 0 writes the file."""
    import torch

    from hsbench.distributed.clock import GroupClock
    from hsbench.distributed.gathered import Gathered
    from hsbench.distributed.handshake import join
    from hsbench.measure import take_sample

    there = place()
    assert there is not None
    end_with_launcher(there)
    group = join(there, device if there.leads else None, {})
    out = torch.ones(SHAPE, dtype=DEFAULT_INPUT.torch_dtype, device=str(group.device))
    gathered = Gathered(out, group.data)
    gathered.take(out, torch.zeros(SHAPE[:-1], device=out.device))
    clock = GroupClock(group)
    for _ in range(3):
        take_sample(clock, gathered.run)
    median_s = statistics.median(take_sample(clock, gathered.run) for _ in range(_SAMPLES))
    if there.leads:
        file.write_text(json.dumps({"us": median_s * 1e6, "bytes": gathered.nbytes}), encoding="utf-8")
    group.close()


def main(words: Sequence[str]) -> int:
    """Runs a command line of this module, without the program's name, and returns its exit code."""
    try:
        measure_as_rank(Device(words[0]), Path(words[1]))
    except HsbenchError as error:
        print(f"hsbench: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
