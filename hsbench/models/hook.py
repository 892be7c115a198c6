"""The hook: an attention function of ours, in transformers' registry, in place of the model's own.

Every attention layer of a model that was loaded with ``attn_implementation=NAME`` calls :func:`attention`, which
hands q, K and V to whatever a :class:`Call` says, or to the layer of a cache that attends by itself
(:class:`Attending`). What it does not understand, it refuses: an attention function that ignores an argument gives a
wrong answer, in silence. So does one without a mask function in transformers' registry of those (masks are then None,
padding is ignored), hence :func:`_no_mask`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from hsbench.errors import UnsupportedError
from hsbench.models.dense import dense_attend, soft_attend

NAME = "hsbench"

Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(layer, q [b, q_heads, n, d], k [b, kv_heads, m, d], v) -> out [b, q_heads, n, d].

Causal: the n queries are the last n of the m tokens. q and K are post-RoPE; a scaling other than the usual is folded
into q, so that ``softmax(q k^T / sqrt(d)) v`` is what the model wants.
"""


class Attending(Protocol):
    """A layer of a cache that attends to its own tokens: its ``update`` hands on what is new, marked as its own."""

    @property
    def length(self) -> int:
        """Tokens in it."""
        ...

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Takes the n new tokens' k and v ``[b, kv_heads, n, d]`` in; ``q`` as of :data:`Attend`, and what it gives."""
        ...


_MARK = "hsbench_layer"


def marked(key: torch.Tensor, layer: Attending) -> torch.Tensor:
    """The new tokens' K, as the layer's own: transformers hands it from cache to attention untouched."""
    setattr(key, _MARK, layer)
    return key


# Arguments that change nothing here: dropout and its like are of training, positions are in q and k already.
_HARMLESS = frozenset(
    ("dropout", "is_causal", "position_ids", "cache_position", "position_embeddings")
    + ("cache", "past_key_values", "past_key_value", "use_cache", "logits_to_keep", "return_dict")
    + ("output_attentions", "output_hidden_states", "output_router_logits")
)


@dataclass(frozen=True)
class LayerFacts:
    """What a layer asked of attention.

    Attributes:
        q_heads, kv_heads, head_dim: of it.
        window: tokens that a query sees; None for all.
        softcap, sinks: whether its scores are capped, and whether a learned sink takes part of the softmax.
    """

    q_heads: int
    kv_heads: int
    head_dim: int
    window: int | None
    softcap: bool
    sinks: bool


@dataclass
class Call:
    """What the layers of one forward pass do.

    Attributes:
        attend: for the layers in ``attended``; None for dense everywhere.
        attended: those layers.
        facts: filled with what each layer asked for, where it is a dictionary.
        windows: the sliding windows that layers have, which masks may hold.
        alone: whether each sequence has one query, which sees all: no mask can say more, and none is looked at.
    """

    attend: Attend | None
    attended: frozenset[int]
    windows: frozenset[int]
    facts: dict[int, LayerFacts] | None = None
    alone: bool = False


_OF_A_USER = Call(None, frozenset(), frozenset())
"""Of passes that are not ours: a user's own ``generate``."""

_CALL: ContextVar[Call] = ContextVar("hsbench_attention", default=_OF_A_USER)


@contextmanager
def calling(call: Call) -> Iterator[None]:
    """In here, attention layers do what a call says."""
    token = _CALL.set(call)
    try:
        yield
    finally:
        _CALL.reset(token)


def register() -> None:
    """Put our functions into transformers' registries; harmless twice."""
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, _no_mask)


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls: q ``[b, q_heads, n, d]``, k and v ``[b, kv_heads, m, d]``; to ``[b, n, q_heads, d]``."""
    call, layer = _CALL.get(), int(module.layer_idx)  # type: ignore[arg-type]
    _refuse_unknown(layer, attention_mask, query, key, value, others)
    if call.facts is not None:
        heads = query.shape[1], key.shape[1], query.shape[3]
        call.facts[layer] = LayerFacts(*heads, sliding_window, softcap is not None, s_aux is not None)
    d = query.shape[-1]
    if scaling is not None and abs(scaling * d**0.5 - 1) > 1e-6:
        query = query * (scaling * d**0.5)
    own: Attending | None = getattr(key, _MARK, None)
    if own is not None or (call.attend is not None and layer in call.attended):
        tokens = key.shape[2] + (0 if own is None else own.length)
        if softcap is not None or s_aux is not None or (sliding_window or tokens) < tokens:
            raise UnsupportedError(f"layer {layer} is to see {tokens} tokens, but has a window of {sliding_window}")
        if own is not None:
            out = own.attend(query, key, value)
        else:
            assert call.attend is not None
            out = call.attend(layer, query, key, value)
    elif softcap is None and s_aux is None:
        out = dense_attend(query, key, value, window=sliding_window)
    else:
        out = soft_attend(query, key, value, window=sliding_window, softcap=softcap, sinks=s_aux)
    return out.transpose(1, 2).contiguous(), None


def _refuse_unknown(
    layer: int,
    mask: torch.Tensor | None,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    others: dict[str, Any],
) -> None:
    if others.get("is_causal") is False:
        raise UnsupportedError(f"layer {layer} of the model is not causal; give a causal language model")
    unknown = sorted(name for name, given in others.items() if given is not None and name not in _HARMLESS)
    if unknown:
        raise UnsupportedError(f"layer {layer} of the model wants {', '.join(unknown)}, which hsbench does not know")
    if mask is not None:
        raise UnsupportedError(f"layer {layer} of the model has a mask of its own, which hsbench does not know")
    if key.shape != value.shape or query.shape[3] != key.shape[3] or query.shape[1] % key.shape[1]:
        shapes = ", ".join(f"{name} {list(x.shape)}" for name, x in (("q", query), ("k", key), ("v", value)))
        raise UnsupportedError(f"layer {layer} of the model has heads of different shapes ({shapes})")


def _no_mask(
    batch_size: int,
    kv_length: int,
    mask_function: Callable[..., Any],
    kv_offset: int = 0,
    attention_mask: torch.Tensor | None = None,
    cache_position: torch.Tensor | None = None,  # up to 5.0
    q_length: int | None = None,  # later
    q_offset: int = 0,
    **_others: Any,
) -> None:
    """transformers' mask function: None, once it is sure that a mask would say no more than causal, or a window that
    the layers name to :func:`attention` themselves.

    Raises:
        UnsupportedError: another mask (padding, chunks, a prefix that sees itself).
    """
    if _CALL.get().alone:
        return
    if attention_mask is not None and not bool(attention_mask.all()):
        raise UnsupportedError("the model pads its input, which hsbench does not know")
    if cache_position is not None:
        q_offset, q_length = int(cache_position[0]), int(cache_position.shape[0])
    assert q_length is not None
    # Three rows of it tell: a mask is a function of two positions, and the kinds there are differ in these rows.
    rows = torch.tensor(sorted({0, q_length // 2, q_length - 1}), device="cpu")[:, None] + int(q_offset)
    tokens = torch.arange(kv_length, device="cpu")[None] + kv_offset
    at = torch.zeros((), dtype=torch.long, device="cpu")
    with torch.device("cpu"):
        mask = torch.as_tensor(mask_function(at, at, rows, tokens), device="cpu").expand(rows.shape[0], kv_length)
    causal = tokens <= rows
    windows = [None, *sorted(_CALL.get().windows)]
    if not any(
        torch.equal(mask, causal if window is None else causal & (tokens > rows - window)) for window in windows
    ):
        raise UnsupportedError("the model hides tokens in a way of its own (chunks, or a prefix that sees itself)")
