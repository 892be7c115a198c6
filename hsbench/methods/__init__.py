"""How to attend: one file per method, behind one small protocol (``base``), found through the registry below.

CONTRIBUTING.md says how to add one. Nothing else knows the methods by name: checks, timing, memory and the report
come with the protocol.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

from hsbench.errors import UsageError
from hsbench.kernels.device import Device
from hsbench.problem.elements import SIXTEEN_BIT

if TYPE_CHECKING:
    from hsbench.methods.base import Method
    from hsbench.problem.phase import Phase
    from hsbench.problem.workload import Workload

FAMILIES = ("reference", "sdpa", "dense", "hierarchical", "evict", "unstructured")
"""Families in row order; the module of each has its name. No torch is imported until :func:`find_methods`."""

DENSE_FAMILIES = ("reference", "sdpa", "dense")
"""Those whose methods attend to all of K and V (:attr:`hsbench.methods.base.Method.dense`)."""

PRUNER_FAMILIES = ("hierarchical",)
"""Those whose K and V the workload's pruner prunes; the others' results do not depend on it."""


def evict_of(method: str, workload: Workload, device: Device) -> float:
    """The share of eligible blocks that a method, by name, evicts from a workload: 0 where it evicts none."""
    family = method.partition(":")[0]
    if family == "hierarchical":
        return workload.evict or 0.0
    if family != "evict":
        return 0.0
    return importlib.import_module("hsbench.methods.evict").share_of(workload, device)


def check_methods(names: Iterable[str]) -> list[str]:
    """``family`` or ``family:variant`` names as given, without repeats.

    Raises:
        UsageError: a family that does not exist; names the closest one.
    """
    checked: list[str] = []
    for name in names:
        family = name.split(":")[0]
        if family not in FAMILIES:
            close = difflib.get_close_matches(family, FAMILIES, 1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise UsageError("--methods", name, f"{hint}known: {', '.join(FAMILIES)}, or family:variant")
        if name not in checked:
            checked.append(name)
    return checked


def default_families(phase: Phase) -> list[str]:
    """What runs when nobody asks: all, but for what the phase has only on request."""
    return [family for family in FAMILIES if family not in phase.on_request]


def rows_of(family: str, phase: Phase, device: Device) -> list[Method]:
    """All methods of a family, those that run only on request among them."""
    return importlib.import_module(f"hsbench.methods.{family}").methods(phase, device)


def find_methods(
    names: Iterable[str] | None, phase: Phase, device: Device, *, rows_alone: bool = False
) -> list[Method]:
    """The methods (one per row) that ``names`` stand for, or the default ones. A family stands for all its methods
    but those on request; ``family:16bit`` for the row of that whose name is the family's own.

    Args:
        rows_alone: names are those of rows, as a plan has them: a family's own name is that row's.

    Raises:
        UsageError: an unknown family, or a variant that the family does not have on this device.
    """
    wanted = check_methods(names if names is not None else default_families(phase))
    found: list[Method] = []
    for name in wanted:
        family, _, variant = name.partition(":")
        rows = rows_of(family, phase, device)
        plain = variant == SIXTEEN_BIT.name or (rows_alone and not variant)
        if plain and any(row.name == family for row in rows):
            rows = [row for row in rows if row.name == family]
        elif not variant:
            rows = [row for row in rows if not row.on_request]
        else:
            known = [row.name.partition(":")[2] or SIXTEEN_BIT.name for row in rows if len(rows) > 1 or ":" in row.name]
            rows = [row for row in rows if row.name == name]
            if not rows:
                has = f"it has {', '.join(filter(None, known))}" if any(known) else "it has no variants"
                raise UsageError("--methods", name, f"{family} has no such variant for {phase} on {device}: {has}")
        found += [row for row in rows if row.name not in {other.name for other in found}]
    return found
