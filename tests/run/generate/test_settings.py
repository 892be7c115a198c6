"""Names of methods to rows, and prompts to token numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hsbench.errors import UsageError
from hsbench.models.text import read_text
from hsbench.run.generate.plan import check_length, prompts_of_text, prompts_of_words
from hsbench.run.generate.settings import Generation, all_settings, check_elements


def names(*asked: str, elements: tuple[str, ...] = ("16bit",)) -> list[str]:
    settings = all_settings(asked, elements, "auto", (0.5, 0.25), None, ("cudnn", "cudnn-rows"))
    return [setting.method for setting in settings]


def test_dense_methods_come_first_and_each_once() -> None:
    assert names("hierarchical", "dense:fp8", "sdpa", "dense", "dense:16bit") == [
        "sdpa",
        "dense",
        "hierarchical",
        "dense:fp8",
    ]
    asked = names("hierarchical", "hierarchical:fp8", elements=("fp8", "int4/16bit"))
    assert asked == ["hierarchical:fp8", "hierarchical:int4/16bit"]
    assert names("sdpa:cudnn-rows", "SDPA") == ["sdpa:cudnn-rows", "sdpa"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("densse", "did you mean dense"),
        ("hierarchical:fp9", "no such elements"),
        ("sdpa:nothing", "sdpa:cudnn"),
        ("dense:", "no such elements"),
    ],
)
def test_names_that_there_are_not(name: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        names(name)
    with pytest.raises(UsageError, match="no such elements"):
        check_elements(["fp8", "fp9"])


@pytest.mark.parametrize(
    ("values", "option"),
    [({"batch": 0}, "batch"), ({"new_tokens": 1}, "new_tokens"), ({"temperature": -1.0}, "temperature"),
     ({"temperature": float("nan")}, "temperature"), ({"contexts": (0,)}, "context")],
)  # fmt: skip
def test_values_out_of_range(values: dict, option: str) -> None:
    with pytest.raises(UsageError) as caught:
        Generation(**values)
    assert caught.value.option == option


def test_prompts_are_stretches_of_the_text(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("".join(chr(33 + at) for at in range(60)))

    def encode(words: str) -> list[int]:
        return [1, *(ord(one) for one in words)]

    ids = prompts_of_text(read_text(path), encode, 11, 3)
    assert ids.shape == (3, 11) and ids[:, 0].tolist() == [1, 1, 1]
    assert ids[:, 1].tolist() == [33, 33 + 25, 33 + 50] and int(ids[2, -1]) == 33 + 59
    with pytest.raises(UsageError, match="has 60 tokens, and 3 stretches of 100"):
        prompts_of_text(read_text(path), encode, 100, 3)
    assert torch.equal(prompts_of_words("ab", encode, 2), torch.tensor([[1, 97, 98]] * 2))
    with pytest.raises(UsageError, match="is empty"):
        prompts_of_words(" ", encode, 1)
    with pytest.raises(UsageError, match="more than the model's 100 positions"):
        check_length(Generation(contexts=(50, 101)), 100)
    check_length(Generation(contexts=(100,), new_tokens=20), 100)
