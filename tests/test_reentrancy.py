"""Calls in the midst of others: from signal handlers, finalizers, and exceptions at any bytecode.

Whatever is interrupted, and wherever: nothing dead-locks, no lock stays held, and afterwards the
interrupted operation has either happened or has not.
"""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from tao.atomic import AtomicBoolean, AtomicInt32, AtomicInt64
from tao.errors import ConnectionClosed
from tao.failures import Failures
from tao.limits import FloodLog, TokenBucket
from tao.log import logger
from tao.metrics import Counts, Tally
from tao.wakeup import Wakeup
from tests.injection import opcodes
from tests.support import PATIENCE, ends, together, wait_until

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


# -- values, rates and figures


@pytest.mark.parametrize("integer", [AtomicInt32, AtomicInt64])
def test_no_count_is_lost_to_what_comes_in_between(integer: Any) -> None:
    """A change in the midst of a change: both are made, and each returns a value of its own."""
    for moment in opcodes("tao.atomic"):
        value, returned = integer(), list[int]()
        with moment.calling(lambda v=value, r=returned: r.append(v.increment_and_get())):
            returned.append(value.increment_and_get())
        assert value.get() == len(returned) == 1 + moment.struck, moment
        assert sorted(returned) == [*range(1, len(returned) + 1)], moment


def test_a_change_is_made_or_not() -> None:
    """Whatever is raised inside it; and the next one works."""
    for moment in opcodes("tao.atomic"):
        value, flag = AtomicInt64(5), AtomicBoolean()
        with moment.raising():
            assert value.compare_and_set(5, 6)
            assert flag.compare_and_set(False, True)
        assert (value.get(), flag.get()) in {(5, False), (6, False), (6, True)}, moment
        assert value.increment_and_get() in {6, 7}


def test_tokens_are_given_out_once() -> None:
    """Also to who asks in the midst of a taking."""
    for moment in opcodes("tao.atomic", "tao.limits"):
        bucket, taken = TokenBucket(1, 5, clock=lambda: 0.0), list[int]()
        with moment.calling(lambda b=bucket, t=taken: t.append(b.take(3))):
            taken.append(bucket.take(4))
        assert sorted(taken) in [[1, 4], [2, 3], [4]], moment
        assert bucket.take(9) == 5 - sum(taken)


def test_the_log_of_a_flood_may_be_written_to_by_what_writes_it(log_lines: list[Any]) -> None:
    """A sink that warns again does not dead-lock."""
    floods = FloodLog(burst=2)
    sink = SimpleNamespace(warning=lambda text: floods.warn(logger, "again"))
    assert ends(lambda: floods.warn(sink, "once"))
    assert [line["message"] for line in log_lines] == ["again"]


class Counted:
    """A connection that has had seven messages."""

    def counts(self) -> Counts:
        return Counts(messages_in=7)


def test_figures_hold_at_any_bytecode_of_an_end() -> None:
    """A connection is counted once, living or ended, also while it passes from one to the other."""
    for moment in opcodes("tao.atomic", "tao.metrics"):
        tally, conn, seen = Tally("one", lambda snapshot: None), Counted(), list[Any]()
        tally.established(conn)
        with moment.calling(lambda t=tally, s=seen: s.append(t.snapshot())):
            tally.ended(conn)
        seen.append(tally.snapshot())
        assert {(each.messages_in, each.connections_total) for each in seen} == {(7, 1)}, moment
        assert not tally.living()


def test_figures_hold_after_an_exception_at_any_bytecode_of_an_end() -> None:
    """The connection has ended, or lives on and can be ended."""
    for moment in opcodes("tao.atomic", "tao.metrics"):
        tally, conn = Tally("one", lambda snapshot: None), Counted()
        tally.established(conn)
        with moment.raising():
            tally.ended(conn)
        assert tally.snapshot().messages_in == 7, moment
        if conn in tally.living() and not tally._ended.get().leaving:
            tally.ended(conn)
        assert tally.snapshot().messages_in == 7, moment


def test_errors_are_noted_in_the_midst_of_others() -> None:
    """Each is counted once; what looks meanwhile sees whole entries."""
    for moment in opcodes("tao.atomic", "tao.failures"):
        failures = Failures()
        error = ConnectionClosed("why")

        def note(failures: Failures = failures, error: Exception = error) -> None:
            failures.add(error, "reading", 1, "peer")
            assert failures.kinds()["ConnectionClosed"] >= 1 and failures.last()

        with moment.calling(note):
            failures.add(error, "reading", 2, "peer")
        count = 1 + moment.struck
        assert (failures.kinds(), len(failures.last())) == ({"ConnectionClosed": count}, count)
