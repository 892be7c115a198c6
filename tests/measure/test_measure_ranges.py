"""Ranges nest, close on errors, reach nvtx with their payload, and do nothing without it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from hsbench.measure import ranges


@pytest.fixture(autouse=True)
def fresh_lookup() -> Iterator[None]:
    ranges._nvtx.cache_clear()
    yield
    ranges._nvtx.cache_clear()


def test_ranges_nest_and_marks_lie_in_them():
    with ranges.recorder() as recorder, ranges.annotate("outer", 1):
        ranges.mark("point", 2)
        with ranges.annotate("inner"):
            pass
    told = [(event.kind, "/".join(event.path), event.payload) for event in recorder.events]
    assert told == [
        ("open", "outer", 1),
        ("mark", "outer/point", 2),
        ("open", "outer/inner", None),
        ("close", "outer/inner", None),
        ("close", "outer", 1),
    ]
    assert recorder.opened() == ["outer", "outer/inner"]


def test_a_range_closes_when_its_block_raises():
    with ranges.recorder() as recorder:
        with pytest.raises(KeyError), ranges.annotate("broken"):
            raise KeyError
        with ranges.annotate("next"):
            pass
    assert recorder.opened() == ["broken", "next"] and recorder.stack == []


def test_recorders_nest_and_end():
    with ranges.recorder() as outer:
        with ranges.recorder() as inner, ranges.annotate("a"):
            pass
        with ranges.annotate("b"):
            pass
    with ranges.annotate("c"):
        pass
    assert (inner.opened(), outer.opened()) == (["a"], ["b"])


def test_a_range_open_across_the_end_of_a_recorder_stays_consistent():
    with ranges.recorder() as recorder:
        crossing = ranges.annotate("crossing")
        crossing.__enter__()
    crossing.__exit__(None, None, None)
    assert [event.kind for event in recorder.events] == ["open", "close"]


def test_nvtx_gets_domain_name_and_payload(monkeypatch):
    calls: list[object] = []

    class Range:
        def __init__(self, name: str, *, domain: str, payload: object) -> None:
            calls.append((name, domain, payload))

        def __enter__(self) -> None:
            calls.append("enter")

        def __exit__(self, *exc: object) -> None:
            calls.append("exit")

    def mark(name: str, *, domain: str, payload: object) -> None:
        calls.append(("mark", name, domain, payload))

    monkeypatch.setitem(sys.modules, "nvtx", SimpleNamespace(annotate=Range, mark=mark))
    with ranges.annotate("sample", 3):
        ranges.mark("here", 1.5)
    assert calls == [("sample", "hsbench", 3), "enter", ("mark", "here", "hsbench", 1.5), "exit"]


def test_without_nvtx_nothing_happens(monkeypatch):
    monkeypatch.setitem(sys.modules, "nvtx", None)  # import raises ImportError
    with ranges.recorder() as recorder, ranges.annotate("a", 1):
        ranges.mark("b")
    assert recorder.opened() == ["a"]


def test_the_real_nvtx_accepts_what_it_is_given():
    pytest.importorskip("nvtx")
    with ranges.annotate("a", 1), ranges.annotate("b", 2.5), ranges.annotate("c"):
        ranges.mark("d", 3)
