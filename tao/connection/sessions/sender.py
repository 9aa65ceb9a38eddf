"""The sending half of the stream of a session, see ``sessions/stream.py``.

The thread that has the turn of the send queue uses it.
"""

from __future__ import annotations

from functools import partial

from tao.connection.sessions.acknowledging import Acknowledger
from tao.connection.sessions.host import SessionHost
from tao.connection.sessions.linked_transport import LinkedTransport
from tao.errors import BadData
from tao.runtime.wakeup import Notifier
from tao.session.frames import END_FRAME, ack_frame
from tao.session.outgoing import RETAIN, RETAIN_BYTES
from tao.session.session import Session
from tao.transport.error_text import explain
from tao.transport.stream import Transport

__all__ = ["MOVED", "SessionSender"]

# How much more may be read than this side keeps itself, as the peer's bounds may be others.
_AHEAD = 2
#: Why a connection is closed whose session goes on in another process.
MOVED = "its session moves to another process"


class SessionSender(LinkedTransport):
    """Sends into one link after another. What no link has taken yet, the send queue keeps.

    Args:
        host: the connection's core.
        session: with both halves.
        link: the first.
    """

    __slots__ = (
        "_acknowledger", "_broken", "_changed", "_flushing", "_full", "_host", "_incoming",
        "_outgoing", "_reported", "_runner", "_transmitter", "_wants_room", "frozen", "session",
    )  # fmt: skip

    def __init__(self, host: SessionHost, session: Session, link: Transport) -> None:
        super().__init__(link)
        self._host = host
        self.session = session
        self._incoming, self._outgoing = session.incoming, session.outgoing
        self._runner = host.runner
        self._transmitter = host.send_queue.transmitter
        self._acknowledger = Acknowledger(host, session, self)
        # The link that sending has found broken, whether a send is under way, and how much had been
        # reported to the send queue before it.
        self._broken: Transport | None = None
        self._flushing: bool = False
        self._full: bool = False  # whether the link did not take everything
        self._reported: int = 0
        self._wants_room: bool = False  # whether it waits until it may keep more
        self._changed = Notifier()  # for the writer thread, and for one that brings a link
        #: Whether the session is on its way to another process, or from one: it cannot be resumed
        #: now. Changed where the link is.
        self.frozen: bool = False

    def send(self, data: bytes | memoryview) -> int:
        outgoing = self._outgoing
        self._reported = taken = outgoing.taken
        self.answers.append(0)
        link = self._link
        if link is None or link is self._broken:
            return self._keep(data) if self._keeping else 0
        end = outgoing.end
        if taken == end:
            if outgoing.at < end and not self.push():
                return 0
            more = self._transmitter.frames_sent >= outgoing.next_mark
            if (more or end >= outgoing.granted or outgoing.ended) and not self._takes_more():
                return 0
            if not self.push(outgoing.offer(data)):
                outgoing.take_back(data, link.committed_bytes)
        elif outgoing.ended:
            return 0
        else:
            self.push()
        return outgoing.advance()

    def _takes_more(self) -> bool:
        """Whether there is room for more frames; if not, it is told when there is.

        If there is, have them acknowledge what was handled.
        """
        outgoing, messages = self._outgoing, self._transmitter.frames_sent
        if messages >= outgoing.next_mark:
            outgoing.mark(messages)
        if self.has_room:
            outgoing.grant()
            if self._incoming.wants_to_tell(self._runner.handled):
                self._acknowledger.note()
            return True
        # Both before this looks again: whatever makes room looks at them afterwards.
        self._wants_room = True
        if outgoing.shared is not None:
            outgoing.shared.wait(self)
        self._host.dispatcher.note_spill()  # for `reads_ahead`
        return self.has_room

    @property
    def has_room(self) -> bool:
        """Whether more frames may be kept. A peer that has ended acknowledges nothing any more."""
        outgoing = self._outgoing
        return outgoing.has_room or (self._incoming.ended and not outgoing.ended)

    def reads_ahead(self, spilt: int) -> bool:
        """See `Transport.reads_ahead`.

        When handlers wait until more is acknowledged, the acknowledgement may be behind messages
        that wait for these handlers. The peer has sent no more of them than it may keep.
        """
        outgoing, incoming = self._outgoing, self._incoming
        if not self._wants_room or self.has_room:
            return False
        ahead = incoming.decoded - incoming.acknowledged
        most, limit = max(outgoing.most, RETAIN), max(outgoing.limit, RETAIN_BYTES)
        return spilt < _AHEAD * most and ahead < _AHEAD * limit

    def _take_acknowledgement(self, position: int) -> None:
        outgoing = self._outgoing
        if not outgoing.acknowledge(position):
            raise BadData(f"the peer acknowledges {position} bytes, {outgoing.end} were sent")
        if self._wants_room and self.has_room:
            self._wants_room = False
            self.go_on()
        if outgoing.shared is not None:
            outgoing.shared.make_way()

    def go_on(self) -> None:
        """Have the send queue try again, after whichever thread is sending. It does not wait."""
        self._changed.notify_all()
        self._host.send_queue.note(partial(self._transmitter.now_writable, self), self)

    @property
    def _keeping(self) -> bool:
        """Whether all that is written goes to what is kept, as another process will send it."""
        return self.frozen and self._link is None

    def _keep(self, data: bytes | memoryview) -> int:
        outgoing = self._outgoing
        if outgoing.taken == outgoing.end:
            if not self._takes_more():
                return 0
            outgoing.keep(data)
        else:
            outgoing.keep_rest()  # a link had begun to take it
        return outgoing.advance()

    def _freeze(self) -> None:
        """Begin to keep what is written. Needs the turn."""
        self._outgoing.keep_rest()
        self._full = False

    def settle(self) -> int | None:
        if not self.answers:
            return 0
        outgoing = self._outgoing
        outgoing.advance()
        return outgoing.taken - self._reported

    @property
    def committed_bytes(self) -> int:
        outgoing = self._outgoing
        return outgoing.end - outgoing.taken

    def _usable(self) -> Transport | None:
        link = self._link
        return None if link is self._broken else link

    @property
    def keeps(self) -> bool:  # type: ignore[override]
        return not (self._keeping or self._outgoing.idle)

    resends = True

    def push(self, piece: bytes | memoryview | None = None) -> bool:
        """See `Transport.push`.

        Args:
            piece: all that the link has not taken, if that is one piece.
        """
        link = self._link
        if link is None or link is self._broken:
            return False
        if self._flushing:  # an exception has come in the midst of it
            self._break(link, "sending was interrupted")
            return False
        outgoing, done, last = self._outgoing, True, piece is not None
        self._flushing, self._full = True, False
        try:
            if piece is None:
                piece = outgoing.next_piece()
            while piece:
                link.answers.clear()
                accepted = link.send(piece)
                outgoing.note_sent(accepted)
                if accepted < len(piece):
                    done = False
                    break
                if last and outgoing.due is None:
                    break
                piece = outgoing.next_piece()
            if done and outgoing.ended and self._incoming.ended:
                done = link.shutdown_write()
        except OSError as error:
            self._break(link, explain(error))
            done = False
        self._flushing, self._full = False, not done
        return done

    def _break(self, link: Transport, why: str) -> None:
        """Do without a link, which takes nothing any more."""
        self._broken = link
        link.abort()
        self._lose_soon(link, why)

    def _lose_soon(self, link: Transport, why: str) -> None:
        """Have the reading role notice that a link is lost."""
        raise NotImplementedError

    def unacknowledged(self) -> int:
        outgoing = self._outgoing
        return outgoing.end - outgoing.acknowledged

    def shutdown_write(self) -> bool:
        outgoing = self._outgoing
        if self._keeping and self._host.lifecycle.close_reason is MOVED:
            return True  # the session does not end
        if not outgoing.ended:
            self._acknowledger.acknowledge()
            if not outgoing.idle:
                return False
            outgoing.offer_end()
        done = self.push()
        outgoing.advance()
        return done

    @property
    def polls_writable(self) -> bool:  # type: ignore[override]
        return self._full and self._usable() is not None

    def _resume(self, link: Transport, received: int) -> None:
        outgoing, incoming = self._outgoing, self._incoming
        if not outgoing.resume(received):
            raise BadData(f"the peer has received {received} bytes, which were not sent")
        outgoing.due = incoming.acknowledged
        self._flushing, self._full, self._broken = False, False, None
        self._host.reader.restart()
        self._lasting = self._link = link
        self.session.resumes += 1
        self._host.statistics.session_resumed()

    def _say_farewell(self, link: Transport) -> None:
        """Tell a peer that has ended the session what was handled of it."""
        incoming, outgoing = self._incoming, self._outgoing
        if outgoing.ended or outgoing.at < outgoing.end:
            return
        outgoing.ended = True
        try:
            link.answers.clear()
            link.send(ack_frame(incoming.tell(self._runner.handled)) + END_FRAME)
        except OSError:
            pass  # the peer is gone
