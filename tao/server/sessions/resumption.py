"""Server side of sessions: detect, create and resume them.

With the option ``sessions``, the first bytes of each connection decide what it is: one without a
session, the first of a new one, or another one of a session that exists. In the last case the
transport is handed over to the connection that has the session, and nothing is left of the new one.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Any, Protocol

from tao.connection.greetings import Greetings
from tao.connection.lifecycle import Lifecycle
from tao.connection.options.definitions import ServerSettings
from tao.connection.sessions.agreeing import converse, say, session_of
from tao.connection.sessions.host import SessionHost
from tao.connection.sessions.stream import Overtaken, SessionStream
from tao.connection.shared_reading.roles import SharedRoles
from tao.errors import BadData, ConnectionClosed, HandshakeFailed, TaoError
from tao.runtime.deadline import Deadline
from tao.server.handshake import Handshake, PeerLeft
from tao.server.sessions.moves import MovedSession
from tao.session.agreement import Reception
from tao.session.frames import NEW, NONCE_SIZE, REFUSED, Welcome, welcome_frame
from tao.session.session import Session
from tao.session.sessions import Sessions
from tao.transport.addresses import host_of
from tao.transport.error_text import explain
from tao.transport.poller import READABLE, WRITABLE
from tao.transport.stream import Transport

__all__ = ["Beginning", "SessionOwner", "join", "revive"]

# How long a client may be silent until it counts as one without a session, in seconds.
_PATIENCE = 1.0
_CLOCK = "session"  # the purpose of the clock that ends a lingering session
_UNKNOWN = "there is no such session, or not any more"
_OVERTAKEN = "another attempt to resume it was faster"


class SessionOwner(SessionHost, Protocol):
    """What this asks of a connection's core."""

    error_reports: Any
    given_away: bool
    greetings: Greetings
    lifecycle: Lifecycle
    link_address: Any  # of the peer, whatever the application sets as `remote_address`
    local_address: Any
    net_id: int
    remote_address: Any
    settings: Any
    transport: Transport | None

    def pass_on(self, transport: Transport, reception: Reception) -> bool:
        """Pass the connection to the process that has the session; False: there is none.

        Raises:
            ConnectionClosed: that does not take it now.
        """

    @property
    def serving(self) -> bool:
        """Whether the server takes connections."""

    def count_link(self, lingers: bool) -> None:
        """Count the connection towards the server's limits, or no more, as its session lingers."""


class Beginning:
    """The handshake of an accepted connection, and then what its first bytes say.

    Args:
        handshake: what comes before.
        transport: the connection's.
        settings: the options.
        capabilities: what this side can, as a sum.
        look_again: has `advance` called in so many seconds, unless it is over.
    """

    def __init__(
        self,
        handshake: Handshake,
        transport: Transport,
        settings: ServerSettings,
        capabilities: int,
        look_again: Callable[[float], object],
    ) -> None:
        self._handshake = handshake
        self._transport = transport
        self._timeout = settings.handshake_timeout
        self._look_again = look_again
        self._patience: Deadline | None = None  # once the handshake is done
        self._end = Deadline(None)
        self._error: TaoError | None = None  # how it failed
        self.reception = Reception(time.time_ns(), capabilities, secrets.token_bytes(NONCE_SIZE))

    def _shaken(self) -> Deadline:
        """Note that the handshake is done; return until when silence is listened to."""
        if self._patience is None:
            self._patience, self._end = Deadline(_PATIENCE), Deadline(self._timeout)
        return self._patience

    def advance(self) -> int:
        """See `Handshake.advance`."""
        if self._error is not None:
            raise self._error
        try:
            if self._patience is None and (events := self._handshake.advance()):
                return events
            return self._converse_on(self._shaken())
        except (HandshakeFailed, ConnectionClosed) as error:
            self._error = error
            raise

    def _failed(self, error: Exception) -> HandshakeFailed:
        """Return the error of a conversation that has ended with another error."""
        if isinstance(error, ConnectionError) and not self.reception.heard:
            return PeerLeft("the peer hung up before it had sent a byte")
        return HandshakeFailed(f"no session could be agreed on: {explain(error)}")

    def _converse_on(self, patience: Deadline) -> int:
        try:
            return self._converse(patience)
        except HandshakeFailed:
            raise
        except (OSError, BadData) as error:
            raise self._failed(error) from error

    def _converse(self, patience: Deadline) -> int:
        reception, transport = self.reception, self._transport
        while True:
            while reception.output:
                transport.answers.clear()
                sent = transport.send(reception.output)
                reception.output = reception.output[sent:]
                if not sent:
                    return WRITABLE
            if reception.over:
                return 0
            data = transport.receive_up_to(reception.wanted)
            if data:
                reception.feed(data)
            elif data is None:
                if reception.agreed:
                    return READABLE
                if left := patience.remaining():
                    self._look_again(left)  # each time, as this may be a look that came too early
                    return READABLE
                reception.give_up()
            else:
                raise ConnectionClosed("the peer left while a session was agreed on")

    def complete(self) -> None:
        """See `Handshake.complete`."""
        if self._error is not None:
            raise self._error
        if self._patience is None:
            self._handshake.complete()
        patience = self._shaken()
        try:
            converse(self._transport, self.reception, patience, self._end)
        except HandshakeFailed:
            raise
        except (OSError, BadData) as error:
            raise self._failed(error) from error


