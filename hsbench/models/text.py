"""The user's text: read, told apart, and cut into tokens."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

from hsbench.errors import UsageError
from hsbench.models.tokenizer import Tokenizer

# Characters that are tokenised for each token that is needed, so that a book is not when a page is: doubled as needed.
_CHARACTERS = 8


@dataclass(frozen=True)
class Text:
    """A text file.

    Attributes:
        path: of it.
        text: all of it.
        sha256: of its bytes.
    """

    path: Path
    text: str
    sha256: str

    def tokens(self, tokenizer: Tokenizer, count: int | None = None) -> torch.Tensor:
        """Its first tokens, int64 ``[count]``; all of them for None.

        Raises:
            UsageError: it has fewer; says how many.
        """
        characters = len(self.text) if count is None else _CHARACTERS * count
        ids = tokenizer.encode(self.text[:characters])
        # The last tokens of a piece of text may be others than in the whole.
        while count is not None and len(ids) < count + 64 and characters < len(self.text):
            characters *= 2
            ids = tokenizer.encode(self.text[:characters])
        if count is not None and len(ids) < count:
            remedy = "give a longer text, or ask for fewer tokens"
            raise UsageError("text", self.path, f"has {len(ids):,} tokens, {count:,} are needed; {remedy}")
        return torch.tensor(ids[:count], dtype=torch.int64, device="cpu")


def read_text(path: str | Path, field: str = "text") -> Text:
    """Read a text file.

    Raises:
        UsageError: no such file, no file, not UTF-8, or nothing in it; names the field.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except IsADirectoryError as error:
        raise UsageError(field, path, "a folder; give a text file") from error
    except OSError as error:
        raise UsageError(field, path, f"cannot be read ({error.strerror or error}); give a text file") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        remedy = f"not UTF-8 (byte {error.start}); give a text file, converted with iconv -t utf-8 if need be"
        raise UsageError(field, path, remedy) from error
    if not text.strip():
        raise UsageError(field, path, "empty; give a text of some length")
    return Text(path, text, hashlib.sha256(data).hexdigest())
