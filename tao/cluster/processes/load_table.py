"""How many connections each worker has: shared memory that all workers of a supervisor see.

A worker that has more connections than the least loaded one, by some slack, leaves the next
connection to others for a moment. Otherwise the worker that is quickest to wake up gets most of
them, and long-lived connections stay where they are (a ratio of three to one has been measured with
servers of other makers).

Each worker writes its own row only, and the numbers are hints, so there is no lock. A row that was
not written for a while belongs to a worker that is busy, stopped or gone: nobody waits for that.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import time
from typing import Final

__all__ = ["LoadRow", "LoadTable"]

# Of a row, in bytes: the count, and when it was written.
_ROW: Final = 16
# Rows that are older do not count, in seconds. Workers write theirs more often than twice a second.
_FRESH: Final = 1.5
# How many connections more than the least loaded worker has are none too many, and which share.
_SLACK, _SLACK_SHARE = 1, 16


class LoadTable:
    """The memory, made by the supervisor and inherited by its workers.

    Args:
        rows: how many workers there may be at once.
    """

    def __init__(self, rows: int) -> None:
        self._rows = rows
        #: The descriptor to inherit.
        self.descriptor: int = _memory(rows * _ROW)
        self._memory = mmap.mmap(self.descriptor, rows * _ROW)

    def clear(self, row: int) -> None:
        """Forget what a worker has written that is gone."""
        self._memory[row * _ROW : (row + 1) * _ROW] = bytes(_ROW)

    def close(self) -> None:
        """Free the memory."""
        self._memory.close()
        os.close(self.descriptor)


class LoadRow:
    """The memory as a worker uses it. Any of its threads may call any method.

    Args:
        descriptor: of the memory.
        row: the worker's own; -1: it has none, and the others do not know of it.
    """

    def __init__(self, descriptor: int, row: int) -> None:
        size = os.fstat(descriptor).st_size
        memory = memoryview(mmap.mmap(descriptor, size))
        self._counts, self._times = memory.cast("q"), memory.cast("d")
        self._others = [2 * each for each in range(size // _ROW) if each != row]
        self._own = 2 * row

    def write(self, count: int) -> None:
        """Tell the others how many connections this worker has."""
        if self._own >= 0:
            self._counts[self._own] = count
            self._times[self._own + 1] = time.monotonic()

    def withdraw(self) -> None:
        """Tell them that this worker accepts no more connections."""
        if self._own >= 0:
            self._times[self._own + 1] = 0.0

    def exceeds(self, count: int) -> bool:
        """Whether so many connections are clearly more than another worker has."""
        fresh = time.monotonic() - _FRESH
        least = min(
            (self._counts[each] for each in self._others if self._times[each + 1] > fresh),
            default=count,
        )
        return count > least + _SLACK + least // _SLACK_SHARE


def _memory(size: int) -> int:
    """Return the descriptor of memory that has no name."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("tao-load")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.truncate(descriptor, size)
    return descriptor
