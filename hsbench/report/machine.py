"""The machine in labelled lines."""

from __future__ import annotations

from typing import Any

_CPU_WORDS = {
    "model": "{}",
    "cores": "{} cores",
    "quota_cores": "of which a quota allows {:g}",
    "threads": "{} threads used",
    "isa": "{}",
    "governor": "governor {}",
}
_GPU_WORDS = {"name": "{}", "driver": "driver {}", "power_limit_w": "limit {:.0f} W"}
_GPU_SWITCHES = {"ecc": "ECC", "mig": "MIG", "persistence": "persistence"}


def machine_facts(machine: dict[str, Any]) -> list[tuple[str, str]]:
    """Label and text: what ran this, what was in the way, what is missing and how to get it."""
    facts = [("warning", line) for line in machine.get("warnings") or []]
    facts += [("missing", line) for line in machine.get("missing") or []]
    gpu, cpu = machine.get("gpu"), machine.get("cpu")
    if isinstance(gpu, dict):
        words = [_words(gpu, _GPU_WORDS)]
        words += [
            f"{name} {'on' if gpu[key] else 'off'}" for key, name in _GPU_SWITCHES.items() if gpu.get(key) is not None
        ]
        facts.append(("gpu", ", ".join(filter(None, words))))
    if isinstance(cpu, dict):
        cores, quota = cpu.get("cores", cpu.get("usable_cores")), cpu.get("quota_cores")
        limited = quota is not None and cores is not None and quota < cores
        facts.append(("cpu", _words({**cpu, "cores": cores, "quota_cores": quota if limited else None}, _CPU_WORDS)))
    versions = machine.get("versions")
    if isinstance(versions, dict):
        facts.append(("versions", ", ".join(f"{name} {version}" for name, version in versions.items() if version)))
    other = {name: value for name, value in machine.items() if isinstance(value, (str, int, float)) and value != ""}
    facts.append(("machine", ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in other.items())))
    return [(label, words) for label, words in facts if words]


def _words(facts: dict[str, Any], forms: dict[str, str]) -> str:
    return ", ".join(form.format(facts[key]) for key, form in forms.items() if facts.get(key) not in (None, ""))
