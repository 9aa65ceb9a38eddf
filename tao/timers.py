"""The timers of one connection, kept together so that they can go together.

There are two kinds. *Clocks* are the connection's own, one for each purpose; they run on the timing
wheel's thread and must be quick. *Timers* are the user's; their callbacks take their turn among the
messages of the connection.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime
from typing import Any

from tao.errors import ConnectionClosed
from tao.message import check_callable
from tao.timing import TimingWheel, delay_until

__all__ = ["ConnectionTimer", "HasTimers", "TimerSet"]

#: Called with the time it was due, an aware datetime, and the connection.
ConnectionTimer = Callable[[datetime, Any], object]


class TimerSet:
    """What one connection has on the timing wheel. Any thread may call any method.

    Args:
        wheel: shared with others.
        post: has a function run in its turn among the messages; never blocks.
    """

    __slots__ = ("_clocks", "_closed", "_lock", "_over", "_post", "_timers", "_wheel")

    def __init__(self, wheel: TimingWheel, post: Callable[[Callable[[], object]], None]) -> None:
        self._wheel = wheel
        self._post = post
        # Guards all below.
        self._lock = threading.Lock()
        self._clocks: dict[str, tuple[TimingWheel, int]] = {}  # by purpose
        self._timers: set[int] = set()
        self._closed: str | None = None  # why no timer may be added any more
        self._over: bool = False  # nor any clock be set

    def __len__(self) -> int:
        """How many timers of the user are pending."""
        return len(self._timers)

    def set_clock(
        self, purpose: str, delay: float, callback: Callable[[], object], *, real: bool = False
    ) -> None:
        """Call ``callback()`` in ``delay`` seconds, in place of the purpose's clock before.

        Args:
            real: the seconds are those of the world outside, whatever kind of wheel this is.
        """
        with self._lock:
            if self._over:
                return
            before = self._clocks.pop(purpose, None)
            if before is not None:
                before[0].cancel(before[1])
            try:
                wheel = self._wheel.in_real_time if real else self._wheel
                self._clocks[purpose] = wheel, wheel.run_clock(delay, lambda _: callback())
            except RuntimeError:
                if self._closed is None:
                    raise
                # The server has stopped, and its wheel: all time is up anyway.

    def add(self, seconds: float, callback: Callable[[datetime], object], *, periodic: bool) -> int:
        """Have ``callback(due)`` take its turn in, or every, so many seconds; return an id.

        A periodic call that is due while the one before still waits for its turn is left out.

        Raises:
            ConnectionClosed: the connection is closed.
            TypeError, ValueError: an argument is wrong.
        """
        timer_id = 0
        waiting = False

        def fire(due: datetime) -> None:
            nonlocal waiting
            with self._lock:  # for timer_id, too: it is known when this is free
                if not periodic:
                    self._timers.discard(timer_id)
            if not waiting:
                waiting = True
                self._wheel.hand_over(self._post, lambda: run(due))

        def run(due: datetime) -> None:
            nonlocal waiting
            waiting = False
            if not periodic or timer_id in self._timers:  # not cancelled while it waited
                callback(due)

        add = self._wheel.run_every if periodic else self._wheel.run_after
        with self._lock:
            if self._closed is not None:
                raise ConnectionClosed(self._closed)
            timer_id = add(seconds, fire)
            self._timers.add(timer_id)
        return timer_id

    def cancel(self, timer_id: int) -> bool:
        """Cancel a timer; tell whether it was pending."""
        with self._lock:
            if timer_id not in self._timers:
                return False
            self._timers.discard(timer_id)
        return self._wheel.cancel(timer_id)

    def close(self, reason: str) -> None:
        """Cancel the user's timers and take no more; clocks go on, for the end to be in order."""
        with self._lock:
            if self._closed is None:
                self._closed = reason
            timers, self._timers = self._timers, set()
        for timer in timers:
            self._wheel.cancel(timer)

    def end(self) -> None:
        """Cancel all that is left."""
        self.close("closed")  # whoever begins the end may not have come to that yet
        with self._lock:
            self._over = True
            clocks = list(self._clocks.values())
        for wheel, clock in clocks:
            wheel.cancel(clock)


class HasTimers:
    """What users do with the timers of a connection. Any thread may call any method."""

    _timers: TimerSet
    _wheel: TimingWheel

    def run_at(self, when: datetime | float, callback: ConnectionTimer) -> int:
        """Call ``callback(due, conn)`` at a time of day; see `run_after`.

        Args:
            when: an aware datetime, or seconds since the Unix epoch; the past means at once.
        """
        return self.run_after(delay_until(when, self._wheel.time_of_day()), callback)

    def run_after(self, delay: float, callback: ConnectionTimer) -> int:
        """Call ``callback(due, conn)`` in ``delay`` seconds, and return the timer's id.

        Callbacks take their turn among the messages of the connection: never two at a time, never
        one beside a handler. They go with the connection.

        Raises:
            ConnectionClosed: the connection is closed.
        """
        return self._add_timer(delay, callback, periodic=False)

    def run_every(self, interval: float, callback: ConnectionTimer) -> int:
        """Call ``callback(due, conn)`` every ``interval`` seconds; else as `run_after`.

        A call that is due while the one before still waits for its turn is left out.
        """
        return self._add_timer(interval, callback, periodic=True)

    def _add_timer(self, seconds: float, callback: ConnectionTimer, *, periodic: bool) -> int:
        if not callable(callback):
            raise TypeError(f"a timer's callback must be callable, not {callback!r}")
        if periodic:  # one that is called once is not worth what that costs
            check_callable("callback", callback, "due", "conn")
        return self._timers.add(seconds, lambda due: callback(due, self), periodic=periodic)

    def cancel_timer(self, timer_id: int) -> bool:
        """Cancel a timer of this connection; tell whether it was pending."""
        return self._timers.cancel(timer_id)
