"""Nested calls: from signal handlers and finalizers, and exceptions at any bytecode.

Whatever is interrupted at any point, nothing deadlocks, no lock stays held, and afterwards the
interrupted operation has either taken place or not.
"""

from __future__ import annotations

import itertools
import math
import queue
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import astuple
from datetime import datetime, timezone
from functools import partial
from itertools import islice
from types import SimpleNamespace
from typing import Any

import pytest

from tao.atomic import AtomicBoolean, AtomicInt32, AtomicInt64
from tao.connection.application import Application, ApplicationLink
from tao.connection.handling.block_watch import watch_on
from tao.connection.options.definitions import Settings
from tao.connection.reports import statistics as statistics_module
from tao.connection.reports.recent_errors import Failures
from tao.connection.reports.statistics import Counts, Statistics
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
from tests.injection import Interruption, opcodes, raise_in
from tests.support import PATIENCE, ends, together, wait_until

#: A delay longer than any test.
NEVER = 3600.0

OF_THE_WHEEL = (
    "tao.runtime.timing_wheel",
    "tao.runtime.timer_heap",
    "tao.atomic",
    "tao.runtime.wakeup",
)


# -- the test tool


def test_every_bytecode_is_interrupted_once() -> None:
    """Bytecodes are tried in order, and the last round has no interruption."""
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


def test_another_thread_can_be_interrupted() -> None:
    """The thread with the given name is interrupted, not the one that starts it."""
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


# -- wake-ups


def test_a_wakeup_wakes_all_waiting_threads() -> None:
    """Later waits return at once; after ``clear``, they block again."""
    wakeup = Wakeup()
    assert not wakeup.is_set() and not wakeup.wait(0) and not wakeup.wait(-1)
    waits = [lambda: wakeup.wait(PATIENCE)] * 3
    woken = together(*waits, lambda: wait_until(lambda: len(wakeup.waiters) == 3) or wakeup.set())
    assert woken == [True, True, True, None]
    assert wakeup.wait() and wakeup.is_set() and not wakeup.waiters
    wakeup.clear()
    assert not wakeup.wait(0.001)


def test_a_woken_thread_returns_despite_a_clear() -> None:
    """Setting and clearing immediately loses no waiting thread."""
    wakeup = Wakeup()

    def pulse() -> None:
        wait_until(lambda: wakeup.waiters)
        wakeup.set()
        wakeup.clear()

    assert together(lambda: wakeup.wait(PATIENCE), pulse) == [True, None]


def test_a_wakeup_can_be_set_at_any_bytecode_of_a_wait() -> None:
    """A signal handler or finalizer in the waiting thread can set it, and the wait ends."""
    for moment in opcodes("tao.runtime.wakeup"):
        wakeup = Wakeup()
        with moment.calling(wakeup.set):
            woken = wakeup.wait(0.001)
        begun = time.monotonic()
        assert wakeup.wait(PATIENCE) if moment.struck else not woken, moment
        assert time.monotonic() - begun < PATIENCE / 2 and not wakeup.waiters


@pytest.mark.parametrize("interrupted", ["set", "clear", "wait"])
def test_wakeups_after_an_exception_at_any_bytecode(interrupted: str) -> None:
    """``set`` has woken all or none; no waiting thread is forgotten, and nothing leaks."""
    for moment in opcodes("tao.runtime.wakeup"):
        wakeup = Wakeup()
        other = threading.Thread(target=wakeup.wait, args=(PATIENCE,), name="test-waits")
        other.start()
        wait_until(lambda wakeup=wakeup: wakeup.waiters)
        with moment.raising():
            wakeup.wait(0) if interrupted == "wait" else getattr(wakeup, interrupted)()
        assert wakeup.waiters or wakeup.is_set(), moment
        if not wakeup.is_set():
            wakeup.set()
        other.join(PATIENCE)
        assert not other.is_alive() and not wakeup.waiters, moment


# -- values, rates and statistics


@pytest.mark.parametrize("integer", [AtomicInt32, AtomicInt64])
def test_nested_updates_lose_no_count(integer: Any) -> None:
    """Both updates are made, and each returns a value of its own."""
    for moment in opcodes("tao.atomic"):
        value, returned = integer(), list[int]()
        with moment.calling(lambda v=value, r=returned: r.append(v.increment_and_get())):
            returned.append(value.increment_and_get())
        assert value.get() == len(returned) == 1 + moment.struck, moment
        assert sorted(returned) == [*range(1, len(returned) + 1)], moment


def test_an_update_is_made_or_not() -> None:
    """This holds for any exception in it, and the next update works."""
    for moment in opcodes("tao.atomic"):
        value, flag = AtomicInt64(5), AtomicBoolean()
        with moment.raising():
            assert value.compare_and_set(5, 6)
            assert flag.compare_and_set(False, True)
        assert (value.get(), flag.get()) in {(5, False), (6, False), (6, True)}, moment
        assert value.increment_and_get() in {6, 7}


