"""The user's text."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from hsbench.errors import UsageError
from hsbench.models.text import read_text
from hsbench.models.tokenizer import ByteTokenizer, HfTokenizer


def test_a_text_and_its_tokens(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_bytes(b"\xef\xbb\xbfh\xc3\xa9llo " * 1 + b"x" * 5000)
    text = read_text(path)
    assert text.text.startswith("héllo") and text.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert text.tokens(ByteTokenizer(), 3).tolist() == [104, 0xC3, 0xA9]
    assert len(text.tokens(ByteTokenizer())) == 5007 == len(text.tokens(ByteTokenizer(), 5007))


def test_no_more_is_tokenised_than_is_needed(tmp_path: Path) -> None:
    class Counting(ByteTokenizer):
        longest = 0

        def encode(self, text: str) -> list[int]:
            self.longest = max(self.longest, len(text))
            return super().encode(text)[::9]  # nine characters a token

    (tmp_path / "t").write_text("abcdefghi" * 100_000)
    counting = Counting()
    ids = read_text(tmp_path / "t").tokens(counting, 1000)
    assert len(ids) == 1000 and 9_000 < counting.longest < 40_000


def test_a_short_text_says_how_many_tokens_it_has(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("x" * 1234)
    with pytest.raises(UsageError, match=r"^text .*t: has 1,234 tokens, 8,192 are needed; give a longer text"):
        read_text(tmp_path / "t").tokens(ByteTokenizer(), 8192)


@pytest.mark.parametrize(
    ("content", "what"),
    [(None, "cannot be read"), (b"", "empty"), (b" \n\t", "empty"), (b"ab\xff", r"not UTF-8 \(byte 2\)")],
)
def test_what_is_no_text(content: bytes | None, what: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "t").write_bytes(content)
    with pytest.raises(UsageError, match=what) as caught:
        read_text(tmp_path / "t")
    assert caught.value.option == "text"
    with pytest.raises(UsageError, match="a folder"):
        read_text(tmp_path)


class Made:
    """A tokenizer as transformers', with tokens of its own on both sides."""

    bos_token_id = 7

    def __call__(self, text: str, add_special_tokens: bool, **_: object) -> dict[str, list[int]]:
        ids = [ord(char) for char in text]
        return {"input_ids": [1, 2, *ids, 3] if add_special_tokens else ids}


@pytest.mark.parametrize(("starts", "start"), [(None, [1, 2]), (True, [7]), (False, [])])
def test_only_what_stands_at_the_start_is_added(starts: bool | None, start: list[int]) -> None:
    assert HfTokenizer(Made(), starts).encode("ab") == [*start, 97, 98]
