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
from functools import partial
from typing import Any, NamedTuple

from tao.connection.sessions.host import LinkKeeper, SessionHost
from tao.connection.sessions.receiver import SessionReceiver
from tao.connection.sessions.sender import MOVED
from tao.errors import ConnectionClosed
from tao.runtime.deadline import Deadline
from tao.session.session import Session
from tao.transport.error_text import explain
from tao.transport.poller import READABLE
from tao.transport.stream import Transport
from tao.wire.message import UnknownMessage

__all__ = ["MOVED", "Overtaken", "SessionFigures", "SessionStream"]

# Why reading pauses.
_NO_LINK = "no link"
# How long decoding what one read has brought may take at most, in seconds.
_DECODING = 10.0
# How long the peer may take to close when both have ended the session, in seconds, and how much is
# read meanwhile at once.
_PARTING, _LATE_BYTES = 1.0, 4096


class Overtaken(ConnectionClosed):
    """Another attempt to resume a session was faster."""


class SessionFigures(NamedTuple):
    """How a session is at one moment."""

    id: str  #: the beginning of what identifies it at both ends, for people
    connected: bool  #: whether it has a connection now; otherwise it waits for another one
    resumes: int  #: how many times it has been resumed
    unacknowledged: int  #: how many bytes of this side the peer has not acknowledged as handled
    unhandled: int  #: how many bytes of the peer this side has read and not handled


class SessionStream(SessionReceiver):
    """The stream of one session at one end. See `Transport` for which thread calls what.

    Args:
        host: the connection's core.
        session: with both halves.
        link: the first.
        keeper: sees to the next.
        told: the peer's capabilities, if it has told them.
    """

    __slots__ = ("_awaited", "_keeper", "_polled", "_switching", "_told_over")

    def __init__(
        self,
        host: SessionHost,
        session: Session,
        link: Transport,
        keeper: LinkKeeper,
        told: int | None = None,
    ) -> None:
        super().__init__(host, session, link, told)
        self._keeper = keeper
        # Serialises the changes of `_link` to and from None. It is not held while anything waits
        # for another thread, except for the turn of the send queue, in which it is never taken.
        self._switching: Any = threading.RLock()
        self._polled: Transport | None = None  # set by the writer thread while it is in there
        self._awaited: Transport | None = None  # the same by the reading role, at the peer's end
        self._told_over: dict[str, object] = {}  # under one key, what has told shared reading

    # -- sending: in the turn of the send queue

    def _lose_soon(self, link: Transport, why: str) -> None:
        if self._shared:  # it may not be read just now
            self._host.gate.call_back(lambda: self._lose(link, why))
        elif self._incoming.ended:  # nothing is read any more, so nobody would notice
            try:
                self._host.roles.launch(self._struck, self._lose, link, why)
            except (RuntimeError, MemoryError) as error:
                self._struck(error)

    def _struck(self, error: BaseException) -> None:
        self.end(f"its link could not be replaced: {explain(error)}")

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
        return self._polled is not link is not self._awaited

    def let_go(self, attempt: int | None = None) -> int:
        """Take the present link away; return how far the peer's stream has been decoded.

        Args:
            attempt: of the client's to resume it, for which that is done.

        Raises:
            Overtaken: a later attempt has come; the present link may be that one's.
            ConnectionClosed: decoding takes too long.
        """
        with self._switching:
            self._check_latest(attempt)
            self._part()
        if not self._changed.wait_for(lambda: not self._feeding, _DECODING):
            raise ConnectionClosed("what was received before is still being decoded")
        with self._switching:  # as the next link must not bring anything in between
            self._check_latest(attempt)
            return self._incoming.restart()

    def _check_latest(self, attempt: int | None) -> None:
        if attempt is not None and attempt != self.session.attempt:
            raise Overtaken("another attempt to resume it was faster")

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
            if self._link is None or self._end_told:
                return
            self._host.roles.listen()
        if self._incoming.ended:  # nothing else may come that would wake it
            self._host.gate.call_back(partial(self._host.roles.turn, READABLE))

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

    def wait_hung_up(self, timeout: float | None) -> bool:
        """Wait until this side ends the session as well; links that are lost are replaced."""
        deadline, outgoing = Deadline(timeout), self._outgoing
        while not (self.ended or outgoing.ended):
            link = self._link
            if link is None:
                back = self._changed.wait_for(self._goes_on, deadline.remaining())
            elif (back := self._wait_hung_up(link, deadline)) and not outgoing.ended:
                self._lose(link, "peer closed")
            if not back:
                return False
        return True

    def _wait_hung_up(self, link: Transport, deadline: Deadline) -> bool:
        """Wait for the end of one link, unless that is not the present one any more."""
        back, self._awaited = True, link
        try:
            # Looked at after the line before, and changed before that is looked at.
            if self._link is link and not self._aborted:
                back = link.wait_hung_up(deadline.remaining())
        finally:
            self._awaited = None
            self._changed.notify_all()
        return back

    def _goes_on(self) -> bool:
        """Whether there is a link, or none is waited for."""
        return self._link is not None or self.ended or self._outgoing.ended

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
            if self._incoming.ended:  # nothing is read any more that would tell the send queue
                self._host.send_queue.give_up(self.over)
        self._stop()

    def abort(self, *, reset: bool = False) -> None:
        self._aborted = True
        self._stop(reset=reset)
        self._keeper.aborted(self)

    def _stop(self, *, reset: bool = False) -> None:
        link = self._link
        if link is not None:
            waiting = self._polled is not None or self._awaited is not None
            if reset or waiting or not self._incoming.ended:
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
