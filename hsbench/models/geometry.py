"""The shape of a model; imports neither torch nor transformers."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class ModelGeometry:
    """What a cache, a basis or a captured layer of a model depends on.

    Attributes:
        layers: decoder layers, attention or not.
        q_heads, kv_heads, head_dim: of one attention layer.
        max_positions: tokens that the model was made for.
        vocab: entries of the logits.
    """

    layers: int
    q_heads: int
    kv_heads: int
    head_dim: int
    max_positions: int
    vocab: int

    @property
    def group(self) -> int:
        """Query heads that share one KV head (GQA)."""
        return self.q_heads // self.kv_heads

    def to_dict(self) -> dict[str, int]:
        """Every field, as JSON can hold it."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.layers} layers, {self.q_heads} q / {self.kv_heads} kv heads x {self.head_dim}"
