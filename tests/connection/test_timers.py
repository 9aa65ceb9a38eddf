"""Timers of a connection, whatever interrupts them: each fires as often as it is to, or is gone."""

from __future__ import annotations

import queue
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime, timezone
from typing import Any

import pytest

from tao.connection.application import Application, ApplicationLink
from tao.connection.connection import core_of
from tao.connection.options.definitions import Settings
from tao.connection.timers import TimerSet
from tao.runtime.context import background
from tao.runtime.timing_wheel import TimingWheel
from tao.wire.message import Registry
from tests.ends import MakeServer
from tests.injection import Interruption, Moment, opcodes
from tests.support import PATIENCE, wait_until

pytestmark = pytest.mark.interrupted

WHEEL = ("tao.runtime.timing_wheel", "tao.runtime.timer_heap")
NEVER = 1000.0


@pytest.fixture
def wheel() -> Iterator[TimingWheel]:
    """A wheel that is stopped at the end of the test."""
    made = TimingWheel("test-wheel")
    yield made
    made.stop()


class Turn:
    """A connection with timers: it runs what is posted when it is told to."""

    def __init__(self, wheel: TimingWheel) -> None:
        self.posted: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self.application = Application(self, Settings(), Registry())
        self.timers = TimerSet(wheel, self.posted.put, ApplicationLink(self.application))
        self.calls: list[str] = []

    def call(self, due: Any, conn: Any) -> None:
        self.calls.append("called")

    def run(self) -> None:
        while not self.posted.empty():
            self.posted.get()()


def test_an_exception_in_the_thread_of_the_wheel() -> None:
    """At whatever bytecode it is struck, the callback is called once, and soon."""
    for moment in opcodes("tao.connection.timers", *WHEEL):
        wheel = TimingWheel("test-wheel")
        turn = Turn(wheel)
        with moment.raising(thread="test-wheel"):
            turn.timers.add(0.0, turn.call, periodic=False)
            wait_until(lambda turn=turn: turn.run() or turn.calls)
            wait_until(lambda wheel=wheel: not wheel.size)
        turn.run()
        assert turn.calls == ["called"] and not len(turn.timers), moment
        assert not turn.application.timers, moment
        wheel.stop()


@pytest.mark.parametrize("waits", [False, True])
def test_an_exception_while_it_is_cancelled(wheel: TimingWheel, waits: bool) -> None:
    """It is cancelled as a whole, or not at all, also if it waits for its turn already."""
    for moment in opcodes("tao.connection.timers", *WHEEL):
        turn = Turn(wheel)
        timer = turn.timers.add(NEVER, turn.call, periodic=False)
        if waits:
            turn.timers._timers[timer].fire(datetime.now(timezone.utc))
        with moment.raising():
            turn.timers.cancel(timer)
        pending = len(turn.timers)
        assert wheel.size == len(turn.application.timers) == pending, moment
        turn.run()
        assert len(turn.calls) == (pending if waits else 0), moment
        turn.timers.end()
        wheel.cancel(timer)


def test_a_timer_is_pending_until_its_turn(wheel: TimingWheel) -> None:
    """A callback that waits for a handler to return can still be cancelled."""
    turn = Turn(wheel)
    timer = turn.timers.add(0.0, turn.call, periodic=False)
    wait_until(lambda: not turn.posted.empty())
    assert turn.timers.cancel(timer)
    assert not turn.timers.cancel(timer)
    turn.run()
    assert turn.calls == []


def test_the_deadline_of_a_context() -> None:
    """At whatever bytecode the wheel's thread is struck, the context is cancelled."""
    for moment in opcodes("tao.runtime.context", "tao.runtime.cancel_scope", *WHEEL):
        called: list[str] = []
        with moment.raising(thread="tao-timing-wheel"):
            context = background().with_timeout(0.0)
            context.after_cancel(lambda called=called: called.append("called"))
            below = context.with_cancel()
            assert context.wait(PATIENCE) and below.wait(PATIENCE), moment
            wait_until(lambda called=called: called)
        assert called == ["called"], moment


def test_an_exception_while_a_schedule_is_set(make_server: MakeServer) -> None:
    """At whatever bytecode, no connection keeps a timer of a schedule that nobody can cancel."""
    server, address = make_server()
    with socket.create_connection(address, PATIENCE):
        wait_until(lambda: server.connections)
        timers = core_of(server.connections[0]).timers
        for moment in opcodes(
            "tao.server.schedules", "tao.server.connection", "tao.connection.timers"
        ):
            made: list[int] = []

            def strike(moment: Moment = moment) -> None:
                if moment.possible:
                    raise Interruption

            with suppress(Interruption), moment.calling(strike):
                made.append(server.schedule(NEVER, lambda due, conn: None))
            assert len(timers) == len(made), moment
            for schedule in made:
                server.cancel_schedule(schedule)
            assert not len(timers), moment
