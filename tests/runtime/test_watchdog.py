"""The watchdog: when it barks, and that it survives, ends and leaves nothing behind."""

from __future__ import annotations

import os
import queue
from collections.abc import Iterator
from time import monotonic
from typing import Any

import pytest

from tao.runtime.thread_start import StartableThread
from tao.runtime.watchdog import Watchdog, new_watchdog
from tests.injection import opcodes
from tests.support import PATIENCE, wait_until

NAME, TIMEOUT = "test-watchdog", 0.05


def has_timers() -> bool:
    probe = new_watchdog(NAME, TIMEOUT, bool)
    if probe is not None:
        probe.close()
    return probe is not None


pytestmark = pytest.mark.skipif(not has_timers(), reason="there are no such timers")


def new(barks: queue.Queue[float], timeout: float = TIMEOUT) -> Watchdog:
    watchdog = new_watchdog(NAME, timeout, lambda: barks.put(monotonic()))
    assert watchdog is not None
    watchdog.start()
    return watchdog


def end(watchdog: Watchdog) -> None:
    watchdog.stop()
    assert watchdog.thread is not None
    watchdog.thread.join(PATIENCE)
    assert not watchdog.thread.is_alive()


@pytest.fixture
def barks() -> queue.Queue[float]:
    """When it has barked."""
    return queue.Queue()


@pytest.fixture
def watchdog(barks: queue.Queue[float]) -> Iterator[Watchdog]:
    watchdog = new(barks)
    yield watchdog
    end(watchdog)


def test_it_barks_once_after_the_last_kick(watchdog: Watchdog, barks: queue.Queue[float]) -> None:
    kicked = monotonic()
    while monotonic() < kicked + 2 * TIMEOUT:
        last = monotonic()
        watchdog.kick()
    found = barks.get(timeout=PATIENCE)
    while found < last:  # this thread had lost its processor between two kicks
        found = barks.get(timeout=PATIENCE)
    assert found >= last + TIMEOUT
    with pytest.raises(queue.Empty):
        barks.get(timeout=3 * TIMEOUT)


def test_it_does_not_bark_before_the_first_kick(
    watchdog: Watchdog, barks: queue.Queue[float]
) -> None:
    with pytest.raises(queue.Empty):
        barks.get(timeout=3 * TIMEOUT)


def test_it_ends_without_a_bark_and_frees_its_descriptor(barks: queue.Queue[float]) -> None:
    before = os.listdir("/proc/self/fd")
    watchdog = new(barks, timeout=PATIENCE)
    watchdog.kick()
    end(watchdog)
    watchdog.kick()  # which does nothing any more
    watchdog.stop()
    assert barks.empty()
    assert os.listdir("/proc/self/fd") == before


def test_what_could_not_start_frees_its_descriptor(
    barks: queue.Queue[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = os.listdir("/proc/self/fd")
    watchdog = new_watchdog(NAME, TIMEOUT, bool)
    assert watchdog is not None

    def refuse(thread: Any) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(StartableThread, "start", refuse)
        with pytest.raises(RuntimeError, match="start"):
            watchdog.start()
    watchdog.stop()
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.interrupted
def test_a_start_interrupted_at_any_bytecode_can_be_repeated_and_ended(
    barks: queue.Queue[float],
) -> None:
    """The mechanism of a start: whatever it has made can be found by the stop."""
    before = os.listdir("/proc/self/fd")
    for moment in opcodes("tao.runtime.watchdog", "tao.runtime.thread_start"):
        watchdog = new_watchdog(NAME, 1e-3, lambda: barks.put(monotonic()))
        assert watchdog is not None
        with moment.raising():
            watchdog.start()
        watchdog.start()
        watchdog.kick()
        barks.get(timeout=PATIENCE)
        end(watchdog)
        wait_until(lambda: os.listdir("/proc/self/fd") == before)


@pytest.mark.interrupted
def test_an_exception_at_any_bytecode_of_its_thread_makes_it_bark(
    barks: queue.Queue[float],
) -> None:
    for moment in opcodes("tao.runtime.watchdog"):
        with moment.raising(thread=NAME):
            watchdog = new(barks, timeout=1e-3)
            watchdog.kick()
            barks.get(timeout=PATIENCE)
            end(watchdog)
