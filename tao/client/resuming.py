"""The sessions of a client: asking for one, and resuming it whenever its link is lost.

A client with a reading thread of its own dials on that thread, in the midst of its receive. Where
reading is shared, helper threads dial, and timers end the waits between attempts.

A client that is closed resumes its session only to hand over what is written.
"""

from __future__ import annotations

import random
import secrets
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Literal, Protocol

from tao.connection.application import ApplicationLink
from tao.connection.greetings import Greetings
from tao.connection.lifecycle import Lifecycle
from tao.connection.options.definitions import ClientSettings, Settings
from tao.connection.receiving.reading import Reader
from tao.connection.sessions.agreeing import converse, session_of
from tao.connection.sessions.host import SessionHost
from tao.connection.sessions.stream import SessionStream
from tao.connection.shared_reading.roles import SharedRoles
from tao.errors import BadData, ConnectFailed, ConnectionClosed
from tao.runtime.deadline import Deadline
from tao.runtime.timing_wheel import TimingWheel
from tao.runtime.wakeup import Wakeup
from tao.session.agreement import Opening
from tao.session.frames import ID_SIZE, Hello
from tao.session.session import Session
from tao.transport.error_text import explain
from tao.transport.stream import Transport
from tao.wire.capabilities import OFFERS_SESSIONS, SESSIONS

__all__ = ["Resuming", "ResumingHost"]

# How long a server may be silent until it counts as one without sessions, in seconds.
_PATIENCE = 2.0


class ResumingHost(SessionHost, Protocol):
    """What this asks of a client's core."""

    application: ApplicationLink
    capabilities: int
    error_reports: Any
    greetings: Greetings
    lifecycle: Lifecycle
    reader: Reader
    reconnects: int
    settings: Settings
    transport: Transport | None
    wheel: TimingWheel

    def dial(self) -> Transport:
        """Return a new connection; `ConnectionClosed` if there is none."""

    def note_link(self, up: bool) -> None:
        """Note that there is a link now, or none."""

    def leave_peer(self, why: str) -> bool:
        """Leave the peer when nothing is under way, and connect again; return whether it does."""


def _why_none(opening: Opening) -> str:
    """Return why there is no session, although the server has refused none."""
    return (
        "the question came too late" if opening.came_late else "the server does not know sessions"
    )


