"""The timers of one connection, kept together so that they can go together.

There are two kinds. *Clocks* are the connection's own, one for each purpose; they run on the timing
wheel's thread and must be quick. *Timers* are the user's; their callbacks take their turn among the
messages of the connection.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from datetime import datetime
from typing import Any, NamedTuple

from tao.atomic import AtomicReference
from tao.connection.application import ApplicationLink
from tao.errors import ConnectionClosed
from tao.runtime.timing_wheel import TimingWheel

__all__ = ["ConnectionTimer", "TimerSet"]

#: Called with the time it was due, an aware datetime, and the connection.
ConnectionTimer = Callable[[datetime, Any], object]


class _Timer(NamedTuple):
    """A timer on the wheel, by the id that it has there."""

    wheel: TimingWheel
    timer_id: int


class _Turn:
    """A call of a timer's callback that waits for its turn."""

    __slots__ = ("__weakref__", "_timer", "due")

    def __init__(self, timer: _UserTimer, due: datetime) -> None:
        self._timer = timer
        self.due: datetime = due

    def __call__(self) -> None:
        self._timer.run(self)


class _UserTimer:
    """A timer of the user's: when the wheel fires it, its callback is to take its turn.

    One that fires once is pending until its turn has come. So the wheel may fire it again if an
    exception has interrupted it meanwhile.

    The callback itself is the application's, see `Application.timers`.
    """

    __slots__ = ("_due", "_owner", "_waiting", "periodic", "timer_id")

    def __init__(self, owner: TimerSet, timer_id: int, *, periodic: bool) -> None:
        self._owner = owner
        self.timer_id: int = timer_id
        self.periodic: bool = periodic
        # The turn that it waits for. Set by the wheel's thread, cleared in the turn; and one that
        # an exception has kept from that is gone, too.
        self._waiting: weakref.ref[_Turn] | None = None
        # When it was due, at least until its turn has come.
        self._due: datetime | None = None

    def fire(self, due: datetime) -> None:
        """Have the callback take its turn; on the wheel's thread."""
        waiting = self._waiting
        if waiting is None or waiting() is None:
            self._wait_for_turn(due)

    def fire_again(self) -> None:
        """Have the callback take another turn instead of the one that it waits for."""
        due = self._due
        if due is not None:
            self._wait_for_turn(due)

    def _wait_for_turn(self, due: datetime) -> None:
        if self._owner.has(self):
            turn = _Turn(self, due)
            self._due = due
            self._waiting = weakref.ref(turn)
            self._owner.hand_over(turn)

    def run(self, turn: _Turn) -> None:
        """Call the callback in a turn, unless that has come before, or another one replaces it."""
        waiting = self._waiting
        if waiting is None or waiting() is not turn:
            return
        if self.periodic:
            self._due = None  # first, as the wheel may set the next one when nothing waits
        self._waiting = None
        if self._owner.take(self):  # else it was cancelled while it waited
            self._owner.call(self, turn.due)


