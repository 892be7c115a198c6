"""A causal language model that runs with attention of ours."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Literal

import torch

from hsbench.kernels.device import Device
from hsbench.models.cache import ModelCache
from hsbench.models.geometry import ModelGeometry
from hsbench.models.hook import Attend, Call, calling
from hsbench.models.memory import cache_bytes, check_fits
from hsbench.models.pieces import ANY_PIECE, PIECE, in_pieces
from hsbench.models.tokenizer import Tokenizer
from hsbench.problem.elements import INPUTS, Element, element_of

if TYPE_CHECKING:
    from hsbench.models.living import LivingCache

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
        self._piece = PIECE if in_pieces(hf) else ANY_PIECE
        self.name, self.identity, self.geometry = name, identity, geometry
        self.attended, self.notes = attended, notes
        self._hf, self._tokenizer, self._windows = hf, tokenizer, windows
        self.device, self.dtype = Device.of(hf.device), hf.dtype
        self.element = element or element_of(hf.dtype) or next(iter(INPUTS.values()))
        takes = inspect.signature(hf.forward).parameters
        self._takes_cache_position = "cache_position" in takes  # up to 5.0
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
        check_fits(f"a pass of {tokens:,} tokens", self.pass_bytes(tokens), self.device, "take fewer tokens")

    def pass_bytes(self, tokens: int) -> int:
        """About what a pass of so many tokens takes, beside the weights and any cache."""
        config = self._hf.config.get_text_config()
        inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
        # The residual stream, its norm, q, K, V and the output of attention; then the feed-forward layer's two halves,
        # and their product, in pieces. Measured on Llama's.
        elements = 6 * config.hidden_size * tokens + 3 * inner * min(tokens, self._piece)
        return int(elements * self.dtype.itemsize)

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

    @property
    def hf(self) -> Any:
        """transformers' own model, which attends through our hook."""
        return self._hf

    @torch.no_grad()
    def prompt(self, ids: torch.Tensor, cache: LivingCache) -> torch.Tensor:
        """Append a prompt ``[batch, n]`` to an empty cache; what comes after it, ``[batch, vocab]``.

        Raises:
            UnsupportedError, NonFiniteError: as of the cache's layers.
        """
        with calling(self._plain_call()):
            result = self._hf(
                input_ids=ids.to(str(self.device)), use_cache=True, logits_to_keep=1, **{self._cache_argument: cache}
            )
        return result.logits[:, -1]

    @torch.no_grad()
    def step(self, ids: torch.Tensor, positions: torch.Tensor, cache: LivingCache) -> torch.Tensor:
        """Append one token to each sequence of a cache; what comes after it, ``[batch, vocab]``. Nothing here waits for
        the device, or takes anything from the host that changes from step to step, but what layers do.

        Args:
            ids: int64 ``[batch, 1]``, on the device.
            positions: int64 ``[batch, 1]``, likewise, all alike.
        """
        arguments: dict[str, Any] = {self._cache_argument: cache, "position_ids": positions}
        if self._takes_cache_position:
            arguments["cache_position"] = positions[0]
        with calling(self._plain_call(alone=True)):
            return self._hf(input_ids=ids, use_cache=True, logits_to_keep=1, **arguments).logits[:, -1]

    def _plain_call(self, *, alone: bool = False) -> Call:
        return Call(None, frozenset(), self._windows, alone=alone)
