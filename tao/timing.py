"""The timing wheel: one thread that sleeps until the next timer is due.

Guarantees:

- Adding and cancelling cost O(log n) at most; 100 000 pending timers make neither slower in
  practice.
- A periodic timer keeps its phase: it does not drift, and after a stall it fires once, not once for
  each time it missed.
- Time is ``time.monotonic()``: setting the clock moves no timer.
- A cancelled timer frees its callback at once, and its place in the heap before long.

As in the Go original the "wheel" is a binary heap (J. W. J. Williams, 1964); in Python the C heap
of ``heapq`` is several times faster than slots of a hashed wheel (Varghese and Lauck, 1987) would
be. Cancelled entries stay in it until they are due or outnumber the living, then it is rebuilt, at
a constant cost per cancellation.
"""

from __future__ import annotations

import heapq
import itertools
import math
import os
import threading
import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import NamedTuple

from tao.errors import TooManyTimers
from tao.log import logger
from tao.threads import Deadline, gather, spawn

__all__ = ["SharedWheel", "TimerCallback", "TimingWheel", "delay_until", "shared_wheel"]

#: Called with the time at which the timer was due, as an aware datetime in UTC.
TimerCallback = Callable[[datetime], object]

# The heap is rebuilt when it holds more than this and more than half of it is cancelled.
_SMALL_HEAP = 64


class _Timer(NamedTuple):
    callback: TimerCallback
    interval: float  # seconds; 0 for a timer that fires once


class TimingWheel:
    """Timers, and the thread that fires them, started with the first timer.

    All methods may be called from any thread, callbacks included. Callbacks run one after another
    on the wheel's own thread: one that takes long delays all others, so hand work over. (The timers
    of a connection do: they run in that connection's order, elsewhere.) A callback that raises is
    logged, and its timer goes on.

    Args:
        name: of the thread.
        max_pending: how many timers there may be at once, beside those of `run_clock`.
    """

    def __init__(self, name: str = "tao-timing-wheel", max_pending: int = 1_000_000) -> None:
        self._name: str = name
        self._max_pending: int = max_pending
        self._ids = itertools.count(1)
        # Guards all below; notified when the next deadline came nearer or the wheel stops.
        # Reentrant, because the garbage collector may run somebody's finalizer, which may cancel,
        # at any point.
        self._changed = threading.Condition(threading.RLock())
        self._heap: list[tuple[float, int]] = []  # (due, id), cancelled ones too
        self._timers: dict[int, _Timer] = {}  # those not cancelled
        self._thread: threading.Thread | None = None
        self._stopped: bool = False

    def run_at(self, when: datetime | float, callback: TimerCallback) -> int:
        """Call ``callback(due)`` at a time of day and return the timer's id.

        Args:
            when: an aware datetime, or seconds since the Unix epoch; the past means at once. It is
                turned into a delay now: a clock set later does not move it.

        Raises:
            ValueError: ``when`` is a datetime without time zone.
            TooManyTimers: the wheel is full.
        """
        return self._add(delay_until(when, self.time_of_day()), callback, 0.0)

    def run_after(self, delay: float, callback: TimerCallback) -> int:
        """Call ``callback(due)`` once in ``delay`` seconds and return the timer's id."""
        return self._add(_checked("delay", delay, zero=True), callback, 0.0)

    def run_clock(self, delay: float, callback: TimerCallback) -> int:
        """As `run_after`, for the few timers that tao itself needs: they go by no limit.

        However many the user has set, a connection must come to its end in time.
        """
        return self._add(_checked("delay", delay, zero=True), callback, 0.0, limited=False)

    def run_every(self, interval: float, callback: TimerCallback) -> int:
        """Call ``callback(due)`` every ``interval`` seconds, first after one, and return the id."""
        return self._add(_checked("interval", interval), callback, interval)

    def cancel(self, timer_id: int) -> bool:
        """Cancel a timer; tell whether there was one to cancel.

        A callback that is running meanwhile, or just about to, is not waited for.
        """
        with self._changed:
            # Freed after the lock is released: with the callback goes what it holds, whose
            # finalizers are user code.
            timer = self._timers.pop(timer_id, None)
            if len(self._heap) > max(_SMALL_HEAP, 2 * len(self._timers)):
                entries, self._heap = self._heap, []
                self._heap += [entry for entry in entries if entry[1] in self._timers]
                heapq.heapify(self._heap)
        return timer is not None

    @property
    def size(self) -> int:
        """How many timers are pending."""
        return len(self._timers)

    def stop(self, timeout: float | None = 5.0) -> None:
        """Drop all timers and end the thread; called from a callback, it does not wait for it.

        Timers added later raise ``RuntimeError``. Stopping twice is harmless.
        """
        with self._changed:
            self._stopped = True
            dropped, self._timers = self._timers, {}
            self._heap.clear()
            self._changed.notify()
            thread = self._thread
        dropped.clear()  # with the lock released, as in cancel
        if thread is not None:
            gather([thread], Deadline(timeout))

    # -- the time, which another kind of wheel may take from elsewhere, as `Clock` in ``clock.py``

    now = staticmethod(time.monotonic)  # in seconds
    time_of_day = staticmethod(time.time)  # in seconds since the Unix epoch

    @property
    def in_real_time(self) -> TimingWheel:
        """The wheel for what depends on the world outside: the end of a connection, say."""
        return self

    def since(self, moment: float) -> float:
        """Return how long ago a moment of ``time.monotonic()`` was, in seconds of this wheel's."""
        return time.monotonic() - moment

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Wait for an event, so many seconds at most; tell whether it is set."""
        return event.wait(seconds)

    def hand_over(
        self, post: Callable[[Callable[[], object]], object], call: Callable[[], object]
    ) -> None:
        """Have ``post`` see to a call that a timer brought about, on another thread."""
        post(call)

    # -- inside

    def _add(
        self, delay: float, callback: TimerCallback, interval: float, *, limited: bool = True
    ) -> int:
        if not callable(callback):
            raise TypeError(f"a timer's callback must be callable, not {callback!r}")
        due = self.now() + delay
        with self._changed:
            if self._stopped:
                raise RuntimeError(f"the timing wheel {self._name} is stopped")
            if limited and len(self._timers) >= self._max_pending:
                raise TooManyTimers(f"{self._name} has {self._max_pending} timers pending already")
            if self._thread is None:
                # If it cannot be started, there is no timer either, and the next one tries again.
                self._start_thread()
            timer_id = next(self._ids)
            self._timers[timer_id] = _Timer(callback, interval)
            heapq.heappush(self._heap, (due, timer_id))
            if self._heap[0][1] == timer_id:
                self._changed.notify()
        return timer_id

    def _start_thread(self) -> None:
        """Start what will turn the wheel. Needs _changed."""
        thread = spawn(self._turn, name=self._name)
        thread.start()
        self._thread = thread

    def _turn(self) -> None:
        """The wheel's thread: sleep, fire what is due, again."""
        while True:
            with self._changed:
                while (taken := self._take_due()) is None:
                    if self._stopped:
                        return
                    self._changed.wait(self._until_next())
            due, timer = taken
            self._fire(due, timer)
            # A callback's last reference may be ours, and what it holds must not wait for the
            # next timer to be freed.
            del taken, timer

    def _fire(self, due: float, timer: _Timer) -> None:
        try:
            moment = self.time_of_day() + due - self.now()
            timer.callback(datetime.fromtimestamp(moment, timezone.utc))
        except BaseException:
            logger.exception("timer callback {!r} raised", timer.callback)

    def _until_next(self) -> float | None:
        """Seconds until the next timer, None if there is none. Needs _changed."""
        if not self._timers:
            self._heap.clear()
            return None
        return min(max(0.0, self._heap[0][0] - self.now()), threading.TIMEOUT_MAX)

    def _take_due(self) -> tuple[float, _Timer] | None:
        """Take out the timer that is due first, or put it back if periodic. Needs _changed.

        One at a time, so that a callback can still cancel what is due together with its own timer.
        """
        now = self.now()
        while self._heap and self._heap[0][0] <= now:
            due, timer_id = heapq.heappop(self._heap)
            timer = self._timers.get(timer_id)
            if timer is None:
                continue
            if timer.interval:
                again = now - math.fmod(now - due, timer.interval) + timer.interval
                heapq.heappush(self._heap, (max(again, math.nextafter(now, math.inf)), timer_id))
            else:
                self._timers.pop(timer_id, None)
            return due, timer
        return None


