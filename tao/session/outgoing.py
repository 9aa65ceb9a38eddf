"""The sending half of a session: a stream of bytes that goes on over one link after another.

Positions count the bytes of the application's frames, and of the end, from the beginning of the
session. Acknowledgements are sent between frames, and do not count.

Frames come in pieces of whole ones (`Outgoing.offer`). A piece is kept before any of it is sent;
frames that the link does not even begin to take are taken back. What is kept is passed to the links
by `Outgoing.next_piece` and `Outgoing.note_sent`. How much of it counts as sent, so that the send
queue may forget it, is `Outgoing.taken`. After a link is lost, the next one begins with what the
peer has not received.

How much is kept is bounded in bytes and in messages, and in what all sessions share. Messages are
counted by marks, each a position and how many precede it, of which there are only a few hundred.
"""

from __future__ import annotations

import struct
import sys
from collections import deque

from tao.session.frames import END_FRAME, ack_frame, frames_in
from tao.session.retained import Retained
from tao.session.shared_room import SharedRoom

__all__ = ["RETAIN", "RETAIN_BYTES", "Outgoing"]

#: How many messages, and bytes, a session keeps until they are acknowledged, if nothing else is
#: said.
RETAIN, RETAIN_BYTES = 65536, 16 * 1024 * 1024

_HEADER = struct.Struct("<iI")
# For so many bytes there is room without another look, if there is any.
_GRANTED = 64 * 1024
# Marks are so many times closer than the bound on messages.
_MARKS = 256


