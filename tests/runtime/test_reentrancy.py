"""Calls in the midst of others: from signal handlers, finalizers, and exceptions at any bytecode.

Whatever is interrupted, and wherever: nothing dead-locks, no lock stays held, and afterwards the
interrupted operation has either happened or has not.
"""

from __future__ import annotations

import ctypes
import math
import queue
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timezone
from functools import partial
from itertools import islice
from types import SimpleNamespace
from typing import Any

import pytest

from tao.atomic import AtomicBoolean, AtomicInt32, AtomicInt64
from tao.connection.application import Application, ApplicationLink
from tao.connection.block_watch import watch_on
from tao.connection.options import Settings
from tao.connection.recent_errors import Failures
from tao.connection.statistics import Counts, Tally
from tao.connection.timers import TimerSet
from tao.errors import ConnectionClosed
from tao.runtime import context as context_module
from tao.runtime.context import Context, background
from tao.runtime.log import logger
from tao.runtime.rate_limits import FloodLog, TokenBucket
from tao.runtime.timing_wheel import SharedWheel, TimingWheel, shared_wheel
from tao.runtime.wakeup import Wakeup
from tao.wire.message import Registry
from tests.ends import MakeServer
from tests.injection import Interruption, opcodes
from tests.support import PATIENCE, ends, together, wait_until

#: A delay that no test lives to see.
NEVER = 3600.0

OF_THE_WHEEL = (
    "tao.runtime.timing_wheel",
    "tao.runtime.agenda",
    "tao.atomic",
    "tao.runtime.wakeup",
)


def raise_in(thread: threading.Thread, error: type[BaseException]) -> None:
    """Raise an exception in another thread, as timeout libraries do."""
    assert thread.ident is not None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread.ident), ctypes.py_object(error)
    )


# -- the means


def test_every_bytecode_is_struck_once() -> None:
    """In order, and the last round is one without interruption."""
    places: list[str] = []
    for moment in opcodes("tao.runtime.wakeup"):
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

    moment = next(opcodes("tao.runtime.wakeup"))
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
    for moment in opcodes("tao.runtime.wakeup"):
        wakeup = Wakeup()
        with moment.calling(wakeup.set):
            woken = wakeup.wait(0.001)
        begun = time.monotonic()
        assert wakeup.wait(PATIENCE) if moment.struck else not woken, moment
        assert time.monotonic() - begun < PATIENCE / 2 and not wakeup._waiting


@pytest.mark.parametrize("interrupted", ["set", "clear", "wait"])
def test_wakeups_are_right_after_an_exception_at_any_bytecode(interrupted: str) -> None:
    """Setting has woken all or nobody; no waiting thread is forgotten, nothing is left over."""
    for moment in opcodes("tao.runtime.wakeup"):
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
    for moment in opcodes("tao.atomic", "tao.runtime.rate_limits"):
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
    for moment in opcodes("tao.atomic", "tao.connection.statistics"):
        tally, conn, seen = Tally("one", lambda snapshot: None), Counted(), list[Any]()
        tally.established(conn)
        with moment.calling(lambda t=tally, s=seen: s.append(t.snapshot())):
            tally.ended(conn)
        seen.append(tally.snapshot())
        assert {(each.messages_in, each.connections_total) for each in seen} == {(7, 1)}, moment
        assert not tally.living()


def test_figures_hold_after_an_exception_at_any_bytecode_of_an_end() -> None:
    """The connection has ended, or lives on and can be ended."""
    for moment in opcodes("tao.atomic", "tao.connection.statistics"):
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
    for moment in opcodes("tao.atomic", "tao.connection.recent_errors"):
        failures = Failures()
        error = ConnectionClosed("why")

        def note(failures: Failures = failures, error: Exception = error) -> None:
            failures.add(error, "reading", 1, "peer")
            assert failures.kinds()["ConnectionClosed"] >= 1 and failures.last()

        with moment.calling(note):
            failures.add(error, "reading", 2, "peer")
        count = 1 + moment.struck
        assert (failures.kinds(), len(failures.last())) == ({"ConnectionClosed": count}, count)


# -- the timing wheel


@pytest.fixture
def wheel() -> Iterator[TimingWheel]:
    """A wheel that is stopped when the test ends."""
    made = TimingWheel("test-wheel")
    yield made
    made.stop()


def works(wheel: TimingWheel) -> bool:
    """Tell whether a timer fires."""
    fired = threading.Event()
    wheel.run_after(0, lambda due: fired.set())
    return fired.wait(PATIENCE)


