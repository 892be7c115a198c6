"""What a run of ``generate`` measures, resolved and checked: the "run" part of its manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hsbench.errors import UsageError
from hsbench.kernels.device import Device
from hsbench.models.text import Text
from hsbench.problem.elements import Element
from hsbench.run.generate.settings import Generation, MethodSetting

SCHEMA = "hsbench-generate/1"

DRAWN = "drawn"
"""What stands for the text where token numbers are drawn."""

Tokenize = Callable[[str], list[int]]


@dataclass(frozen=True)
class Prompt:
    """What is to be continued.

    Attributes:
        name: of the file, or ``prompt``, or ``drawn``.
        sha256: of it.
        path: of the file; None where there is none.
    """

    name: str
    sha256: str
    path: Path | None = None

    @classmethod
    def of_text(cls, text: Text) -> Prompt:
        """Of a file."""
        return cls(text.path.name, text.sha256, text.path)

    @classmethod
    def of_words(cls, words: str) -> Prompt:
        """As it was typed."""
        return cls("prompt", hashlib.sha256(words.encode()).hexdigest())

    @classmethod
    def drawn(cls, seed: int) -> Prompt:
        """Token numbers by a seed."""
        return cls(DRAWN, hashlib.sha256(f"{DRAWN} {seed}".encode()).hexdigest())


@dataclass(frozen=True)
class GeneratePlan:
    """What to run.

    Attributes:
        model: as it was asked for.
        prompt: what is continued.
        task: of all rows.
        settings: the rows of each context.
        device, weights, dtype: where; the weights' element type; that of K, V and q in caches of ours.
        basis: the file of a basis, and the basis.
        told: whether rows tell the text.
    """

    model: str
    prompt: Prompt
    task: Generation
    settings: tuple[MethodSetting, ...]
    device: Device
    weights: str
    dtype: Element
    basis: tuple[Path, Any] | None = None
    told: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        settings = [
            {"method": one.method, "pruner": one.pruner, "key_sparsity": one.key_sparsity,
             "value_sparsity": one.value_sparsity, "plan": None if one.plan is None else one.plan.to_dict()}
            for one in self.settings
        ]  # fmt: skip
        path = self.prompt.path
        return {
            "schema": SCHEMA,
            "device": self.device.kind,
            "model": self.model,
            "weights": self.weights,
            "dtype": self.dtype.name,
            "prompt": {
                "name": self.prompt.name,
                "path": None if path is None else str(path.resolve()),
                "sha256": self.prompt.sha256,
            },
            "task": self.task.to_dict(),
            "settings": settings,
            "basis": None if self.basis is None else str(self.basis[0].resolve()),
        }


def prompts_of_text(text: Text, tokenize: Tokenize, context: int, batch: int) -> Tensor:
    """A stretch of the text for each sequence, spread evenly: int64 ``[batch, context]``.

    Raises:
        UsageError: the text is too short.
    """
    start = tokenize("")
    ids = tokenize(text.text)[len(start) :]
    size = context - len(start)
    if size < 1 or len(ids) < size * batch:
        what = f"{context:,} tokens" if batch == 1 else f"{batch} stretches of {context:,} tokens"
        remedy = f"has {len(ids):,} tokens, and {what} are asked for; give a longer text, or less `context` or `batch`"
        raise UsageError("text", text.path, remedy)
    firsts = [(len(ids) - size) * at // max(1, batch - 1) for at in range(batch)]
    return torch.tensor([start + ids[first : first + size] for first in firsts], dtype=torch.int64, device="cpu")


def prompts_of_words(words: str, tokenize: Tokenize, batch: int) -> Tensor:
    """The same words for each sequence: int64 ``[batch, n]``.

    Raises:
        UsageError: there are none.
    """
    ids = tokenize(words)
    if not words.strip() or not ids:
        raise UsageError("prompt", words or '""', "is empty; give some words")
    return torch.tensor([ids] * batch, dtype=torch.int64, device="cpu")


def drawn_prompts(vocab: int, contexts: Sequence[int], batch: int, seed: int) -> list[Tensor]:
    """Token numbers for a model whose weights mean nothing: int64 ``[batch, context]`` for each context."""
    draw = torch.Generator("cpu").manual_seed(seed)
    longest = torch.randint(0, vocab, (batch, max(contexts)), generator=draw, device="cpu")
    return [longest[:, :context] for context in contexts]


def check_length(task: Generation, positions: int) -> None:
    """Raises :class:`UsageError` if a model has too few positions for a prompt."""
    for context in task.contexts:
        if context > positions:
            raise UsageError("context", context, f"is more than the model's {positions:,} positions; give at most that")
