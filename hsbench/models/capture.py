"""Captured tensors: q, K and V of a model's layers on a text, in a file that ``--kv`` reads."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from hsbench.errors import HsbenchError, UsageError
from hsbench.models.dense import dense_attend
from hsbench.models.model import Model
from hsbench.models.text import Text
from hsbench.problem.elements import Element
from hsbench.problem.tensor_output import CAPTURE_FORMAT, Entry, TensorWriter, replacing


class _Enough(Exception):
    """The last layer that was wanted is done: the rest of the model need not run."""


def capture(
    model: Model,
    text: Text,
    ids: torch.Tensor,
    path: Path,
    *,
    layers: Sequence[int],
    queries: int,
    element: Element,
    progress: Callable[[int], None] = lambda layer: None,
) -> None:
    """Run a text through a model and write each layer's tensors as it comes, so that no two are held.

    ``layers.N.q`` is ``[1, q_heads, queries, head_dim]``, the last ones, post-RoPE and with any scaling of the model's
    own folded in; ``layers.N.k`` and ``.v`` are ``[1, kv_heads, tokens, head_dim]``.

    Args:
        text, ids: the text, and its tokens ``[n]`` that are taken.
        path: the file, which is there only once it is whole.
        layers: of those that are attended, ascending.
        queries: how many of the last ones.
        element: what is written.
        progress: called with each layer that is done.

    Raises:
        HsbenchError: an element does not fit the type that is written.
        OSError: the disk is full, or such.
    """
    shape, n = model.geometry, len(ids)
    heads = {"q": (shape.q_heads, queries), "k": (shape.kv_heads, n), "v": (shape.kv_heads, n)}
    entries = [
        Entry(f"layers.{layer}.{name}", element, (1, count, tokens, shape.head_dim))
        for layer in layers
        for name, (count, tokens) in heads.items()
    ]
    metadata = {
        "format": CAPTURE_FORMAT,
        "model": model.name,
        "identity": model.identity,
        "geometry": json.dumps(shape.to_dict()),
        "text_sha256": text.sha256,
        "positions": f"0-{n - 1}",
        "query_positions": f"{n - queries}-{n - 1}",
        "computed_in": str(model.dtype).removeprefix("torch."),
    }
    with replacing(path) as part, part.open("wb") as file:
        writer = TensorWriter(file, entries, metadata)

        def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            if layer in layers:
                for name, tensor in (("q", q[:, :, -queries:]), ("k", k), ("v", v)):
                    writer.write(f"layers.{layer}.{name}", _narrowed(tensor, element, f"layers.{layer}.{name}"))
                progress(layer)
                if layer == layers[-1]:
                    raise _Enough
            return dense_attend(q, k, v)

        # In one pass without a cache: what a layer leaves is dropped before the next one's is there.
        with contextlib.suppress(_Enough):
            model.forward(ids[None], None, attend, logits="none")
        writer.close()


def choose_layers(model: Model, asked: Sequence[int] | None) -> list[int]:
    """The layers to capture, ascending; all that are attended for None.

    Raises:
        UsageError: one that was asked for does not exist, or is not attended.
    """
    if asked is None:
        return list(model.attended)
    for layer in asked:
        if layer >= model.geometry.layers:
            raise UsageError("layers", layer, f"{model.name} has the layers 0 to {model.geometry.layers - 1}")
        if layer not in model.attended:
            raise UsageError("layers", layer, f"is not attended ({'; '.join(model.notes)}); give others, or all")
    return sorted(set(asked))


def _narrowed(tensor: torch.Tensor, element: Element, name: str) -> torch.Tensor:
    narrow = tensor.to(element.torch_dtype)
    if not bool(torch.isfinite(narrow).all()):
        most = float(tensor.abs().max())
        raise HsbenchError(f"{name} holds {most:g}, which is too large for {element}: give --dtype bf16")
    return narrow
