"""What ranks find out about one another before their first collective, without processes: one store, many facts."""

from __future__ import annotations

import signal
import socket
import threading
import time
from typing import Any

import pytest

from hsbench.distributed import handshake, launch
from hsbench.distributed.environment import Place, place
from hsbench.distributed.handshake import join
from hsbench.distributed.watch import Watch
from hsbench.errors import HsbenchError, SaidElsewhereError, UnavailableError, UsageError
from hsbench.kernels.device import CPU, CUDA

FACTS = {"hsbench": "0.1.0", "torch": "2.13.0", "command": "decode --seq 1k"}


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return int(free.getsockname()[1])


def at(rank: int, port: int, size: int = 2) -> Place:
    return Place(rank, size, rank, size, "localhost", port, has_store=False, launcher=None)


def meet(port: int, facts: list[dict[str, Any] | None], device: Any = CPU, start_s: float = 5.0) -> list[Any]:
    """What ranks with these facts raise when they join, each in a thread; None: that rank does not come."""
    found: list[Any] = [None] * len(facts)

    def rank(number: int) -> None:
        try:
            join(at(number, port, len(facts)), device if number == 0 else None, facts[number] or {}, start_s)
        except HsbenchError as error:
            found[number] = error

    threads = [threading.Thread(target=rank, args=(n,)) for n, given in enumerate(facts) if given is not None]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return found


@pytest.mark.parametrize(
    ("name", "value"), [("hsbench", "0.2.0"), ("torch", "2.12.0"), ("command", "decode --seq 2k"), ("torch", None)]
)
def test_ranks_that_differ_are_told_apart(port: int, name: str, value: str | None) -> None:
    first, other = meet(port, [FACTS, FACTS | {name: value}])
    line = f"rank 1 has {name} {value}, rank 0 {FACTS[name]}: start all ranks with the same"
    assert str(first) == line and first.exit_code == 1
    assert isinstance(other, SaidElsewhereError) and str(other) == line and other.exit_code == 1


def test_a_rank_that_does_not_come_is_named_by_the_lowest_that_is_there(port: int) -> None:
    begin = time.monotonic()
    first, _, third = meet(port, [FACTS, None, FACTS], start_s=1.0)
    assert str(first).startswith("rank 1 of 3 did not start within 1 s") and isinstance(third, SaidElsewhereError)
    assert time.monotonic() - begin < 10


@pytest.mark.parametrize(
    ("gpus", "line"),
    [
        ([0, 0], "rank 0: torch sees no GPU here"),
        ([2, 0], "rank 1: torch sees no GPU here"),
        ([3, None], "rank 1: torch 1 has no NCCL"),
    ],
)
def test_what_ranks_lack_of_a_gpu(port: int, monkeypatch: pytest.MonkeyPatch, gpus: list[Any], line: str) -> None:
    def facts(place: Place, kind: str) -> dict[str, str | None]:
        assert kind == "cuda"
        count = gpus[place.rank]
        lacks = {0: "torch sees no GPU here", None: "torch 1 has no NCCL"}.get(count)
        return {"lacks": lacks, "gpu": f"GPU-{place.rank}", "name": "H100"}

    monkeypatch.setattr(handshake, "_device_facts", facts)
    first, other = meet(port, [FACTS, FACTS], CUDA)
    assert isinstance(first, UnavailableError) and str(first).startswith(line)
    assert isinstance(other, SaidElsewhereError) and other.exit_code == 4


@pytest.mark.parametrize(
    ("own", "line"),
    [
        ({"gpu": "GPU-0", "name": "H100"}, "ranks 0 and 1 see the same GPU"),
        ({"gpu": "GPU-1", "name": "H200"}, "ranks have different GPUs (H100, H200)"),
    ],
)
def test_gpus_that_do_not_fit(port: int, monkeypatch: pytest.MonkeyPatch, own: dict[str, str], line: str) -> None:
    held = [{"lacks": None, "gpu": "GPU-0", "name": "H100"}, {"lacks": None, **own}]
    monkeypatch.setattr(handshake, "_device_facts", lambda place, kind: held[place.rank])
    first, _ = meet(port, [FACTS, FACTS], CUDA)
    assert isinstance(first, UnavailableError) and str(first).startswith(line)


