"""Fewer kernels for what is small: as transformers writes them, a step of one token launches six for each norm, ten for
each layer's RoPE and three for its projections, which take longer to launch than to run. What comes out is the same but
for rounding; another formula for norms or RoPE is held against the model's own before it is taken."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F

_LIKE = 2**-6
"""Relative: what rounding to 16 bits at another place may change, and less than another formula would."""

_ROPE = "apply_rotary_pos_emb"

Rope = Callable[..., tuple[torch.Tensor, torch.Tensor]]


def fuse_norms(hf: Any) -> int:
    """Let the RMS norms of a model be torch's own kernel, where that gives what they give; how many are.

    Some add 1 to their weights, or round in an order of their own that matters: they stay as they are.
    """
    count = 0
    for module in hf.modules():
        weight, eps = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
        if not type(module).__name__.endswith("RMSNorm") or weight is None or eps is None or weight.ndim != 1:
            continue
        fused = _norm(weight, eps)
        x = _drawn(4, len(weight), like=weight)
        with torch.no_grad():
            own, ours = module(x).float(), fused(x).float()
        if bool(((own - ours).abs() <= _LIKE * own.abs()).all()):
            module.forward = fused
            count += 1
    return count


def _norm(weight: torch.Tensor, eps: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(hidden_states: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(hidden_states, (hidden_states.shape[-1],), weight, eps)

    return forward


def join_projections(hf: Any) -> int:
    """Let one product give q, k and v of a layer, whose weights then stand behind one another; how many layers do.

    The three layers stay as they are, with views of their weights. What is no plain linear layer is left alone.
    """
    count = 0
    for module in hf.modules():
        layers: list[Any] = [getattr(module, f"{name}_proj", None) for name in "qkv"]
        if any(type(layer) is not torch.nn.Linear or layer._forward_pre_hooks for layer in layers):
            continue
        biases = [layer.bias for layer in layers]
        alike = {(layer.in_features, layer.weight.dtype, layer.weight.device) for layer in layers}
        if len(alike) > 1 or len({bias is None for bias in biases}) > 1:
            continue
        _Joined(layers)
        count += 1
    return count


class _Joined:
    """The projections of one layer: asked for q it computes all, and keeps the others until they are asked for, of the
    same input."""

    def __init__(self, layers: list[Any]) -> None:
        self._sizes = [layer.out_features for layer in layers]
        with torch.no_grad():
            self._weight = _behind_one_another([layer.weight for layer in layers])
            biases = [layer.bias for layer in layers]
            self._bias = None if biases[0] is None else _behind_one_another(biases)
        self._input: torch.Tensor | None = None
        self._rest: list[torch.Tensor] = []
        layers[0].forward = self._first
        for layer in layers[1:]:
            layer.forward = self._later(layer.forward)

    def _first(self, x: torch.Tensor) -> torch.Tensor:
        q, *self._rest = F.linear(x, self._weight, self._bias).split(self._sizes, -1)
        self._input = x
        return q

    def _later(self, own: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
        def forward(x: torch.Tensor) -> torch.Tensor:
            if x is not self._input or not self._rest:
                return own(x)
            found = self._rest.pop(0)
            if not self._rest:
                self._input = None
            return found

        return forward


def _behind_one_another(parts: list[Any]) -> torch.Tensor:
    """Parameters in one tensor, of which each is a view from now on."""
    whole = torch.cat([part.data for part in parts])
    for part, view in zip(parts, whole.split([len(part) for part in parts]), strict=True):
        part.data = view
    return whole


@contextmanager
def fused_rope(hf: Any) -> Iterator[bool]:
    """In here, a model's RoPE of one token takes four kernels, where it is the usual one, over two halves.

    Gives whether it is. It is a function of transformers' module, and so of all models of the architecture.
    """
    layers = (module for module in hf.modules() if hasattr(module, "layer_idx") and hasattr(module, "head_dim"))
    attention = next(layers, None)
    home = sys.modules.get(type(attention).__module__)
    own: Rope | None = getattr(home, _ROPE, None)
    if attention is None or own is None or not _is_usual(own, attention.head_dim, next(hf.parameters())):
        yield False
        return

    def rope(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *more: Any, **named: Any) -> Any:
        if q.shape[2] != 1 or more or named:
            return own(q, k, cos, sin, *more, **named)
        return _rope(q, k, cos, sin)

    setattr(home, _ROPE, rope)
    try:
        yield True
    finally:
        setattr(home, _ROPE, own)


def _rope(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """q ``[b, q_heads, 1, d]`` and k ``[b, kv_heads, 1, d]`` at the angles ``[b, 1, d]``, whose halves are alike."""
    heads, half = q.shape[1], q.shape[-1] // 2
    both = _together(q, k)
    angle = sin.unsqueeze(1)[..., :half]
    out = both * cos.unsqueeze(1)
    out[..., :half].addcmul_(both[..., half:], angle, value=-1)
    out[..., half:].addcmul_(both[..., :half], angle)
    return out[:, :heads], out[:, heads:]


def _together(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """``[b, q_heads + kv_heads, 1, d]``: a view where k stands behind q, as of :func:`join_projections`."""
    batch, heads, _, dim = q.shape  # of one token: its stride says nothing
    follows = k.data_ptr() == q.data_ptr() + heads * dim * q.element_size()
    same = q.untyped_storage().data_ptr() == k.untyped_storage().data_ptr()
    if follows and same and [x.stride()[1::2] for x in (q, k)] == [(dim, 1)] * 2 and q.stride(0) == k.stride(0):
        return q.as_strided((batch, heads + k.shape[1], 1, dim), q.stride())
    return torch.cat((q, k), 1)


def _is_usual(own: Rope, head_dim: int, like: torch.Tensor) -> bool:
    """Whether a model's RoPE is this one."""
    q, k = (_drawn(2, heads, 1, head_dim, like=like) for heads in (4, 2))
    half = torch.linspace(0.1, 3.0, head_dim // 2, device=like.device)
    angle = torch.cat((half, half)).expand(2, 1, -1)
    cos, sin = angle.cos().to(like.dtype), angle.sin().to(like.dtype)
    try:
        expected, found = own(q, k, cos, sin), _rope(q, k, cos, sin)
    except (RuntimeError, TypeError, ValueError):  # of other arguments, or over a part of head_dim
        return False
    pairs = [(one.float(), other.float()) for one, other in zip(expected, found, strict=True)]
    return all(one.shape == other.shape and bool(((one - other).abs() <= _LIKE * 4).all()) for one, other in pairs)


def _drawn(*shape: int, like: torch.Tensor) -> torch.Tensor:
    draw = torch.Generator(like.device).manual_seed(0)
    return torch.randn(*shape, generator=draw, dtype=torch.float32, device=like.device).to(like.dtype)
