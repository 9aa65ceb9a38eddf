"""The timing wheel: one thread that sleeps until the next timer is due.

Guarantees:

- Adding and cancelling wait for nobody: they may be called from any thread, callback, signal
  handler or finalizer. They cost the same however many timers are pending.
- A periodic timer keeps its phase: it does not drift, and after a stall it fires once, not once
  for each time it missed.
- Time is ``time.monotonic()``: setting the clock moves no timer.
- A cancelled timer frees its callback at once, and its place in the heap before long.
- After an exception that was raised between any two bytecodes (by a signal handler, or by
  ``PyThreadState_SetAsyncExc``) in one of these calls, the timer is there or it is not; in the
  wheel's own thread, all timers are there and fire, and that thread goes on or has a successor.

There is no lock. What counts is a dict of all pending timers, of which each operation changes one
entry, in one step of the interpreter.

What a thread knows, and what others know of it, is its agenda (``agenda.py``). It is put in place
once the thread is up, and one counts at a time. So a thread that never came up has left no trace,
and the state of one that has died goes with it. Adding a timer puts it into the dict, then looks at
the agenda; a new thread puts its agenda in place, then looks at the dict. So each timer is seen. If
no living thread has the agenda, adding a timer starts one.
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
from tao.runtime.agenda import Agenda, Timer, TimerCallback
from tao.runtime.deadline import Deadline
from tao.runtime.forks import renew_after_fork
from tao.runtime.log import logger
from tao.runtime.threads import gather, spawn
from tao.runtime.wakeup import Waitable

__all__ = ["SharedWheel", "TimerCallback", "TimingWheel", "delay_until", "shared_wheel"]

# A clock whose callback was interrupted is called again after not less than so many seconds.
_AGAIN = 0.01
# How long the last user of the shared wheel waits for its thread to end, in seconds.
_JOIN_TIMEOUT = 1.0


class TimingWheel:
    """Timers, and the thread that fires them, started with the first timer.

    All methods may be called from any thread, callbacks, signal handlers and finalizers included.
    Callbacks run one after another on the wheel's own thread: one that takes long delays all
    others, so hand work over. (The timers of a connection do: they run in that connection's order,
    elsewhere.) A callback that raises is logged, and its timer goes on.

    Args:
        name: of the thread.
        max_pending: how many timers there may be at once, beside those of `run_clock`.
    """

    def __init__(self, name: str = "tao-timing-wheel", max_pending: int = 1_000_000) -> None:
        self._name: str = name
        self._max_pending: int = max_pending
        self._ids = itertools.count(1)
        # All timers that are neither cancelled nor have fired for the last time. Whoever takes one
        # out owns it: a call of `cancel`, or the thread, which fires it.
        self._timers: dict[int, Timer] = {}
        self._stopped: bool = False  # only ever set
        # The one that counts. A thread that finds another's here ends.
        self._agenda: AtomicReference[Agenda | None] = AtomicReference(None)

    def reserve_id(self) -> int:
        """Return an id for a timer, which is the only one to have it.

        For who must be able to cancel a timer even if an exception comes in between before the
        method that adds it has returned the id.
        """
        return next(self._ids)

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

    def run_after(self, delay: float, callback: TimerCallback, timer_id: int | None = None) -> int:
        """Call ``callback(due)`` once in ``delay`` seconds and return the timer's id.

        Args:
            timer_id: one that `reserve_id` has returned, to be this timer's.
        """
        return self._add(_checked("delay", delay, zero=True), callback, 0.0, timer_id)

    def run_clock(self, delay: float, callback: TimerCallback, timer_id: int | None = None) -> int:
        """As `run_after`, for the few timers that tao itself needs: they go by no limit.

        However many the user has set, a connection must come to its end in time. And if the
        callback raises, or an exception from outside keeps it from returning, it is called again
        after as much time.
        """
        delay = _checked("delay", delay, zero=True)
        return self._add(delay, callback, max(delay, _AGAIN), timer_id, until_done=True)

    def run_every(
        self, interval: float, callback: TimerCallback, timer_id: int | None = None
    ) -> int:
        """Call ``callback(due)`` every ``interval`` seconds, first after one, and return the id."""
        return self._add(_checked("interval", interval), callback, interval, timer_id)

    def cancel(self, timer_id: int) -> bool:
        """Cancel a timer; tell whether there was one to cancel.

        A callback that is running meanwhile, or just about to, is not waited for.
        """
        timer = self._timers.pop(timer_id, None)
        agenda = self._agenda.get()
        if agenda is not None and agenda.wants_clearing(self._timers):
            agenda.wakeup.set()
        return timer is not None

    @property
    def size(self) -> int:
        """How many timers are pending."""
        return len(self._timers)

    @property
    def thread(self) -> threading.Thread | None:
        """The thread that fires them, or the last that did; None: there was none yet."""
        agenda = self._agenda.get()
        return None if agenda is None else agenda.thread

    def stop(self, timeout: float | None = 5.0) -> None:
        """Drop all timers and end the thread; called from a callback, it does not wait for it.

        Timers added later raise ``RuntimeError``. Stopping twice is harmless.
        """
        try:
            self._stopped = True
        finally:
            self._timers.clear()
            agenda = self._agenda.get()
            if agenda is not None:
                agenda.wakeup.set()
        thread = self.thread
        if thread is not None:
            gather([thread], Deadline(timeout))

    # -- the time, which another kind of wheel may take from elsewhere, as `Clock` in
    # ``testing/clock.py``

    now = staticmethod(time.monotonic)  # in seconds
    time_of_day = staticmethod(time.time)  # in seconds since the Unix epoch

    @property
    def in_real_time(self) -> TimingWheel:
        """The wheel for what depends on the world outside: the end of a connection, say."""
        return self

    def since(self, moment: float) -> float:
        """Return how long ago a moment of ``time.monotonic()`` was, in seconds of this wheel's."""
        return time.monotonic() - moment

    def wait(self, event: Waitable, seconds: float) -> bool:
        """Wait for an event, so many seconds at most; tell whether it is set."""
        return event.wait(seconds)

    def hand_over(
        self, post: Callable[[Callable[[], object]], object], call: Callable[[], object]
    ) -> None:
        """Have ``post`` see to a call that a timer brought about, on another thread."""
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
    ) -> int:
        limited = not until_done  # it is the user's
        if not callable(callback):
            raise TypeError(f"a timer's callback must be callable, not {callback!r}")
        if limited:
            check_quickly("callback", callback, "due")
        due = self.now() + delay
        if timer_id is None:
            timer_id = next(self._ids)
        try:
            self._timers[timer_id] = Timer(due, interval, callback, until_done)
            # Looked at after it was added, as `stop` clears the timers after it has set this: one
            # of the two sees the other.
            if self._stopped:
                raise RuntimeError(f"the timing wheel {self._name} is stopped")
            if limited and len(self._timers) > self._max_pending:
                text = f"{self._name} has {self._max_pending} timers pending already"
                raise TooManyTimers(text)
            self._tell(due, timer_id)
            return timer_id
        except BaseException:
            # Whoever does not learn of the timer must not have it either: also if it was the
            # thread that could not be started, or if a signal handler raises here.
            self._timers.pop(timer_id, None)
            raise

    def _tell(self, due: float, timer_id: int) -> None:
        """Tell the thread of a timer, or start one, which finds it by itself."""
        agenda = self._agenda.get()
        if agenda is not None and agenda.alive:
            agenda.add(due, timer_id)
            return
        new = Agenda()
        new.thread = spawn(self._turn, new, name=self._name, failed=lambda error: self._turn(new))
        new.thread.start()
        self._put_in_place(new)  # or a stop that comes now would not wait for the thread

    def _put_in_place(self, agenda: Agenda) -> None:
        """Make an agenda the one that counts, unless the thread of another has it.

        Done by the agenda's thread, and by whoever has started that: whichever comes first.
        """
        before, now = self._agenda.update(
            lambda latest: latest if latest is not None and latest.alive else agenda
        )
        if before is not None and before is not now:
            before.wakeup.set()  # should its thread be there after all

    # -- inside, on the wheel's thread

    def _turn(self, agenda: Agenda) -> None:
        """The wheel's thread: sleep, fire what is due, again. If it is interrupted, it begins anew.

        Of several that come up at once only the first goes on.
        """
        self._put_in_place(agenda)
        while self._is_to_turn(agenda):
            try:
                agenda.rebuild(self._timers)
                self._run(agenda)
            except BaseException:
                logger.exception("the timing wheel {} was interrupted; it goes on", self._name)

    def _is_to_turn(self, agenda: Agenda) -> bool:
        """Whether this agenda is the one that counts."""
        return not self._stopped and self._agenda.get() is agenda

    def _run(self, agenda: Agenda) -> None:
        timers = self._timers
        while self._is_to_turn(agenda):
            agenda.take_in(timers)
            # One at a time, so that a callback can still cancel what is due together with its own
            # timer.
            first = agenda.first(timers)
            if first is None:
                agenda.sleep(math.inf, self.now)
            elif first[0] > self.now():
                agenda.sleep(first[0], self.now)
            else:
                self._fire(first[1], agenda)

    def _fire(self, timer_id: int, agenda: Agenda) -> None:
        """Call a timer's callback, unless it has been cancelled meanwhile."""
        timer = self._timers.get(timer_id)
        if timer is None:
            return
        callback, moment = timer.callback, self._utc(timer.due)
        if timer.interval:
            agenda.put_off(timer_id, timer, self.now())
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
        """Return the time of day of a moment."""
        moment = self.time_of_day() + due - self.now()
        try:
            return datetime.fromtimestamp(moment, timezone.utc)
        except (OverflowError, OSError, ValueError):  # somebody has set the clock to such a time
            return datetime.max.replace(tzinfo=timezone.utc)


