"""A transport that outlives the transports below it: the stream of a session.

A connection with a session has this one transport from its beginning to its end, so none of its
other parts knows that its link, a plain transport, may be lost and replaced. While there is no
link, nothing is received, and what is written waits in the send queue.

Which thread does what:

- The thread that has the turn of the send queue owns the outgoing half of the session, and sends.
- The reading role receives, notices that a link is lost, and frees those that are not used any
  more.
- Whichever thread has a new link calls `SessionStream.let_go` and then `SessionStream.attach`. In
  between nothing is received, so it is certain how far the stream has come.

An exception that strikes in the midst of sending costs the link, not the session.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from tao.connection.sessions.host import LinkKeeper, SessionHost
from tao.connection.sessions.sender import MOVED, SessionSender
from tao.connection.shared_reading.roles import SharedRoles
from tao.errors import ConnectionClosed
from tao.runtime.deadline import Deadline
from tao.session.frames import ACK, END, read_ack
from tao.session.session import Session
from tao.transport.error_text import explain
from tao.transport.poller import READABLE
from tao.transport.stream import Transport
from tao.wire.codec import Batch
from tao.wire.message import UnknownMessage

__all__ = ["MOVED", "SessionFigures", "SessionStream"]

# Why reading pauses.
_NO_LINK = "no link"
# How long decoding what one read has brought may take at most, in seconds.
_DECODING = 10.0
# How long the peer may take to close when both have ended the session, in seconds, and how much is
# read meanwhile at once.
_PARTING, _LATE_BYTES = 1.0, 4096
# The size of an acknowledgement's frame.
_ACK_SIZE = 16


class SessionFigures(NamedTuple):
    """How a session is at one moment."""

    id: str  #: the beginning of what identifies it at both ends, for people
    connected: bool  #: whether it has a connection now; otherwise it waits for another one
    resumes: int  #: how many times it has been resumed
    unacknowledged: int  #: how many bytes of this side the peer has not acknowledged as handled
    unhandled: int  #: how many bytes of the peer this side has read and not handled


class SessionStream(SessionSender):
    """The stream of one session at one end. See `Transport` for which thread calls what.

    Args:
        host: the connection's core.
        session: with both halves.
        link: the first.
        keeper: sees to the next.
        told: the peer's capabilities, if it has told them.
    """

    __slots__ = (
        "_aborted", "_feeding", "_keeper", "_late", "_old", "_polled", "_shared",
        "_switching", "_told", "_told_over", "over",
    )  # fmt: skip

    def __init__(
        self,
        host: SessionHost,
        session: Session,
        link: Transport,
        keeper: LinkKeeper,
        told: int | None = None,
    ) -> None:
        super().__init__(host, session, link)
        self._keeper = keeper
        self._told = told
        self._shared: bool = isinstance(host.roles, SharedRoles)
        # Serialises the changes of `_link` to and from None. It is not held while anything waits
        # for another thread, except for the turn of the send queue, in which it is never taken.
        self._switching: Any = threading.RLock()
        self._old: deque[Transport] = deque()  # to be freed; any thread appends
        self._polled: Transport | None = None  # set by the writer thread while it is in there
        self._late: int = 0  # messages that came when the connection was ending; of that role
        self._feeding: bool = False  # set by the reading role until what it has got is decoded
        # Each is changed in one step, by any thread, and told by `_changed`; never taken back.
        self.over: OSError | None = None  #: why the session is lost
        self._aborted: bool = False
        self._told_over: dict[str, object] = {}  # under one key, what has told shared reading

    # -- beginning, and receiving: the reading role

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

    def _recv(self, size: int) -> bytes:
        while True:
            if self._old or self._feeding:
                self._leave_old()
            if self._incoming.ended:
                return b""
            if self._link is None:
                self._changed.wait_for(lambda: self._link is not None or self.ended)
            link = self._link
            if link is None:
                return self._end()
            try:
                data = link.recv(size)
            except OSError as error:
                self._lose(link, explain(error))
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
        except BlockingIOError:
            raise
        except OSError as error:
            data, why = b"", explain(error)
        if not data:
            self._lose(link, why)
        raise BlockingIOError("there is nothing now")

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
            except Exception:
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

    # -- sending: in the turn of the send queue

    def _lose_soon(self, link: Transport, why: str) -> None:
        if self._shared:  # it may not be read just now
            self._host.gate.call_back(lambda: self._lose(link, why))

    def wait_writable(self) -> None:
        self._changed.wait_for(self._can_go_on)
        link = self._link
        if link is None or not self.polls_writable:
            return
        self._polled = link
        # Looked at after the line before, and changed before that is looked at.
        if self._link is link and not self._aborted:
            link.wait_writable()
        self._polled = None
        self._changed.notify_all()

    def _can_go_on(self) -> bool:
        outgoing = self._outgoing
        if self.ended or (outgoing.ended and outgoing.idle):
            return True  # nothing more is sent, so nothing else would wake who waits here
        room = self._full or self.keeps or self.has_room
        return room and (self._keeping or self._usable() is not None)

    # -- changing the link

    def _lose(self, link: Transport, why: str) -> None:
        """Note that a link is lost, unless it has been replaced. By the reading role."""
        with self._switching:
            if self._link is not link:
                return
            self._part()
            self.frozen = False
        self._leave_old()
        if self.ended:
            self._tell_over()
        else:
            self._keeper.link_lost(self, why)

    def _part(self) -> None:
        """Take the link away. Needs _switching."""
        link, self._link = self._link, None
        if link is not None:
            self._host.gate.pause(_NO_LINK)
            self._old.append(link)
            link.abort()
            if self._shared:
                self._host.roles.leave()
                self._host.gate.call_back(self._leave_old)

    def _leave_old(self) -> None:
        """Free links that are not used any more. By the reading role."""
        self._feeding = False
        if self._changed.waiting:
            self._changed.notify_all()
        for link in list(self._old):
            self._host.send_queue.in_turn(bool)  # so the sender is out of it
            self._changed.wait_for(partial(self._is_not_polled, link))
            self._free(link)

    def _free(self, link: Transport) -> None:
        """Free a link that is not used any more. It may be called again, by other threads, too."""
        link.close()
        try:
            self._old.remove(link)
        except ValueError:
            pass  # another thread has done it

    def _is_not_polled(self, link: Transport) -> bool:
        return self._polled is not link

    def let_go(self) -> int:
        """Take the present link away; return how far the peer's stream has been decoded.

        Raises:
            ConnectionClosed: decoding takes too long.
        """
        with self._switching:
            self._part()
        if not self._changed.wait_for(lambda: not self._feeding, _DECODING):
            raise ConnectionClosed("what was received before is still being decoded")
        return self._incoming.restart()

    def claim(self, attempt: int) -> bool:
        """Let an attempt of the client's resume it, and no earlier one any more.

        Raises:
            ConnectionClosed: it moves at the moment; the client may try again.
        """
        with self._switching:
            if self.frozen:
                raise ConnectionClosed("its session moves at the moment")
            return not self.ended and self.session.claim(attempt)

    def attach(self, link: Transport, received: int, attempt: int) -> bool:
        """Go on with another link, after `let_go`; return False if it is not wanted any more.

        Args:
            received: how far the peer has received this side's stream.
            attempt: by which it is resumed; a later one may have come.
        """
        with self._switching:
            if (
                self.ended
                or self.frozen
                or self._link is not None
                or attempt != self.session.attempt
            ):
                return False
            application = self._host.application.find()
            if application is not None:
                application.decoder = application.new_decoder()
                self._hook_decoder()
            self._host.send_queue.in_turn(self._resume, link, received)
        self._host.gate.resume(_NO_LINK)
        if self._aborted or self.over:  # looked at after the link was set; set before that is seen
            link.abort()
        if self._shared:
            self._host.gate.call_back(self._listen)
        self.go_on()
        return True

    def _listen(self) -> None:
        """Have the poller wait for the link, unless that is taken away again."""
        with self._switching:
            if self._link is not None:
                self._host.roles.listen()

    # -- moving to another process

    def freeze(self) -> bool:
        """Do without a link, and keep what is written; return False if the session ends.

        Raises:
            ConnectionClosed: decoding takes too long; it lingers then.
        """
        with self._switching:
            if self.ended or self.frozen or self._incoming.ended or self._outgoing.ended:
                return False
            self.frozen = True
            self._part()
        try:
            self.let_go()
        except ConnectionClosed:
            self.thaw()
            raise
        self._host.send_queue.in_turn(self._freeze)
        self.go_on()
        return True

    @property
    def rests(self) -> bool:
        """Whether all that was received is handled."""
        incoming = self._incoming
        self._host.send_queue.in_turn(lambda: incoming.note_handled(self._runner.handled))
        return not self._feeding and incoming.handled == incoming.decoded

    def thaw(self) -> None:
        """Linger here, after `freeze`."""
        with self._switching:
            self.frozen = False
        self._keeper.link_lost(self, "it was not moved to another process")

    @property
    def figures(self) -> SessionFigures:
        """How the session is now."""
        session = self.session
        unacknowledged = session.outgoing.end - session.outgoing.acknowledged
        unhandled = max(0, session.incoming.decoded - session.incoming.handled)
        label, resumes = session.label, session.resumes
        return SessionFigures(label, self.connected, resumes, unacknowledged, unhandled)

    # -- ending

    def farewell(self) -> None:
        link = self._link
        if link is not None and self._incoming.ended:
            self._host.send_queue.in_turn(self._say_farewell, link)

    def lost_messages(self) -> list[UnknownMessage] | None:
        messages = self.session.unacknowledged()
        return messages if messages or self.over is not None else None

    def end(self, why: str) -> None:
        """End the session, which is lost. Any thread may call it."""
        if self.over is None:
            self.over = ConnectionClosed(why)
            self._host.statistics.session_lost()
        self._stop()

    def abort(self, *, reset: bool = False) -> None:
        self._aborted = True
        self._stop(reset=reset)
        self._keeper.aborted(self)

    def _stop(self, *, reset: bool = False) -> None:
        link = self._link
        if link is not None:
            if reset or self._polled is not None or not self._incoming.ended:
                link.abort(reset=reset)  # else nothing waits for it, and `farewell` may use it
        elif self._shared:
            self._host.gate.call_back(self._tell_over)
        self._changed.notify_all()

    def _tell_over(self) -> None:
        """Tell shared reading that the stream has ended while there was no link; once."""
        mine = object()
        if self._link is not None or not self._shared:
            return
        if self._told_over.setdefault("by", mine) is mine:
            if self.over is not None:
                self._host.transport_failed(self.over)
            else:
                self._host.stream_ended()
            self._host.roles.end()

    def close(self) -> None:
        self._aborted = True
        with self._switching:
            if self._shared:
                self._host.roles.leave()  # as `_listen` may have come since that was done
            link = self._link
            if link is not None:
                self._old.append(link)  # so that a second call frees it if this one cannot
                self._link = None
        if link is not None and self._incoming.ended and self._outgoing.ended:
            self._part_with(link)
        for each in list(self._old):
            self._free(each)
        self._host.reader.unwatch(self._note_batch)
        self._host.reader.take_late = None
        self._host.statistics.sessions.pop(self, None)
        self._host.gate.resume(_NO_LINK)
        if self._outgoing.shared is not None:
            self._outgoing.shared.leave(self)
        self._keeper.closed(self)

    def _part_with(self, link: Transport) -> None:
        """Wait a moment until the peer has closed as well: closing early might reset the link."""
        deadline = Deadline(_PARTING)
        try:
            link.shutdown_write()
            while link.receive_up_to(_LATE_BYTES) != b"":
                if not link.wait_readable(deadline.remaining()):
                    return
        except OSError:
            pass  # it is broken

    def after_fork(self) -> None:
        for each in (self._link, *self._old):
            if each is not None:
                each.after_fork()