class Outgoing(Retained):
    """What is sent. One thread at a time may change it; any may read the figures.

    Only `acknowledge` is called by another thread, the one that receives; so what is acknowledged
    is forgotten a little later.

    Args:
        limit: how many bytes may be kept before no more are taken. A longer piece is taken if
            nothing is kept.
        most: how many messages may be kept before no more are taken.
        shared: bounds what all sessions keep; None: nothing does.
    """

    __slots__ = (
        "_base", "_counted", "_credited", "_grain", "_handled", "_marks", "_messages", "_rest",
        "_step", "acknowledged", "at", "due", "ended", "granted", "limit", "most", "next_mark",
        "shared", "taken",
    )  # fmt: skip

    def __init__(self, limit: int, most: int = RETAIN, shared: SharedRoom | None = None) -> None:
        super().__init__()
        self.limit: int = limit  #: in bytes
        self.most: int = most  #: in messages
        self._grain: int = max(1, most // _MARKS)
        self._base: int = 0  # how many messages were sent before the session
        #: At which message to call `mark` next.
        self.next_mark: int = 0
        self._messages: int = 0  # how many precede the last mark
        # The marks beyond which nothing is acknowledged, and how many messages precede the last one
        # before: all these are handled. Of the receiving thread, but for the append.
        self._marks: deque[tuple[int, int]] = deque()
        self._handled: int = 0
        #: Set to None by `release`.
        self.shared: SharedRoom | None = shared
        # In steps of how many bytes the shared room counts what is kept; the position up to which
        # that is done, and the one up to which it is taken back by the receiving thread.
        self._step: int = sys.maxsize if shared is None else shared.step
        self._counted = self._credited = 0
        #: Up to which position more may be offered without another look at `has_room`.
        self.granted: int = 0
        self.acknowledged: int = 0  #: how far the peer has handled it
        self.taken: int = 0  #: how far it counts as sent: some link has taken it
        self.at: int = 0  #: how far the present link has taken it
        #: The position up to which the peer's stream is to be acknowledged; None: nothing new.
        self.due: int | None = None
        # What is left of an acknowledgement, which nothing may interrupt.
        self._rest: bytes = b""
        self.ended: bool = False  #: whether the end has been offered

    @property
    def has_room(self) -> bool:
        """Whether more may be offered."""
        kept = self.end - self.acknowledged
        if self.ended or kept <= 0:
            return not self.ended
        if kept >= self.limit or self._messages - self._handled >= self.most:
            return False
        return self.shared is None or self.shared.has_room(kept)

    @property
    def uncertain(self) -> int:
        """How many bytes of messages count as sent and are not acknowledged."""
        count = self.taken - self.acknowledged
        return max(0, count - len(END_FRAME)) if self.ended and self.taken == self.end else count

    @property
    def idle(self) -> bool:
        """Whether the present link has taken everything."""
        return self.at == self.end and not self._rest and self.due is None

    def grant(self) -> None:
        """Note that there is room, for a few more pieces as well. Not much is kept too much so."""
        self.granted = min(self.end + min(self._step, _GRANTED), self.acknowledged + self.limit)

    def begin(self, messages: int) -> None:
        """Begin after so many messages, which do not belong to the session."""
        self._base = self.next_mark = messages

    def mark(self, messages: int) -> None:
        """Note how many messages have been sent so far, in all, before the next piece is offered.

        To be called when they are `next_mark` or more.
        """
        self.granted = 0
        self.next_mark = messages + self._grain
        self._marks.append((self.end, messages - self._base))
        self._messages = messages - self._base

    def offer(self, data: bytes | memoryview) -> bytes | memoryview:
        """Add whole frames, behind an acknowledgement that is due if they can leave together.

        Returns:
            the next piece.
        """
        if self.start < self.acknowledged:
            self.forget()
        if self.at < self.append(data):
            return self.next_piece()
        if self.due is not None and not self._rest:
            self._rest, self.due = ack_frame(self.due), None
        return b"".join((self._rest, data)) if self._rest else data

    def keep(self, data: bytes | memoryview) -> None:
        """Add whole frames while there is no link, and count them as sent: the next link does."""
        self.forget()
        self.append(data)
        self.at = self.end

    def keep_rest(self) -> None:
        """Count all that was offered as sent, as there is no link any more."""
        self.at, self.due, self._rest = self.end, None, b""

    def kept(self) -> bytes:
        """Return what is not acknowledged."""
        return self.bytes_between(self.acknowledged, self.end)

    def go_on_from(self, position: int, data: bytes) -> None:
        """Begin where another process has stopped.

        Args:
            position: how far the peer has acknowledged it.
            data: what was sent after that.
        """
        Retained.__init__(self, position)
        self.append(data)
        self.acknowledged, self.at = position, self.end
        self.taken = self._counted = self._credited = position
        self._handled = -sum(1 for _ in frames_in(data))
        self._marks.append((self.at, 0))
        self.advance()

    def disown(self) -> None:
        """Have nothing uncertain, as another process tells about it."""
        self.acknowledged = self.end

    def take_back(self, data: bytes | memoryview, committed: int) -> None:
        """Take back what was offered last, but for frames that a link has begun to take.

        Args:
            data: what was offered.
            committed: how many bytes the link has to take besides those that it has taken.
        """
        under_way = self.at + committed - (self.end - len(data))
        kept = 0
        while kept < under_way and kept + _HEADER.size <= len(data):
            kept += _HEADER.size + _HEADER.unpack_from(data, kept)[1]
        self.shorten(max(0, len(data) - kept))

    def offer_end(self) -> None:
        """Add the end, unless that is done."""
        if not self.ended:
            self.append(END_FRAME)
            self.ended = True

    def next_piece(self) -> bytes | memoryview:
        """Return what the present link is to take next; nothing if it has everything.

        As long as it is not taken completely, the next piece begins with the rest.
        """
        if self.at < self.end:
            piece = self.piece(self.at)
            return b"".join((self._rest, piece)) if self._rest else piece
        if self.due is not None and not self._rest:
            self._rest, self.due = ack_frame(self.due), None
        return self._rest

    def note_sent(self, count: int) -> None:
        """Note how much of the last piece the link has taken."""
        if self._rest:
            first = min(count, len(self._rest))
            self._rest = self._rest[first:]
            count -= first
        self.at += count

    def advance(self) -> int:
        """Count what the links have taken as sent; return how much that is."""
        before = self.taken
        self.taken = taken = max(before, self.at)
        if taken - self._counted >= self._step:
            self._count(taken)
        return taken - before

    def _count(self, taken: int) -> None:
        more, self._counted = taken - self._counted, taken
        shared = self.shared
        if shared is not None:
            shared.change(more)
            self._step = shared.step

    def acknowledge(self, position: int) -> bool:
        """Note how far the peer has handled it; return False if it cannot have."""
        if position > self.end:
            return False
        if position > self.acknowledged:
            self.acknowledged = position
            marks = self._marks
            while marks and marks[0][0] <= position:
                self._handled = marks[0][1]
                marks.popleft()  # last, as an exception may come before
            if self.shared is not None:
                self.shared.change(self._credited - position)
                self._credited = position
        return True

    def release(self) -> None:
        """Take no shared room any more, as the session has ended. It may be called twice."""
        shared, self.shared, self._step = self.shared, None, sys.maxsize
        if shared is not None:
            shared.change(self._credited - self._counted)

    def forget(self) -> None:
        """Keep what is acknowledged no longer."""
        if self.start < self.acknowledged:
            self.drop(min(self.acknowledged, self.at))  # a peer may pretend to have more

    def resume(self, position: int) -> bool:
        """Begin another link, whose peer has received everything up to a position.

        Returns:
            False if that cannot be: it is not kept any more, or was never sent.
        """
        self._rest = b""
        if not self.acknowledged <= position <= self.end:
            return False
        self.at = position
        return True

    def unacknowledged(self) -> bytes:
        """Return the frames that count as sent and may not have been handled."""
        start = self.acknowledged
        data = self.bytes_between(start, max(start, self.taken))
        return data.removesuffix(END_FRAME) if self.ended and self.taken == self.end else data