def join(core: SessionOwner, transport: Transport, reception: Reception) -> Transport:
    """Return what carries the messages of a new connection.

    Raises:
        ConnectionClosed: the transport belongs to another connection now, whose session goes on, or
            to another process; or no session could be resumed.
    """
    sessions, hello = core.settings.sessions, reception.hello
    if hello is None:
        core.reader.early = reception.early
        return transport
    if hello.session_id:
        known = sessions.find(hello.session_id)
        if known is None and core.pass_on(transport, reception):
            raise ConnectionClosed("its transport belongs to another process")
        refusal = _resume(core, transport, reception, sessions, known)
        if not refusal:
            raise ConnectionClosed("the transport was handed to a resumed session")
        core.error_reports.log().info("a session is not resumed: {}", refusal)
        _tell(transport, reception, Welcome(REFUSED, text=refusal))
        raise ConnectionClosed(refusal)
    session = sessions.new(_subject(transport), hello.wish, hello.attempt)
    stream = SessionStream(core, session, transport, _Links(core, sessions), reception.told)
    session.owner = core
    try:
        outdated = sessions.grant(session)
        _end_unheard(outdated)
        if session in outdated:
            raise ConnectionClosed("its client has asked for the session again meanwhile")
        welcome = Welcome(NEW, session.linger, session.session_id, 0, session.secret)
        _tell(transport, reception, welcome)
    except BaseException:
        sessions.forget(session)
        raise
    return stream


def revive(core: SessionOwner, transport: Transport, moved: MovedSession) -> Transport:
    """Return what carries the messages of a connection whose session comes from another process.

    Raises:
        ConnectionClosed: its client has asked for another session meanwhile.
    """
    sessions = core.settings.sessions
    session = sessions.restored(moved.state)
    stream = SessionStream(core, session, transport, _Links(core, sessions), moved.capabilities)
    stream.frozen = True  # until the first link, which leads nowhere, is lost
    session.owner = core
    sessions.adopt(session)
    outdated = sessions.grant(session)
    _end_unheard([each for each in outdated if each is not session])
    if session in outdated:
        sessions.forget(session)
        raise ConnectionClosed("its client has asked for the session again meanwhile")
    return stream


def _end_unheard(outdated: list[Session]) -> None:
    """End sessions whose clients have not got the answer that gave them, and have asked again."""
    for session in outdated:
        # None if it has not begun yet. As it is forgotten, it ends when its link does.
        stream = session_of(session.owner.transport)
        if stream is not None:
            stream.end("its client did not get the answer, and has asked again")


def _tell(transport: Transport, reception: Reception, welcome: Welcome) -> None:
    """Say the last word.

    Raises:
        ConnectionClosed: the client is gone.
    """
    reception.output = welcome_frame(welcome)
    try:
        say(transport, reception, Deadline(_PATIENCE))
    except OSError as error:
        raise ConnectionClosed(f"the client is gone: {explain(error)}") from error


