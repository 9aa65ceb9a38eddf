"""A clock that a test advances instead of waiting for heartbeats, timeouts, timers and back-off.

It is a timing wheel that is advanced by hand. Servers and clients that are started while it is
active use it. The timestamps of the hot path (when bytes were last received or sent) still come
from ``time.monotonic()``. In that time this clock stands still and jumps. It records its jumps, so
it can convert such a timestamp to its own time. So testability costs a connection nothing.
"""

from __future__ import annotations

import bisect
import math
import threading
import time
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any

from tao.runtime.threads import as_tao_thread, in_tao_thread
from tao.runtime.timer_heap import TimerHeap
from tao.runtime.timing_wheel import TimingWheel, shared_wheel
from tao.runtime.wakeup import Notifier, Waitable

__all__ = ["Clock"]

# Tolerance for rounding errors of floating-point seconds.
_SLACK = 1e-9
# How often a thread that waits on the clock checks whether its event is set, in seconds.
_LOOK = 0.002


class Clock(TimingWheel):
    """A clock whose time passes only when `advance` is called.

    Servers started and clients made inside its ``with`` block use it, in the whole process, and
    keep using it afterwards. It drives heartbeats, ``idle_timeout`` and ``write_timeout``, the
    back-off of ``reconnect``, timers and schedules, context deadlines (``with_timeout``) and
    ``last_heartbeat``. Real time drives what depends on other programs (connecting, handshakes,
    closing connections, stopping a server) and explicit waits (``ctx.wait(seconds)``,
    ``write(timeout=...)``).

    It is a `TimingWheel`, so it can have timers of its own, which run on the thread that advances.
    All methods may be called from any thread, but `advance` not from a handler or callback.

    ::

        import tao.testing

        with tao.testing.Clock() as clock, tao.testing.serving(idle_timeout=60) as server:
            client = tao.testing.RecordingClient(server, heartbeat=None)
            clock.advance(59)
            assert not client.closed
            clock.advance(1)
            assert client.expect_closed() == "peer closed"
            client.close()

    Args:
        start: the initial time of day, as an aware datetime or in seconds since the Unix epoch;
            None: the current time.
    """

    def __init__(self, start: datetime | float | None = None) -> None:
        super().__init__("tao.testing.Clock")
        if isinstance(start, datetime):
            if start.utcoffset() is None:
                raise ValueError(f"start needs a time zone, not {start!r}")
            start = start.timestamp()
        self._start: float = time.time() if start is None else start
        # Owned by the thread that advances the clock.
        self._turned = TimerHeap()
        # The ident of that thread, which alone changes the next two.
        self._advancer: dict[str, int] = {}
        self._time: float = 0.0
        # For each jump the monotonic time and the new time of this clock.
        self._jumps: list[tuple[float, float]] = [(time.monotonic(), 0.0)]
        self._under_way: dict[object, None] = {}  # calls from timers, running on other threads
        self._waiting: dict[object, float] = {}  # the times until which threads wait
        self._changed = Notifier()  # notified when these or _advancer change

    def advance(self, seconds: float, *, patience: float = 10.0) -> None:
        """Advance the time, and fire the timers that are due, in order, each at its due time.

        On return all callbacks have returned, including those of connections, which run on other
        threads in order with the messages. Their effects (a message sent, a connection that begins
        to close) may still be in progress. A client whose back-off has ended dials again after
        this returns; see `wait_for_back_off`.

        Args:
            seconds: how far; 0 fires only what is already due.
            patience: real seconds that one callback may take.

        Raises:
            TimeoutError: a callback took longer, or waits for a handler before it.
            RuntimeError: called from a handler or callback, which would wait for itself.
            ValueError: ``seconds`` is negative.
        """
        if not seconds >= 0:
            raise ValueError(f"time does not go back: seconds must be 0 or more, not {seconds!r}")
        if in_tao_thread():
            raise RuntimeError("a clock cannot be advanced from a handler or callback")
        me = threading.get_ident()
        if self._advancer.get("thread") == me:
            raise RuntimeError("a clock cannot be advanced while this thread advances it")
        try:
            try:
                self._changed.wait_for(lambda: self._advancer.setdefault("thread", me) == me)
                # An earlier call may have been interrupted while it changed the heap.
                self._turned.rebuild(self._timers)
                target = self._time + seconds
                while self._go_on(target):
                    self._wait_for_calls(patience)
            finally:
                self._let_go(me)
        finally:
            self._let_go(me)  # in case an exception has interrupted the first call

    def wait_for_back_off(self, count: int = 1, timeout: float = 10.0) -> list[float]:
        """Wait until ``count`` clients are in the back-off before they dial again.

        A client notices a lost connection or a failed attempt a little later than it happens. Time
        that passes before its back-off begins does not count.

        Returns:
            the remaining back-off of each client in seconds, the shortest first.

        Raises:
            TimeoutError: fewer clients were waiting after ``timeout`` real seconds.
        """
        if not self._changed.wait_for(lambda: len(self._still()) >= count, timeout):
            raise TimeoutError(f"{len(self._still())} of {count} clients wait on the clock")
        return self._still()

    def __enter__(self) -> Clock:
        if shared_wheel.stand_in is not None:
            raise RuntimeError("another clock is active")
        shared_wheel.stand_in = self
        return self

    def __exit__(self, *exc_info: object) -> None:
        shared_wheel.stand_in = None

    def __repr__(self) -> str:
        return f"<Clock: {self._time:g} s, {self.size} timers>"

    # -- overridden methods of the timing wheel

    def now(self) -> float:
        """Return how far the clock has been advanced, in seconds."""
        return self._time

    def time_of_day(self) -> float:
        """Return the time of day by this clock, in seconds since the Unix epoch."""
        return self._start + self._time

    @property
    def in_real_time(self) -> TimingWheel:
        return shared_wheel.wheel

    def since(self, moment: float) -> float:
        jumps = self._jumps
        number = bisect.bisect_right(jumps, (moment, math.inf))
        return self._time - jumps[max(number - 1, 0)][1]

    def wait(self, event: Waitable, seconds: float) -> bool:
        key = object()
        until = self._time + seconds
        try:
            self._waiting[key] = until
            self._changed.notify_all()
            # A thread can wait for one object only: the event, which wakes it at once.
            while self._time + _SLACK < until:
                if event.wait(_LOOK):
                    return True
            return event.is_set()
        finally:
            self._waiting.pop(key, None)

    def hand_over(self, post: Callable[[Any], object], call: Callable[[], object]) -> None:
        key = object()
        try:
            self._under_way[key] = None
            post(_Call(call, partial(self._call_ended, key)))
        except BaseException:
            self._call_ended(key)
            raise

    def _tell(self, due: float, timer_id: int) -> None:
        self._turned.add(due, timer_id)  # processed by the thread that advances the clock

    # -- inside

    def _let_go(self, me: int) -> None:
        """Release the right to advance the clock, if this thread has it."""
        if self._advancer.get("thread") == me:
            self._advancer.pop("thread", None)
        self._changed.notify_all()

    def _go_on(self, target: float) -> bool:
        """Fire the next timer; if none is due by the target, jump there and return False."""
        self._turned.take_in(self._timers)
        first = self._turned.first(self._timers)
        if first is None or first[0] > target + _SLACK:
            self._jump(target)
            return False
        self._jump(first[0])
        with as_tao_thread():
            self._fire(first[1], self._turned)
        return True

    def _jump(self, to: float) -> None:
        """Move the time forward, never back."""
        if to > self._time:
            self._jumps.append((time.monotonic(), to))
            self._time = to

    def _still(self) -> list[float]:
        """Return the seconds for which threads still wait."""
        left = sorted(until - self._time for until in list(self._waiting.values()))
        return [seconds for seconds in left if seconds > _SLACK]

    def _call_ended(self, key: object) -> None:
        self._under_way.pop(key, None)
        self._changed.notify_all()

    def _wait_for_calls(self, patience: float) -> None:
        if not self._changed.wait_for(lambda: not self._under_way, patience):
            raise TimeoutError(
                f"a timer's callback has not returned after {patience} s: either it waits "
                f"for something, or a handler before it on its connection does"
            )


class _Call:
    """A call on another thread; it ends when it returns, or when it is discarded without a call."""

    __slots__ = ("_call", "_ended")

    def __init__(self, call: Callable[[], object], ended: Callable[[], object]) -> None:
        self._call = call
        self._ended: Callable[[], object] = ended  # may be called twice; the second has no effect

    def __call__(self) -> None:
        try:
            self._call()
        finally:
            self._ended()

    def __del__(self) -> None:
        self._ended()
