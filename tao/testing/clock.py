"""A clock that a test advances instead of waiting for heartbeats, timeouts, timers and back-off.

It is a timing wheel that is turned by hand. Servers and clients that come to life while it is in
force take it for theirs. What stamps the hot path sets (when bytes last came, when some were last
sent) remain ``time.monotonic()``: seen from there, this clock stands still and jumps, and it keeps
a list of its jumps, so it can tell what its time was at any such moment. So a connection costs not
an instruction more for being testable.
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

from tao.runtime.agenda import Agenda
from tao.runtime.threads import as_tao_thread, in_tao_thread
from tao.runtime.timing_wheel import TimingWheel, shared_wheel
from tao.runtime.wakeup import Notifier, Waitable

__all__ = ["Clock"]

# Sums of floating-point seconds are not exact; what is due within this of the time is due.
_SLACK = 1e-9
# How often a thread that waits on the clock looks whether it has been woken otherwise, in seconds.
_LOOK = 0.002


class Clock(TimingWheel):
    """Time that passes when `advance` is called, and not otherwise.

    Servers started and clients made inside of its ``with`` block live by it, in the whole process,
    and go on doing so afterwards. By it go heartbeats, ``idle_timeout`` and ``write_timeout``, the
    back-off of ``reconnect``, timers and schedules, deadlines of contexts (``with_timeout``), and
    ``last_heartbeat``. By real time go, as other programs do: connecting, handshakes, the end of
    connections, the stop of a server; and waits of a thread of your own: ``ctx.wait(seconds)``,
    ``write(timeout=...)``.

    It is a `TimingWheel`, so it has timers of its own too, which run on the thread that advances.
    All methods may be called from any thread, but `advance` not by a handler or callback.

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
        start: the time of day at the beginning, as an aware datetime or in seconds since the Unix
            epoch; None: the real one.
    """

    def __init__(self, start: datetime | float | None = None) -> None:
        super().__init__("tao.testing.Clock")
        if isinstance(start, datetime):
            if start.utcoffset() is None:
                raise ValueError(f"start needs a time zone, not {start!r}")
            start = start.timestamp()
        self._start: float = time.time() if start is None else start
        # What belongs to the thread that advances the clock, while one does.
        self._turned = Agenda()
        # That thread. It alone changes the two that follow.
        self._advancer: dict[str, int] = {}
        self._time: float = 0.0
        self._jumps: list[tuple[float, float]] = [(time.monotonic(), 0.0)]  # when, and to what
        self._under_way: dict[object, None] = {}  # calls that timers brought about elsewhere
        self._waiting: dict[object, float] = {}  # until when threads wait
        self._changed = Notifier()  # tells of changes to these and to _advancer

    def advance(self, seconds: float, *, patience: float = 10.0) -> None:
        """Let time pass: call all that is due, in order, each at the time it is due.

        When it returns the callbacks have returned, also those of connections, which run elsewhere,
        in their turn among the messages. What they caused beyond (something was sent, a connection
        begins to close) may still be on its way. A client that waits before it dials again does so
        when this returns; see `wait_for_back_off`.

        Args:
            seconds: how far; 0 calls what is due already.
            patience: real seconds that one callback may take.

        Raises:
            TimeoutError: a callback took longer, or waits behind a handler that does.
            RuntimeError: called by a handler or callback, which would wait for itself.
            ValueError: ``seconds`` is negative.
        """
        if not seconds >= 0:
            raise ValueError(f"time does not go back: seconds must be 0 or more, not {seconds!r}")
        if in_tao_thread():
            raise RuntimeError("a clock cannot be advanced by a handler or callback")
        me = threading.get_ident()
        if self._advancer.get("thread") == me:
            raise RuntimeError("a clock cannot be advanced while this thread advances it")
        try:
            try:
                self._changed.wait_for(lambda: self._advancer.setdefault("thread", me) == me)
                self._turned.rebuild(
                    self._timers
                )  # a thread may have been interrupted while it changed the heap
                target = self._time + seconds
                while self._go_on(target):
                    self._wait_for_calls(patience)
            finally:
                self._let_go(me)
        finally:
            self._let_go(me)  # in case that an exception came in between before it did

    def wait_for_back_off(self, count: int = 1, timeout: float = 10.0) -> list[float]:
        """Wait until so many clients wait on this clock before they dial again.

        A client notices the loss of its connection, and that an attempt failed, a little later than
        it happens; time that passes before it begins to wait does not count for it.

        Returns:
            for how many seconds each still does, the shortest first.

        Raises:
            TimeoutError: there were not so many within ``timeout`` real seconds.
        """
        if not self._changed.wait_for(lambda: len(self._still()) >= count, timeout):
            raise TimeoutError(f"{len(self._still())} of {count} clients wait on the clock")
        return self._still()

    def __enter__(self) -> Clock:
        if shared_wheel.stand_in is not None:
            raise RuntimeError("another clock is in force")
        shared_wheel.stand_in = self
        return self

    def __exit__(self, *exc_info: object) -> None:
        shared_wheel.stand_in = None

    def __repr__(self) -> str:
        return f"<Clock: {self._time:g} s, {self.size} timers>"

    # -- what the timing wheel does otherwise

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
            # A thread can wait for one thing only, and it is woken for the event at once.
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
        self._turned.add(due, timer_id)  # the thread that advances the clock turns it

    # -- inside

    def _let_go(self, me: int) -> None:
        """Let another thread advance the clock, if this one does."""
        if self._advancer.get("thread") == me:
            self._advancer.pop("thread", None)
        self._changed.notify_all()

    def _go_on(self, target: float) -> bool:
        """Call what is due next; when nothing is before the target, go there and return False."""
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
        """Make it later, if it is not."""
        if to > self._time:
            self._jumps.append((time.monotonic(), to))
            self._time = to

    def _still(self) -> list[float]:
        """For how long threads still wait."""
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
    """A call on its way, which has ended when it has returned, or when it was dropped unmade."""

    __slots__ = ("_call", "_ended")

    def __init__(self, call: Callable[[], object], ended: Callable[[], object]) -> None:
        self._call = call
        self._ended: Callable[[], object] = ended  # called twice, the second time in vain

    def __call__(self) -> None:
        try:
            self._call()
        finally:
            self._ended()

    def __del__(self) -> None:
        self._ended()
