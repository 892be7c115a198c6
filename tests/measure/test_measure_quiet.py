"""Settling: real threads that spin, and counters that are written by hand."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest

from hsbench.measure.quiet import OtherLoad, background_cpu_s, process_cpu_s, settle

_SPINNER = """
import numpy, time
numbers = numpy.ones(1 << 16)
end = time.perf_counter() + 30
while time.perf_counter() < end:
    numbers.sum()
"""


@pytest.fixture
def spinner():
    """A thread that burns a core (in numpy, with the lock released) until told to stop."""
    numpy = pytest.importorskip("numpy")
    stop, numbers = threading.Event(), numpy.ones(1 << 20)

    def spin() -> None:
        while not stop.is_set():
            numbers.sum()

    thread = threading.Thread(target=spin)
    thread.start()
    yield stop
    stop.set()
    thread.join()


def background_share(window_s: float) -> float:
    """Cores used by the other threads of this process over a window."""
    begin, used = time.perf_counter(), background_cpu_s()
    time.sleep(window_s)
    return (background_cpu_s() - used) / (time.perf_counter() - begin)


def test_settle_sees_a_thread_that_spins(spinner):
    time.sleep(0.02)
    waited = settle(0.03)
    assert not waited.quiet
    assert 0.03 <= waited.wait_s < 1


def test_settle_ends_soon_after_the_thread_does(spinner):
    threading.Timer(0.05, spinner.set).start()
    waited = settle(5.0)
    assert waited.quiet
    assert 0.03 <= waited.wait_s < 2
    assert background_share(0.01) < 0.1


def test_settle_costs_about_a_window_when_all_is_quiet():
    settle(1.0)
    assert min(settle(1.0).wait_s for _ in range(5)) < 0.05


def test_the_waiting_thread_itself_does_not_count():
    used = background_cpu_s()
    end = time.perf_counter() + 0.02
    while time.perf_counter() < end:
        pass
    assert background_cpu_s() - used < 0.01


def test_background_time_falls_back_to_the_process_clock(monkeypatch, spinner):
    def refuse(path: str) -> list[str]:
        raise FileNotFoundError(path)

    monkeypatch.setattr("hsbench.measure.quiet.os.listdir", refuse)
    assert background_share(0.1) > 0.05


def test_after_settling_torch_uses_no_core():
    torch = pytest.importorskip("torch")
    numbers = torch.ones(4_000_000)
    shares = []
    for _ in range(5):
        for _ in range(3):
            numbers = numbers + 1  # a parallel region, after which the workers spin
        assert settle(2.0).quiet
        used, begin = process_cpu_s(), time.perf_counter()
        time.sleep(0.01)
        shares.append((process_cpu_s() - used) / (time.perf_counter() - begin))
    assert sorted(shares)[2] < 0.1


def stat(tmp_path, busy: tuple[int, ...], idle: int, cores: int = 4):
    """A /proc/stat with ticks of user, nice, system, irq, softirq, steal."""
    user, nice, system, irq, softirq, steal = busy
    line = f"{user} {nice} {system} {idle} 7 {irq} {softirq} {steal} 3 0"
    path = tmp_path / "stat"
    path.write_text(f"cpu  {line}\n" + "".join(f"cpu{i} {line}\n" for i in range(cores)) + "intr 5 0\n")
    return path


def test_other_load_is_busy_time_less_our_own(tmp_path, monkeypatch):
    monkeypatch.setattr("hsbench.measure.quiet.os.sysconf", lambda name: 100)
    now, own = 10.0, 1.0
    path = stat(tmp_path, (100, 0, 50, 0, 0, 0), 1000)
    load = OtherLoad(path, own_cpu_s=lambda: own, now=lambda: now)
    assert load.share() is None  # no time has passed
    now, own = 12.0, 3.0
    stat(tmp_path, (300, 100, 100, 10, 20, 20), 1400)  # 400 ticks: 4 s, of which 2 are ours, of 2 s on 4 cores
    assert load.share() == pytest.approx(2 / 8)
    load.restart()
    now = 14.0
    assert load.share() == 0
    own = 99.0  # our own clock is finer than the ticks: the difference can be negative
    assert load.share() == 0


def test_other_load_never_exceeds_the_machine(tmp_path):
    now = 0.0
    load = OtherLoad(stat(tmp_path, (0,) * 6, 0, cores=1), own_cpu_s=lambda: 0.0, now=lambda: now)
    now = 1.0
    stat(tmp_path, (10**6, 0, 0, 0, 0, 0), 0, cores=1)
    assert load.share() == 1


@pytest.mark.parametrize("content", [None, "", "cpu x y\n", "intr 1\n", "cpu  1 2 3 4 5 6 7 8\n"])
def test_other_load_is_unknown_where_the_counters_are(tmp_path, content):
    path = tmp_path / "stat"
    if content is not None:
        path.write_text(content)
    now = 0.0
    load = OtherLoad(path, own_cpu_s=lambda: 0.0, now=lambda: now)
    now = 5.0
    assert load.share() is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/stat")
def test_other_load_sees_another_process():
    process = subprocess.Popen([sys.executable, "-c", _SPINNER])
    try:
        time.sleep(0.5)
        load = OtherLoad()
        time.sleep(0.8)
        share = load.share()
    finally:
        process.kill()
        process.wait()
    assert share is not None and share > 0.4 / (os.cpu_count() or 1)
