"""What ``conn.submit`` returns: the fate of one message in the send queue."""

from __future__ import annotations

from tao.connection.sending.backlog import TrackedFrame
from tao.connection.sending.send_queue import SendQueue

__all__ = ["Ticket"]


class Ticket:
    """One message that was submitted. Any thread may use it."""

    __slots__ = ("_frame", "_send_queue")

    def __init__(self, send_queue: SendQueue, frame: TrackedFrame) -> None:
        self._send_queue = send_queue
        self._frame = frame

    @property
    def sent(self) -> bool:
        """Whether the kernel has accepted the last byte of the message."""
        return self._frame.sent

    def withdraw(self) -> bool:
        """Take the message back if it has not been sent.

        Returns:
            True if it was not sent and never will be: the peer does not handle it, so it is safe to
            write it again. False if the kernel has accepted it, or a part of it: the peer may have
            handled it, or may still do so.
        """
        return self._send_queue.withdraw(self._frame)