@pytest.mark.parametrize("doing", ["run_after", "run_every", "cancel"])
def test_timers_come_and_go_at_any_bytecode(wheel: TimingWheel, doing: str) -> None:
    """Adding and cancelling in the midst of adding or cancelling: all are there, or none."""

    def add_two(wheel: TimingWheel = wheel) -> None:
        wheel.cancel(wheel.run_after(NEVER, print))
        wheel.run_after(NEVER + 1, print)

    for moment in opcodes(*OF_THE_WHEEL):
        timer = wheel.run_after(NEVER, print)
        with moment.calling(add_two):
            wheel.cancel(timer) if doing == "cancel" else getattr(wheel, doing)(NEVER, print)
        assert wheel.size == (doing != "cancel") * 2 + moment.struck, moment
        for timer_id in list(wheel._timers):
            assert wheel.cancel(timer_id)
    assert works(wheel) and wheel.size == 0


def test_timers_are_right_after_an_exception_at_any_bytecode() -> None:
    """Adding and cancelling has happened or has not; what is there the wheel's thread knows of."""
    for moment in opcodes(*OF_THE_WHEEL):
        wheel, returned = TimingWheel("test-wheel"), list[int]()
        with moment.raising():
            returned.append(wheel.run_after(NEVER, print))
            wheel.cancel(wheel.run_after(NEVER - 1, print))
        assert wheel.size in {1, 2} if returned else wheel.size in {0, 1}, moment
        assert moment.struck or wheel.size == 1
        assert works(wheel), moment
        agenda = wheel._agenda.get()
        known = {timer_id for _, timer_id in [*agenda.heap, *agenda.incoming]}
        assert known >= set(wheel._timers), moment
        wheel.stop()


def test_a_wheel_can_be_stopped_after_an_exception_at_any_bytecode_of_a_stop() -> None:
    """No timer and no thread is left, and none comes any more."""
    for moment in opcodes(*OF_THE_WHEEL):
        wheel = TimingWheel("test-wheel")
        wheel.run_after(NEVER, print)
        with moment.raising():
            wheel.stop()
        wheel.stop()
        assert wheel.size == 0 and not wheel.thread.is_alive(), moment
        with pytest.raises(RuntimeError):
            wheel.run_after(0, print)


def test_the_wheel_goes_on_after_an_exception_at_any_bytecode() -> None:
    """In its own thread: each timer fires, those that fire once do so once."""
    for moment in islice(opcodes(*OF_THE_WHEEL), 500):
        wheel, fired, ticks = TimingWheel("test-struck"), queue.Queue[Any](), queue.Queue[Any]()
        with moment.raising(SystemExit, thread="test-struck"):
            wheel.run_every(0.001, ticks.put)
            wheel.run_after(0, fired.put)
            wheel.run_after(0.002, fired.put)
            dues = [fired.get(timeout=PATIENCE) for _ in range(2)]
            for _ in range(3):
                ticks.get(timeout=PATIENCE)
        assert dues == sorted(dues) and works(wheel), moment
        wheel.stop()
        assert fired.empty(), moment
    assert moment.struck


def test_an_exception_from_another_thread_does_not_end_the_wheel(wheel: TimingWheel) -> None:
    """As timeout libraries raise them: the callback that it hits is over, and no timer is lost."""
    fired = list[Any]()
    assert works(wheel)
    thread = wheel.thread
    for _ in range(200):
        raise_in(thread, SystemExit)
        wheel.run_after(0.0005, fired.append)
        assert works(wheel)
    wait_until(lambda: len(fired) == 200)
    assert wheel.size == 0


def test_a_wheel_whose_thread_died_gets_another(wheel: TimingWheel) -> None:
    """As soon as anybody adds a timer, whatever the last thread has left of its state."""
    assert works(wheel)
    agenda: Any = wheel._agenda.get()
    wheel._agenda.update(lambda _: None)  # by which the thread ends, while it is awake
    agenda.wakeup.set()
    agenda.thread.join(PATIENCE)
    agenda.wakes_at = -math.inf
    wheel._agenda.update(lambda _: agenda)
    assert works(wheel) and wheel.thread is not agenda.thread


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_wheel_turns_whatever_hits_its_thread_as_it_comes_up() -> None:
    """At each bytecode: either adding the first timer raises, or that timer fires."""
    for moment in islice(
        opcodes("tao.runtime.thread_start", "tao.runtime.threads", *OF_THE_WHEEL), 250
    ):
        wheel, fired = TimingWheel("test-born"), threading.Event()
        with moment.raising(SystemExit, thread="test-born"):
            try:
                wheel.run_after(0, lambda due, fired=fired: fired.set())
            except RuntimeError:
                assert wheel.size == 0, moment
                fired.set()
            assert fired.wait(PATIENCE), moment
        assert works(wheel), moment
        wheel.stop()


