"""Ranges nest, close on errors, reach NVTX with their payload, and do nothing without it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hsbench.measure import nvtx, ranges


@pytest.fixture(autouse=True)
def fresh_lookup() -> Iterator[None]:
    ranges._domain.cache_clear()
    yield
    ranges._domain.cache_clear()


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


class Domain:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def push(self, name: str, payload: object) -> None:
        self.calls.append(("push", name, payload))

    def pop(self) -> None:
        self.calls.append(("pop",))

    def mark(self, name: str, payload: object) -> None:
        self.calls.append(("mark", name, payload))


def test_nvtx_gets_names_and_payloads_in_our_domain(monkeypatch: pytest.MonkeyPatch) -> None:
    domains = {"hsbench": Domain()}
    monkeypatch.setattr(nvtx, "open_domain", domains.pop)
    with ranges.annotate("sample", 3) as opened:
        ranges.mark("here", 1.5)
    assert domains == {}, "opened once"
    assert opened._domain.calls == [("push", "sample", 3), ("mark", "here", 1.5), ("pop",)]


def test_without_a_tool_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvtx, "open_domain", lambda name: None)
    with ranges.recorder() as recorder, ranges.annotate("a", 1):
        ranges.mark("b")
    assert recorder.opened() == ["a"]
