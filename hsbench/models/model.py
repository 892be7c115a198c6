"""A causal language model that runs with attention of ours."""

from __future__ import annotations

import inspect
from typing import Any, Literal

import torch

from hsbench.kernels.device import Device
from hsbench.models.cache import ModelCache
from hsbench.models.geometry import ModelGeometry
from hsbench.models.hook import Attend, Call, calling
from hsbench.models.memory import cache_bytes, check_fits
from hsbench.models.tokenizer import Tokenizer
from hsbench.problem.elements import INPUTS, Element, element_of

__all__ = ["Attend", "Model", "ModelCache"]


class Model:
    """What :func:`hsbench.models.loading.open_model` returns.

    Attributes:
        name: as shown.
        identity: tells models apart; a digest of config and weights as their files hold them.
        geometry: its shape.
        attended: layers that go through ``attend``; all others are dense whatever is asked.
        notes: what was left dense and why, a line each.
        device, dtype: where and in what it is computed.
        element: 16-bit type of its K and V: the one that its weights are published in, or the one that is taken first.
    """

    def __init__(
        self,
        hf: Any,
        tokenizer: Tokenizer,
        *,
        name: str,
        identity: str,
        geometry: ModelGeometry,
        attended: tuple[int, ...],
        notes: tuple[str, ...] = (),
        windows: frozenset[int] = frozenset(),
        element: Element | None = None,
    ) -> None:
        self.name, self.identity, self.geometry = name, identity, geometry
        self.attended, self.notes = attended, notes
        self._hf, self._tokenizer, self._windows = hf, tokenizer, windows
        self.device, self.dtype = Device.of(hf.device), hf.dtype
        self.element = element or element_of(hf.dtype) or next(iter(INPUTS.values()))
        takes = inspect.signature(hf.forward).parameters
        self._cache_argument = "cache" if "cache" in takes else "past_key_values"  # renamed in 5.2x

    def tokens(self, text: str) -> torch.Tensor:
        """Token numbers of a text, int64 ``[n]``, on the CPU; only what the tokenizer puts at the start is added."""
        return torch.tensor(self._tokenizer.encode(text), dtype=torch.int64, device="cpu")

    def text(self, ids: torch.Tensor) -> str:
        """The text of token numbers ``[n]``."""
        return self._tokenizer.decode(ids.tolist())

    def new_cache(self, batch: int, capacity: int) -> ModelCache:
        """An empty cache for so many sequences of so many tokens at most; takes all of its memory now.

        Raises:
            UnavailableError: there is not enough.
        """
        need = cache_bytes(self.geometry, batch, capacity, self.dtype.itemsize)
        check_fits(f"a cache of {batch} x {capacity:,} tokens of {self.name}", need, self.device, "take fewer tokens")
        shape = (batch, self.geometry.kv_heads, capacity, self.geometry.head_dim)
        return ModelCache(self.geometry.layers, shape, self.dtype, str(self.device))

    def check_pass(self, tokens: int) -> None:
        """Make sure that there is room for a pass of so many tokens, beside the weights and any cache.

        Raises:
            UnavailableError: there is not.
        """
        config = self._hf.config.get_text_config()
        # The residual stream, its norm, q, K, V and the output of attention; then the feed-forward layer's two halves,
        # and their product. Measured on Llama's.
        wide = 6 * config.hidden_size + 3 * (getattr(config, "intermediate_size", None) or 4 * config.hidden_size)
        check_fits(
            f"a pass of {tokens:,} tokens", tokens * wide * self.dtype.itemsize, self.device, "take fewer tokens"
        )

    @torch.no_grad()
    def forward(
        self,
        ids: torch.Tensor,
        cache: ModelCache | None,
        attend: Attend | None = None,
        *,
        logits: Literal["all", "last", "none"] = "all",
    ) -> torch.Tensor:
        """Append tokens to a cache, and say what comes after each.

        Args:
            ids: token numbers ``[batch, n]``, on any device.
            cache: what came before; None for nothing, and to keep nothing (whole prompts at the least memory).
            attend: attention of the layers in `attended`; None is torch's, dense.
            logits: of all n tokens, of the last, or of none. Nothing more than that is made.

        Returns:
            fp32 ``[batch, n, 1 or 0, vocab]``.

        Raises:
            ValueError: the cache has no room for them.
        """
        n = ids.shape[1]
        keep: int | torch.Tensor = {"all": 0, "last": 1}.get(logits, torch.empty(0, dtype=torch.long, device="cpu"))
        arguments: dict[str, Any] = {"use_cache": cache is not None}
        if cache is not None:
            if cache.length + n > cache.capacity:
                raise ValueError(f"{cache.length} tokens and {n} more in a cache of {cache.capacity}")
            cache.rewind(cache.length)  # a pass that was interrupted left some layers ahead
            arguments[self._cache_argument] = cache.hf
        call = Call(attend, frozenset(self.attended), self._windows)
        with calling(call):
            result = self._hf(input_ids=ids.to(str(self.device)), logits_to_keep=keep, **arguments)
        if cache is not None:
            cache.appended(n)
        return result.logits.float()
