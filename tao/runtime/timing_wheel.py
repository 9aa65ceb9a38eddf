"""The timing wheel: one thread that sleeps until the next timer is due.

Guarantees:

- Adding and cancelling never block: they may be called from any thread, callback, signal handler or
  finalizer. Their cost does not depend on the number of pending timers.
- A periodic timer keeps its phase: it does not drift, and after a stall it fires once, not once
  for each missed interval.
- Time is ``time.monotonic()``: setting the system clock moves no timer.
- A cancelled timer frees its callback at once, and its place in the heap soon after.
- If an exception is raised between any two bytecodes of a call (by a signal handler, or by
  ``PyThreadState_SetAsyncExc``), the timer either exists or does not. If it hits the wheel's
  thread, all timers still fire, and the thread continues or is replaced.

There is no lock. The state is a dict of all pending timers; each operation changes one entry, in
one step of the interpreter.

The state of the wheel's thread is its timer heap (``timer_heap.py``). A thread installs its heap
when it has started, and only the installed heap counts. So a thread that failed to start leaves no
trace, and the state of one that has died is discarded. Adding a timer puts it into the dict, then
checks the installed heap; a new thread installs its heap, then reads the dict. So no timer is
missed. If the installed heap has no living thread, adding a timer starts one.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable, Hashable
from datetime import datetime, timezone

from tao.atomic import AtomicReference, pop_and_call
from tao.callables import check_quickly
from tao.errors import TooManyTimers
from tao.runtime.deadline import Deadline, is_finite
from tao.runtime.forks import renew_after_fork
from tao.runtime.log import logger
from tao.runtime.threads import gather, spawn
from tao.runtime.timer_heap import Timer, TimerCallback, TimerHeap
from tao.runtime.wakeup import Waitable

__all__ = ["SharedWheel", "TimerCallback", "TimingWheel", "delay_until", "shared_wheel"]

# The shortest delay before an interrupted callback is called again, in seconds.
_AGAIN = 0.01
# How long the last user of the shared wheel waits for its thread to end, in seconds.
_JOIN_TIMEOUT = 1.0


class TimingWheel:
    """Timers, and the thread that fires them, started with the first timer.

    All methods may be called from any thread, callback, signal handler or finalizer. Callbacks run
    one after another on the wheel's thread, so a slow one delays all others: pass long work to
    another thread. (The timers of a connection do: they run in order with the connection's
    messages, on its threads.) If a callback raises, that is logged and its timer continues.

    Args:
        name: of the thread.
        max_pending: how many timers may be pending at once, not counting those of `run_clock`.
    """

    def __init__(self, name: str = "tao-timing-wheel", max_pending: int = 1_000_000) -> None:
        self._name: str = name
        self._max_pending: int = max_pending
        self._ids = itertools.count(1)
        # All pending timers. The call that removes an entry owns the timer: `cancel`, or the
        # wheel's thread, which fires it.
        self._timers: dict[int, Timer] = {}
        self._stopped: bool = False  # never reset
        # The heap in effect. A thread ends when another thread's heap is installed here.
        self._heap: AtomicReference[TimerHeap | None] = AtomicReference(None)

    def reserve_id(self) -> int:
        """Return a unique id for a timer.

        With it a timer can be cancelled even if an exception interrupts the method that adds it
        before that method returns.
        """
        return next(self._ids)

    def run_at(self, when: datetime | float, callback: TimerCallback) -> int:
        """Call ``callback(due)`` at a time of day and return the timer's id.

        Args:
            when: an aware datetime, or seconds since the Unix epoch; a time in the past means at
                once. It is converted to a delay now, so setting the clock later has no effect.

        Raises:
            ValueError: ``when`` is a datetime without time zone.
            TooManyTimers: the wheel is full.
        """
        return self._add(delay_until(when, self.time_of_day()), callback, 0.0)

    def run_after(self, delay: float, callback: TimerCallback, timer_id: int | None = None) -> int:
        """Call ``callback(due)`` once after ``delay`` seconds and return the timer's id.

        Args:
            timer_id: an id from `reserve_id` for this timer; None: a new one.
        """
        return self._add(_checked("delay", delay, zero=True), callback, 0.0, timer_id)

    def run_clock(self, delay: float, callback: TimerCallback, timer_id: int | None = None) -> int:
        """Do as `run_after`, without a limit; for the few timers that tao itself needs.

        A connection must be closed in time, however many timers the application has set. If the
        callback raises or is interrupted, it is called again after the same delay.
        """
        delay = _checked("delay", delay, zero=True)
        again = max(delay, _AGAIN)
        return self._add(delay, callback, again, timer_id, until_done=True, limited=False)

    def run_until_done(
        self, delay: float, callback: TimerCallback, timer_id: int | None = None
    ) -> int:
        """Do as `run_after`; but if the callback raises or is interrupted, call it again soon."""
        delay = _checked("delay", delay, zero=True)
        return self._add(delay, callback, _AGAIN, timer_id, until_done=True)

    def run_every(
        self, interval: float, callback: TimerCallback, timer_id: int | None = None
    ) -> int:
        """Call ``callback(due)`` every ``interval`` seconds, first after one; return the id."""
        return self._add(_checked("interval", interval), callback, interval, timer_id)

    def cancel(self, timer_id: int) -> bool:
        """Cancel a timer; return whether it was pending.

        Does not wait for a callback that is running or about to run.
        """
        timer = self._timers.pop(timer_id, None)
        heap = self._heap.get()
        if heap is not None and heap.wants_clearing(self._timers):
            heap.wakeup.set()
        return timer is not None

    @property
    def size(self) -> int:
        """How many timers are pending."""
        return len(self._timers)

    @property
    def thread(self) -> threading.Thread | None:
        """The current or last thread of the wheel; None before the first timer."""
        heap = self._heap.get()
        return None if heap is None else heap.thread

    def stop(self, timeout: float | None = 5.0) -> None:
        """Cancel all timers, end the thread and wait for it up to ``timeout`` seconds.

        Called from a callback, it does not wait. Adding a timer later raises ``RuntimeError``.
        Stopping twice is harmless.
        """
        try:
            self._stopped = True
        finally:
            self._timers.clear()
            heap = self._heap.get()
            if heap is not None:
                heap.wakeup.set()
        thread = self.thread
        if thread is not None:
            gather([thread], Deadline(timeout))

    # -- the time, overridden by `Clock` in ``testing/clock.py``

    now = staticmethod(time.monotonic)  # in seconds
    time_of_day = staticmethod(time.time)  # in seconds since the Unix epoch

    @property
    def in_real_time(self) -> TimingWheel:
        """The wheel for timers that must follow real time, such as the closing of a connection."""
        return self

    def since(self, moment: float) -> float:
        """Return the seconds of this wheel since ``moment``, a value of ``time.monotonic()``."""
        return time.monotonic() - moment

    def wait(self, event: Waitable, seconds: float) -> bool:
        """Wait up to ``seconds`` for an event; return whether it is set."""
        return event.wait(seconds)

    def hand_over(
        self, post: Callable[[Callable[[], object]], object], call: Callable[[], object]
    ) -> None:
        """Pass a call caused by a timer to ``post``, which runs it on another thread."""
        post(call)

    # -- inside, in any thread

    def _add(
        self,
        delay: float,
        callback: TimerCallback,
        interval: float,
        timer_id: int | None = None,
        *,
        until_done: bool = False,
        limited: bool = True,
    ) -> int:
        if not callable(callback):
            raise TypeError(f"a timer's callback must be callable, not {callback!r}")
        if limited:
            check_quickly("callback", callback, "due")
        due = self.now() + delay
        if timer_id is None:
            timer_id = next(self._ids)
        try:
            self._timers[timer_id] = Timer(due, interval, callback, until_done)
            # Checked after adding, while `stop` sets the flag before it clears the timers: one of
            # the two sees the other.
            if self._stopped:
                raise RuntimeError(f"the timing wheel {self._name} is stopped")
            if limited and len(self._timers) > self._max_pending:
                text = f"{self._name} has {self._max_pending} timers pending already"
                raise TooManyTimers(text)
            self._tell(due, timer_id)
            return timer_id
        except BaseException:
            # The caller gets no id, so the timer must not exist: also if the thread could not be
            # started, or a signal handler raises here.
            self._timers.pop(timer_id, None)
            raise

    def _tell(self, due: float, timer_id: int) -> None:
        """Pass a timer to the thread, or start a thread, which finds the timer in the dict."""
        heap = self._heap.get()
        if heap is not None and heap.alive:
            heap.add(due, timer_id)
            return
        new = TimerHeap()
        new.thread = spawn(self._turn, new, name=self._name, failed=lambda error: self._turn(new))
        new.thread.start()
        self._put_in_place(new)  # so that a concurrent stop waits for the thread

    def _put_in_place(self, heap: TimerHeap) -> None:
        """Install a heap, unless another one with a living thread is installed.

        Called by the heap's thread and by the thread that has started it, in any order.
        """
        before, now = self._heap.update(
            lambda latest: latest if latest is not None and latest.alive else heap
        )
        if before is not None and before is not now:
            before.wakeup.set()  # in case its thread is alive after all: it has to end

    # -- inside, on the wheel's thread

    def _turn(self, heap: TimerHeap) -> None:
        """Run the wheel's thread: sleep and fire due timers; after an interruption, start over.

        If several threads start at once, only the first continues.
        """
        self._put_in_place(heap)
        while self._is_to_turn(heap):
            try:
                heap.rebuild(self._timers)
                self._run(heap)
            except BaseException:
                logger.exception("the timing wheel {} was interrupted and continues", self._name)

    def _is_to_turn(self, heap: TimerHeap) -> bool:
        """Return whether this heap is installed and the wheel is not stopped."""
        return not self._stopped and self._heap.get() is heap

    def _run(self, heap: TimerHeap) -> None:
        timers = self._timers
        while self._is_to_turn(heap):
            heap.take_in(timers)
            # One at a time, so that a callback can cancel another timer that is due as well.
            first = heap.first(timers)
            if first is None:
                heap.sleep(math.inf, self.now)
            elif first[0] > self.now():
                heap.sleep(first[0], self.now)
            else:
                self._fire(first[1], heap)

    def _fire(self, timer_id: int, heap: TimerHeap) -> None:
        """Call the callback of a timer, unless the timer has been cancelled meanwhile."""
        timer = self._timers.get(timer_id)
        if timer is None:
            return
        callback, moment = timer.callback, self._utc(timer.due)
        if timer.interval:
            heap.put_off(timer_id, timer, self.now())
        try:
            if timer.interval:
                callback(moment)
                if timer.until_done:
                    self._timers.pop(timer_id, None)
            else:
                pop_and_call(self._timers, timer_id, "callback", moment)
        except BaseException:
            logger.exception("timer callback {!r} raised", callback)

    def _utc(self, due: float) -> datetime:
        """Convert a due time to an aware datetime."""
        moment = self.time_of_day() + due - self.now()
        try:
            return datetime.fromtimestamp(moment, timezone.utc)
        except (OverflowError, OSError, ValueError):  # the system clock is out of range
            return datetime.max.replace(tzinfo=timezone.utc)


class SharedWheel:
    """One timing wheel shared by all users; it exists while there is a user.

    Servers, clients and context deadlines acquire it when they start and release it when they end.
    The last release ends the thread. May be called from any thread, signal handler or finalizer.
    """

    def __init__(self) -> None:
        # The users that have acquired the wheel and not released it.
        self._users: dict[Hashable, None] = {}
        # Usually one; briefly two, if a user acquires the wheel while the last one releases it.
        self._wheels: dict[_Shared, None] = {}
        #: Returned instead of the wheel if not None: a clock that a test advances.
        self.stand_in: TimingWheel | None = None

    @property
    def wheel(self) -> TimingWheel:
        """The wheel itself, for users that have acquired it.

        Raises:
            RuntimeError: there are no users.
        """
        if not self._users:
            raise RuntimeError("the shared timing wheel is stopped")
        return self._current()

    def acquire(self, user: Hashable) -> TimingWheel:
        """Return the wheel, which runs at least until `release` is called for this user."""
        try:
            self._users[user] = None
            return self.stand_in or self._current()
        except BaseException:
            self.release(user)
            raise

    def release(self, user: Hashable) -> None:
        """Release the wheel; the last release stops it. Does nothing for an unknown user."""
        try:
            self._users.pop(user, None)
            self._stop_unused()
        except BaseException:
            # All steps may be repeated.
            self._users.pop(user, None)
            self._stop_unused()
            raise

    def forked(self) -> None:
        """Forget the wheels in a child process, where their threads do not exist."""
        self._wheels = {}

    def _current(self) -> _Shared:
        for wheel in list(self._wheels):
            if not wheel.retired:
                return wheel
        wheel = _Shared()
        self._wheels[wheel] = None
        return wheel

    def _stop_unused(self) -> None:
        if self._users:
            return
        wheels = list(self._wheels)
        for wheel in wheels:
            wheel.retired = True
        # A user is added before it checks whether a wheel is retired. So if there is no user now,
        # none has one of these wheels, and none will get one.
        if not self._users:
            for wheel in wheels:
                wheel.stop(_JOIN_TIMEOUT)
                self._wheels.pop(wheel, None)


class _Shared(TimingWheel):
    """A shared wheel; once retired, it is not handed out any more."""

    retired: bool = False


shared_wheel = SharedWheel()
renew_after_fork(shared_wheel, lambda wheel, reason: wheel.forked())


def delay_until(when: datetime | float, now: float | None = None) -> float:
    """Return the seconds until a time of day, 0 if it is in the past.

    Args:
        when: as for `TimingWheel.run_at`.
        now: in seconds since the Unix epoch; None: the system clock.

    Raises:
        ValueError: a datetime without time zone, or a time that is not finite.
    """
    if isinstance(when, datetime):
        if when.utcoffset() is None:
            raise ValueError(f"run_at needs a datetime with a time zone, not {when!r}")
        when = when.timestamp()
    elif not isinstance(when, (int, float)) or isinstance(when, bool):
        raise TypeError(f"when must be a datetime or a timestamp in seconds, not {when!r}")
    if not is_finite(when):
        raise ValueError(f"when must be a finite timestamp, not {when!r}")
    return max(0.0, when - (time.time() if now is None else now))


def _checked(what: str, seconds: float, *, zero: bool = False) -> float:
    if not isinstance(seconds, (int, float)) or isinstance(seconds, bool):
        raise TypeError(f"{what} must be a number of seconds, not {seconds!r}")
    if not is_finite(seconds) or seconds < 0 or (seconds == 0 and not zero):
        kind = "zero or a positive" if zero else "a positive"
        raise ValueError(f"{what} must be {kind} number of seconds, not {seconds!r}")
    return seconds
