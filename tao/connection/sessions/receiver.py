"""The receiving half of the stream of a session, see ``sessions/stream.py``.

The reading role uses it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from tao.connection.sessions.host import SessionHost
from tao.connection.sessions.sender import SessionSender
from tao.connection.shared_reading.roles import SharedRoles
from tao.runtime.combining import Busy
from tao.session.frames import ACK, END, read_ack
from tao.session.session import Session
from tao.transport.error_text import explain
from tao.transport.poller import READABLE
from tao.transport.stream import Transport
from tao.wire.codec import Batch

__all__ = ["SessionReceiver"]

# The size of an acknowledgement's frame.
_ACK_SIZE = 16


class SessionReceiver(SessionSender):
    """Receives from one link after another.

    Args:
        host: the connection's core.
        session: with both halves.
        link: the first.
        told: the peer's capabilities, if it has told them.
    """

    __slots__ = (
        "_aborted", "_end_told", "_feeding", "_late", "_old", "_shared", "_told", "over",
    )  # fmt: skip

    def __init__(
        self, host: SessionHost, session: Session, link: Transport, told: int | None
    ) -> None:
        super().__init__(host, session, link)
        self._told = told
        self._shared: bool = isinstance(host.roles, SharedRoles)
        self._old: deque[Transport] = deque()  # to be freed; any thread appends
        self._late: int = 0  # messages that came when the connection was ending
        self._feeding: bool = False  # set until what it has got is decoded
        self._end_told: bool = False  # whether it has returned the end of the peer's stream
        # Each is changed in one step, by any thread, and told by `_changed`; never taken back.
        self.over: OSError | None = None  #: why the session is lost
        self._aborted: bool = False

    def _lose(self, link: Transport, why: str) -> None:
        """Note that a link is lost, unless it has been replaced."""
        raise NotImplementedError

    def _leave_old(self) -> None:
        """Free links that are not used any more."""
        raise NotImplementedError

    def begin(self) -> None:
        reader, runner = self._host.reader, self._host.runner
        self._incoming.begin(reader.messages_in, runner.handled)
        self._outgoing.begin(self._transmitter.frames_sent)
        reader.watch(self._note_batch, last=True)
        reader.take_late = self._take_late
        self._host.statistics.sessions[self] = None
        self._hook_decoder()
        if self._told is not None:
            self._host.exchange.negotiation.capabilities = self._told

    def _hook_decoder(self) -> None:
        application = self._host.application.find()
        if application is not None:
            decoder: Any = application.decoder
            decoder.own = self._take_own

    @property
    def recv(self) -> Callable[[int], bytes]:
        return self._recv

    def recv_much(self, size: int) -> bytes:
        return self._recv(size, much=True)

    def _recv(self, size: int, much: bool = False) -> bytes:
        while True:
            if self._old or self._feeding:
                self._leave_old()
            if self._incoming.ended:
                self._end_told = True
                return b""
            if self._link is None:
                self._changed.wait_for(lambda: self._link is not None or self.ended)
            link = self._link
            if link is None:
                return self._end()
            try:
                data = link.recv_much(size) if much else link.recv(size)
            except Exception as error:
                self._lose(link, self._explained(error))
                continue
            if data:
                if self._takes(link, data):
                    return data
            elif self._aborted:
                return b""
            else:
                self._lose(link, "peer closed")

    @property
    def receive_now(self) -> Callable[[int, int], bytes]:
        return self._receive_now

    def _receive_now(self, size: int, flags: int) -> bytes:
        self._feeding = False
        link = self._link
        if self._incoming.ended:
            self._end_told = True
            return b""
        if link is None:
            raise BlockingIOError("there is no link now")
        why = "peer closed"
        try:
            data = link.receive_now(size, flags)
            if data and self._takes(link, data):
                return data
            if not data and self._aborted:
                return b""
        except (BlockingIOError, Busy):
            raise
        except Exception as error:
            data, why = b"", self._explained(error)
        if not data:
            self._lose(link, why)
        raise BlockingIOError("there is nothing now")

    def _explained(self, error: Exception) -> str:
        """Return why a link is lost; report what is no fault of the network's."""
        if not isinstance(error, OSError):
            self._host.report(error, "in receiving, which ends the link")
        return explain(error)

    @property
    def ended(self) -> bool:
        """Whether it does not go on: it is lost, or aborted."""
        return self._aborted or self.over is not None

    def _end(self) -> bytes:
        """Return the end of the stream, or raise why it is lost."""
        if self.over is not None:
            raise self.over
        return b""

    def _takes(self, link: Transport, data: bytes) -> bool:
        """Note received data that is about to be decoded; False: it came too late."""
        self._feeding = True  # before this looks: whoever takes the link away looks after that
        if self._link is not link:
            self._feeding = False
            self._changed.notify_all()
            return False
        self._incoming.received += len(data)
        return True

    def _note_batch(self, batch: Batch) -> Batch:
        """Note that what was received is decoded; see `Reader.watch`."""
        acknowledger = self._acknowledger
        if self._note_decoded(len(batch)):
            self._host.send_queue.in_turn(acknowledger.acknowledge)
        if not acknowledger.clock_set:
            acknowledger.set_clock()
        return batch

    def _note_decoded(self, count: int) -> bool:
        host, pending = self._host, 0
        application = host.application.find()
        if application is not None:
            decoder: Any = application.decoder
            pending = decoder.pending
        much = self._incoming.note_decoded(host.reader.messages_in + count, pending)
        self._feeding = False
        if self._changed.waiting:
            self._changed.notify_all()
        return much

    def _take_late(self, data: bytes) -> None:
        """Look for what the peer acknowledges, and for its end; the messages are dropped."""
        batch: Batch = []
        application = self._host.application.find()
        if application is not None:
            try:
                application.decoder.feed(data, batch)
            except BaseException:
                self._aborted = True  # it will not be told from the end of the stream
        self._late += len(batch)
        self._note_decoded(self._late)

    def _take_own(self, number: int, value: bytes, batch: Batch) -> None:
        """Take a message of tao's own; see `Exchange.take`."""
        if number == ACK:
            self._incoming.skip(_ACK_SIZE)
            self._take_acknowledgement(read_ack(value))
        elif number == END:
            self._incoming.ended = True
            if self._wants_room:
                self.go_on()
            if self._shared:  # nothing else may come that would wake it
                self._host.gate.call_back(partial(self._host.roles.turn, READABLE))
        elif not self._host.lifecycle.ended:
            self._host.exchange.take(number, value, batch)
