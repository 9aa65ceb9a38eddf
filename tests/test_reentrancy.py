"""Calls in the midst of others: from signal handlers, finalizers, and exceptions at any bytecode.

Whatever is interrupted, and wherever: nothing dead-locks, no lock stays held, and afterwards the
interrupted operation has either happened or has not.
"""

from __future__ import annotations

import threading
import time

import pytest

from tao.wakeup import Wakeup
from tests.injection import opcodes
from tests.support import PATIENCE, together, wait_until

# -- the means


def test_every_bytecode_is_struck_once() -> None:
    """In order, and the last round is one without interruption."""
    places: list[str] = []
    for moment in opcodes("tao.wakeup"):
        wakeup = Wakeup()
        with moment.raising():
            assert not wakeup.wait(0)
        places.append(moment.place)
    assert len(places) > 30 and places[-1] == "nowhere"
    assert {"in wait, ", "in _lock_timeout, "} <= {
        "in " + place.partition(" in ")[2].rstrip("0123456789") for place in places[:-1]
    }


def test_another_thread_can_be_struck() -> None:
    """It is the one of that name, not the one that starts it."""
    wakeup, struck = Wakeup(), list[str]()

    def work() -> None:
        wakeup.set()

    moment = next(opcodes("tao.wakeup"))
    with moment.calling(lambda: struck.append(threading.current_thread().name), thread="test-hit"):
        wakeup.clear()
        thread = threading.Thread(target=work, name="test-hit")
        thread.start()
        thread.join()
    assert (moment.struck, struck) == (True, ["test-hit"])


# -- the wake-up


def test_a_wakeup_wakes_all_that_wait() -> None:
    """And whoever comes later does not wait; after ``clear`` one does again."""
    wakeup = Wakeup()
    assert not wakeup.is_set() and not wakeup.wait(0) and not wakeup.wait(-1)
    waits = [lambda: wakeup.wait(PATIENCE)] * 3
    woken = together(*waits, lambda: wait_until(lambda: len(wakeup._waiting) == 3) or wakeup.set())
    assert woken == [True, True, True, None]
    assert wakeup.wait() and wakeup.is_set() and not wakeup._waiting
    wakeup.clear()
    assert not wakeup.wait(0.001)


def test_who_was_woken_stays_awake_after_a_clear() -> None:
    """Setting and clearing at once loses nobody."""
    wakeup = Wakeup()

    def pulse() -> None:
        wait_until(lambda: wakeup._waiting)
        wakeup.set()
        wakeup.clear()

    assert together(lambda: wakeup.wait(PATIENCE), pulse) == [True, None]


def test_a_wakeup_can_be_set_at_any_bytecode_of_a_wait() -> None:
    """By a signal handler or a finalizer in the waiting thread: the wait ends at once."""
    for moment in opcodes("tao.wakeup"):
        wakeup = Wakeup()
        with moment.calling(wakeup.set):
            woken = wakeup.wait(0.001)
        begun = time.monotonic()
        assert wakeup.wait(PATIENCE) if moment.struck else not woken, moment
        assert time.monotonic() - begun < PATIENCE / 2 and not wakeup._waiting


@pytest.mark.parametrize("interrupted", ["set", "clear", "wait"])
def test_wakeups_are_right_after_an_exception_at_any_bytecode(interrupted: str) -> None:
    """Setting has woken all or nobody; no waiting thread is forgotten, nothing is left over."""
    for moment in opcodes("tao.wakeup"):
        wakeup = Wakeup()
        other = threading.Thread(target=wakeup.wait, args=(PATIENCE,), name="test-waits")
        other.start()
        wait_until(lambda wakeup=wakeup: wakeup._waiting)
        with moment.raising():
            wakeup.wait(0) if interrupted == "wait" else getattr(wakeup, interrupted)()
        assert wakeup._waiting or wakeup.is_set(), moment
        if not wakeup.is_set():
            wakeup.set()
        other.join(PATIENCE)
        assert not other.is_alive() and not wakeup._waiting, moment
