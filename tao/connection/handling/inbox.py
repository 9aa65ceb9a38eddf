"""What waits to be handled on one connection: it joins the reading thread with the handling one."""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import Any

from tao.runtime.wakeup import Wakeup
from tao.wire.codec import Batch

__all__ = ["CALL", "STOP", "TAKE_OVER", "Inbox"]

#: In place of a message number: the thread that gets this takes over reading.
TAKE_OVER: Any = object()
#: In place of a message number: a function is to be called, a timer's callback.
CALL: Any = object()
#: In place of a message number: there will be nothing more.
STOP: Any = object()


class Inbox:
    """A queue of batches, bounded in messages.

    It is built on a SimpleQueue, because only that one's ``put`` may be called by a finalizer that
    interrupts ``get``.

    Args:
        limit: how many messages may wait before `wait_for_room` waits.
        may_spill: returns whether it need not wait then, either. Called by the reading role.
    """

    __slots__ = (
        "_batches", "_ended", "_limit", "_may_spill", "_put", "_room", "_taken", "_unbound",
        "_vacant",
    )  # fmt: skip

    def __init__(self, limit: int, may_spill: Callable[[], bool] = bool) -> None:
        self._limit: int = limit
        self._batches: queue.SimpleQueue[Batch] = queue.SimpleQueue()
        self._put: int = 0  # messages ever put; written by the thread that has the turn
        self._taken: int = 0  # messages ever taken; written by the handling thread
        self._unbound: bool = False
        self._ended: bool = False  # nothing follows
        # Holds one item while the thread that is to take the handling role has not begun.
        self._vacant: list[None] = [None]
        self._may_spill = may_spill
        # Replaced by each thread that waits for room, which is one at a time.
        self._room = Wakeup()

    def push(self, batch: Batch) -> None:
        """Put a batch, whether there is room or not. Needs the dispatcher's turn."""
        self._put += len(batch)
        self._batches.put(batch)

    def offer_role(self) -> None:
        """Let one thread take the handling role; at first one may. Needs the turn."""
        self._vacant[:] = [None]

    def take_role(self) -> bool:
        """Return whether a thread that was started to handle may do that."""
        try:
            self._vacant.pop()
        except IndexError:
            return False
        return True

    def end(self) -> None:
        """Have the thread that handles end, also one that has not begun. Needs the turn."""
        self._vacant.clear()
        if not self._ended:
            self._ended = True
            self.push([(STOP, None)])

    def get(self) -> Batch:
        """Wait for something, and return all that waits, as one batch. By the handling thread."""
        batch = self._batches.get()
        # What follows a TAKE_OVER is for the thread that plays the handling role from then on.
        if batch[0][0] is not TAKE_OVER:
            self._add_rest(batch)
        self._note_taken(batch)
        return batch

    def take(self) -> Batch:
        """Return all that waits, as one batch, or an empty one. By the handling thread."""
        batch: Batch = []
        self._add_rest(batch)
        self._note_taken(batch)
        return batch

    def _add_rest(self, batch: Batch) -> None:
        try:
            while True:
                batch += self._batches.get_nowait()
        except queue.Empty:
            pass

    def _note_taken(self, batch: Batch) -> None:
        self._taken += len(batch)
        self._room.set()

    @property
    def waiting(self) -> int:
        """How many messages wait."""
        return self._put - self._taken

    @property
    def spilt(self) -> int:
        """How many messages wait above the limit."""
        return max(0, self.waiting - self._limit)

    def full(self) -> bool:
        """Whether as many messages wait as may."""
        return self.waiting >= self._limit and not self._unbound

    def holds_reader(self) -> bool:
        """Whether the reading has to wait for room. By the reading role."""
        return self.full() and not self._may_spill()

    def look_again(self) -> None:
        """Have a reading role that waits for room look whether it still has to."""
        self._room.set()

    def wait_for_room(self) -> None:
        """Wait while it is full. By the reading thread."""
        while self.holds_reader():
            room = self._room = Wakeup()
            if self.holds_reader():
                room.wait()

    def unbind(self) -> None:
        """Have room from now on: a waiting reader would wait for a handler that never returns."""
        self._unbound = True
        self._room.set()