def test_a_wheel_turns_after_one_of_several_starts_was_interrupted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another thread starts it in between, at each bytecode, and fires a timer meanwhile."""
    start = threading.Thread.start
    for moment in opcodes(
        "tao.runtime.thread_start", "tao.runtime.threads", "tao.runtime.timing_wheel"
    ):
        wheel, entered, gate = TimingWheel("test-twice"), threading.Event(), threading.Event()

        def callback(due: datetime, entered: Any = entered, gate: Any = gate) -> None:
            entered.set()
            gate.wait(PATIENCE)

        def add(wheel: Any = wheel, entered: Any = entered, callback: Any = callback) -> None:
            assert ends(lambda: wheel.run_after(0, callback)) and entered.wait(PATIENCE)
            monkeypatch.setattr(threading.Thread, "start", interrupted)

        def interrupted(thread: threading.Thread) -> None:
            raise Interruption

        with suppress(Interruption), moment.calling(add):
            wheel.run_after(NEVER, print)
        monkeypatch.setattr(threading.Thread, "start", start)
        thread = wheel.thread
        gate.set()
        wheel.run_after(0, lambda due: None)
        assert works(wheel) and (wheel.thread is thread or not moment.struck), moment
        wheel.stop()


@pytest.mark.parametrize("raises", [False, True])
def test_users_come_and_go_at_any_bytecode(raises: bool) -> None:
    """Of the shared wheel: whoever has it can use it, and with the last one the thread ends."""
    for moment in opcodes("tao.runtime.timing_wheel"):
        shared = SharedWheel()

        def use(shared: SharedWheel = shared) -> None:
            shared.acquire("other").run_after(NEVER, print)
            shared.release("other")

        with moment.raising() if raises else moment.calling(use):
            shared.acquire("one").run_after(NEVER, print)
            shared.release("one")
        shared.release("one")
        assert not shared._users and not shared._wheels, moment
    assert "tao-timing-wheel" not in [thread.name for thread in threading.enumerate()]


def test_all_who_share_a_wheel_get_the_same_watch() -> None:
    """Also who asks in the midst of the asking, as a finalizer that makes a client does."""
    for moment in opcodes("tao.connection.block_watch"):
        other = TimingWheel("test-other")
        seen: list[Any] = []
        with moment.calling(lambda w=other, s=seen: s.append(watch_on(w))):
            seen.append(watch_on(other))
        assert len({id(each) for each in seen}) == 1, moment
        other.stop()


# -- the timers of a connection


class Posts:
    """What a connection gives its timers: calls that take their turn are kept here."""

    def __init__(self, wheel: TimingWheel) -> None:
        self.calls: queue.Queue[Any] = queue.Queue()
        self.application = Application(self, Settings(), Registry())
        self.timers = TimerSet(wheel, self.calls.put, ApplicationLink(self.application))


def ring_all(wheel: TimingWheel) -> None:
    """Call all callbacks as if they were due."""
    for timer in list(wheel._timers.values()):
        timer.callback(datetime.now(timezone.utc))


def test_clocks_are_set_at_any_bytecode(wheel: TimingWheel) -> None:
    """However they are set at the same time: one of each purpose is left."""
    assert works(wheel)
    for moment in opcodes(
        "tao.connection.timers", "tao.runtime.timing_wheel", "tao.runtime.agenda", "tao.atomic"
    ):
        timers, rung = Posts(wheel).timers, list[int]()
        set_clock = partial(timers.set_clock, "x", NEVER)
        with moment.calling(partial(set_clock, partial(rung.append, 2))):
            set_clock(partial(rung.append, 1))
        assert wheel.size == 1, moment
        ring_all(wheel)
        assert len(rung) == 1, moment
        timers.end()
        assert wheel.size == 0


def test_clocks_are_right_after_an_exception_at_any_bytecode(wheel: TimingWheel) -> None:
    """The one before goes on, or the new one is set; never both, and never neither."""
    assert works(wheel)
    for moment in opcodes(
        "tao.connection.timers", "tao.runtime.timing_wheel", "tao.runtime.agenda", "tao.atomic"
    ):
        timers, rung = Posts(wheel).timers, list[int]()
        timers.set_clock("x", NEVER, lambda r=rung: r.append(1))
        with moment.raising():
            timers.set_clock("x", NEVER, lambda r=rung: r.append(2))
        clock = timers._clocks["x"].get()
        assert clock.timer_id in wheel._timers and wheel.size <= 2, moment
        ring_all(wheel)
        assert len(rung) == 1, moment
        timers.end()
        for timer_id in list(wheel._timers):
            wheel.cancel(timer_id)


@pytest.mark.parametrize("ending", [False, True])
def test_a_timer_of_a_connection_that_ends_meanwhile_is_refused(
    wheel: TimingWheel, ending: bool
) -> None:
    """Wherever the end comes in between, no timer is left; without an end the timer is there."""
    assert works(wheel)
    for moment in opcodes(
        "tao.connection.timers", "tao.runtime.timing_wheel", "tao.runtime.agenda"
    ):
        timers = Posts(wheel).timers
        act = timers.end if ending else lambda t=timers: t.cancel(t.add(1, print, periodic=True))
        with moment.calling(act), suppress(ConnectionClosed):
            timers.add(NEVER, print, periodic=False)
        assert len(timers) == wheel.size == (not ending or not moment.struck), moment
        timers.end()
        assert len(timers) == wheel.size == 0


def test_timers_of_a_connection_after_an_exception_at_any_bytecode(wheel: TimingWheel) -> None:
    """One is there, for the connection and for the wheel, or it is not; none after the end."""
    assert works(wheel)
    for moment in opcodes(
        "tao.connection.timers", "tao.runtime.timing_wheel", "tao.runtime.agenda"
    ):
        timers, returned = Posts(wheel).timers, list[int]()
        with moment.raising():
            returned.append(timers.add(NEVER, print, periodic=True))
            timers.end()
        assert len(timers) <= 1 and (wheel.size <= len(timers) or not moment.struck), moment
        if moment.struck and not returned:
            assert len(timers) == wheel.size, moment
        timers.end()
        assert len(timers) == wheel.size == 0, moment


# -- contexts

OF_CONTEXTS = (
    "tao.runtime.context",
    "tao.runtime.cancel_scope",
    "tao.atomic",
    "tao.runtime.wakeup",
)


class Family:
    """A context with some below it, and callbacks that say so when they are called."""

    def __init__(self) -> None:
        self.top = background().with_cancel()
        middle = self.top.with_cancel()
        self.all = [self.top, middle, middle.with_value("key", 1), self.top.with_cancel()]
        self.events = [context.done for context in self.all]
        self.called: list[str] = []
        for number, context in enumerate(self.all):
            context.after_cancel(partial(self.called.append, str(number)))

    def check(self) -> None:
        """All are cancelled, and each callback was called once."""
        assert all(context.cancelled for context in self.all)
        assert all(event.is_set() and event.wait(0) for event in self.events)
        assert sorted(self.called) == sorted(set(self.called)) and {*"0123"} <= {*self.called}
        assert not any(event.callbacks or event.pinned for event in self.events)

    def join(self) -> None:
        """Add to it: a child, callbacks, and one that is taken back."""
        child = self.top.with_cancel()
        self.all.append(child)
        self.events.append(child.done)
        child.after_cancel(partial(self.called.append, "child"))
        self.all[1].after_cancel(partial(self.called.append, "late"))
        self.all[1].after_cancel(partial(self.called.append, "taken back"))()


@pytest.mark.parametrize("meanwhile", ["cancel", "join"])
def test_a_tree_is_cancelled_whole_whatever_comes_in_between(meanwhile: str) -> None:
    """At any bytecode somebody else cancels it, or joins it: nobody is forgotten."""
    for moment in opcodes("tao.runtime.context", "tao.runtime.cancel_scope"):
        family = Family()
        with moment.calling(family.top.cancel if meanwhile == "cancel" else family.join):
            family.top.cancel("enough")
        assert moment.struck == ("late" in family.called) or meanwhile == "cancel", moment
        family.called = [called for called in family.called if called != "taken back"]
        family.check()


def test_a_tree_is_cancelled_whole_or_not_at_all() -> None:
    """Whatever is raised at any bytecode; what is not can be cancelled afterwards."""
    for moment in opcodes(*OF_CONTEXTS):
        family = Family()
        with moment.raising():
            family.top.cancel("enough")
        if not family.top.cancelled:
            assert not family.called and not any(event.is_set() for event in family.events), moment
            family.top.cancel("enough")
        family.check()


def test_callbacks_are_added_or_not() -> None:
    """After an exception at any bytecode; and one that is not added is not held."""
    for moment in opcodes(*OF_CONTEXTS):
        context, called, taken = background().with_cancel().with_cancel(), list[int](), False
        with moment.raising():
            remove = context.after_cancel(partial(called.append, 1))
            taken = remove()
        scopes = [context.done, context.done.parent]
        assert len(context.done.callbacks) == any(scope.pinned for scope in scopes), moment
        context.cancel()
        assert len(called) <= 1 and not (taken and called), moment
        assert not any(scope.pinned for scope in scopes), moment


def test_whoever_asks_first_gets_the_same_event() -> None:
    """Also who asks in the midst of the asking; and after an exception the next one gets it."""
    for moment in opcodes(*OF_CONTEXTS):
        context, events = background().with_cancel(), list[Any]()
        with moment.calling(lambda c=context, e=events: e.append(c.done)):
            events.append(context.done)
        assert {id(event) for event in events} == {id(context.done)}, moment
    for moment in opcodes(*OF_CONTEXTS):
        context = background().with_cancel()
        with moment.raising():
            assert not context.done.is_set()
            context.cancel()
        context.cancel()
        assert context.done.is_set() and not context_module._chosen, moment


def test_deadlines_are_right_after_an_exception_at_any_bytecode() -> None:
    """Nothing of one that was not made is left; one that was made expires, and gives all back."""
    for moment in opcodes("tao.runtime.context", "tao.runtime.cancel_scope"):
        made = list[Context]()
        with moment.raising():
            made.append(background().with_timeout(0.001))
        assert made or moment.struck
        assert all(context.wait(PATIENCE) for context in made)
        wait_until(lambda: not shared_wheel._users)


def test_a_signal_handler_may_cancel_what_its_thread_waits_for() -> None:
    """At any bytecode of the wait: it ends at once."""
    for moment in opcodes(*OF_CONTEXTS):
        context = background().with_cancel().with_cancel()
        with moment.calling(context.cancel):
            context.wait(0.001)
        assert context.wait(PATIENCE if moment.struck else 0) == moment.struck, moment


def test_ctrl_c_in_a_callback_reaches_the_caller() -> None:
    """After all other callbacks have run."""
    context, called = background().with_cancel(), list[int]()

    def interrupt() -> None:
        raise KeyboardInterrupt

    context.after_cancel(interrupt)
    context.after_cancel(partial(called.append, 1))
    with pytest.raises(KeyboardInterrupt):
        context.cancel()
    assert (called, context.cancelled) == ([1], True)


@pytest.mark.parametrize("whose", ["server", "connection"])
def test_callbacks_that_block_hold_no_stop(make_server: MakeServer, whose: str) -> None:
    """A stop ends with its deadline, and reports the thread that still runs callbacks."""
    server, address = make_server()
    gate, entered = threading.Event(), threading.Event()
    with socket.create_connection(address):
        wait_until(lambda: server.connections)
        context = (server if whose == "server" else server.connections[0]).context
        context.after_cancel(lambda: entered.set() or gate.wait(PATIENCE))
        begun = time.monotonic()
        report = server.stop(0.2)
        assert time.monotonic() - begun < PATIENCE / 2 and entered.is_set()
        assert "tao-after-cancel" in report.threads and not report.clean
    gate.set()


def test_callbacks_that_block_hold_no_close_and_no_timer(make_server: MakeServer) -> None:
    """Closing returns at once, the connection ends, and the timing wheel turns on."""
    server, address = make_server(idle_timeout=0.01, heartbeat=None)
    gate, blocked = threading.Event(), list[threading.Event]()
    for _ in range(2):
        with socket.create_connection(address) as sock:
            wait_until(lambda: server.connections)
            conn = server.connections[0]
            blocked.append(threading.Event())
            conn.context.after_cancel(lambda: blocked[-1].set() or gate.wait(PATIENCE))
            assert sock.recv(1) == b""  # it has been idle for too long
        assert blocked[-1].wait(PATIENCE) and conn.wait_closed(PATIENCE)
    gate.set()
