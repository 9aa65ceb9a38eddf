"""The agenda of a timing wheel's thread: in which order its timers are due.

The order is a binary heap (J. W. J. Williams, 1964), as in the Go original; in Python the C heap of
``heapq`` is several times faster than slots of a hashed wheel (Varghese and Lauck, 1987) would be.
The heap belongs to the thread alone, which is told in a queue of what to put into it, and woken
only for a timer that comes before all others. It is no more than an index to the wheel's dict of
timers: entries that have no timer any more are passed over and cleared out before they are the
majority, and after an accident it is built anew from the dict.
"""

from __future__ import annotations

import heapq
import math
import threading
from collections import deque
from collections.abc import Callable
from datetime import datetime

from tao.runtime.wakeup import Wakeup

__all__ = ["Agenda", "Timer", "TimerCallback"]

#: Called with the time at which the timer was due, as an aware datetime in UTC.
TimerCallback = Callable[[datetime], object]

# The heap is cleared out when it holds more than this and more than half of it is cancelled.
_SMALL_HEAP = 64
# So many timers may wait to be put into the heap until the thread is woken for that alone.
_MOST_INCOMING = 1000


class Timer:
    """A pending timer.

    Attributes:
        due: when it fires next, by the wheel's time. Changed by the wheel's thread.
        interval: in seconds; 0 for a timer that fires once.
        until_done: whether it fires every so often only until its callback returns.
    """

    __slots__ = ("callback", "due", "interval", "until_done")

    def __init__(
        self, due: float, interval: float, callback: TimerCallback, until_done: bool
    ) -> None:
        self.due: float = due
        self.interval: float = interval
        self.callback: TimerCallback = callback
        self.until_done: bool = until_done


class Agenda:
    """What one thread of a wheel has to do, and when. It comes and goes with the thread."""

    __slots__ = ("heap", "incoming", "thread", "wakes_at", "wakeup")

    def __init__(self) -> None:
        #: Set before the thread is started.
        self.thread: threading.Thread | None = None
        # What the thread is to put into the heap: when it is due, and which it is.
        self.incoming: deque[tuple[float, int]] = deque()
        # Set when the thread is to look at what has come in, or whether it is to end.
        self.wakeup = Wakeup()
        # When the thread wakes by itself: infinity if it does not, and minus infinity while it is
        # awake. Written by the thread.
        self.wakes_at: float = -math.inf
        # Owned by the thread; others look at its length. As `incoming`, cancelled ones too.
        self.heap: list[tuple[float, int]] = []

    @property
    def alive(self) -> bool:
        """Whether its thread will see what comes in."""
        return self.thread is not None and self.thread.is_alive()

    def add(self, due: float, timer_id: int) -> None:
        """Tell the thread of a timer. Any thread may call it."""
        self.incoming.append((due, timer_id))
        # The thread sets the time at which it will wake, then looks whether something came in.
        if due < self.wakes_at or len(self.incoming) > _MOST_INCOMING:
            self.wakeup.set()

    def sleep(self, until: float, now: Callable[[], float]) -> None:
        """Wait until something is due or has come in."""
        self.wakes_at = until
        if not self.incoming:
            self.wakeup.wait(until - now())
        self.wakes_at = -math.inf
        self.wakeup.clear()

    def rebuild(self, timers: dict[int, Timer]) -> None:
        """Make the heap anew from the timers."""
        self.wakes_at = -math.inf
        self.incoming.clear()
        self.heap = [(timer.due, timer_id) for timer_id, timer in timers.copy().items()]
        heapq.heapify(self.heap)

    def take_in(self, timers: dict[int, Timer]) -> None:
        """Put into the heap what has come in, and clear it out if it is time."""
        incoming, heap = self.incoming, self.heap
        while incoming:
            entry = incoming[0]
            if entry[1] in timers:
                heapq.heappush(heap, entry)
            incoming.popleft()  # after it is in the heap, where a second one does no harm
        if self.wants_clearing(timers):
            heap[:] = [entry for entry in heap if entry[1] in timers]
            heapq.heapify(heap)

    def wants_clearing(self, timers: dict[int, Timer]) -> bool:
        """Whether most of the heap has been cancelled."""
        return len(self.heap) > max(_SMALL_HEAP, 2 * len(timers))

    def first(self, timers: dict[int, Timer]) -> tuple[float, int] | None:
        """Return what is due first, at which time and which it is, if there is any timer."""
        heap = self.heap
        while heap:
            due, timer_id = heap[0]
            timer = timers.get(timer_id)
            if timer is not None and timer.due == due:
                return heap[0]
            heapq.heappop(heap)  # it was cancelled or has fired
        return None

    def put_off(self, timer_id: int, timer: Timer, now: float) -> None:
        """Have a periodic timer fire again, in its phase and not before now."""
        again = now - math.fmod(now - timer.due, timer.interval) + timer.interval
        timer.due = max(again, math.nextafter(now, math.inf))
        heapq.heappush(self.heap, (timer.due, timer_id))
