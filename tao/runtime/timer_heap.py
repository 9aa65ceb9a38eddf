"""The timer heap of a timing wheel's thread: its timers, ordered by due time.

The order is a binary heap (J. W. J. Williams, 1964), as in the Go original. In Python the C heap of
``heapq`` is several times faster than the slots of a hashed wheel (Varghese and Lauck, 1987).

Only the wheel's thread touches the heap. Other threads put new timers into a queue, and wake the
thread only for a timer that is due before all others. The heap is just an index to the wheel's dict
of timers: entries whose timer is gone are skipped, and are removed before they are the majority. If
the thread is interrupted, the heap is rebuilt from the dict.
"""

from __future__ import annotations

import heapq
import math
import threading
from collections import deque
from collections.abc import Callable
from datetime import datetime

from tao.runtime.wakeup import Wakeup

__all__ = ["Timer", "TimerCallback", "TimerHeap"]

#: Called with the time at which the timer was due, as an aware datetime in UTC.
TimerCallback = Callable[[datetime], object]

# The heap is cleared out when it holds more than this and more than half of it is cancelled.
_SMALL_HEAP = 64
# When more timers than this wait to be put into the heap, the thread is woken to do so.
_MOST_INCOMING = 1000


class Timer:
    """A pending timer.

    Attributes:
        due: when it fires next, in the wheel's time. Changed by the wheel's thread.
        interval: in seconds; 0 for a timer that fires once.
        until_done: whether a periodic timer ends once its callback has returned.
    """

    __slots__ = ("callback", "due", "interval", "until_done")

    def __init__(
        self, due: float, interval: float, callback: TimerCallback, until_done: bool
    ) -> None:
        self.due: float = due
        self.interval: float = interval
        self.callback: TimerCallback = callback
        self.until_done: bool = until_done


class TimerHeap:
    """The pending timers of one thread of a wheel; it lives as long as the thread."""

    __slots__ = ("heap", "incoming", "thread", "wakes_at", "wakeup")

    def __init__(self) -> None:
        #: Set before the thread is started.
        self.thread: threading.Thread | None = None
        # Due time and id of timers that the thread has yet to put into the heap.
        self.incoming: deque[tuple[float, int]] = deque()
        # Set to make the thread check `incoming` and whether it has to end.
        self.wakeup = Wakeup()
        # When the thread wakes by itself: infinity for never, minus infinity while it is awake.
        # Written by the thread.
        self.wakes_at: float = -math.inf
        # Owned by the thread; others read only its length. Like `incoming`, it may hold cancelled
        # timers.
        self.heap: list[tuple[float, int]] = []

    @property
    def alive(self) -> bool:
        """Whether its thread runs and will process new timers."""
        return self.thread is not None and self.thread.is_alive()

    def add(self, due: float, timer_id: int) -> None:
        """Queue a timer for the thread. May be called from any thread."""
        self.incoming.append((due, timer_id))
        # The thread sets `wakes_at` before it checks `incoming`, so one side sees the other.
        if due < self.wakes_at or len(self.incoming) > _MOST_INCOMING:
            self.wakeup.set()

    def sleep(self, until: float, now: Callable[[], float]) -> None:
        """Wait until a timer is due or has been added."""
        self.wakes_at = until
        if not self.incoming:
            self.wakeup.wait(until - now())
        self.wakes_at = -math.inf
        self.wakeup.clear()

    def rebuild(self, timers: dict[int, Timer]) -> None:
        """Rebuild the heap from the timers."""
        self.wakes_at = -math.inf
        self.incoming.clear()
        self.heap = [(timer.due, timer_id) for timer_id, timer in dict(timers).items()]
        heapq.heapify(self.heap)

    def take_in(self, timers: dict[int, Timer]) -> None:
        """Put the queued timers into the heap, and remove cancelled ones if there are many."""
        incoming, heap = self.incoming, self.heap
        while incoming:
            entry = incoming[0]
            if entry[1] in timers:
                heapq.heappush(heap, entry)
            incoming.popleft()  # last: a duplicate in the heap is harmless, a lost timer is not
        if self.wants_clearing(timers):
            heap[:] = [entry for entry in heap if entry[1] in timers]
            heapq.heapify(heap)

    def wants_clearing(self, timers: dict[int, Timer]) -> bool:
        """Return whether most timers in the heap have been cancelled."""
        return len(self.heap) > max(_SMALL_HEAP, 2 * len(timers))

    def first(self, timers: dict[int, Timer]) -> tuple[float, int] | None:
        """Return due time and id of the next timer; None if there is none."""
        heap = self.heap
        while heap:
            due, timer_id = heap[0]
            timer = timers.get(timer_id)
            if timer is not None and timer.due == due:
                return heap[0]
            heapq.heappop(heap)  # it was cancelled or has fired
        return None

    def put_off(self, timer_id: int, timer: Timer, now: float) -> None:
        """Schedule the next run of a periodic timer, in phase and after ``now``."""
        again = now - math.fmod(now - timer.due, timer.interval) + timer.interval
        timer.due = max(again, math.nextafter(now, math.inf))
        heapq.heappush(self.heap, (timer.due, timer_id))
