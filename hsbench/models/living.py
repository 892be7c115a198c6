"""Caches that attend by themselves: a transformers ``Cache`` whose layers take new tokens in and attend to all of it.

Such a layer's ``update`` only hands on what is new, marked as its own; the hook then gives it q, too. So the queries of
a first chunk are there for pruners that look at them, and K and V are stored once, as they are to be read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from hsbench.attention import arguments
from hsbench.attention.growing import Cache as GrowingCache
from hsbench.cache.basis import Basis
from hsbench.cache.fit import QUERIES
from hsbench.cache.layouts import why_no_pages
from hsbench.cache.pruner import AUTO_PRUNER, CENTERED, Pruner, auto_pruner
from hsbench.errors import UnsupportedError, UsageError
from hsbench.kernels.device import Device
from hsbench.models.cache import TensorLayer
from hsbench.models.dense import dense_attend
from hsbench.models.hook import NAME, marked, register
from hsbench.problem.elements import DEFAULT_INPUT, SIXTEEN_BIT, CacheElements, element_of

register()

Span = Callable[[str], AbstractContextManager[None]]
"""Encloses a part of a step, by name; for those who time it."""

APPEND, ATTENTION = "append", "attention"
"""The parts that a layer has."""

_NO_BEAMS = "a cache that attends by itself keeps every token in its place: generate without beams and assistants"


def _untimed(part: str) -> AbstractContextManager[None]:
    return nullcontext()


class AttendingLayer(CacheLayerMixin):
    """One layer; see :class:`hsbench.models.hook.Attending`.

    Attributes:
        length: tokens of each sequence.
        span: encloses what it does.
    """

    is_sliding = False

    def __init__(self) -> None:
        super().__init__()
        self.is_initialized = True
        self.length = 0
        self.span: Span = _untimed
        self._due = False

    def lazy_initialization(self, *_args: Any, **_kwargs: Any) -> None:
        """Nothing: all of it is there."""

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        """Hands on ``[batch, kv_heads, n, head_dim]``, which :meth:`attend` will take in.

        Raises:
            UnsupportedError: what it handed on before never came to it: another attention has taken it for all.
        """
        self.check_done()
        self._due = True
        return marked(key_states, self), value_states

    def check_done(self) -> None:
        """Raises :class:`UnsupportedError` if what it handed on has not come back to it."""
        if self._due:
            raise UnsupportedError(f"the model does not attend through hsbench: load it with {_load_so()}")

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See :class:`hsbench.models.hook.Attending`."""
        self._due = False
        before = self.length
        self.length += q.shape[2]
        return self._attend(q, k, v, before)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, before: int) -> Tensor:
        raise NotImplementedError

    def memory(self) -> tuple[dict[str, int], dict[str, int]]:
        """Bytes by component: all that is reserved, and what is used of it."""
        raise NotImplementedError

    def get_seq_length(self, *_args: Any) -> int:
        return self.length

    def get_mask_sizes(self, queries: Tensor | int) -> tuple[int, int]:
        """(keys, offset of the first) once so many queries, or those at such positions, are appended."""
        return self.length + (queries if isinstance(queries, int) else queries.shape[0]), 0

    def get_max_length(self) -> int:
        """Tokens that each sequence may have."""
        raise NotImplementedError

    def get_max_cache_shape(self) -> int:
        """The same, by its name before 5.2x."""
        return self.get_max_length()

    def reset(self) -> None:
        self.length, self._due = 0, False

    def _refuse(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        raise UnsupportedError(_NO_BEAMS)

    reorder_cache = crop = batch_repeat_interleave = batch_select_indices = _refuse


class CompressedLayer(AttendingLayer):
    """A layer whose K and V are compressed as they leave the window. A first chunk of several tokens is attended to
    dense, as it comes; all else is by our kernels.

    Args:
        cache: an empty one. Its dtype may be narrower than the model's.
    """

    def __init__(self, cache: GrowingCache) -> None:
        super().__init__()
        self.cache = cache
        self.device, self.dtype = cache.device, cache.dtype

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, before: int) -> Tensor:
        tokens = q.shape[2]
        query = q.to(self.dtype)
        with self.span(APPEND):
            last = None if before else query[:, :, -QUERIES:]
            self.cache.append(k.to(self.dtype), v.to(self.dtype), queries=last)
        with self.span(ATTENTION):
            if not before and tokens > 1:
                return dense_attend(q, k, v)
            out, _ = self.cache.decode(query) if tokens == 1 else self.cache.prefill(query)
        return out.to(q.dtype)

    def memory(self) -> tuple[dict[str, int], dict[str, int]]:
        found = self.cache.memory()
        return found.reserved, found.used

    def get_max_length(self) -> int:
        return self.cache.capacity

    def reset(self) -> None:
        super().reset()
        self.cache.reset()


