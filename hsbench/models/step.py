"""A step of one token in few kernels: the layers of a usual decoder, with what is between their products fused.

transformers writes a layer for any number of tokens: a step of it is some 40 kernels. Here are 12: four products, of
which two are summed from parts, append, decode, and four for all that is between. What is replaced is held against the
model's own first, on what a step hands to it, and stays as it is where it says something else: another norm, another
RoPE, another gate, a residual that is scaled.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hsbench.models.cache import TensorLayer
from hsbench.models.fused import LIKE, behind_one_another, is_rms_norm
from hsbench.models.hook import attention
from hsbench.models.living import AttendingLayer, LivingCache
from hsbench.models.pointwise import EAGER, NotCompiledError, Pointwise, compiled

if TYPE_CHECKING:
    from hsbench.models.model import Model

_POSITION = 1000  # of the tokens that tell: RoPE turns them by angles of all sizes
_TRIES = 16  # tokens at most that a layer is handed while it is held against its own

Forward = Callable[..., Any]


@contextmanager
def fused_step(
    model: Model, batch: int, make: Callable[[], Pointwise] = compiled
) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """In here, steps of a model take fewer kernels; more than one token of a sequence goes its usual way.

    Args:
        batch: sequences of a step: what is compiled is for so many.
        make: what to take between products. Where it cannot be had, it is what torch has without a compiler.

    Gives:
        The kinds of modules that are replaced, of ``attention``, ``mlp`` and ``layer``; and notes on what could not be.
    """
    forwards = _Forwards()
    notes: tuple[str, ...] = ()
    with torch.no_grad():
        seen = _seen(model, batch)
    try:
        try:
            kinds = _replace(model, seen, make(), forwards)
        except NotCompiledError as error:
            forwards.restore()
            notes = (f"what is between a step's products takes some kernels more than it must, not compiled: {error}",)
            kinds = _replace(model, seen, EAGER, forwards)
        yield kinds, notes
    finally:
        forwards.restore()


class _Forwards:
    """Methods of modules that are replaced, and put back."""

    def __init__(self) -> None:
        self._own: dict[Any, Forward | None] = {}

    def replace(self, module: Any, forward: Forward) -> None:
        self._own.setdefault(module, vars(module).get("forward"))
        module.forward = forward

    def restore(self, modules: Sequence[Any] | None = None) -> None:
        """Of some modules, or all."""
        for module in list(self._own) if modules is None else modules:
            own = self._own.pop(module)
            if own is None:
                del module.forward
            else:
                module.forward = own


# ---- What the model's own modules say ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Call:
    """A call of a module, and what it gave."""

    arguments: tuple[Any, ...]
    named: dict[str, Any]
    given: Any


class _Mixing(AttendingLayer):
    """Attends in a way that any difference in q, K or V shows in."""

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, before: int) -> Tensor:
        return q + (k - 2.0 * v).repeat_interleave(q.shape[1] // k.shape[1], 1)

    def get_max_length(self) -> int:
        return _TRIES


def _seen(model: Model, batch: int) -> dict[Any, _Call]:
    """A step through the model's own modules: each one's call."""
    found: dict[Any, _Call] = {}

    def note(module: Any, arguments: tuple[Any, ...], named: dict[str, Any], given: Any) -> None:
        found[module] = _Call(arguments, named, given)

    watched = [module for layer in _layers(model.hf) for module in (layer, layer.self_attn, layer.mlp)]
    handles = [module.register_forward_hook(note, with_kwargs=True) for module in watched]
    device = str(model.device)
    ids = torch.arange(batch, device=device).unsqueeze(1) % model.geometry.vocab
    try:
        model.step(ids, torch.full_like(ids, min(_POSITION, model.geometry.max_positions - 1)), _cache(model, batch))
    finally:
        for handle in handles:
            handle.remove()
    return found


def _cache(model: Model, batch: int) -> LivingCache:
    g = model.geometry

    def layer(number: int) -> AttendingLayer | TensorLayer:
        if number in model.attended:
            return _Mixing()
        shape = batch, g.kv_heads, _TRIES, g.head_dim
        return TensorLayer(*(torch.empty(shape, dtype=model.dtype, device=str(model.device)) for _ in "kv"))

    return LivingCache([layer(number) for number in range(g.layers)])


def _layers(hf: Any) -> list[Any]:
    """The decoder's layers, in order."""
    parts = "self_attn", "mlp", "input_layernorm", "post_attention_layernorm"
    return [module for module in hf.modules() if all(hasattr(module, part) for part in parts)]


def _says_the_same(module: Any, own: _Call) -> bool:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a compiler's
        try:
            ours = module(*own.arguments, **own.named)
        except (AttributeError, RuntimeError, TypeError, ValueError):  # it is built in another way
            return False
    if type(ours) is not type(own.given):
        return False
    one, other = (given[0] if isinstance(given, tuple) else given for given in (own.given, ours))
    return one.shape == other.shape and bool((one.float() - other.float()).norm() <= LIKE * one.float().norm())


# ---- What takes their place --------------------------------------------------------------------------------------