class SharedWheel:
    """One timing wheel for all who need one, there as long as someone does.

    Servers, clients and deadlines of contexts take it when they start and give it back when they
    end; with the last one the thread goes too. Any thread may call.
    """

    def __init__(self) -> None:
        # Guards the fields below. Reentrant, because a forgotten client gives the wheel back when
        # the garbage collector finds it, at any point.
        self._lock = threading.RLock()
        self._wheel: TimingWheel | None = None
        self._users: int = 0
        #: What is handed out in its place, if not None: a clock that a test advances.
        self.stand_in: TimingWheel | None = None

    @property
    def wheel(self) -> TimingWheel:
        """The wheel itself, for who has acquired it.

        Raises:
            RuntimeError: nobody has, or not any more.
        """
        wheel = self._wheel
        if wheel is None:
            raise RuntimeError("the shared timing wheel is stopped")
        return wheel

    def acquire(self) -> TimingWheel:
        """Return the wheel; each call wants one `release`."""
        with self._lock:
            self._users += 1
            if self._wheel is None:
                self._wheel = TimingWheel()
            return self.stand_in or self._wheel

    def release(self) -> None:
        """Give the wheel back; the last one stops it, after having cancelled his timers."""
        with self._lock:
            wheel = self._wheel
            assert wheel is not None, "released more often than acquired"
            self._users -= 1
            if self._users:
                return
            self._wheel = None
        wheel.stop()

    def forked(self) -> None:
        """In a child process: the thread is not there, and who held a lock is not either."""
        self._lock = threading.RLock()
        if self._wheel is not None:
            self._wheel = TimingWheel()


shared_wheel = SharedWheel()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=shared_wheel.forked)


def delay_until(when: datetime | float, now: float | None = None) -> float:
    """Return the seconds until a time of day, 0 for the past.

    Args:
        when: as for `TimingWheel.run_at`.
        now: in seconds since the Unix epoch; None: what the system's clock says.

    Raises:
        ValueError: a datetime without time zone, which could mean anything.
    """
    if isinstance(when, datetime):
        if when.utcoffset() is None:
            raise ValueError(f"run_at needs a datetime with a time zone, not {when!r}")
        when = when.timestamp()
    elif not isinstance(when, (int, float)) or isinstance(when, bool):
        raise TypeError(f"when must be a datetime or a timestamp in seconds, not {when!r}")
    if not math.isfinite(when):
        raise ValueError(f"when must be a finite timestamp, not {when!r}")
    return max(0.0, when - (time.time() if now is None else now))


def _checked(what: str, seconds: float, *, zero: bool = False) -> float:
    if not isinstance(seconds, (int, float)) or isinstance(seconds, bool):
        raise TypeError(f"{what} must be a number of seconds, not {seconds!r}")
    if not math.isfinite(seconds) or seconds < 0 or (seconds == 0 and not zero):
        kind = "zero or a positive" if zero else "a positive"
        raise ValueError(f"{what} must be {kind} number of seconds, not {seconds!r}")
    return seconds