class TimerSet:
    """What one connection has on the timing wheel.

    No method waits. Any may be called from any thread, a signal handler or a finalizer.

    Args:
        wheel: shared with others.
        post: has a function run in its turn among the messages; never blocks.
        application: holds the callbacks.
    """

    __slots__ = ("_application", "_clocks", "_closed", "_over", "_post", "_timers", "_wheel")

    def __init__(
        self,
        wheel: TimingWheel,
        post: Callable[[Callable[[], object]], None],
        application: ApplicationLink,
    ) -> None:
        self._wheel = wheel
        self._post = post
        self._application = application
        # By purpose, the clock that was set last. Those of one purpose have ascending ids.
        self._clocks: dict[str, AtomicReference[_Timer | None]] = {}
        # By id, those that are neither cancelled nor have had their last turn. The call that
        # removes one owns it.
        self._timers: dict[int, _UserTimer] = {}
        # Both are set before what is there is cancelled, and looked at after something was added:
        # so one of the two sees the other.
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
        if self._over:
            return
        try:
            wheel = self._wheel.in_real_time if real else self._wheel
            clock = _Timer(wheel, wheel.reserve_id())
            self._set(purpose, clock, delay, callback)
        except RuntimeError:
            if self._closed is None:
                raise
            # The server has stopped, and its wheel: all time is up anyway.

    def _set(
        self, purpose: str, clock: _Timer, delay: float, callback: Callable[[], object]
    ) -> None:
        current = self._clocks.get(purpose)
        if current is None:
            current = self._clocks.setdefault(purpose, AtomicReference(None))

        def ring(_: datetime) -> None:
            latest = current.get()
            if latest is None or latest.timer_id <= clock.timer_id:
                callback()  # if this is interrupted, the wheel rings again

        try:
            clock.wheel.run_clock(delay, ring, clock.timer_id)
            before, after = current.update(lambda latest: _later(latest, clock))
        except BaseException:
            if current.get() is not clock:
                clock.wheel.cancel(clock.timer_id)
            raise
        # It would not call back any more; but it need not stay on the wheel until it is due.
        superseded = before if after is clock else clock
        if superseded is not None:
            superseded.wheel.cancel(superseded.timer_id)
        if self._over:
            clock.wheel.cancel(clock.timer_id)

    def clear_clock(self, purpose: str) -> None:
        """Cancel the clock of a purpose, if there is one."""
        current = self._clocks.get(purpose)
        clock = None if current is None else current.get()
        if clock is not None:
            clock.wheel.cancel(clock.timer_id)

    def reserve_id(self) -> int:
        """Return an id for a timer, by which it can be cancelled even if `add` is interrupted."""
        return self._wheel.reserve_id()

    def add(
        self,
        seconds: float,
        callback: ConnectionTimer,
        *,
        periodic: bool,
        timer_id: int | None = None,
    ) -> int:
        """Have ``callback(due, conn)`` take its turn in, or every, so many seconds; return an id.

        A periodic call that is due while the one before still waits for its turn is left out.

        Args:
            timer_id: one from `reserve_id`; None: a new one.

        Raises:
            ConnectionClosed: the connection is closed.
            TypeError, ValueError: an argument is wrong.
        """
        self._raise_if_closed()
        add = self._wheel.run_every if periodic else self._wheel.run_until_done
        if timer_id is None:
            timer_id = self._wheel.reserve_id()
        timer = _UserTimer(self, timer_id, periodic=periodic)
        application = self._application.find()
        try:
            if application is not None:
                application.timers[timer_id] = callback
            self._timers[timer_id] = timer
            add(seconds, timer.fire, timer_id)
            self._raise_if_closed()
            return timer_id
        except BaseException as error:
            # A caller that does not get the timer's id must not leave a timer behind.
            self._timers.pop(timer_id, None)
            self._forget(timer_id)
            if isinstance(error, RuntimeError):  # the wheel may be stopped once all have ended
                self._raise_if_closed()
            raise

    def _raise_if_closed(self) -> None:
        if self._closed is not None:
            raise ConnectionClosed(self._closed)

    def cancel(self, timer_id: int) -> bool:
        """Cancel a timer; return whether it was pending."""
        try:
            if self._timers.pop(timer_id, None) is None:
                return False
            self._forget(timer_id)
            return True
        except BaseException:
            self._timers.pop(timer_id, None)
            self._forget(timer_id)
            raise

    def _forget(self, timer_id: int) -> None:
        """Remove what belongs to a timer that is not pending any more."""
        self._wheel.cancel(timer_id)
        application = self._application.find()
        if application is not None:
            application.timers.pop(timer_id, None)

    def close(self, reason: str) -> None:
        """Cancel the user's timers and refuse new ones; internal timers continue until the end."""
        if self._closed is None:
            self._closed = reason
        if self._timers:
            for timer_id in list(self._timers):
                self.cancel(timer_id)

    def end(self) -> None:
        """Cancel all that is left."""
        if self._closed is None or self._timers:
            self.close("closed")  # the thread that began to close may not have done so yet
        self._over = True
        if self._clocks:
            for clock in list(self._clocks.values()):
                timer = clock.get()
                if timer is not None:
                    timer.wheel.cancel(timer.timer_id)
        application = self._application.find()
        if application is not None:
            application.timers.clear()

    def start_over(self) -> None:
        """Have all callbacks that wait for their turns take others, as those may be lost."""
        for timer in list(self._timers.values()):
            timer.fire_again()

    # -- for the timers

    def has(self, timer: _UserTimer) -> bool:
        """Return whether a timer is still pending."""
        return timer.timer_id in self._timers

    def take(self, timer: _UserTimer) -> bool:
        """Return whether a timer is still pending, and remove it if it fires once."""
        if timer.periodic:
            return self.has(timer)
        return self._timers.pop(timer.timer_id, None) is not None

    def hand_over(self, call: Callable[[], object]) -> None:
        """Have a call take its turn."""
        self._wheel.hand_over(self._post, call)

    def call(self, timer: _UserTimer, due: datetime) -> None:
        """Call a timer's callback, on the thread that handles messages."""
        application = self._application.find()
        if application is None:
            return
        find = application.timers.get if timer.periodic else application.timers.pop
        callback = find(timer.timer_id, None)
        if callback is None:
            return
        application.variables.in_timer = True
        try:
            callback(due, application.find_conn())
        finally:
            application.variables.in_timer = False

    # -- after a fork

    def use_wheel(self, wheel: TimingWheel) -> None:
        """In a child process: take another wheel, while there is no timer yet."""
        self._wheel = wheel

    def after_fork(self, reason: str) -> None:
        """In a forked child: drop all timers and refuse new ones; the wheel is the parent's."""
        self._closed = self._closed or reason
        self._over = True
        self._timers.clear()
        self._clocks.clear()


def _later(one: _Timer | None, other: _Timer) -> _Timer:
    """Return which of two clocks was set later."""
    return other if one is None or one.timer_id < other.timer_id else one
