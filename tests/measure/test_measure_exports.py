"""What the room shows to others, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys

import hsbench.measure as measure
from hsbench.kernels.device import CPU


def test_every_export_exists_and_is_documented():
    for name in measure.__all__:
        assert getattr(measure, name).__doc__, name


def test_importing_the_room_imports_neither_torch_nor_pynvml():
    code = "import sys, hsbench.measure; print([m for m in ('torch', 'pynvml', 'nvtx') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_whole_turn_on_the_host():
    """The recipe of the package's docstring, once through."""
    telemetry = measure.Telemetry(CPU)
    policy = measure.policy(1 << 40, CPU)
    numbers = list(range(2000))

    def run() -> None:
        sum(numbers)

    subjects = [measure.Subject(name, run, policy.before(run)) for name in ("one", "two")]
    result = measure.sample_in_turn(
        subjects,
        measure.clock_for(CPU),
        measure.StopRule(max_samples=6, budget_s=5),
        between=lambda: measure.settle(0.01) and None,
        on_sample=lambda name, done, seconds: telemetry.read(name) and None,
    )
    ratio = measure.ratio_interval(result["one"].times_s, result["two"].times_s)
    assert ratio.lo is not None and ratio.hi is not None and ratio.lo <= ratio.ratio <= ratio.hi
    assert measure.summarize(result["one"].times_s).n >= 5
    assert telemetry.summary("one").throttled is None
