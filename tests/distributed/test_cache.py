"""``hsbench.distributed.Cache``, gloo and 2 ranks: it is one ``hsbench.Cache``, whatever is appended when."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import hsbench
from appending import ALIKE, BATCH, CAPACITY, HEAD_DIM, KV_HEADS, OTHERWISE, Story, tell, tokens
from hsbench.attention.combine import combine
from hsbench.attention.reference import attention
from torchrun import found_by_ranks

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_torch_thread")]

RANKS = 2
SHARD = 192
Ranks = list[dict[str, Any]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    """What each rank got."""
    return found_by_ranks("appending.py", RANKS, tmp_path_factory.mktemp("ranks"), OMP_NUM_THREADS="1")


def one_cache(story: Story) -> list[dict[str, Any]]:
    return tell(story, hsbench.Cache(BATCH, KV_HEADS, HEAD_DIM, CAPACITY, torch.float16, **story.options))


def stored(stop: tuple[dict[str, Any], ...], sequence: int) -> list[torch.Tensor]:
    """K and V of a sequence, of all ranks together."""
    parts = [[x[sequence, :, : int(own["kept"][sequence])] for x in own["stored"]] for own in stop]
    return [torch.cat(x, 1) for x in zip(*parts, strict=True)]


@pytest.mark.parametrize("name", [*ALIKE, *OTHERWISE])
def test_all_ranks_have_the_same_bits_and_attend_to_all(found: Ranks, name: str) -> None:
    stories = {**ALIKE, **OTHERWISE}
    stops = list(zip(*(rank[name] for rank in found), strict=True))
    assert len(stops) == len(stories[name].stops) + 1
    lengths, at = [0, 0], iter(sorted({*stories[name].stops, len(stories[name].appends) - 1}))
    reached = []
    for index, (_, counts) in enumerate(stories[name].appends):
        lengths = [a + b for a, b in zip(lengths, counts, strict=True)]
        reached.append((index, lengths))
    for stop, index in zip(stops, at, strict=True):
        first, second = stop
        assert torch.equal(first["out"], second["out"]) and torch.equal(first["lse"], second["lse"])
        wanted = reached[index][1]
        assert first["lengths"].tolist() == second["lengths"].tolist() == wanted
        assert first["kept"].tolist() == [min(length, SHARD) for length in wanted]
        assert second["kept"].tolist() == [max(length - SHARD, 0) for length in wanted]
        # The fp32 combination of what the ranks give; and attention over what they store.
        outs, lses = (torch.stack(x) for x in zip(*(own["own"] for own in stop), strict=True))
        right, right_lse = combine(outs, lses)
        assert torch.equal(first["out"], right.half())
        torch.testing.assert_close(first["lse"], right_lse, rtol=1e-6, atol=1e-6)
        q = tokens(index, stories[name].appends[index][0])[0]
        for sequence, length in enumerate(wanted):
            out, lse = (first[x][sequence : sequence + 1] for x in ("out", "lse"))
            if not length:
                assert not out.any() and bool((lse == -math.inf).all())
                continue
            k, v = (x.unsqueeze(0) for x in stored(stop, sequence))
            right, right_lse = attention(q[sequence : sequence + 1], k, v)
            assert (out - right).norm() <= 1e-3 * right.norm()
            torch.testing.assert_close(lse, right_lse, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ALIKE)
def test_it_is_one_cache(found: Ranks, name: str) -> None:
    for stop, whole in zip(zip(*(rank[name] for rank in found), strict=True), one_cache(ALIKE[name]), strict=True):
        for sequence, length in enumerate(whole["lengths"].tolist()):
            for got, expected in zip(stored(stop, sequence), whole["stored"], strict=True):
                assert torch.equal(got, expected[sequence, :, :length])
        assert (stop[0]["out"].float() - whole["out"].float()).norm() <= 1e-3 * whole["out"].float().norm()
        torch.testing.assert_close(stop[0]["lse"], whole["lse"], rtol=1e-5, atol=1e-5)


def test_a_window_stays_at_the_end_of_each_shard(found: Ranks) -> None:
    """What one cache stores too, but for the last 70 tokens of the first shard, which it has pruned by then."""
    name = "with a window"
    stop = tuple(rank[name][-1] for rank in found)
    whole = one_cache(OTHERWISE[name])[-1]
    for got, expected in zip(stored(stop, 0), whole["stored"], strict=True):
        same = (got == expected[0]).flatten(2).all(-1).all(0)
        window = torch.arange(len(same)) // 64 == 2  # the blocks that touch tokens 122 to 191, but the one of the sink
        window |= torch.arange(len(same)) // 64 == 1
        assert same[~window].all() and not same[window].all()


def test_a_group_of_one_is_one_cache(found: Ranks) -> None:
    for rank in found:
        for got, expected in zip(rank["alone"], one_cache(ALIKE["by chunks"]), strict=True):
            assert torch.equal(got["out"], expected["out"])
            torch.testing.assert_close(got["lse"], expected["lse"], rtol=1e-6, atol=1e-6)


def test_more_than_the_capacity_is_refused_alike_before_anything_is_written(found: Ranks) -> None:
    for rank in found:
        limits = rank["limits"]
        assert limits["full"][0].startswith("UsageError: k of 170 tokens: sequence 0 has 170 of 300")
        assert limits["full"][1].startswith("UsageError: k of 131 tokens: sequence 1 has 170 of 300")
        assert all(torch.equal(a, b) for a, b in zip(limits["first"], limits["unchanged"], strict=True))
        lengths, error = limits["all"]
        assert lengths.tolist() == [300, 300] and "sequence 0 has 300 of 300" in error


def test_what_the_device_alone_knows_to_be_too_much_is_not_written(found: Ranks) -> None:
    for rank in found:
        for name, lengths, full in (("a token more", [300, 300], "[0, 1]"), ("a chunk more", [170, 300], "[0]")):
            got, error, again = rank["limits"][name]
            assert got.tolist() == lengths and f"of sequences {full}" in error and "more than 300" in error
            assert not again


def test_reset_begins_anew(found: Ranks) -> None:
    for rank in found:
        lengths, (out, lse) = rank["limits"]["empty"]
        assert lengths.tolist() == [0, 0] and not out.any() and bool((lse == -math.inf).all())
        assert bool((rank["limits"]["nothing"][1] == -math.inf).all())
        assert all(torch.equal(a, b) for a, b in zip(rank["limits"]["first"], rank["limits"]["again"], strict=True))


def test_what_is_not_finite_is_said_on_all_ranks(found: Ranks) -> None:
    for rank in found:
        assert rank["limits"]["not finite"].startswith("NonFiniteError: v is not finite")
        assert "v is not finite at index [1, 1, 30, 5]" in rank["limits"]["at the door"]


def test_what_it_refuses(found: Ranks) -> None:
    for rank in found:
        assert "torch.distributed.init_process_group()" in rank["without a group"]
        assert rank["another's group"].startswith("UsageError: group")
        assert rank["limits"]["prefill"].startswith("UnsupportedError: no kernel prefills over a cache")
        assert "2 ranks need a block of 64 tokens each; give 65 or more" in rank["limits"]["too small"]


def test_a_rank_takes_memory_for_its_shard_alone(found: Ranks) -> None:
    whole = hsbench.Cache(BATCH, KV_HEADS, HEAD_DIM, CAPACITY, torch.float16, sparsity=0.5, local=0).memory()
    parts = [rank["limits"]["bytes"] for rank in found]
    assert max(parts) < whole.reserved_nbytes and parts[0] > parts[1]