def _resume(
    core: SessionOwner,
    transport: Transport,
    reception: Reception,
    sessions: Sessions,
    session: Session | None,
) -> str:
    """Have a session go on over the transport of another connection; return why not, or ``""``.

    Raises:
        ConnectionClosed: the client is to try again later.
    """
    hello = reception.hello
    assert hello is not None
    if session is None or not reception.proves(session.secret):
        return _UNKNOWN
    owner: SessionOwner = session.owner
    stream = session_of(owner.transport)
    if stream is None or not owner.lifecycle.status.released:
        raise ConnectionClosed("its session is being established at the moment, or ends")
    if session.subject != _subject(transport):
        return "its client had another certificate"
    if not stream.claim(hello.attempt):
        return "it has ended" if stream.ended else _OVERTAKEN
    try:
        received = stream.let_go(hello.attempt)
        fits = session.can_resume(hello.received, hello.first)
        if hello.attempt != session.attempt:  # looked at after a later one may have gone on
            return _OVERTAKEN
        if not fits:
            stream.end("what the two sides keep of the session does not fit together")
            return "what the two sides keep does not fit together"
        owner.remote_address = owner.link_address = core.link_address
        owner.local_address = core.local_address
        if not owner.greetings.call("on_resume"):
            stream.end("refused by on_resume")
            return "refused"
        if isinstance(core.roles, SharedRoles):
            core.roles.leave()
        core.given_away, core.transport = True, None
        _tell(transport, reception, reception.resumed(session.secret, received, session.linger))
        if not stream.attach(transport, hello.received, hello.attempt):
            raise ConnectionClosed("it has ended meanwhile, or was resumed again")
    except Overtaken:
        return _OVERTAKEN
    except (ConnectionClosed, BadData):
        if not core.given_away:
            raise
        transport.abort()
        transport.close()
    finally:
        _Links(owner, sessions).note_link(stream, "the client has left")
    return ""


class _Links:
    """See `LinkKeeper`."""

    __slots__ = ("_core", "_sessions")

    def __init__(self, core: SessionOwner, sessions: Sessions) -> None:
        self._core = core
        self._sessions = sessions

    def link_lost(self, stream: SessionStream, why: str) -> None:
        """Wait for the client to come back."""
        core = self._core
        if not core.lifecycle.status.released:
            stream.end(why)
            return
        core.error_reports.log().info("connection lost: {}; its session can be resumed", why)
        self.note_link(stream, why)

    def note_link(self, stream: SessionStream, why: str) -> None:
        """Count a session as one that lingers, or not. Called after each change of its link.

        A client may be back before the thread that has noticed the loss gets here, or lose the next
        link before the thread that has brought that does. So each looks again in the end; the last
        one finds what holds.

        Args:
            why: the link is lost, if it is.
        """
        while not stream.ended:
            connected = stream.connected
            if connected:
                self._note_resumed(stream)
            else:
                self._linger(stream, why)
            if stream.connected is connected:
                return

    def _note_resumed(self, stream: SessionStream) -> None:
        self._sessions.resumed(stream.session)
        self._core.timers.clear_clock(_CLOCK)
        self._core.count_link(False)

    def _linger(self, stream: SessionStream, why: str) -> None:
        core, session, sessions = self._core, stream.session, self._sessions
        over = sessions.await_client(session, host_of(core.link_address))
        core.count_link(True)
        seconds = session.linger
        text = f"the session was not resumed within {seconds:g} s: {why}"
        core.timers.set_clock(_CLOCK, seconds, lambda: self._expire(stream, text))
        # Looked at last, as a stop looks for lingering ones when it has begun.
        if not (core.serving or stream.connected):
            stream.end("server stopping")
        for each in over:
            other = session_of(each.owner.transport)
            if other is not None and not (other.connected or other.ended):
                other.end("too many sessions wait for their clients")

    def _expire(self, stream: SessionStream, text: str) -> None:
        if not stream.connected:
            stream.end(text)

    def aborted(self, stream: SessionStream) -> None:
        """There is nothing to do: it is the client that brings links."""

    def closed(self, stream: SessionStream) -> None:
        """Forget the session."""
        self._core.timers.clear_clock(_CLOCK)
        self._sessions.forget(stream.session)


def _subject(transport: Transport) -> object:
    """Return whom the peer's verified certificate names, None if there is none."""
    certificate = transport.peer_certificate
    return None if certificate is None else certificate.get("subject")
