"""``--replay``: from a manifest back to a plan, and what has changed since."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hsbench.errors import UsageError
from hsbench.run.manifest import differences, manifest_of
from hsbench.run.plan import MethodsGoneError, Plan, TensorsGoneError


@dataclass(frozen=True)
class Replay:
    """A run of before.

    Attributes:
        plan: what it ran, on the device of now.
        manifest: of now.
        changed: what has changed since then that may change a result, in words.
    """

    plan: Plan
    manifest: dict[str, Any]
    changed: tuple[str, ...]


def plan_of(path: Path, manifest: dict[str, Any], device: str | None) -> Plan:
    """The plan in a manifest.

    Args:
        path: the file, to be named in errors.
        manifest: what it holds.
        device: where to run it in place of its own device: ``auto``, ``cpu`` or ``cuda``. On another one, the rows are
            those of the methods that were asked for then.

    Raises:
        UsageError: it is damaged, or needs captured tensors or methods that are not there any more.
        UnavailableError: its device is not there.
    """
    try:
        return Plan.from_dict(manifest["run"], device)
    except TensorsGoneError as error:
        raise UsageError("replay", path, error.remedy) from error
    except MethodsGoneError as error:
        remedy = f"the run of `replay` {path} asked for methods that are not there ({error.remedy})"
        raise UsageError("device", device, remedy) from error
    except (KeyError, TypeError, ValueError, AttributeError, UsageError) as error:
        words = " ".join(str(error).split()) or type(error).__name__
        what = f"lacks {words}" if isinstance(error, KeyError) else words
        remedy = f"is damaged, or another version's ({what[:200]}); run the command anew"
        raise UsageError("replay", path, remedy) from error


def replay(plan: Plan, then: dict[str, Any], command: Sequence[str]) -> Replay:
    """The replay of a manifest.

    Args:
        plan: of it, see :func:`plan_of`.
        then: the manifest.
        command: the words that were typed behind ``hsbench``, now.
    """
    now = manifest_of(plan, command)
    changed = differences(then, now)
    for cell, before, after in zip(plan.cells, then["run"]["cells"], now["run"]["cells"], strict=True):
        if cell.captured and after["captured"]["sha256"] != before["captured"].get("sha256"):
            changed.append(f"{cell.workload.tensors} holds other tensors")
        if cell.basis and after["basis"]["sha256"] != before["basis"].get("sha256"):
            changed.append(f"{cell.basis.path.name} is another basis")
    return Replay(plan, now, tuple(dict.fromkeys(changed)))