def test_tokens_are_given_out_once() -> None:
    """This includes nested requests."""
    for moment in opcodes("tao.atomic", "tao.runtime.rate_limits"):
        bucket, taken = TokenBucket(1, 5, clock=lambda: 0.0), list[int]()
        with moment.calling(lambda b=bucket, t=taken: t.append(b.take(3))):
            taken.append(bucket.take(4))
        assert sorted(taken) in [[1, 4], [2, 3], [4]], moment
        assert bucket.take(9) == 5 - sum(taken)


def test_a_sink_may_log_to_the_rate_limited_log(log_lines: list[Any]) -> None:
    """A sink that logs another warning causes no deadlock."""
    floods = FloodLog(burst=2)
    sink = SimpleNamespace(warning=lambda text: floods.warn(logger, "again"))
    assert ends(lambda: floods.warn(sink, "once"))
    assert [line["message"] for line in log_lines] == ["again"]


_ids = itertools.count(1)


class Counted:
    """A connection with seven messages."""

    def __init__(self) -> None:
        self.net_id = next(_ids)

    def counts(self) -> Counts:
        return Counts(messages_in=7)

    def totals(self) -> tuple[Any, ...]:
        return astuple(self.counts())

    def requests_now(self) -> tuple[int, float]:
        return 0, 0.0


