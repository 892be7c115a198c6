"""What packing a tensor by a native kernel takes, whatever the format; and K and V packed together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hsbench.cache.prune import raise_if_non_finite
from hsbench.cache.storage import Compressor
from hsbench.kernels import library
from hsbench.problem.elements import element_by


class TensorCompressor:
    """One tensor bound to what it becomes: ``run()`` prunes and packs with the native kernels of its device.

    Args:
        operation: its name in csrc/api.h; its struct is ``hsb_<operation>_params``.
        x: ``[batch, kv_heads, seq, head_dim]``.
        name: of the tensor, for errors.
        fields: what only this operation's struct has.

    Raises:
        UnavailableError: there is no native library for the device.
    """

    def __init__(self, operation: str, x: Tensor, name: str, **fields: Any) -> None:
        self._x, self._name = x.contiguous(), name
        self._non_finite = torch.full((1,), -1, dtype=torch.int64, device=x.device)
        batch, kv_heads, seq, head_dim = x.shape
        params = library.make(
            f"hsb_{operation}_params",
            batch=batch,
            kv_heads=kv_heads,
            head_dim=head_dim,
            seq=seq,
            dtype=element_by(x.dtype).code,
            x=self._x,
            non_finite=self._non_finite,
            **fields,
            **library.on_device(x.device),
        )
        self._operation = library.Operation(operation, x.device, params)

    def run(self) -> None:
        """Prunes and packs, as often as it is called."""
        self._operation.run()

    def check(self) -> None:
        """Raises :class:`hsbench.errors.NonFiniteError` if a run since the last check met a NaN or an infinity."""
        found = int(self._non_finite)
        self._non_finite.fill_(-1)  # CUDA's runs only write what they find: to reset it would be a kernel of its own
        raise_if_non_finite(self._name, found, self._x.shape)


class PairCompressor:
    """K and V, each by a compressor of its own."""

    def __init__(self, key: Compressor, value: Compressor) -> None:
        self._parts = (key, value)

    def run(self) -> None:
        """Prunes and packs both."""
        for part in self._parts:
            part.run()

    def check(self) -> None:
        """Raises :class:`hsbench.errors.NonFiniteError` if the last run met a NaN or an infinity."""
        for part in self._parts:
            part.check()
