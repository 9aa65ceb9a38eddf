"""Sessions that move from one process to another, as a reload replaces the first.

In the old process:

1. The link is let go. From then on attempts to resume the session are cut off without an answer, so
   that the client tries again, and what is written is kept for the next link.
2. When all that was received is handled, the connection is closed, like any other; but its session
   does not end.
3. Its last step, in place of ``on_close``, calls ``save`` and offers the session to the other one.
   That calls ``load`` and answers, and has the session as soon as it is told so.

In the new process it is a connection whose link is lost at once: the client brings the next.

If anything fails before the second process is told, the session ends in the first. If the first
ends before that, the second tells the application that the session is lost.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from tao.connection.handling.slow_handlers import telling_if_long
from tao.connection.options.definitions import ServerSettings
from tao.connection.sessions.agreeing import session_of
from tao.connection.sessions.stream import MOVED, SessionStream
from tao.errors import TaoError
from tao.runtime.deadline import Deadline
from tao.safe_text import safe_repr
from tao.session.moved import SessionState, state_of
from tao.transport.error_text import explain

__all__ = ["Arrival", "Move", "MovedSession", "Parting", "arrive", "gives_sessions", "moves"]

# How often to look whether a session rests, and whether it has moved, in seconds.
_SOON, _AGAIN = 0.005, 0.1


class MovedSession(NamedTuple):
    """What a process is given of a session that moves to it.

    Attributes:
        state: of the session.
        saved: what ``save`` has returned.
        name: of the connection; None: it is its number.
        groups, identity: of the connection.
        remote_address, local_address: of the last link.
        tls_version, certificate: the same, if that had TLS.
        capabilities: of the peer; None: it has not told them.
    """

    state: SessionState
    saved: bytes
    name: str | None
    groups: list[str]
    identity: str | None
    remote_address: Any
    local_address: Any
    tls_version: str | None
    certificate: dict[str, Any] | None
    capabilities: int | None


class Arrival(Protocol):
    """A session on its way to this process. Any thread may call any method."""

    moved: MovedSession

    def accept(self) -> bool | None:
        """Tell the other process that the session can go on here, and wait for its word.

        Returns:
            True: the session belongs to this process; False: it has ended in the other one; None:
            that is gone.
        """

    def refuse(self, why: str) -> None:
        """Tell the other process that the session cannot go on here, unless that is decided."""

    def opened(self) -> None:
        """The connection is open: have it find that its link is lost."""


class Port(Protocol):
    """What this asks of the way to the other processes."""

    @property
    def gives(self) -> bool:
        """Whether sessions can be given to another process, as far as is known."""

    def hand_over(self, moved: MovedSession, decided: list[bool]) -> str:
        """See `SessionPort.hand_over`."""


# -- in the old process


def gives_sessions(settings: ServerSettings, port: Port | None) -> bool:
    """Whether a server with these options can give its sessions to another process."""
    sessions = settings.sessions
    return port is not None and port.gives and sessions is not None and sessions.save is not None


def moves(core: Any, port: Port | None) -> bool:
    """Whether a connection is established and has a session that can move to another process."""
    if not (core.welcomed and gives_sessions(core.settings, port)):
        return False
    return session_of(core.transport) is not None


class Move:
    """The move of one session, as the thread sees it that has a process drain.

    Args:
        core: of the connection.
    """

    def __init__(self, core: Any) -> None:
        self._core = core
        self._stream = session_of(core.transport)
        self._patience = Deadline(core.settings.drain_timeout)  # until it rests
        self._begun: bool = False

    def proceed(self) -> float | None:
        """Take the next step that is possible now.

        Returns:
            the seconds until the one after that; None: the session does not move.
        """
        core, stream = self._core, self._stream
        if stream is None:
            return None
        if self._moves():
            return _AGAIN
        if not self._begun:
            if self._closes() or self._patience.expired:
                return None
            if core.requests_now()[0] or stream.frozen:
                return _AGAIN  # replies are for this process; or it has just come from another one
            return self._begin(stream)
        if self._closes() or self._patience.expired:
            stream.thaw()
            return None
        if core.unhandled or core.dispatcher.pending or core.send_queue.waiting:
            return _SOON
        if core.exchange.under_way or not stream.rests:
            return _SOON
        core.begin_close(MOVED, drain=True)
        if not self._moves():  # it was closed just before
            stream.thaw()
            return None
        stream.abort()
        return _SOON

    def _begin(self, stream: SessionStream) -> float | None:
        try:
            self._begun = stream.freeze()
        except TaoError as error:
            self._core.error_reports.log().info("its session does not move: {}", explain(error))
        return _SOON if self._begun else None

    def _closes(self) -> bool:
        return self._core.lifecycle.close_reason is not None

    def _moves(self) -> bool:
        return self._core.lifecycle.close_reason is MOVED


class Parting:
    """The last step of a connection whose session moves. Used by the thread that ends it."""

    __slots__ = ("_decided", "_offered")

    def __init__(self) -> None:
        # Whether the session was offered to the other process, and whether it belongs to that by
        # now. Both are looked at again if an exception has interrupted the step.
        self._offered: bool = False
        self._decided: list[bool] = []

    def has_moved(self, core: Any, port: Port | None) -> bool:
        """Give the session away if it moves; return whether it belongs to another process."""
        stream = session_of(core.transport)
        if stream is None or port is None or core.lifecycle.close_reason is not MOVED:
            return False
        why = "that was interrupted"
        if not (self._offered or self._decided):
            self._offered = True
            why = _hand_over(core, stream, port, self._decided)
            if self._decided:
                core.statistics.session_moved()
        if self._decided:
            core.greetings.forgo_on_close()
            return True
        core.error_reports.log().warning("its session does not move: {}", why)
        stream.end(f"it could not be moved to another process: {why}")
        return False


def _hand_over(core: Any, stream: SessionStream, port: Port, decided: list[bool]) -> str:
    if stream.over is not None:
        return str(stream.over)
    if core.was_cut_off or core.left_over or core.unhandled or not stream.rests:
        return "it was not at rest in time"
    saved = _saved(core)
    if saved is None:
        return "save failed"
    moved = MovedSession(
        state_of(stream.session),
        saved,
        _name_of(core),
        sorted(core.groups),
        core.held_identity,
        core.link_address,
        core.local_address,
        stream.tls_version,
        stream.peer_certificate,
        core.exchange.negotiation.capabilities,
    )
    return port.hand_over(moved, decided)


def _name_of(core: Any) -> str | None:
    """Return the name that the application has given a connection, if it is a text."""
    name = str.__str__(core.name) if issubclass(type(core.name), str) else None
    return None if name == str(core.net_id) else name


def _saved(core: Any) -> bytes | None:
    application, save = core.application.find(), core.settings.sessions.save
    if application is None:
        return None
    try:
        with telling_if_long(core, "save"):
            data = application.variables.run(save, application.find_conn())
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"save must return bytes, not {safe_repr(data)}")
        return bytes(data)
    except BaseException as error:
        core.report(error, "in save")
        return None


# -- in the new process


def arrive(core: Any, arrival: Arrival) -> bool:
    """Have the application go on with a session; return whether ``on_close`` is owed."""
    moved, stream = arrival.moved, session_of(core.transport)
    assert stream is not None
    why = _loaded(core, moved)
    if why:
        arrival.refuse(why)
        core.abort()
        return False
    if core.readiness.manual:
        core.ready()
    core.greetings.owe_on_close()
    mine = arrival.accept()
    if mine is None:
        stream.end("the process that had it has ended")
    elif not mine:
        stream.session.outgoing.disown()
        core.abort()
    else:
        core.error_reports.log().info("its session has come from another process")
    return True


def _loaded(core: Any, moved: MovedSession) -> str:
    """Restore what the connection was; return why that failed, or ``""``."""
    application, load = core.application.find(), core.settings.sessions.load
    if application is None or load is None:
        return "the new process has no load"
    conn = application.find_conn()
    if moved.name is not None:
        conn.name = moved.name
    try:
        for each in moved.groups:
            conn.join(each)
        if moved.identity is not None:
            conn.identify(moved.identity)
    except (TaoError, ValueError, TypeError) as error:
        return f"the new process refuses it: {explain(error)}"
    try:
        with telling_if_long(core, "load"):
            application.variables.run(load, conn, moved.saved)
    except BaseException as error:
        core.report(error, "in load")
        return "load failed"
    return ""
