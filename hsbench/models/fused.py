"""Fewer kernels for what is small: as transformers writes them, a pass launches six for each norm and one product for
each projection, which of few tokens take longer to launch than to run. What comes out is the same but for rounding;
another formula for norms is held against the model's own before it is taken. :mod:`hsbench.models.step` goes further,
for steps alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

LIKE = 2**-6
"""Relative: what rounding to 16 bits at another place may change, and less than another formula would."""


def fuse_norms(hf: Any) -> int:
    """Let the RMS norms of a model be torch's own kernel, where that gives what they give; how many are."""
    count = 0
    for module in hf.modules():
        if is_rms_norm(module):
            module.forward = _norm(module.weight, module.variance_epsilon)
            count += 1
    return count


def is_rms_norm(module: Any) -> bool:
    """Whether a module is ``rms_norm(x) weight``, with ``variance_epsilon``.

    Some add 1 to their weights, or round in an order of their own that matters: they are not.
    """
    weight, eps = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
    if not type(module).__name__.endswith("RMSNorm") or weight is None or eps is None or weight.ndim != 1:
        return False
    x = _drawn(4, len(weight), like=weight)
    with torch.no_grad():
        own, ours = module(x).float(), _norm(weight, eps)(x).float()
    return bool(((own - ours).abs() <= LIKE * own.abs()).all())


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
            self._weight = behind_one_another([layer.weight for layer in layers])
            biases = [layer.bias for layer in layers]
            self._bias = None if biases[0] is None else behind_one_another(biases)
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


def behind_one_another(parts: list[Any]) -> torch.Tensor:
    """Parameters in one tensor, of which each is a view from now on."""
    whole = torch.cat([part.data for part in parts])
    for part, view in zip(parts, whole.split([len(part) for part in parts]), strict=True):
        part.data = view
    return whole


def _drawn(*shape: int, like: torch.Tensor) -> torch.Tensor:
    draw = torch.Generator(like.device).manual_seed(0)
    return torch.randn(*shape, generator=draw, dtype=torch.float32, device=like.device).to(like.dtype)
