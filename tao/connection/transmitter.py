"""Giving the frames of a backlog to the kernel, and keeping account of what it accepted.

One thread at a time may use it, see ``send_queue.py``; any thread may read the figures. While the
kernel may have accepted more than the backlog says, the backlog's journal is set, so that `repair`
can put right what an exception interrupted.
"""

from __future__ import annotations

from time import monotonic

from tao.connection.backlog import Backlog
from tao.transport.stream import Transport

__all__ = ["Transmitter"]


class Transmitter:
    """A backlog on its way into one transport after another."""

    __slots__ = (
        "backlog", "bytes_sent", "failure", "frames_sent", "last_sent", "send_time", "transport",
    )  # fmt: skip

    def __init__(self) -> None:
        self.backlog = Backlog()
        self.transport: Transport | None = None
        self.failure: OSError | None = None  #: what `send_all` met
        #: When the kernel last accepted bytes, or began to refuse them (``time.monotonic``).
        self.last_sent: float = monotonic()
        self.send_time: float = 0.0  #: seconds that sending has taken
        self.frames_sent: int = 0
        self.bytes_sent: int = 0

    def send_all(self, data: bytes) -> bool:
        """Send the whole backlog, if nothing of it has been sent or counted before.

        Does what `send_some` does for the usual case, in as few steps as possible: every reply goes
        through here.

        Args:
            data: the frames of the backlog, joined.

        Returns:
            whether the kernel accepted all of it. If not, ``failure`` may be set.
        """
        backlog, transport = self.backlog, self.transport
        assert transport is not None
        backlog.size = size = len(data)
        transport.answers.clear()
        started = monotonic()
        backlog.journal = True
        try:
            accepted = transport.send(data)
        except OSError as error:
            backlog.journal = None
            self.failure = error
            return False
        if accepted == size:
            if backlog.tracked:
                backlog.mark_sent()
            count = len(backlog.frames)
            backlog.frames.clear()
            backlog.size = 0
            backlog.journal = None
            self.last_sent = now = monotonic()
            self.send_time += now - started
            self.bytes_sent += size
            self.frames_sent += count
            return True
        self.frames_sent += backlog.forget(accepted)
        self.bytes_sent += accepted
        return False

    def send_some(self, transport: Transport, data: bytes | memoryview) -> int:
        """Send what the kernel accepts of the next bytes; return how many that were.

        Raises:
            OSError: the connection is broken.
        """
        transport.answers.clear()
        started = monotonic()
        self.backlog.journal = True
        try:
            accepted = transport.send(data)
        except OSError:
            self.backlog.journal = None
            raise
        frames = self.backlog.forget(accepted)
        now = monotonic()
        self.send_time += now - started
        if accepted:
            self.last_sent = now
            self.bytes_sent += accepted
            self.frames_sent += frames
        return accepted

    def wait_begins(self) -> None:
        """Note that the kernel accepts nothing for now."""
        self.last_sent = monotonic()

    def repair(self) -> bool:
        """Finish what an exception interrupted.

        Returns:
            False if it cannot be known what the kernel accepted; the transport must be given up.
        """
        if self.backlog.repair():
            accepted = None if self.transport is None else self.transport.settle()
            if accepted is None:
                return False
            self.bytes_sent += accepted
            self.frames_sent += self.backlog.forget(accepted)
        return True

    def first_untouched(self) -> int:
        """Return the index of the first of ``backlog.frames`` of which nothing has been sent."""
        transport = self.transport
        return self.backlog.first_untouched(0 if transport is None else transport.committed_bytes)
