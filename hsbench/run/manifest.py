"""What a run leaves of itself, enough to repeat it: written beside a CSV, and within a JSON document.

    {"schema": "hsbench-manifest/1", "rows_schema": "hsbench/4", "started": UTC, "command": [words],
     "run": the plan, see :mod:`hsbench.run.plan`,
     "machine": {"cpu", "gpu"}, "versions", "libraries" (SHA-256), "git": {"commit", "dirty"} or null,
     "environment": {switches that are set}}

No host or user name is in it, but for what stands in a path that was typed. Reading one imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from hsbench.errors import UsageError
from hsbench.kernels.device import CPU

if TYPE_CHECKING:
    from hsbench.kernels.device import Device

SCHEMA = "hsbench-manifest/1"
_NAME, _, _VERSION = SCHEMA.partition("/")

#: Facts of the machine that a result depends on.
_CPU = ("model", "cores", "threads", "isa", "governor")
_GPU = ("name", "driver", "power_limit_w", "max_sm_clock_mhz", "ecc", "mig")


class Planned(Protocol):
    """What a run of any command is resolved to."""

    @property
    def device(self) -> Device: ...
    def to_dict(self) -> dict[str, Any]: ...


def manifest_of(plan: Planned, command: Sequence[str]) -> dict[str, Any]:
    """The manifest of a plan that is about to run.

    Args:
        command: the words that were typed behind ``hsbench``.
    """
    from hsbench.machine.hardware import surroundings
    from hsbench.results import SCHEMA as ROWS_SCHEMA

    return {
        "schema": SCHEMA,
        "rows_schema": ROWS_SCHEMA,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": ["hsbench", *command],
        "run": plan.to_dict(),
        **surroundings(plan.device),
    }


def read_manifest(path: Path) -> dict[str, Any]:
    """A manifest, or the one within a JSON document of results; only its kind and version are checked.

    Raises:
        UsageError: no such file, not a manifest, or a newer hsbench's.
    """
    remedy = "give the FILE.manifest.json or the JSON results of a run"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError("replay", path, f"cannot be read ({error.strerror or error}); {remedy}") from error
    except ValueError as error:  # not JSON, or not even text
        raise UsageError("replay", path, f"is not whole JSON; {remedy}") from error
    if isinstance(document, dict) and str(document.get("schema")).startswith("hsbench/"):
        document = document.get("manifest")
    if not isinstance(document, dict):
        raise UsageError("replay", path, f"is no manifest of hsbench; {remedy}")
    name, _, version = str(document.get("schema")).partition("/")
    if name != _NAME or not version.isdecimal():
        raise UsageError("replay", path, f"is no manifest of hsbench; {remedy}")
    if int(version) > int(_VERSION):
        raise UsageError("replay", path, f"is of a newer hsbench ({name}/{version}, this one reads {SCHEMA}); update")
    return document


def differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What has changed between two manifests that may change a result, in words; not what was run."""
    before, after = dict(_circumstances(then)), dict(_circumstances(now))
    return [
        f"{name} was {_word(before.get(name))}, is {_word(after.get(name))}"
        for name in {**before, **after}
        if before.get(name) != after.get(name)
    ]


def _circumstances(manifest: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    def part(of: Any, name: str) -> dict[str, Any]:
        found = of.get(name) if isinstance(of, dict) else None
        return found if isinstance(found, dict) else {}

    device = part(manifest, "run").get("device")
    yield "device", device
    yield from part(manifest, "versions").items()
    commit = part(manifest, "git")
    if commit:
        yield "commit", str(commit.get("commit"))[:12] + " with changes" * bool(commit.get("dirty"))
    for name, digest in part(manifest, "libraries").items():
        if name in ("abi", device):
            yield ("ABI" if name == "abi" else f"libhsbench_{name}"), None if digest is None else str(digest)[:12]
    machine = part(manifest, "machine")
    yield from ((f"cpu {name}", part(machine, "cpu").get(name)) for name in _CPU)
    if device != CPU.kind:
        yield from ((f"gpu {name}", part(machine, "gpu").get(name)) for name in _GPU)
    yield from part(manifest, "environment").items()


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}"
    return "unset" if value is None else str(value)
