"""How a cache grows: pages are enough whatever comes when, and the share of 2:4 blocks stays what was asked."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsbench.cache.growth import Growth, becomes_sparse
from hsbench.cache.prune import BLOCK, BlockKind
from hsbench.problem.elements import SIXTEEN_BIT, STORED_FP8

ratios = st.one_of(st.sampled_from([0.0, 0.1, 0.25, 1 / 3, 0.5, 0.9, 1.0]), st.floats(0.0, 1.0))


@settings(max_examples=60, deadline=None)
@given(ratio=ratios, prefix=st.integers(0, 60), data=st.data())
def test_the_share_of_2_4_blocks_stays_within_one_of_what_was_asked(ratio: float, prefix: int, data: st.DataObject):
    judged, sparse = prefix, max(0, math.ceil(ratio * prefix - 1e-9))
    for lower in data.draw(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=60)):
        sparse += becomes_sparse(ratio, judged, sparse, round(lower * judged))
        judged += 1
        assert abs(sparse - ratio * judged) <= 1 + 1e-9
        growth = Growth((judged + 1) * BLOCK, 0, 1, 1)
        assert growth.most_judged == judged
        pages = growth.pages(ratio, STORED_FP8)
        assert sparse <= pages[BlockKind.SPARSE_2_4] and judged - sparse <= pages[BlockKind.DENSE]


@settings(max_examples=100, deadline=None)
@given(
    capacity=st.integers(1, 3000),
    sink=st.sampled_from([0, 1, 64, 100]),
    local=st.sampled_from([0, 1, 63, 64, 65, 256, 300]),
    chunk=st.sampled_from([1, 2, 63, 64, 65, 200]),
    appends=st.lists(st.sampled_from([1, 2, 5, 63, 64, 65, 100, 500]), min_size=1, max_size=60),
)
def test_open_pages_are_enough(capacity: int, sink: int, local: int, chunk: int, appends: list[int]):
    growth = Growth(capacity, sink, local, chunk)
    length, judged = 0, growth.first
    for wanted in appends:
        appended = min(wanted, capacity - length)
        if not appended:
            break
        end = growth.judged_end(length + appended, appended)
        for block in range(length // BLOCK, -(-(length + appended) // BLOCK)):
            assert block + 1 - (judged - growth.first) <= growth.open_pages
            written = min((block + 1) * BLOCK, length + appended)
            judged = max(judged, min(end, written // BLOCK))
        assert judged == max(growth.first, end), "what must be judged is full once all is written"
        length += appended
    assert judged - growth.first <= growth.most_judged


@pytest.mark.parametrize(
    ("local", "chunk", "appended", "open_from"), [(0, 1, 1, 192), (64, 1, 1, 128), (0, 65, 65, 128)]
)
def test_what_leaves_the_window(local: int, chunk: int, appended: int, open_from: int):
    assert Growth(1024, 0, local, chunk).judged_end(200, appended) * BLOCK == open_from


def test_all_or_none_takes_no_spare_page():
    growth = Growth(64 * 100, 64, 256, 1)
    assert growth.pages(1.0, SIXTEEN_BIT) == {
        BlockKind.DENSE: growth.open_pages,
        BlockKind.SPARSE_2_4: growth.most_judged,
    }
    assert growth.pages(0.0, SIXTEEN_BIT) == {BlockKind.DENSE: growth.blocks, BlockKind.SPARSE_2_4: 0}


def test_equal_losses_take_the_lower_block():
    assert [becomes_sparse(0.5, 1, 0, at_most) for at_most in (0, 1)] == [True, False]
