"""The sending half of a session: a stream of bytes that goes on over one link after another.

Positions count the bytes of the application's frames, and of the end, from the beginning of the
session. Acknowledgements are sent between frames, and do not count.

Frames come in pieces of whole ones (`Outgoing.offer`). A piece is kept before any of it is sent;
frames that the link does not even begin to take are taken back. What is kept is passed to the links
by `Outgoing.next_piece` and `Outgoing.note_sent`. How much of it counts as sent, so that the send
queue may forget it, is `Outgoing.taken`. After a link is lost, the next one begins with what the
peer has not received.
"""

from __future__ import annotations

import struct

from tao.session.frames import END_FRAME, ack_frame
from tao.session.retained import Retained

__all__ = ["Outgoing"]

_HEADER = struct.Struct("<iI")


class Outgoing:
    """What is sent. One thread at a time may change it; any may read the figures.

    Only `acknowledge` is called by another thread, the one that receives; so what is acknowledged
    is forgotten a little later.

    Args:
        limit: how many bytes may be kept before no more are taken. A longer piece is taken if
            nothing is kept.
    """

    __slots__ = ("_limit", "_rest", "_retained", "acknowledged", "at", "due", "ended", "taken")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._retained = Retained()
        self.acknowledged: int = 0  #: how far the peer has handled it
        self.taken: int = 0  #: how far it counts as sent: some link has taken it
        self.at: int = 0  #: how far the present link has taken it
        #: The position up to which the peer's stream is to be acknowledged; None: nothing new.
        self.due: int | None = None
        # What is left of an acknowledgement, which nothing may interrupt.
        self._rest: bytes = b""
        self.ended: bool = False  #: whether the end has been offered

    @property
    def end(self) -> int:
        """How far it has been offered."""
        return self._retained.end

    @property
    def has_room(self) -> bool:
        """Whether more may be offered."""
        return not self.ended and self._retained.end - self.acknowledged < self._limit

    @property
    def uncertain(self) -> int:
        """How many bytes of messages count as sent and are not acknowledged."""
        count = self.taken - self.acknowledged
        return max(0, count - len(END_FRAME)) if self.ended and self.taken == self.end else count

    @property
    def idle(self) -> bool:
        """Whether the present link has taken everything."""
        return self.at == self._retained.end and not self._rest and self.due is None

    def offer(self, data: bytes | memoryview) -> bytes | memoryview:
        """Add whole frames, behind an acknowledgement that is due if they can leave together.

        Returns:
            the next piece.
        """
        retained = self._retained
        self.forget()
        behind = self.at < retained.end
        if self.due is not None and not self._rest and not behind:
            self._rest, self.due = ack_frame(self.due), None
        retained.append(data)
        if behind:
            return self.next_piece()
        return b"".join((self._rest, data)) if self._rest else data

    def keep(self, data: bytes | memoryview) -> None:
        """Add whole frames while there is no link, and count them as sent: the next link does."""
        self.forget()
        self._retained.append(data)
        self.at = self._retained.end

    def keep_rest(self) -> None:
        """Count all that was offered as sent, as there is no link any more."""
        self.at, self.due, self._rest = self._retained.end, None, b""

    def kept(self) -> bytes:
        """Return what is not acknowledged."""
        return self._retained.bytes_between(self.acknowledged, self.end)

    def go_on_from(self, position: int, data: bytes) -> None:
        """Begin where another process has stopped.

        Args:
            position: how far the peer has acknowledged it.
            data: what was sent after that.
        """
        self._retained = Retained(position)
        self._retained.append(data)
        self.acknowledged, self.taken = position, self._retained.end
        self.at = self.taken

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
        self._retained.shorten(max(0, len(data) - kept))

    def offer_end(self) -> None:
        """Add the end, unless that is done."""
        if not self.ended:
            self._retained.append(END_FRAME)
            self.ended = True

    def next_piece(self) -> bytes | memoryview:
        """Return what the present link is to take next; nothing if it has everything.

        As long as it is not taken completely, the next piece begins with the rest.
        """
        if self.at < self._retained.end:
            piece = self._retained.piece(self.at)
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
        self.taken = max(before, self.at)
        return self.taken - before

    def acknowledge(self, position: int) -> bool:
        """Note how far the peer has handled it; return False if it cannot have."""
        if position > self._retained.end:
            return False
        self.acknowledged = max(self.acknowledged, position)
        return True

    def forget(self) -> None:
        """Keep what is acknowledged no longer."""
        if self._retained.start < self.acknowledged:
            self._retained.drop(min(self.acknowledged, self.at))  # a peer may pretend to have more

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
        kept, start = self._retained, self.acknowledged
        data = kept.bytes_between(start, max(start, self.taken))
        return data.removesuffix(END_FRAME) if self.ended and self.taken == kept.end else data