def _replace(model: Model, seen: dict[Any, _Call], pointwise: Pointwise, forwards: _Forwards) -> tuple[str, ...]:
    """Replaces what may be, each kind in all layers or in none; which kinds.

    Raises:
        NotCompiledError: as of ``pointwise``.
    """
    layers = _layers(model.hf)
    modules = {
        "attention": [layer.self_attn for layer in layers if layer.self_attn.layer_idx in model.attended],
        "mlp": [layer.mlp for layer in layers if _is_gated(layer.mlp)],
        "layer": layers if _has_usual_norms(model.hf, layers) else [],
    }
    makers = {"attention": _attention_forward, "mlp": _mlp_forward}
    found = []
    for kind, ones in modules.items():
        touched = list(ones)
        if kind in makers:
            for module in ones:
                forwards.replace(module, makers[kind](module, pointwise))
        elif ones:
            touched += _connect(ones, model.hf.base_model.norm, pointwise, forwards)
        if ones and all(_says_the_same(module, seen[module]) for module in ones):
            found.append(kind)
        else:
            forwards.restore(touched)
    return tuple(found)


def _is_step(hidden: Any) -> bool:
    """Whether it is of one token of each sequence, ``[b, 1, width]``."""
    return isinstance(hidden, Tensor) and hidden.ndim == 3 and hidden.shape[1] == 1


def _attention_forward(module: Any, pointwise: Pointwise) -> Forward:
    own = module.forward

    def forward(*arguments: Any, **named: Any) -> Any:
        hidden: Any = named.get("hidden_states")
        angles = named.get("position_embeddings")
        if arguments or angles is None or not _is_step(hidden):
            return own(*arguments, **named)
        shape = (*hidden.shape[:-1], -1, module.head_dim)
        q, k, v = (project(hidden).view(shape) for project in (module.q_proj, module.k_proj, module.v_proj))
        if hasattr(module, "q_norm"):
            q, k = module.q_norm(q), module.k_norm(k)
        q, k, v = pointwise.rope(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), *angles)
        cache = named.get("cache", named.get("past_key_values"))  # renamed in 5.2x
        if cache is not None:
            k, v = cache.update(k, v, module.layer_idx)
        out, weights = attention(module, q, k, v, named.get("attention_mask"), scaling=module.scaling)
        return module.o_proj(out.flatten(2)), weights

    return forward


def _is_gated(mlp: Any) -> bool:
    projections = [getattr(mlp, f"{name}_proj", None) for name in ("gate", "up", "down")]
    return all(type(layer) is torch.nn.Linear and layer.bias is None for layer in projections)


def _mlp_forward(mlp: Any, pointwise: Pointwise) -> Forward:
    own = mlp.forward
    weight = behind_one_another([mlp.gate_proj.weight, mlp.up_proj.weight])

    def forward(hidden: Tensor) -> Tensor:
        if not _is_step(hidden):
            return own(hidden)
        out: Tensor = mlp.down_proj(pointwise.gate(F.linear(hidden, weight)))
        return out

    return forward


class _Norm:
    """An RMS norm of what two tensors add up to, by one kernel."""

    def __init__(self, module: Any, pointwise: Pointwise) -> None:
        self._own, self._add_norm = module.forward, pointwise.add_norm
        self._weight, self._eps = module.weight, module.variance_epsilon
        self._kept: tuple[Tensor, Tensor] | None = None

    def forward(self, hidden: Tensor, added: Tensor | None = None, *, keep: bool = False) -> Any:
        """The norm; where something is added, the sum and its norm, which is kept for who asks for it."""
        if added is not None:
            both = self._add_norm(hidden, added, self._weight, self._eps)
            self._kept = both if keep else None
            return both
        kept = self.taken(hidden)
        return self._own(hidden) if kept is None else kept

    def taken(self, hidden: Tensor) -> Tensor | None:
        """The norm of a sum, if it was kept."""
        kept, self._kept = self._kept, None
        return kept[1] if kept is not None and kept[0] is hidden else None


def _has_usual_norms(hf: Any, layers: Sequence[Any]) -> bool:
    last = getattr(hf.base_model, "norm", None)
    norms = [norm for layer in layers for norm in (layer.input_layernorm, layer.post_attention_layernorm)]
    return bool(layers) and all(is_rms_norm(norm) for norm in (*norms, last))


def _connect(layers: Sequence[Any], last: Any, pointwise: Pointwise, forwards: _Forwards) -> list[Any]:
    """Lets each residual be added where the next norm is taken, be it in the layer behind; the norms."""
    modules = [norm for layer in layers for norm in (layer.input_layernorm, layer.post_attention_layernorm)] + [last]
    norms = {module: _Norm(module, pointwise) for module in modules}
    for module, norm in norms.items():
        forwards.replace(module, norm.forward)
    following = [layer.input_layernorm for layer in layers[1:]] + [last]
    for layer, after in zip(layers, following, strict=True):
        forwards.replace(layer, _layer_forward(layer, norms[layer.input_layernorm], after))
    return modules


def _layer_forward(layer: Any, before: _Norm, after: Any) -> Forward:
    own = layer.forward

    def forward(hidden: Tensor, **named: Any) -> Any:
        if not _is_step(hidden):
            return own(hidden, **named)
        normed = before.taken(hidden)
        if normed is None:
            normed = layer.input_layernorm(hidden)
        out, _ = layer.self_attn(hidden_states=normed, **named)
        # Called as modules are: what times them finds each addition in its norm.
        total, normed = layer.post_attention_layernorm(hidden, out)
        total, _ = after(total, layer.mlp(normed), keep=True)
        return total

    return forward