class Resuming:
    """The sessions of one client, one after another.

    Args:
        host: the client's core.
        settings: the options, of which it wants those about sessions.
    """

    __slots__ = (
        "_asked", "_attempt", "_came_again", "_host", "_hurry", "_limit", "_lost_at", "_missed",
        "_most", "_next", "_progress", "_shared", "_stream", "_waits", "_why", "_wish", "wanted",
    )  # fmt: skip

    def __init__(self, host: ResumingHost, settings: ClientSettings) -> None:
        self._host = host
        self.wanted: bool | Literal["required"] = settings.session
        # How many bytes, and messages, are kept until they are acknowledged.
        self._limit, self._most = settings.retain_bytes, settings.retain
        self._shared: bool = isinstance(host.roles, SharedRoles)
        self._hurry = Wakeup()  # set when the client is closed; ends one wait
        # Holds one item while a timer runs that ends the wait before the next attempt. The thread
        # that takes the item out goes on itself, so no exception can come between the two.
        self._waits: deque[None] = deque()
        # Owned by the thread that connects, and that gets the next link.
        self._wish: bytes = b""  # see `Hello`
        self._asked: int = 0  # how many times it was asked for
        # What has agreed on no session, if one is wanted; and whether the client has come again for
        # one.
        self._missed: Opening | None = None
        self._came_again: bool = False
        self._stream: SessionStream | None = None
        self._next: Transport | None = None  # what it is to be resumed over
        self._attempt: int = 0  # how many have failed since the session made progress
        self._why: str = ""
        self._lost_at: float = 0.0  # when the link was lost, monotonic
        self._progress: tuple[int, int] = (0, 0)  # of the session, when it was last resumed

    # -- the beginning

    def agree(self, transport: Transport) -> Transport:
        """Ask the server for a session, if one is wanted; return what carries the messages.

        Raises:
            ConnectionClosed: there is none, although the client requires one; or the server has
                left meanwhile.
        """
        if not self.wanted:
            return transport
        # The same until an answer comes: the server may have given a session that we never got.
        self._wish = self._wish or secrets.token_bytes(ID_SIZE)
        self._asked += 1
        opening = self._converse(transport, Hello(wish=self._wish, attempt=self._asked))
        welcome, self._wish = opening.welcome, b""
        if welcome is None or opening.refusal:
            if self.wanted == "required":
                why = opening.refusal or _why_none(opening)
                raise ConnectionClosed(f'session="required": {why}')
            if opening.refusal:
                raise ConnectionClosed(f"the server gives no session: {opening.refusal}")
            self._host.reader.early = opening.early
            self._note_missed(opening)
            return transport
        self._missed, self._came_again = None, False
        session = Session(welcome.session_id, welcome.secret, self._limit, most=self._most)
        session.linger = welcome.linger
        return SessionStream(self._host, session, transport, self, opening.told)

    def _note_missed(self, opening: Opening) -> None:
        """Look for an answer that comes later than it was waited for."""
        exchange, self._missed = self._host.exchange, opening
        exchange.negotiation.question = opening.nonce
        exchange.on_capabilities = self._learned

    def opened(self) -> None:
        """Note that a connection is open, with a session or without."""
        if self._missed is not None and self._missed.told is not None:
            self._learned(self._missed.told)

    def _learned(self, capabilities: int) -> None:
        """Come again for a session if the server has some, and only one of both was too slow.

        Once, as it may be too slow each time. Nothing is lost by that, see ``leaving.py``.
        """
        if self._missed is None or not capabilities & (SESSIONS | OFFERS_SESSIONS):
            return
        self._missed = None
        if not self._came_again:
            self._came_again = True
            why = "the server has sessions, but had not got the question in time"
            self._host.exchange.negotiation.told_to_leave = self._host.leave_peer(why)

    def _converse(self, transport: Transport, hello: Hello, secret: bytes = b"") -> Opening:
        host, nonce = self._host, random.getrandbits(64)
        opening = Opening(time.time_ns(), host.capabilities, nonce, hello, secret)
        end = Deadline(host.settings.handshake_timeout)
        try:
            converse(transport, opening, Deadline(_PATIENCE), end)
        except ConnectionClosed:
            raise
        except (OSError, BadData) as error:
            raise ConnectionClosed(f"no session could be agreed on: {explain(error)}") from error
        return opening

    # -- when a link is lost

    def link_lost(self, stream: SessionStream, why: str) -> None:
        """See `LinkKeeper.link_lost`."""
        host, session = self._host, stream.session
        if not host.lifecycle.open and not self._has_to_hand_over(stream):
            stream.end(why)
            return
        host.note_link(False)
        host.error_reports.log().info("connection lost: {}; resuming its session", why)
        progress = session.incoming.decoded, session.outgoing.acknowledged
        self._attempt = 0 if progress != self._progress else self._attempt + 1
        self._stream, self._why = stream, why
        self._lost_at = time.monotonic()
        if self._shared:
            self._launch(self.go_on)
            return
        try:
            self.go_on()
        except BaseException as error:
            self._struck(error)
            raise

    def closed(self, stream: SessionStream) -> None:
        """See `LinkKeeper.closed`."""
        self._end_dialling()

    def _has_to_hand_over(self, stream: SessionStream) -> bool:
        """Whether the client is closed, and something waits that it has written before."""
        closed = self._host.lifecycle.close_reason is not None
        waits = stream.session.outgoing.uncertain or self._host.send_queue.waiting
        return bool(closed and waits and not stream.ended)

    def hurry(self) -> None:
        """Make no more attempts, or one at once, as the client is closed.

        Any thread may call it.
        """
        stream = session_of(self._host.transport)
        lost = stream is not None and not stream.ended and not stream.connected
        if stream is not None and lost and not self._has_to_hand_over(stream):
            stream.end(self._host.lifecycle.close_reason or "closed")
        if stream is None or stream.ended:
            self._end_dialling()
        self._hurry.set()
        self._end_wait()

    def aborted(self, stream: SessionStream) -> None:
        """See `LinkKeeper.aborted`."""
        self.hurry()

    def _end_dialling(self) -> None:
        application = self._host.application.find()
        if application is not None and self._host.lifecycle.close_reason is not None:
            application.source.close()
        transport = self._next
        if transport is not None:
            transport.abort()

    def _end_wait(self) -> None:
        """Have the attempts go on, if a timer was to do that. Any thread may call it."""
        if self._waits:
            self._launch(self._go_on_after_wait)

    def _go_on_after_wait(self) -> None:
        try:
            self._waits.pop()
        except IndexError:
            return  # another thread has gone on: an interrupted call was repeated
        self.go_on()

    def _launch(self, function: Callable[[], object]) -> None:
        try:
            self._host.roles.launch(self._struck, function)
        except (RuntimeError, MemoryError) as error:
            self._struck(error)

    def _struck(self, error: BaseException) -> None:
        if self._stream is not None:
            self._stream.end(f"it could not be resumed: {explain(error)}")

    def go_on(self) -> None:
        """Make attempts until one succeeds or the session is lost, or a timer has to end a wait."""
        stream, host = self._stream, self._host
        assert stream is not None
        while not stream.ended and (
            host.lifecycle.close_reason is None or self._has_to_hand_over(stream)
        ):
            delay = self._delay(stream.session.linger)
            if delay is None:
                seconds = stream.session.linger
                stream.end(f"the session was not resumed within {seconds:g} s: {self._why}")
                return
            if delay:
                if self._shared:
                    self._wait_aside(delay)
                    return
                if host.wheel.wait(self._hurry, delay):
                    self._hurry.clear()
                    self._attempt = -self._attempt  # so that the next one does not wait
                    continue
            if self._try(stream):
                return
            self._attempt += 1
        stream.end(host.lifecycle.close_reason or self._why)

    def _wait_aside(self, delay: float) -> None:
        self._attempt = -self._attempt  # so that the next one does not wait
        self._waits.append(None)
        self._host.wheel.run_clock(delay, lambda _: self._end_wait())
        if self._hurry.is_set():
            self._hurry.clear()
            self._end_wait()

    def _delay(self, linger: float) -> float | None:
        """Return the seconds to wait before this attempt; None: the session is lost."""
        if self._attempt < 0:  # a timer has just ended the wait
            self._attempt = -self._attempt
            return 0.0
        application = self._host.application.find()
        how = None if application is None else application.reconnect
        delay: float | None = None if how is None else how.delay_before(self._attempt)
        left = linger - self._host.wheel.since(self._lost_at)
        return None if delay is None or left <= delay else delay

    def _try(self, stream: SessionStream) -> bool:
        """Make an attempt; return whether it has decided the matter."""
        transport: Transport | None = None
        try:
            received = stream.let_go()
            self._next = transport = self._host.dial()
            if stream.ended:  # looked at after the line before, as that is before this is told
                transport.abort()
            transport.handshake(self._host.settings.handshake_timeout)
            if self._resume(stream, transport, received):
                return True
        except Exception as error:
            self._note_failure(error)
        finally:
            self._next = None
        if stream.connected:
            return True
        if transport is not None:
            transport.abort()
            transport.close()
        return stream.ended

    def _note_failure(self, error: Exception) -> None:
        """Note why an attempt has failed. One that nobody expected costs no more than that."""
        self._why = explain(error)
        if not isinstance(error, (OSError, BadData)):
            self._host.report(error, "while resuming the session")
        elif not isinstance(error, ConnectFailed):
            self._host.error_reports.log().info("attempt to resume: {}", self._why)

    def _resume(self, stream: SessionStream, transport: Transport, received: int) -> bool:
        """Resume a session over a new connection; return whether it goes on with that."""
        host, session = self._host, stream.session
        session.attempt += 1
        outgoing = session.outgoing
        hello = Hello(session.session_id, session.attempt, received, outgoing.acknowledged)
        opening = self._converse(transport, hello, session.secret)
        welcome = opening.welcome
        if welcome is None:
            raise ConnectionClosed(_why_none(opening))
        if opening.refusal:
            stream.end(f"the server does not resume the session: {opening.refusal}")
            return False
        self._progress = session.incoming.decoded, outgoing.acknowledged
        session.linger = welcome.linger
        if not stream.attach(transport, welcome.received, session.attempt):
            return False
        host.reconnects += 1
        host.note_link(True)
        closed = host.lifecycle.close_reason is not None
        if not closed and not self._agrees():
            stream.end("refused by on_resume")
        return True

    def _agrees(self) -> bool:
        """Call ``on_resume``; whatever it raises is a refusal, as nobody else brings a link."""
        host = self._host
        try:
            return host.greetings.call("on_resume")
        except BaseException as error:
            host.report(error, "in on_resume")
            return False
