"""Pruners as values: their names, what they are made of, what they need."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from hsbench.cache.pruner import (
    ALONG_HEAD_DIM,
    ATTENTIVE,
    BALANCED,
    CALIBRATED,
    CENTERED,
    DEFAULT_PRUNER,
    MAGNITUDE,
    MIRROR,
    PRUNERS,
    SHIFT_STEPS,
    Pruner,
    check_sources,
    pruner_of,
)
from hsbench.errors import UsageError
from hsbench.problem.workload import PAPER_PRUNER


def test_names() -> None:
    assert list(PRUNERS) == ["magnitude", "mirror", "centered", "balanced", "attentive", "calibrated"]
    for name, pruner in PRUNERS.items():
        assert pruner_of(name) is pruner and str(pruner) == pruner.name == name
    assert Pruner("magnitude") == MAGNITUDE == PRUNERS[PAPER_PRUNER]
    assert (MIRROR.order, CENTERED.key_shift, CENTERED.value_shift) == ("mirror", True, True)


@pytest.mark.parametrize("name", ["", "Magnitude", "mirrors", ":hd", "mirror:hd:hd", "mirror:tokens"])
def test_an_unknown_name_lists_those_that_there_are(name: str) -> None:
    with pytest.raises(UsageError, match="^pruner .*: unknown.*; one of magnitude, .*calibrated:hd$") as caught:
        pruner_of(name)
    assert caught.value.option == "pruner"


def test_along_head_dim_only_what_knows_of_queries_shifts_v() -> None:
    for name, tokens in PRUNERS.items():
        pruner = pruner_of(name + ALONG_HEAD_DIM)
        assert pruner.name == name + ALONG_HEAD_DIM and pruner.value_axis == "head_dim"
        assert (pruner.value_weights, pruner.fold) == ("none", 0.0)
        looks = name in ("attentive", "calibrated")
        assert (pruner.value_shift, pruner.value_shift_steps) == (looks, SHIFT_STEPS if looks else 0)
        assert pruner.needs_queries == looks
        for part in ("order", "key_shift", "key_shift_steps", "key_weights", "needs_calibration"):
            assert getattr(pruner, part) == getattr(tokens, part)


def test_what_each_needs() -> None:
    for pruner in PRUNERS.values():
        assert pruner.needs_queries == (pruner == ATTENTIVE)
        assert pruner.needs_calibration == (pruner == CALIBRATED)
        check_sources(pruner, calibration=True, queries=True)
    for pruner in (MAGNITUDE, MIRROR, CENTERED, BALANCED, pruner_of(DEFAULT_PRUNER)):
        check_sources(pruner, calibration=False, queries=False)
    with pytest.raises(UsageError, match="pruner attentive: needs the context's last queries"):
        check_sources(ATTENTIVE, calibration=True, queries=False)
    with pytest.raises(UsageError, match="pruner calibrated:hd: needs the context's last queries"):
        check_sources(pruner_of("calibrated:hd"), calibration=True, queries=False)
    assert replace(MIRROR, key_shift=True, key_shift_steps=1).needs_queries
    with pytest.raises(UsageError, match="pruner calibrated: needs a calibration.*`basis`"):
        check_sources(CALIBRATED, calibration=False, queries=True)


def test_it_asks_for_no_torch() -> None:
    code = "import sys, hsbench.cache.pruner; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
