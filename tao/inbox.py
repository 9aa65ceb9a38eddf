"""What waits to be handled on one connection."""

from __future__ import annotations

import queue
import sys
from typing import Any

from tao.codec import Batch

__all__ = ["CALL", "STOP", "TAKE_OVER", "Inbox"]

#: In place of a message number: who gets this is to take over the reading.
TAKE_OVER: Any = object()
#: In place of a message number: a function is to be called, a timer's callback.
CALL: Any = object()
#: In place of a message number: there will be nothing more.
STOP: Any = object()


class Inbox(queue.Queue[Any]):
    """A queue of batches, bounded in messages; `get` takes all that waits, as one batch."""

    def _init(self, maxsize: int) -> None:
        self.queue: list[Any] = []

    def _put(self, item: Batch) -> None:
        self.queue.extend(item)

    def _get(self) -> Batch:
        if self.queue[0][0] is TAKE_OVER:
            # What follows is for the thread that plays the handling role from now on.
            return [self.queue.pop(0)]
        taken, self.queue = self.queue, []
        return taken

    def push(self, batch: Batch) -> None:
        """Put, bounded or not: for the few things that must not wait and are bounded themselves."""
        with self.mutex:
            self._put(batch)
            self.not_empty.notify()

    @property
    def messages(self) -> int:
        """How many of those that wait are messages."""
        with self.mutex:
            return sum(isinstance(number, int) for number, _ in self.queue)

    def unbind(self) -> None:
        """Let the last batch in: who waits for room would wait for a handler that never returns."""
        with self.mutex:
            self.maxsize = sys.maxsize
            self.not_full.notify_all()
