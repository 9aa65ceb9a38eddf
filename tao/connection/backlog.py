"""The frames that wait to be sent on one connection, and how much of them is gone.

Pure bookkeeping: no I/O, no locks, no threads. One thread at a time may use it, see
``send_queue.py``; whoever reads figures may do so at any time.

There are two lanes. The frames of the preface, which `SendQueue.attach` explains, go ahead of all
others. A frame is removed only when the kernel has taken all of it; until then ``offset`` says how
much of the first one it has.

An exception may be raised between any two bytecodes, by a signal handler, say. Therefore a removal
is noted in one assignment before it begins, in a form that can be continued: an iterator that takes
one frame from its lane in each step and itself knows how far it got. To remove all can be repeated.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

__all__ = ["UNCOUNTED", "Backlog", "TrackedFrame", "move"]

#: The size of a backlog whose frames are still to be counted: nobody takes it for empty.
UNCOUNTED = -1

# One send is given at most about so many bytes: more than a socket buffer takes is copied in vain.
_SEND_BYTES = 256 * 1024
# What no frame is equal to, as none is empty: the end of `_removing`, which is never reached. Bytes
# are compared with bytes faster than with anything else.
_END = b""
# Runs an iterator to its end in one step.
_exhaust = deque[Any](maxlen=0).extend


class TrackedFrame(bytes):
    """A frame whose fate somebody wants to know. It is itself, whatever is equal to it."""

    #: Whether the kernel has taken all of it.
    sent: bool = False


class Backlog:
    """Frames in the order in which they leave."""

    __slots__ = ("ahead", "frames", "journal", "offset", "size", "tracked")

    def __init__(self) -> None:
        self.ahead: deque[bytes] = deque()  #: those of the preface
        self.frames: deque[bytes] = deque()  #: the others
        self.offset: int = 0  #: bytes of the first frame that the kernel has
        self.size: int = 0  #: bytes in all frames, ``offset`` included, or UNCOUNTED
        self.tracked: bool = False  #: whether any was a `TrackedFrame`
        #: True while the kernel may have more than ``offset`` says; while that is being entered,
        #: what is removed, and the offset and the size then; else None.
        self.journal: tuple[Iterator[bytes], int, int] | bool | None = None

    def __len__(self) -> int:
        return len(self.ahead) + len(self.frames)

    @property
    def waiting(self) -> int:
        """How many bytes the kernel does not have."""
        return max(0, self.size - self.offset)

    def append(self, frame: bytes, *, ahead: bool) -> None:
        """Add a frame at the end of its lane."""
        (self.ahead if ahead else self.frames).append(frame)
        self.size += len(frame)

    def lane_size(self, ahead: bool) -> int:
        """Return how many bytes wait in one lane."""
        if not self.ahead:
            return 0 if ahead else self.waiting
        size = sum(map(len, self.ahead)) - self.offset
        return size if ahead else self.waiting - size

    def next_bytes(self, preface_only: bool) -> bytes | memoryview:
        """Return what to give to the kernel next: the first frames, joined; ``b""`` if none."""
        frames: Any = self.ahead if preface_only else self.frames
        if self.ahead and self.frames and not preface_only:
            frames = list(chain(self.ahead, self.frames))
        elif not frames:
            frames = self.ahead
        if not frames:
            return b""
        first = frames[0]
        if len(frames) == 1 or len(first) >= _SEND_BYTES:
            return memoryview(first)[self.offset :] if self.offset else first
        data = b"".join(frames if self.size <= _SEND_BYTES else _some(frames))
        return memoryview(data)[self.offset :] if self.offset else data

    def forget(self, taken: int) -> int:
        """Remove the frames that the kernel has got with these bytes; return how many."""
        left = taken + self.offset
        if left == self.size and not self.ahead:  # all, as a rule
            count = len(self.frames)
            if self.tracked:
                self.mark_sent()
            self.frames.clear()
            self.offset = self.size = 0
            self.journal = None
            return count
        count = 0
        for frame in chain(self.ahead, self.frames):
            if left < len(frame):
                break
            left -= len(frame)
            count += 1
        if self.tracked:
            self.mark_sent(count)
        ahead = min(count, len(self.ahead))
        removing = chain(_removing(self.ahead, ahead), _removing(self.frames, count - ahead))
        self.journal = removing, left, self.size - (taken + self.offset - left)
        self._remove()
        return count

    def mark_sent(self, count: int | None = None) -> None:
        """Tell the tracked ones among the first frames, None: all, that they are gone."""
        for frame in islice(chain(self.ahead, self.frames), count):
            if type(frame) is TrackedFrame:
                frame.sent = True

    def _remove(self) -> None:
        """Do what the journal says, or the rest of it."""
        assert isinstance(self.journal, tuple)
        removing, self.offset, self.size = self.journal
        _exhaust(removing)
        self.journal = None

    def repair(self) -> bool:
        """Put right what was interrupted; tell whether `forget` has to be called for that."""
        if isinstance(self.journal, tuple):
            self._remove()
        self.recount()
        if not self:  # all that the kernel was given has been removed
            self.offset = 0
            self.journal = None
        return self.journal is not None

    def recount(self) -> None:
        """Count the bytes anew, after an interruption."""
        self.size = sum(map(len, self.ahead)) + sum(map(len, self.frames))

    def rewind(self) -> int:
        """Begin anew, for another transport: nothing is gone, and there is no preface yet.

        Returns:
            how many frames of a preface were dropped.
        """
        dropped = len(self.ahead)
        self.ahead.clear()
        self.offset = 0
        self.recount()
        return dropped

    def first_untouched(self, committed: int) -> int:
        """Return the index among ``frames`` of the first that has not begun to leave.

        Args:
            committed: bytes beyond ``offset`` that have to leave, too.
        """
        begun = self.offset + committed - sum(map(len, self.ahead))
        index = 0
        while begun > 0:
            begun -= len(self.frames[index])
            index += 1
        return index

    def would_fit(self, size: int, limit: int | None, kept: int) -> bool:
        """Whether a frame would fit into ``limit`` bytes if only the first ``kept`` were left."""
        if limit is None or not kept:
            return True
        left = sum(map(len, islice(self.frames, kept))) - (0 if self.ahead else self.offset)
        return left + size <= limit

    def remove(self, index: int) -> None:
        """Remove one of ``frames`` that has not begun to leave."""
        size = self.size - len(self.frames[index])
        del self.frames[index]
        self.size = size

    def find(self, wanted: bytes) -> int | None:
        """Return the index of a frame among ``frames``; None if it is not there."""
        return next((at for at, frame in enumerate(self.frames) if frame is wanted), None)


def move(source: deque[bytes], target: deque[bytes]) -> int:
    """Move all that waits to the end of another deque, in one step; return how many that were.

    Any thread may append to the source meanwhile.
    """
    count = len(source)
    target.extend(_removing(source, count))
    return count


def _removing(frames: deque[bytes], count: int) -> Iterator[bytes]:
    """Return an iterator that takes so many frames out, and may be interrupted and continued."""
    return islice(iter(frames.popleft, _END), count)


def _some(frames: Any) -> list[bytes]:
    """Return the first frames, about as many as one send takes."""
    some, size = [], 0
    for frame in frames:
        some.append(frame)
        size += len(frame)
        if size >= _SEND_BYTES:
            break
    return some
