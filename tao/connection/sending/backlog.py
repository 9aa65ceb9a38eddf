"""The frames that wait to be sent on one connection, and how much of the first one has been sent.

Pure bookkeeping: no I/O, no locks, no threads. One thread at a time may use it, see
``send_queue.py``; any thread may read the figures.

There are two lanes. The frames of the preface, see `SendQueue.attach`, precede all others. A frame
is removed only when the kernel has accepted all of it; until then ``offset`` says how much of the
first one it has.

A signal handler may raise an exception between any two bytecodes. Therefore a removal is noted in
one assignment before it begins, in a form that can be continued: an iterator that removes frames
from one lane in each step and remembers how far it got. Removing all frames can simply be repeated.

The lanes are lists, as an empty deque takes ten times the memory, and most connections are idle.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import chain, islice, repeat
from typing import Any

from tao.connection.sending.keyed_frames import KeyedFrame

__all__ = ["UNCOUNTED", "Backlog", "TrackedFrame", "move"]

#: The size of a backlog while its bytes are not counted yet. It is not 0, which means empty.
UNCOUNTED = -1

# About how many bytes are passed to one send; bytes that the socket buffer rejects are copied
# for nothing.
_SEND_BYTES = 256 * 1024
# Runs an iterator to its end in one step.
_exhaust = deque[Any](maxlen=0).extend


class TrackedFrame(bytes):
    """A frame that knows whether it has been sent. It is found by identity, not by equality."""

    #: Whether the kernel has accepted all of it.
    sent: bool = False


class Backlog:
    """Frames in the order in which they are sent."""

    __slots__ = ("frames", "journal", "offset", "preface_frames", "size", "tracked")

    def __init__(self) -> None:
        self.preface_frames: list[bytes] = []  #: those of the preface
        self.frames: list[bytes] = []  #: the others
        self.offset: int = 0  #: bytes of the first frame that the kernel has
        self.size: int = 0  #: bytes in all frames, ``offset`` included, or UNCOUNTED
        self.tracked: bool = False  #: whether any was a `TrackedFrame`
        #: True while the kernel may have more than ``offset`` says; while that is being entered,
        #: what is removed, and the offset and the size then; else None.
        self.journal: tuple[Iterator[None], int, int] | bool | None = None

    def __len__(self) -> int:
        return len(self.preface_frames) + len(self.frames)

    @property
    def waiting(self) -> int:
        """How many bytes the kernel has not accepted."""
        return max(0, self.size - self.offset)

    def append(self, source: list[bytes], *, preface: bool) -> None:
        """Move the only frame of a list to the end of its lane."""
        size = len(source[0])
        move(source, self.preface_frames if preface else self.frames)
        self.size += size

    def take(self, source: list[bytes]) -> None:
        """Move all frames of a list to the end of ``frames``."""
        nothing = not self.size
        count = move(source, self.frames)
        if nothing:
            self.size = sum(map(len, self.frames))
        else:
            self.size += sum(len(self.frames[-1 - back]) for back in range(count))

    def take_back(self, frame: bytes) -> None:
        """Remove a frame if it is the last one of its lane."""
        for lane in (self.preface_frames, self.frames):
            if lane and lane[-1] is frame:
                lane.pop()
                break
        if not self:
            self.offset = 0
        self.recount()

    def lane_size(self, preface: bool) -> int:
        """Return how many bytes wait in one lane."""
        if not self.preface_frames:
            return 0 if preface else self.waiting
        size = sum(map(len, self.preface_frames)) - self.offset
        return size if preface else self.waiting - size

    def next_bytes(self, preface_only: bool) -> bytes | memoryview:
        """Return the next bytes to send: the first frames, joined; ``b""`` if there are none."""
        frames: Any = self.preface_frames if preface_only else self.frames
        if self.preface_frames and self.frames and not preface_only:
            frames = list(chain(self.preface_frames, self.frames))
        elif not frames:
            frames = self.preface_frames
        if not frames:
            return b""
        first = frames[0]
        if len(frames) == 1 or len(first) >= _SEND_BYTES:
            return memoryview(first)[self.offset :] if self.offset else first
        data = b"".join(frames if self.size <= _SEND_BYTES else _some(frames))
        return memoryview(data)[self.offset :] if self.offset else data

    def forget(self, accepted: int) -> int:
        """Remove the frames that the kernel has completely with these bytes; return how many."""
        left = accepted + self.offset
        if left == self.size and not self.preface_frames:  # usually: all
            count = len(self.frames)
            if self.tracked:
                self.mark_sent()
            self.frames.clear()
            self.offset = self.size = 0
            self.journal = None
            return count
        count = 0
        for frame in chain(self.preface_frames, self.frames):
            if left < len(frame):
                break
            left -= len(frame)
            count += 1
        if self.tracked:
            self.mark_sent(count)
        preface = min(count, len(self.preface_frames))
        removing = chain(
            _removing(self.preface_frames, preface), _removing(self.frames, count - preface)
        )
        self.journal = removing, left, self.size - (accepted + self.offset - left)
        self._remove()
        return count

    def mark_sent(self, count: int | None = None) -> None:
        """Mark the tracked frames among the first ``count`` (None for all) as sent."""
        if count is None and len(self.frames) == 1 and not self.preface_frames:  # usually
            frame = self.frames[0]
            if type(frame) is TrackedFrame:
                frame.sent = True
            return
        for frame in islice(chain(self.preface_frames, self.frames), count):
            if type(frame) is TrackedFrame:
                frame.sent = True

    def _remove(self) -> None:
        """Do the removal that the journal describes, or the rest of it."""
        assert isinstance(self.journal, tuple)
        removing, self.offset, self.size = self.journal
        _exhaust(removing)
        self.journal = None

    def repair(self) -> bool:
        """Finish an interrupted operation; return whether that needs a call of `forget`."""
        if isinstance(self.journal, tuple):
            self._remove()
        self.recount()
        if not self:  # everything has been removed
            self.offset = 0
            self.journal = None
        return self.journal is not None

    def recount(self) -> None:
        """Count the bytes again."""
        self.size = sum(map(len, self.preface_frames)) + sum(map(len, self.frames))

    def rewind(self) -> int:
        """Prepare for another transport: nothing has been sent, and there is no preface yet.

        Returns:
            how many frames of a preface were dropped.
        """
        dropped = len(self.preface_frames)
        self.preface_frames.clear()
        self.offset = 0
        self.recount()
        return dropped

    def first_untouched(self, committed: int) -> int:
        """Return the index of the first of ``frames`` with no byte sent.

        Args:
            committed: how many bytes beyond ``offset`` have to be sent as well.
        """
        sent = self.offset + committed - sum(map(len, self.preface_frames))
        index = 0
        while sent > 0:
            sent -= len(self.frames[index])
            index += 1
        return index

    def would_fit(self, size: int, limit: int | None, kept: int) -> bool:
        """Whether ``size`` bytes fit into ``limit`` beside the first ``kept`` of ``frames``."""
        if limit is None or not kept:
            return True
        left = sum(map(len, islice(self.frames, kept))) - (
            0 if self.preface_frames else self.offset
        )
        return left + size <= limit

    def remove(self, index: int) -> None:
        """Remove one of ``frames`` with no byte sent."""
        size = self.size - len(self.frames[index])
        del self.frames[index]
        self.size = size

    def clear(self) -> None:
        """Forget all frames."""
        self.preface_frames.clear()
        self.frames.clear()
        self.offset = self.size = 0
        self.journal = None

    def find_key(self, key: object) -> int | None:
        """Return the index of the last of ``frames`` with a key, None if there is none."""
        for back, frame in enumerate(reversed(self.frames), 1):
            if type(frame) is KeyedFrame and frame.key == key:
                return len(self.frames) - back
        return None

    def replace(self, index: int, frame: bytes) -> None:
        """Put a frame in the place of one of ``frames`` of which nothing has been sent."""
        size = self.size + len(frame) - len(self.frames[index])
        self.frames[index] = frame
        self.size = size

    def find(self, wanted: bytes) -> int | None:
        """Return the index of a frame among ``frames``, None if it is not there."""
        return next((at for at, frame in enumerate(self.frames) if frame is wanted), None)


def move(source: list[bytes], target: list[bytes]) -> int:
    """Move all frames to the end of another list, in one step; return how many there were.

    Other threads may append to the source meanwhile, or remove the first. It is short: what was
    noted in a moment.
    """
    before = len(target)
    try:
        target.extend(map(source.pop, repeat(0, len(source))))
    except IndexError:
        pass  # fewer are there by now; those that were are moved
    return len(target) - before


def _removing(frames: list[bytes], count: int) -> Iterator[None]:
    """Return an iterator that removes the first ``count`` frames, in one step."""
    return map(frames.__delitem__, (slice(count),))


def _some(frames: Any) -> list[bytes]:
    """Return the first frames, about as many as one send gets."""
    some, size = [], 0
    for frame in frames:
        some.append(frame)
        size += len(frame)
        if size >= _SEND_BYTES:
            break
    return some
