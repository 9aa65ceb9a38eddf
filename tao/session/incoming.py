"""The receiving half of a session: what was received, decoded and handled, and what is to be told.

A position is acknowledged when every message before it has been handled. It is a boundary between
frames, where one read has ended: that costs a mark for each read, and nothing for each message.
"""

from __future__ import annotations

from collections import deque

__all__ = ["Incoming"]

# So many messages are handled before the next frames acknowledge them, and so many bytes come
# before that is done at once; less, after a while.
_MESSAGES, _BYTES = 256, 256 * 1024


class Incoming:
    """What is received. The reading role notes what comes, one other thread at a time the rest."""

    __slots__ = (
        "_base", "_marks", "_own", "_told", "acknowledged", "decoded", "ended", "handled",
        "received",
    )  # fmt: skip

    def __init__(self) -> None:
        # Of the reading role.
        self.received: int = 0  #: bytes, with those that do not count
        self._own: int = 0  # bytes that do not count
        self.decoded: int = 0  #: the position of the last boundary between frames
        self.ended: bool = False  #: whether the peer has ended the session
        # How many messages have been read, in all, and the position after them; in order. The
        # reading role appends.
        self._marks: deque[tuple[int, int]] = deque()
        # Of those that acknowledge.
        self._base: int = 0  # how many messages were read before, and never handled
        self.handled: int = 0  #: the position before which everything is handled
        self.acknowledged: int = 0  #: the position that the peer was told last
        self._told: int = 0  # how many messages had been handled then

    def begin(self, messages: int, handled: int) -> None:
        """Begin after so many messages that have been read before, and handled."""
        self._base, self._told = messages - handled, handled

    def go_on_from(self, position: int) -> None:
        """Begin where another process has stopped: everything before is handled."""
        self.received = self.decoded = self.handled = self.acknowledged = position

    def skip(self, size: int) -> None:
        """Note a frame that does not count."""
        self._own += size

    def note_decoded(self, messages: int, pending: int) -> bool:
        """Note what one read has brought.

        Args:
            messages: how many messages have been read so far, in all.
            pending: how many bytes of an incomplete frame are held.

        Returns:
            whether so many bytes have come that what is handled is to be acknowledged at once.
        """
        self.decoded = position = self.received - self._own - pending
        self._marks.append((messages, position))
        return position - self.acknowledged >= _BYTES

    def note_handled(self, messages: int) -> None:
        """Note how many messages have been handled so far, in all."""
        marks, most = self._marks, messages + self._base
        while marks and marks[0][0] <= most:
            self.handled = marks[0][1]
            marks.popleft()  # last, as an exception may come before

    def wants_to_tell(self, messages: int) -> bool:
        """Whether so many messages were handled that the next frames should acknowledge them.

        Args:
            messages: how many have been handled so far, in all.
        """
        return messages - self._told >= _MESSAGES

    @property
    def has_to_tell(self) -> bool:
        """Whether anything is handled, or will be, that is not acknowledged."""
        return self.decoded > self.acknowledged

    def tell(self, messages: int) -> int:
        """Return the position to acknowledge, and take it for acknowledged.

        Args:
            messages: how many have been handled so far, in all.
        """
        self.note_handled(messages)
        self.acknowledged, self._told = self.handled, messages
        return self.handled

    def restart(self) -> int:
        """Forget an incomplete frame, as the link is lost; return the position to go on from."""
        self.received = self.decoded + self._own
        return self.decoded
