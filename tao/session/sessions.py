"""The sessions of a server: the option ``sessions``.

A session that waits for its client *lingers*. It is *lost* when it has ended because the client did
not come back.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable
from typing import Any

from tao.callables import check_callable, check_count, renamed
from tao.safe_text import safe_repr
from tao.session.frames import ID_SIZE, SECRET_SIZE
from tao.session.moved import SessionState, session_from
from tao.session.outgoing import RETAIN, RETAIN_BYTES
from tao.session.session import Session
from tao.session.shared_room import SharedRoom

__all__ = ["Sessions"]


class Sessions:
    """The sessions that a server offers to its clients, and which of them linger.

    Any thread may call any method; each changes something in single steps.

    Args:
        linger: for how many seconds a session whose connection is lost waits for its client, which
            can resume it.
        maximum: how many may linger at the same time; one more ends the one that has lingered for
            longest. These do not count towards ``max_connections``.
        per_host: how many of one address may linger at the same time. None: any number.
        retain: how many messages this side of each session keeps until the peer has acknowledged
            them. When it keeps that many, further ones wait in the send queue, and a write to a
            full queue raises `WouldBlock`. What is sent at once may exceed this and the next two.
        retain_bytes: the same in bytes.
        total_bytes: how many bytes all sessions keep together. Half of it belongs to whichever
            sessions need it; of the other half, each may use an equal share. So a client that does
            not read leaves room for the others.
        save: called as ``save(conn)`` in a process that a reload replaces, once nothing of the
            session is under way there any more; returns the bytes of what the application knows of
            it. It is the last that is called for the connection in that process.
        load: called as ``load(conn, data)`` in the new process, in place of ``on_connect``, with a
            connection that goes on with the session. Without these two, which come together, a
            reload ends sessions.

    Raises:
        TypeError, ValueError: an argument is wrong; the text names it.
    """

    def __init__(
        self,
        *,
        linger: float = 60.0,
        maximum: int = 10_000,
        per_host: int | None = None,
        retain: int = RETAIN,
        retain_bytes: int = RETAIN_BYTES,
        total_bytes: int = 1024 * 1024 * 1024,
        save: Callable[[Any], bytes] | None = None,
        load: Callable[[Any, bytes], object] | None = None,
    ) -> None:
        if isinstance(linger, bool) or not isinstance(linger, (int, float)):
            raise TypeError(f"linger must be a number, not {safe_repr(linger)}")
        if not 0 < linger <= sys.float_info.max:
            raise ValueError(f"linger must be positive and finite, not {safe_repr(linger)}")
        check_count("maximum", maximum)
        check_count("retain", retain)
        check_count("retain_bytes", retain_bytes)
        check_count("total_bytes", total_bytes)
        if per_host is not None:
            check_count("per_host", per_host)
        if save is not None:
            check_callable("save", save, "conn")
        if load is not None:
            check_callable("load", load, "conn", "data")
        if (save is None) is not (load is None):
            raise ValueError("save and load are given together")
        self.save = save
        self.load = load
        self.linger: float = linger
        self.maximum: int = maximum
        self.per_host: int | None = per_host
        self.retain: int = retain
        self.retain_bytes: int = retain_bytes
        self.total_bytes: int = total_bytes
        #: How the ids made here end, which tells other processes who has the session.
        self.mark: bytes = b""
        # By their ids. Those that linger, with their host, in the order in which they began to.
        self._all: dict[bytes, Session] = {}
        self._lingering: dict[bytes, tuple[Session, str]] = {}
        #: For what all of them keep.
        self.room = SharedRoom(total_bytes, self._all)
        # By the subjects and wishes that they were given for.
        self._granted: dict[tuple[object, bytes], Session] = {}

    def __len__(self) -> int:
        return len(self._all)

    @property
    def lingering(self) -> int:
        """How many wait for their clients at the moment."""
        return len(self._lingering)

    lost_now = renamed("lost_now", "lingering")

    @property
    def retained_bytes(self) -> int:
        """About how many bytes all of them keep at the moment."""
        return self.room.kept

    def new(self, subject: object = None, wish: bytes = b"", asked: int = 0) -> Session:
        """Return a new session.

        Args:
            subject: whom the peer's verified certificate names; None: there is none.
            wish: what the client has called its wish for it, at random.
            asked: how many times the client has asked for it.
        """
        session_id = secrets.token_bytes(ID_SIZE - len(self.mark)) + self.mark
        secret = secrets.token_bytes(SECRET_SIZE)
        limits = self.retain_bytes, subject, wish, asked, self.retain, self.room
        session = Session(session_id, secret, *limits)
        session.linger = self.linger
        self._all[session_id] = session
        return session

    def restored(self, state: SessionState) -> Session:
        """Return a session that comes from another process; `adopt` adds it."""
        return session_from(state, self.retain_bytes, self.retain, self.room)

    def adopt(self, session: Session) -> None:
        """Add a session that has come from another process."""
        self._all[session.session_id] = session

    def grant(self, session: Session) -> list[Session]:
        """Note what a session is for; forget and return those that its client can not be using.

        A client asks again if it has not got an answer, so of several sessions for one wish it has
        the one that it asked for last. That may be another one than this, which is returned then:
        the connections over which it has asked are served at the same time, and what was said on
        one of them may come once more.
        """
        outdated: list[Session] = []
        key = session.subject, session.wish
        # Whichever thread takes one out decides which of the two is put back.
        while session.wish and self._granted.setdefault(key, session) is not session:
            other = self._granted.pop(key, None)
            if other is not None:
                if other.asked >= session.asked:
                    other, session = session, other
                self._drop(other)
                outdated.append(other)
        return outdated

    def find(self, session_id: bytes) -> Session | None:
        """Return a session by its id, None if it has ended or never was."""
        return self._all.get(session_id)

    def await_client(self, session: Session, host: str) -> list[Session]:
        """Have a session linger; return those that end now, as too many do."""
        if session.session_id not in self._all:
            return [session]
        self._lingering[session.session_id] = session, host
        lingering, over = list(self._lingering.values()), []
        if self.per_host is not None:
            alike = [each for each, where in lingering if where == host]
            over += alike[: max(0, len(alike) - self.per_host)]
        over += [each for each, _ in lingering[: max(0, len(lingering) - self.maximum)]]
        return over

    def resumed(self, session: Session) -> None:
        """Note that a session lingers no more."""
        self._lingering.pop(session.session_id, None)

    def forget(self, session: Session) -> None:
        """Forget a session, which has ended. Not for a thread that sends."""
        session.outgoing.release()
        self._drop(session)
        key = session.subject, session.wish
        if self._granted.get(key) is session:
            granted = self._granted.pop(key, None)
            if granted is not None and granted is not session:
                self.grant(granted)  # it has been put there in between
        self.room.make_way(everyone=True)

    def _drop(self, session: Session) -> None:
        self._all.pop(session.session_id, None)
        self._lingering.pop(session.session_id, None)

    def clear(self) -> None:
        """Forget all."""
        self._all.clear()
        self._lingering.clear()
        self._granted.clear()

    def __repr__(self) -> str:
        return f"<Sessions: {len(self._all)}, of which {len(self._lingering)} linger>"