@pytest.fixture(params=[1, 64], ids=["singly", "together"])
def added_up(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The counts of so many connections that have ended are added up together."""
    monkeypatch.setattr(statistics_module, "_TOGETHER", request.param)


@pytest.mark.usefixtures("added_up")
def test_statistics_at_any_bytecode_of_an_end() -> None:
    """A connection is counted once, as open or closed, also during the transition."""
    for moment in opcodes("tao.atomic", "tao.connection.reports.statistics"):
        statistics, conn, seen = Statistics("one", lambda snapshot: None), Counted(), list[Any]()
        statistics.established(conn)
        with moment.calling(lambda t=statistics, s=seen: s.append(t.snapshot())):
            statistics.ended(conn)
        seen.append(statistics.snapshot())
        assert {(each.messages_in, each.connections_total) for each in seen} == {(7, 1)}, moment
        assert not statistics.living()


@pytest.mark.usefixtures("added_up")
def test_statistics_after_an_exception_at_any_bytecode_of_an_end() -> None:
    """The connection has ended, or stays open and can be ended."""
    for moment in opcodes("tao.atomic", "tao.connection.reports.statistics"):
        statistics, conn = Statistics("one", lambda snapshot: None), Counted()
        statistics.established(conn)
        with moment.raising():
            statistics.ended(conn)
        assert statistics.snapshot().messages_in == 7, moment
        if conn in statistics.living():
            statistics.ended(conn)
        assert statistics.snapshot().messages_in == 7, moment
        for _ in range(64):
            statistics.ended(Counted())
        assert statistics.snapshot().messages_in == 65 * 7 and len(statistics._last) < 64, moment


def test_nested_errors_are_counted() -> None:
    """Each is counted once; a concurrent reader sees complete entries."""
    for moment in opcodes("tao.atomic", "tao.connection.reports.recent_errors"):
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
    """A wheel that is stopped at the end of the test."""
    made = TimingWheel("test-wheel")
    yield made
    made.stop()


def works(wheel: TimingWheel) -> bool:
    """Return whether a timer fires."""
    fired = threading.Event()
    wheel.run_after(0, lambda due: fired.set())
    return fired.wait(PATIENCE)


@pytest.mark.parametrize("doing", ["run_after", "run_every", "cancel"])
def test_nested_changes_of_timers(wheel: TimingWheel, doing: str) -> None:
    """Adding and cancelling may interrupt each other: all timers exist, or none."""

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


def test_timers_after_an_exception_at_any_bytecode() -> None:
    """Adding or cancelling has taken place or not; the wheel's thread knows each timer."""
    for moment in opcodes(*OF_THE_WHEEL):
        wheel, returned = TimingWheel("test-wheel"), list[int]()
        with moment.raising():
            returned.append(wheel.run_after(NEVER, print))
            wheel.cancel(wheel.run_after(NEVER - 1, print))
        assert wheel.size in {1, 2} if returned else wheel.size in {0, 1}, moment
        assert moment.struck or wheel.size == 1
        assert works(wheel), moment
        heap = wheel._heap.get()
        known = {timer_id for _, timer_id in [*heap.heap, *heap.incoming]}
        assert known >= set(wheel._timers), moment
        wheel.stop()


def test_a_wheel_can_be_stopped_after_an_interrupted_stop() -> None:
    """No timer and no thread is left, and none can be added."""
    for moment in opcodes(*OF_THE_WHEEL):
        wheel = TimingWheel("test-wheel")
        wheel.run_after(NEVER, print)
        with moment.raising():
            wheel.stop()
        wheel.stop()
        assert wheel.size == 0 and not wheel.thread.is_alive(), moment
        with pytest.raises(RuntimeError):
            wheel.run_after(0, print)


def test_the_wheel_continues_after_an_exception_at_any_bytecode() -> None:
    """In its own thread: each timer fires, and a single one fires once."""
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
    """The interrupted callback ends, and no timer is lost."""
    fired = list[Any]()
    assert works(wheel)
    thread = wheel.thread
    for _ in range(200):
        raise_in(thread, SystemExit)
        wheel.run_after(0.0005, fired.append)
        assert works(wheel)
    wait_until(lambda: len(fired) == 200)
    assert wheel.size == 0


def test_a_dead_thread_of_the_wheel_is_replaced(wheel: TimingWheel) -> None:
    """It is replaced when the next timer is added, whatever state the dead one left."""
    assert works(wheel)
    heap: Any = wheel._heap.get()
    wheel._heap.update(lambda _: None)  # ends the thread while it is awake
    heap.wakeup.set()
    heap.thread.join(PATIENCE)
    heap.wakes_at = -math.inf
    wheel._heap.update(lambda _: heap)
    assert works(wheel) and wheel.thread is not heap.thread


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_exception_while_the_wheels_thread_starts() -> None:
    """At each bytecode: adding the first timer raises, or that timer fires."""
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


def test_an_interrupted_start_of_the_wheels_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another thread may start it in between, at each bytecode, and its timer fires."""
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
def test_nested_uses_of_the_shared_wheel(raises: bool) -> None:
    """Each user can use it, and its thread ends with the last user."""
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


def test_users_of_a_wheel_share_one_watch() -> None:
    """This includes nested requests, as from a finalizer that creates a client."""
    for moment in opcodes("tao.connection.handling.block_watch"):
        other = TimingWheel("test-other")
        seen: list[Any] = []
        with moment.calling(lambda w=other, s=seen: s.append(watch_on(w))):
            seen.append(watch_on(other))
        assert len({id(each) for each in seen}) == 1, moment
        other.stop()


# -- the timers of a connection


class Posts:
    """A connection for timers: it keeps the calls that are posted to it."""

    def __init__(self, wheel: TimingWheel) -> None:
        self.calls: queue.Queue[Any] = queue.Queue()
        self.application = Application(self, Settings(), Registry())
        self.timers = TimerSet(wheel, self.calls.put, ApplicationLink(self.application))


def ring_all(wheel: TimingWheel) -> None:
    """Call all callbacks as if they were due."""
    for timer in list(wheel._timers.values()):
        timer.callback(datetime.now(timezone.utc))


def test_nested_settings_of_internal_timers(wheel: TimingWheel) -> None:
    """One timer of each purpose is left, whatever interrupts the setting."""
    assert works(wheel)
    for moment in opcodes(
        "tao.connection.timers", "tao.runtime.timing_wheel", "tao.runtime.timer_heap", "tao.atomic"
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


def test_internal_timers_after_an_exception_at_any_bytecode(wheel: TimingWheel) -> None:
    """Either the previous timer continues or the new one is set; never both, never neither."""
    assert works(wheel)
    for moment in opcodes(
        "tao.connection.timers", "tao.runtime.timing_wheel", "tao.runtime.timer_heap", "tao.atomic"
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
def test_a_timer_of_a_connection_that_ends_is_refused(wheel: TimingWheel, ending: bool) -> None:
    """If the connection ends meanwhile, no timer is left; otherwise the timer is set."""
    assert works(wheel)
    for moment in opcodes(
        "tao.connection.timers", "tao.runtime.timing_wheel", "tao.runtime.timer_heap"
    ):
        timers = Posts(wheel).timers
        act = timers.end if ending else lambda t=timers: t.cancel(t.add(1, print, periodic=True))
        with moment.calling(act), suppress(ConnectionClosed):
            timers.add(NEVER, print, periodic=False)
        assert len(timers) == wheel.size == (not ending or not moment.struck), moment
        timers.end()
        assert len(timers) == wheel.size == 0


def test_user_timers_after_an_exception_at_any_bytecode(wheel: TimingWheel) -> None:
    """A timer exists both for the connection and for the wheel, or not at all."""
    assert works(wheel)
    for moment in opcodes(
        "tao.connection.timers", "tao.runtime.timing_wheel", "tao.runtime.timer_heap"
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
    """A context with descendants, and callbacks that record their calls."""

    def __init__(self) -> None:
        self.top = background().with_cancel()
        middle = self.top.with_cancel()
        self.all = [self.top, middle, middle.with_value("key", 1), self.top.with_cancel()]
        self.events = [context.done for context in self.all]
        self.called: list[str] = []
        for number, context in enumerate(self.all):
            context.after_cancel(partial(self.called.append, str(number)))

    def check(self) -> None:
        """Check that all are cancelled, and that each callback was called once."""
        assert all(context.cancelled for context in self.all)
        assert all(event.is_set() and event.wait(0) for event in self.events)
        assert sorted(self.called) == sorted(set(self.called)) and {*"0123"} <= {*self.called}
        assert not any(event.callbacks or event.pinned for event in self.events)

    def join(self) -> None:
        """Add a child, callbacks, and a callback that is removed again."""
        child = self.top.with_cancel()
        self.all.append(child)
        self.events.append(child.done)
        child.after_cancel(partial(self.called.append, "child"))
        self.all[1].after_cancel(partial(self.called.append, "late"))
        self.all[1].after_cancel(partial(self.called.append, "taken back"))()


@pytest.mark.parametrize("meanwhile", ["cancel", "join"])
def test_a_tree_is_cancelled_despite_nested_calls(meanwhile: str) -> None:
    """A nested call may cancel or extend the tree at any bytecode."""
    for moment in opcodes("tao.runtime.context", "tao.runtime.cancel_scope"):
        family = Family()
        with moment.calling(family.top.cancel if meanwhile == "cancel" else family.join):
            family.top.cancel("enough")
        assert moment.struck == ("late" in family.called) or meanwhile == "cancel", moment
        family.called = [called for called in family.called if called != "taken back"]
        family.check()


def test_a_tree_is_cancelled_completely_or_not_at_all() -> None:
    """After an exception at any bytecode, the rest can be cancelled."""
    for moment in opcodes(*OF_CONTEXTS):
        family = Family()
        with moment.raising():
            family.top.cancel("enough")
        if not family.top.cancelled:
            assert not family.called and not any(event.is_set() for event in family.events), moment
            family.top.cancel("enough")
        family.check()


def test_callbacks_are_added_or_not() -> None:
    """This holds after an exception at any bytecode; a callback not added is not kept."""
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


def test_nested_requests_get_the_same_event() -> None:
    """After an exception, the next request gets it."""
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


def test_deadlines_after_an_exception_at_any_bytecode() -> None:
    """A deadline that was not set leaves nothing; one that was set fires and is released."""
    for moment in opcodes("tao.runtime.context", "tao.runtime.cancel_scope"):
        made = list[Context]()
        with moment.raising():
            made.append(background().with_timeout(0.001))
        assert made or moment.struck
        assert all(context.wait(PATIENCE) for context in made)
        wait_until(lambda: not shared_wheel._users)


def test_a_signal_handler_may_cancel_the_awaited_context() -> None:
    """At any bytecode of the wait, the wait ends at once."""
    for moment in opcodes(*OF_CONTEXTS):
        context = background().with_cancel().with_cancel()
        with moment.calling(context.cancel):
            context.wait(0.001)
        assert context.wait(PATIENCE if moment.struck else 0) == moment.struck, moment


def test_ctrl_c_in_a_callback_reaches_the_caller() -> None:
    """It is raised after all other callbacks have run."""
    context, called = background().with_cancel(), list[int]()

    def interrupt() -> None:
        raise KeyboardInterrupt

    context.after_cancel(interrupt)
    context.after_cancel(partial(called.append, 1))
    with pytest.raises(KeyboardInterrupt):
        context.cancel()
    assert (called, context.cancelled) == ([1], True)


@pytest.mark.parametrize("whose", ["server", "connection"])
def test_blocking_callbacks_do_not_delay_a_stop(make_server: MakeServer, whose: str) -> None:
    """A stop ends at its deadline, and reports the thread that runs callbacks."""
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


def test_blocking_callbacks_do_not_delay_a_close_or_timers(make_server: MakeServer) -> None:
    """``close`` returns at once, the connection ends, and timers fire."""
    server, address = make_server(idle_timeout=0.01, heartbeat=None)
    gate, blocked = threading.Event(), list[threading.Event]()
    for _ in range(2):
        with socket.create_connection(address) as sock:
            wait_until(lambda: server.connections)
            conn = server.connections[0]
            blocked.append(threading.Event())
            conn.context.after_cancel(lambda: blocked[-1].set() or gate.wait(PATIENCE))
            assert sock.recv(1) == b""  # it was idle for too long
        assert blocked[-1].wait(PATIENCE) and conn.wait_closed(PATIENCE)
    gate.set()
