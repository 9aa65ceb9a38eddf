"""Detects handlers that block the reading thread, so that another can take over the reading."""

from __future__ import annotations

import weakref
from collections import deque
from time import monotonic
from typing import Any, Protocol

from tao.connection.handling.slow_handlers import SlowHandlerWatch
from tao.runtime.timing_wheel import TimingWheel

__all__ = ["GRACE", "BlockWatch", "Watched", "watch_on"]

#: A reader that runs a handler for longer than this is relieved of the reading, in seconds.
GRACE = 5e-3
# When threads wait for the interpreter lock, a look of the watch is late, and a handler may be held
# up for as long; it must not count as stuck then. So many times the lateness is added to the grace.
# The lateness decays by a tenth with each look, and is bounded (seconds).
_PATIENCE, _LATENESS_MOST = 4, 1.0
# After so many looks that found nothing the watch sleeps. Waking it costs more than a look.
_LOOKS_IN_VAIN = 20


class Watched(Protocol):
    """What runs handlers, and may get stuck in one."""

    def look(self, now: float, grace: float) -> None:
        """Check the handlers that were running at the last check.

        Args:
            now: the time, monotonic.
            grace: for how long a handler may run before it counts as stuck, in seconds.
        """


class BlockWatch:
    """Finds handlers that are stuck, for all connections on one timing wheel; see `watch_on`.

    It looks every `GRACE` seconds, on the wheel, and sleeps when some looks found nothing running.
    """

    def __init__(self, wheel: TimingWheel) -> None:
        self._wheel = weakref.ref(wheel)
        # The runners that run a batch now. Each adds and removes itself, and a look copies the set;
        # all three are atomic in CPython, also without the GIL.
        self.running: set[Watched] = set()
        # Whether there will be another look. Set by the thread that takes the token. It is cleared
        # *before* the watch looks a last time whether anything runs, and read by whatever runs
        # *after* it has added itself: so of the two at least one sees the other.
        self.armed: bool = False
        self._token: deque[None] = deque((None,))  # there while there will be no other look
        self._overdue = SlowHandlerWatch(self._wheel)
        #: How late looks came lately, in seconds. Written by the wheel's thread.
        self.lateness: float = 0.0
        # Owned by the wheel's thread.
        self._due: float = 0.0  # when the next is due; written before it can be
        self._next: int = 0  # the id of the next look, the highest; also written by `arm`
        self._in_vain: int = 0  # looks that found nothing, in a row

    def arm(self) -> None:
        """Have a look in a moment, and further ones. Any thread may call it."""
        try:
            self._token.pop()
            self.armed = True
            self._look_later()
        except IndexError:
            pass
        except BaseException:
            self._forgo()
            self._disarm()
            raise

    def enter(self, each: Watched) -> None:
        """Look after one that is about to run something. `running` is where it takes itself out."""
        self.running.add(each)
        if not self.armed:
            self.arm()

    def blocks(self, each: Any) -> None:
        """Stop checking a dispatcher that is known to be stuck, until it runs its next handler.

        Called by its `look`.
        """
        self.running.discard(each)
        self._overdue.add(each)

    def _look_later(self) -> None:
        wheel = self._wheel()
        self._due = monotonic() + GRACE
        try:
            if wheel is not None:
                timer_id = wheel.reserve_id()
                wheel.run_clock(GRACE, lambda _: self._look(timer_id), timer_id)
                self._next = timer_id
        except RuntimeError:
            # The wheel has stopped, so all connections have ended; or it has no thread.
            self._disarm()

    def _forgo(self) -> None:
        """Cancel the next look."""
        wheel = self._wheel()
        if wheel is not None:
            wheel.cancel(self._next)

    def _look(self, timer_id: int) -> None:
        """Look at all. If this is interrupted, the wheel calls it again."""
        if timer_id < self._next:
            return  # it was, after it had set the next look
        now = monotonic()
        self.lateness = min(max(now - self._due, 0.9 * self.lateness), _LATENESS_MOST)
        running = list(self.running)
        for each in running:
            each.look(now, GRACE + _PATIENCE * self.lateness)
        self._in_vain = 0 if running else self._in_vain + 1
        if self._in_vain < _LOOKS_IN_VAIN:
            self._look_later()
            return
        self._in_vain = 0
        self._disarm()
        if self.running:
            self.arm()

    def _disarm(self) -> None:
        self.armed = False
        if not self._token:
            self._token.append(None)


# Changed in single steps only, as a finalizer may make a client at any moment.
_watches: weakref.WeakKeyDictionary[TimingWheel, BlockWatch] = weakref.WeakKeyDictionary()


def watch_on(wheel: TimingWheel) -> BlockWatch:
    """Return the watch of this wheel; all connections on a wheel share one."""
    return _watches.get(wheel) or _watches.setdefault(wheel, BlockWatch(wheel))