def test_a_rank_takes_its_gpu_by_number_or_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for count, number, expected in [(2, 0, 0), (2, 1, 1), (1, 1, 0), (2, 2, None)]:
        monkeypatch.setattr("torch.cuda.device_count", lambda count=count: count)
        assert handshake.gpu_of(at(number, 1, 4)) == expected


def test_nobody_answers(port: int) -> None:
    with pytest.raises(HsbenchError, match=f"nobody answers at localhost:{port}"):
        join(at(1, port), None, FACTS, 1.0)


def test_how_long_to_wait_is_a_number(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HSBENCH_RANK_START_S", "soon")
    with pytest.raises(UsageError, match="HSBENCH_RANK_START_S soon: must be a number of seconds above 0"):
        join(at(1, port), None, FACTS)


# ---- The environment ----------------------------------------------------------------------------------------
def test_a_place_is_what_torchrun_says() -> None:
    said = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "node"}
    said |= {"MASTER_PORT": "29500", "TORCHELASTIC_USE_AGENT_STORE": "True", "HSBENCH_LAUNCHER": "7"}
    assert place(said) == Place(3, 4, 1, 2, "node", 29500, has_store=True, launcher=7)
    assert place(said | {"WORLD_SIZE": "1", "RANK": "0"}) is None and place({"RANK": "1"}) is None


@pytest.mark.parametrize("wrong", [{"RANK": "x"}, {"RANK": "4"}, {"MASTER_PORT": "p"}])
def test_an_environment_that_makes_no_sense(wrong: dict[str, str]) -> None:
    said = {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "node", "MASTER_PORT": "29500"}
    with pytest.raises(UsageError, match="torchrun"):
        place(said | wrong)


# ---- What became of ranks -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("codes", "code"),
    [
        ({0: 3, 1: 3}, 3),
        ({1: 4, 0: 143}, 4),  # which failed, and who was ended therefore
        ({0: 1, 1: launch.FOLLOWED}, 1),
        ({0: 130, 1: 130}, 130),
        ({0: 143, 1: 143}, 143),
        ({1: 1, 0: -signal.SIGKILL}, 1),
    ],
)
def test_the_exit_code_of_all(codes: dict[int, int], code: int) -> None:
    assert launch._outcome(codes, 2) == code


@pytest.mark.parametrize(
    ("codes", "line"),
    [
        ({0: 143, 1: -signal.SIGKILL}, "rank 1 of 2 was killed (SIGKILL)"),
        ({0: launch.FOLLOWED, 1: -signal.SIGSEGV}, "rank 1 of 2 was killed (SIGSEGV)"),
        ({0: -signal.SIGBUS, 1: -signal.SIGTERM}, "rank 0 of 2 was killed (SIGBUS)"),
        ({0: launch.FOLLOWED, 1: launch.FOLLOWED}, "lost one another"),
    ],
)
def test_a_death_that_nobody_told_of(codes: dict[int, int], line: str) -> None:
    with pytest.raises(HsbenchError) as raised:
        launch._outcome(codes, 2)
    assert line in str(raised.value)


# ---- Signals ------------------------------------------------------------------------------------------------
def test_a_signal_is_heard_in_native_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hsbench.distributed.watch._BY_ITSELF_S", 0.05)
    monkeypatch.setattr("hsbench.distributed.watch._AT_ALL_S", 0.05)
    heard: list[object] = []
    left = threading.Event()

    def leave(code: int) -> None:
        heard.append(code)
        left.set()

    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        with Watch(leave) as watch:
            watch.abort = lambda: heard.append("abort")
            signal.raise_signal(signal.SIGTERM)
            assert left.wait(5)
        with Watch(leave) as watch:  # one that comes out by itself
            watch.abort = lambda: heard.append("again")
            signal.raise_signal(signal.SIGTERM)
        time.sleep(0.2)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == ["abort", 128 + signal.SIGTERM]