class SharedWheel:
    """One timing wheel for all who need one, there as long as someone does.

    Servers, clients and deadlines of contexts take it when they start and give it back when they
    end; with the last one the thread goes too. Any thread, signal handler or finalizer may call.
    """

    def __init__(self) -> None:
        # Who has acquired it and has not released it.
        self._users: dict[Hashable, None] = {}
        # What they have got: one, or for a moment two, if a user comes while the last one goes.
        self._wheels: dict[_Shared, None] = {}
        #: What is handed out in its place, if not None: a clock that a test advances.
        self.stand_in: TimingWheel | None = None

    @property
    def wheel(self) -> TimingWheel:
        """The wheel itself, for who has acquired it.

        Raises:
            RuntimeError: nobody has, or not any more.
        """
        if not self._users:
            raise RuntimeError("the shared timing wheel is stopped")
        return self._current()

    def acquire(self, user: Hashable) -> TimingWheel:
        """Return the wheel, which is there until `release` is called for this user."""
        try:
            self._users[user] = None
            return self.stand_in or self._current()
        except BaseException:
            self.release(user)
            raise

    def release(self, user: Hashable) -> None:
        """Give the wheel back; the last one stops it. For who has not got it, nothing happens."""
        try:
            self._users.pop(user, None)
            self._stop_unused()
        except BaseException:
            # All of it is harmless a second time.
            self._users.pop(user, None)
            self._stop_unused()
            raise

    def forked(self) -> None:
        """In a child process: the threads are not there."""
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
        # A user is noted before it looks whether a wheel is retired. So if none is there now, none
        # has got one of these, and none will.
        if not self._users:
            for wheel in wheels:
                wheel.stop(_JOIN_TIMEOUT)
                self._wheels.pop(wheel, None)


class _Shared(TimingWheel):
    """A shared wheel; once retired, it is given to nobody any more."""

    retired: bool = False


shared_wheel = SharedWheel()
renew_after_fork(shared_wheel, lambda wheel, reason: wheel.forked())


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
