"""The reading role of a connection: from the socket to the dispatcher.

One ``recv`` takes as much as the peer has sent, up to a bound; all messages that are whole by then
are decoded into one batch and dispatched together. So what a system call and a turn of this loop
cost is shared by as many messages as there are.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Protocol

from tao.connection.application import ApplicationLink
from tao.connection.options import Settings
from tao.connection.peer_limits import Intake, PeerLimitsHost, intake_for
from tao.connection.send_queue import SendQueue
from tao.transport.stream import Transport
from tao.wire.codec import Batch

__all__ = ["Reader", "ReadingHost"]

# How much one recv asks for: it grows while the peer fills it and shrinks again, so that an idle
# connection holds little memory.
_RECV_LEAST, _RECV_MOST = 4 * 1024, 256 * 1024
# It does not grow beyond what so many messages take: a batch keeps its replies waiting, and other
# connections too, as it is long before a thread that computes gives the interpreter lock away.
_BATCH_MOST = 1024


class ReadingHost(PeerLimitsHost, Protocol):
    """What this asks of a connection's core."""

    application: ApplicationLink
    send_queue: SendQueue
    transport: Transport | None

    def transport_failed(self, error: OSError) -> None:
        """Go on without the transport: receiving has raised this."""

    def stream_ended(self) -> None:
        """Go on after the end of the stream."""


class Reader:
    """Reads one connection. Used by the thread that plays the role, one at a time.

    Args:
        conn: the connection's core.
        settings: the options.
    """

    __slots__ = (
        "_broken", "_conn", "_recv_most", "_recv_size", "bytes_in", "discarded", "intake",
        "last_received", "messages_in", "on_batch",
    )  # fmt: skip

    def __init__(self, conn: ReadingHost, settings: Settings) -> None:
        self._conn = conn
        # What the decoder has raised, until the thread that reads on reports it to the connection.
        self._broken: BaseException | None = None
        #: What limits the peer, or None if no option does.
        self.intake: Intake | None = intake_for(conn, settings)
        most = None if self.intake is None else self.intake.recv_most
        self._recv_most: int = min(most or _RECV_MOST, _RECV_MOST)
        self._recv_size: int = min(_RECV_LEAST, self._recv_most)
        #: When something last came, monotonic.
        self.last_received: float = monotonic()
        #: Called with each batch before it is dispatched, unless it is None.
        self.on_batch: Callable[[Batch], object] | None = None
        self.bytes_in: int = 0
        self.discarded: int = 0  #: bytes that came when the connection was ending
        self.messages_in: int = 0

    def read(self) -> bool:
        """Read the transport until the end, or (True) until the other thread has taken over."""
        conn, dispatch = self._conn, self._conn.dispatcher.dispatch
        transport, intake, lifecycle = conn.transport, self.intake, conn.lifecycle
        assert transport is not None
        recv, find_application = transport.recv, conn.application.find
        if self._broken is not None:
            self._break()  # the other thread has taken over in the midst of what came before
        if intake is not None and not intake.resume(transport):
            return True
        while True:
            try:
                data = recv(self._recv_size)
            except OSError as error:
                conn.transport_failed(error)
                return False
            if not data:
                self._check_end()
                conn.stream_ended()
                return False
            self.last_received, size = monotonic(), len(data)
            self.bytes_in += size
            if lifecycle.ended:
                self.discarded += size
                continue  # only waiting for the end
            batch: Batch = []
            broken: BaseException | None = None
            application = find_application()
            if application is not None:
                try:
                    application.decoder.feed(data, batch)
                except BaseException as error:
                    broken = error
                application = None  # which may not be held while this waits
            if not _RECV_LEAST >= self._recv_size > size or len(batch) > _BATCH_MOST:
                self._adapt(size, len(batch))
            if self.on_batch is not None:
                self.on_batch(batch)
            if intake is not None:
                self.messages_in += len(batch)
                if not intake.take_in(batch, size, self._held(), broken):
                    return True
                continue
            if broken is not None:
                self._broken = broken
            if batch:
                self.messages_in += len(batch)
                if not dispatch(batch):
                    return True
            if broken is not None:
                self._break()

    def _adapt(self, size: int, count: int) -> None:
        """Choose how much to ask for, after so many bytes with so many messages arrived."""
        if size == self._recv_size or count > _BATCH_MOST:
            enough = max(_RECV_LEAST, size * _BATCH_MOST // (count or 1))
            self._recv_size = min(4 * size, enough, self._recv_most)
        elif 4 * size < self._recv_size > _RECV_LEAST:
            self._recv_size //= 2

    def _break(self) -> None:
        """Report what the decoder raised, once the messages before it are dispatched."""
        broken, self._broken = self._broken, None
        if broken is not None:
            self._conn.protocol_error(broken)

    def _held(self) -> int:
        """How many bytes of a message that is not whole the decoder has, if it says so."""
        application = self._conn.application.find()
        return 0 if application is None else getattr(application.decoder, "pending", 0)

    def _check_end(self) -> None:
        """Have the decoder check that the stream may end here, unless this side has ended it."""
        conn, application = self._conn, self._conn.application.find()
        end = None if application is None else getattr(application.decoder, "end", None)
        if end is None or conn.lifecycle.status.ended or conn.send_queue.error is not None:
            return
        try:
            end()
        except BaseException as error:
            conn.protocol_error(error)
