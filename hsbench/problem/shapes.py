"""Attention shapes of published models, each a small TOML file in the folder beside this module."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from hsbench.errors import HsbenchError, unknown

_FOLDER = Path(__file__).with_suffix("")


@dataclass(frozen=True)
class ModelShape:
    """Attention geometry of a published model, as its config states it.

    Attributes:
        name: what ``--workload`` takes.
        q_heads, kv_heads, head_dim: geometry of one attention layer.
        layers: attention layers in the model; each holds a KV cache of its own.
        max_seq: longest context, in tokens, that the config allows.
        source: URL of the config.
    """

    name: str
    q_heads: int
    kv_heads: int
    head_dim: int
    layers: int
    max_seq: int
    source: str


@lru_cache(maxsize=1)
def load_shapes() -> dict[str, ModelShape]:
    """Shapes of real models, by name, sorted by it.

    Raises:
        HsbenchError: they are missing or damaged, which means a broken installation.
    """
    shapes = [_read(path) for path in _FOLDER.glob("*.toml")]
    if not shapes:
        raise HsbenchError(f"no model shapes in {_FOLDER}: install hsbench again")
    return {shape.name: shape for shape in sorted(shapes, key=lambda shape: shape.name.lower())}


def find_shape(name: str) -> ModelShape:
    """The shape of the model of that name, in any case.

    Raises:
        UsageError: unknown; the message lists the known names and the closest.
    """
    shapes = load_shapes()
    for known, shape in shapes.items():
        if known.lower() == name.strip().lower():
            return shape
    raise unknown("workload", name, shapes)


def _read(path: Path) -> ModelShape:
    try:
        return ModelShape(**tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError) as error:
        raise HsbenchError(f"the model shape {path} cannot be read ({error}): install hsbench again") from error
