"""Text to token numbers and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class Tokenizer(Protocol):
    """What a :class:`~hsbench.models.model.Model` needs of one."""

    def encode(self, text: str) -> list[int]:
        """Token numbers, with only what belongs at the start of a text added."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of them."""

    def frame(self) -> tuple[str, str]:
        """What stands before and behind a user's words in a conversation, up to where the answer begins; both empty for
        a model that is not made for conversations."""


class HfTokenizer:
    """One of transformers'.

    Args:
        hf: it.
        starts: whether a text starts with its first token (BOS), where the model's file says so: before 5.2x,
            transformers puts one in front of every text of a GGUF file. None leaves it to the tokenizer.
    """

    def __init__(self, hf: Any, starts: bool | None = None) -> None:
        self._hf = hf
        # A tokenizer may add tokens on both sides of a text; those behind it would end what is to be continued.
        plain, added = (hf("a", add_special_tokens=special)["input_ids"] for special in (False, True))
        found = [at for at in range(len(added)) if added[at : at + len(plain)] == plain]
        self._start: list[int] = added[: found[0]] if found else []
        if starts is not None:
            self._start = [hf.bos_token_id] if starts and hf.bos_token_id is not None else []

    def encode(self, text: str) -> list[int]:
        return self._start + list(self._hf(text, add_special_tokens=False, verbose=False)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._hf.decode(ids))

    def frame(self) -> tuple[str, str]:
        if not getattr(self._hf, "chat_template", None):
            return "", ""
        words = "{the user's words}"
        asked = [{"role": "user", "content": words}]
        text = str(self._hf.apply_chat_template(asked, tokenize=False, add_generation_prompt=True))
        before, found, behind = text.partition(words)
        if not found:
            return "", ""
        # `encode` puts the first token in front of a text itself.
        return before.removeprefix(str(self._hf.bos_token)) if self._start else before, behind


class ByteTokenizer:
    """A token per byte of UTF-8, for models without a tokenizer."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i < 256).decode(errors="replace")

    def frame(self) -> tuple[str, str]:
        return "", ""
