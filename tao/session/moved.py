"""The session state that is transferred to another process.

It is taken when the session rests: nothing is being received, everything that was received is
handled, and nothing more is written.
"""

from __future__ import annotations

from typing import NamedTuple

from tao.session.outgoing import RETAIN
from tao.session.session import Session
from tao.session.shared_room import SharedRoom

__all__ = ["SessionState", "session_from", "state_of"]


class SessionState(NamedTuple):
    """A session at rest.

    Attributes:
        session_id, secret, subject, wish, asked, attempt, resumes: of the session.
        linger: for how many seconds it can be resumed when its connection is lost.
        handled: how far the peer's stream is handled.
        acknowledged: how far the peer has acknowledged this side's stream.
        sent: what this side has sent after that.
    """

    session_id: bytes
    secret: bytes
    subject: object
    wish: bytes
    asked: int
    attempt: int
    resumes: int
    linger: float
    handled: int
    acknowledged: int
    sent: bytes


def state_of(session: Session) -> SessionState:
    """Return the state of a session that rests."""
    incoming, outgoing = session.incoming, session.outgoing
    return SessionState(
        session.session_id,
        session.secret,
        session.subject,
        session.wish,
        session.asked,
        session.attempt,
        session.resumes,
        session.linger,
        incoming.handled,
        outgoing.acknowledged,
        outgoing.kept(),
    )


def session_from(
    state: SessionState, limit: int, most: int = RETAIN, shared: SharedRoom | None = None
) -> Session:
    """Return a session that goes on from a state.

    Args:
        limit, most, shared: bound what it keeps, see `Session`.
    """
    known = state.session_id, state.secret, limit, state.subject, state.wish, state.asked
    session = Session(*known, most, shared)
    session.attempt, session.resumes, session.linger = state.attempt, state.resumes, state.linger
    session.incoming.go_on_from(state.handled)
    session.outgoing.go_on_from(state.acknowledged, state.sent)
    return session