class DenseLayer(AttendingLayer):
    """A layer with K and V as they come, to which torch attends.

    Args:
        shape: ``(batch, kv_heads, capacity, head_dim)``.
        how: encloses the attention of one query, to name a backend of torch's.
        rows: whether the query heads of a group go as rows of their kv head, which spares some backends reading K and V
            once for each.
    """

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        dtype: torch.dtype,
        device: torch.device | str,
        *,
        how: Callable[[], AbstractContextManager[Any]] = nullcontext,
        rows: bool = True,
    ) -> None:
        super().__init__()
        self.keys, self.values = (torch.empty(shape, dtype=dtype, device=device) for _ in "kv")
        self.device, self.dtype = self.keys.device, dtype
        self.attend_by(how, rows=rows)

    def attend_by(self, how: Callable[[], AbstractContextManager[Any]], *, rows: bool) -> None:
        """From now on, attention of one query is of this kind."""
        self._how, self._rows = how, rows

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, before: int) -> Tensor:
        end = self.length
        with self.span(APPEND):
            self.keys[:, :, before:end] = k
            self.values[:, :, before:end] = v
        with self.span(ATTENTION):
            if q.shape[2] > 1:
                return (
                    dense_attend(q, self.keys[:, :, :end], self.values[:, :, :end]) if before else dense_attend(q, k, v)
                )
            return self.attend_to(q, end)

    def attend_to(self, q: Tensor, end: int) -> Tensor:
        """Attention of one query ``[batch, q_heads, 1, head_dim]`` over the first tokens."""
        keys, values = self.keys[:, :, :end], self.values[:, :, :end]
        with self._how():
            if self._rows:
                rows = q.reshape(q.shape[0], keys.shape[1], -1, q.shape[3])
                return F.scaled_dot_product_attention(rows, keys, values).reshape(q.shape)
            return F.scaled_dot_product_attention(q, keys, values, enable_gqa=q.shape[1] != keys.shape[1])

    def memory(self) -> tuple[dict[str, int], dict[str, int]]:
        reserved = self.keys.nbytes + self.values.nbytes
        return {"dense": reserved}, {"dense": reserved // self.keys.shape[2] * self.length}

    def get_max_length(self) -> int:
        return int(self.keys.shape[2])


class LivingCache(Cache):
    """K and V of all layers of a model, each attending by itself.

    Args:
        layers: in order; some may be :class:`~hsbench.models.cache.TensorLayer`, whose attention is the hook's.
    """

    def __init__(self, layers: Sequence[AttendingLayer | TensorLayer]) -> None:
        super().__init__(layers=list(layers))
        self._before: AttendingLayer | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """As transformers calls it.

        Raises:
            UnsupportedError: the layer before has not attended through the hook.
        """
        if self._before is not None:
            self._before.check_done()
        layer = self.layers[layer_idx]
        self._before = layer if isinstance(layer, AttendingLayer) else None
        found: tuple[Tensor, Tensor] = layer.update(key_states, value_states, *args, **kwargs)
        return found

    def reset(self) -> None:
        """Back to no tokens."""
        self._before = None
        for layer in self.layers:
            layer.reset()

    @property
    def attending(self) -> list[AttendingLayer]:
        """The layers that attend by themselves."""
        return [layer for layer in self.layers if isinstance(layer, AttendingLayer)]

    @property
    def length(self) -> int:
        """Tokens of each sequence."""
        return int(self.layers[0].length)

    @length.setter
    def length(self, tokens: int) -> None:
        # A graph that is captured, or replayed, tells the host nothing of what it does.
        for layer in self.layers:
            layer.length = tokens

    @property
    def replayable(self) -> bool:
        """Whether one captured step can be replayed as the cache grows: lengths are all on the device."""
        return all(isinstance(layer, CompressedLayer) for layer in self.layers)

    def time_by(self, span: Span | None) -> None:
        """From now on, this encloses what the layers do; None for nothing."""
        for layer in self.attending:
            layer.span = span or _untimed

    def memory(self) -> tuple[dict[str, int], dict[str, int]]:
        """Bytes of all layers by component: all that is reserved, and what is used of it. Waits for the device."""
        reserved: dict[str, int] = {}
        used: dict[str, int] = {}
        for layer in self.layers:
            if isinstance(layer, AttendingLayer):
                found = layer.memory()
            else:
                size = layer.keys.nbytes + layer.values.nbytes
                found = {"dense": size}, {"dense": size // layer.keys.shape[2] * layer.length}
            for total, part in zip((reserved, used), found, strict=True):
                for component, nbytes in part.items():
                    total[component] = total.get(component, 0) + nbytes
        return reserved, used


class HierarchicalCache(LivingCache):
    """What a HuggingFace model's own ``generate`` takes as ``past_key_values``: hierarchical 2:4 K and V, with our
    attention over them::

        from hsbench.models import HierarchicalCache  # before the model, which is to attend through it

        model = AutoModelForCausalLM.from_pretrained(name, dtype="bfloat16", attn_implementation="hsbench")
        cache = HierarchicalCache(model, batch=1, capacity=32768, sparsity=0.5)
        ids = model.generate(**inputs, past_key_values=cache, max_new_tokens=256)

    A prompt is attended to dense and then compressed; later tokens are as they leave the window. Layers that slide over
    a window, cap their scores or have a learned sink stay dense. No beams, no assistants, no padding.

    Args:
        model: transformers', loaded with ``attn_implementation="hsbench"``.
        batch: sequences.
        capacity: tokens that each may have, prompt and answer; all of its memory is taken here.
        dtype: of K, V and q in the cache; the model's own where that has 16 bits, else fp16.
        shares: the sparsity of K and of V by layer, in place of ``sparsity``.
        basis: of the model, for a pruner that needs one.
        attended: the layers that may be compressed; by the model's configuration where not given.
        pruner: by name; ``auto`` is the one that costs a model least where only decode reads the cache
            (:func:`growing_pruner`). For a conversation, whose later turns are many tokens at once, take ``centered``.
        elements: of the cache's values, by name or as they are.
        how: as of :class:`hsbench.Cache`: ``sparsity``, ``sink``, ``local`` and their like.

    Raises:
        UsageError: the model does not attend through hsbench, or as :class:`hsbench.Cache`.
        UnsupportedError, UnavailableError: as :class:`hsbench.Cache`.
    """

    def __init__(
        self,
        model: Any,
        batch: int,
        capacity: int,
        *,
        dtype: torch.dtype | None = None,
        shares: Sequence[tuple[float, float]] | None = None,
        basis: Basis | None = None,
        attended: Collection[int] | None = None,
        pruner: str | Pruner = AUTO_PRUNER,
        elements: str | CacheElements = SIXTEEN_BIT,
        **how: Any,
    ) -> None:
        config = model.config.get_text_config()
        implementation = getattr(config, "_attn_implementation", None)
        if implementation != NAME:
            raise UsageError("model", f"attends by {implementation}", f"load it with {_load_so()}")
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        dtype = dtype or (model.dtype if element_of(model.dtype) else DEFAULT_INPUT.torch_dtype)
        attended = _attended(config, capacity) if attended is None else attended
        sizes = batch, heads, capacity, head_dim
        stored = arguments.cache_elements(elements, how.pop("key_elements", None), how.pop("value_elements", None))
        how |= {"pruner": growing_pruner(pruner, stored, Device.of(model.device)), "elements": stored}

        def layer(number: int) -> AttendingLayer | TensorLayer:
            if number not in attended:
                return TensorLayer(*(torch.empty(sizes, dtype=model.dtype, device=model.device) for _ in "kv"))
            own = dict(how)
            if shares is not None:
                own["key_sparsity"], own["value_sparsity"] = shares[number]
            if basis is not None:
                own["basis"] = basis.layer(number)
            return CompressedLayer(GrowingCache(batch, heads, head_dim, capacity, dtype, model.device, **own))

        super().__init__([layer(number) for number in range(config.num_hidden_layers)])


def growing_pruner(asked: str | Pruner, elements: CacheElements, device: Device) -> str | Pruner:
    """The pruner of a cache that decode alone reads, whose tokens of V cannot be weighed against later ones: of
    ``auto`` the one that sees the prompt's last queries, along head_dim; where nothing reads such pages, the best that
    is left."""
    if asked != AUTO_PRUNER:
        return asked
    return CENTERED.name if why_no_pages(elements, device, "head_dim") else auto_pruner(decode_alone=True)


def _attended(config: Any, capacity: int) -> list[int]:
    """The layers that see all tokens, with scores as they are."""
    if getattr(config, "attn_logit_softcapping", None) or config.model_type == "gpt_oss":
        return []
    layers = range(config.num_hidden_layers)
    window = getattr(config, "sliding_window", None)
    if window is None or window >= capacity or not getattr(config, "use_sliding_window", True):
        return list(layers)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * len(layers)
    return [number for number in layers if kinds[number] != "sliding_attention"]


def _load_so() -> str:
    return f'attn_implementation="{NAME}"'
