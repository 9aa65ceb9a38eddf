"""The sessions of a server: the option ``sessions``."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable
from typing import Any

from tao.session.frames import ID_SIZE, SECRET_SIZE
from tao.session.session import Session

__all__ = ["Sessions"]


class Sessions:
    """The sessions that a server offers to its clients, and which of them are lost at the moment.

    Any thread may call any method; each changes something in single steps.

    Args:
        linger: for how many seconds a session whose connection is lost can be resumed.
        maximum: how many may be lost at the same time; one more ends the one lost first. Lost
            sessions do not count towards ``max_connections``.
        per_host: how many of one address may be lost at the same time. None: any number.
        retain_bytes: how many bytes each session keeps until the peer has acknowledged them. When
            it is full, messages wait in the send queue.
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
        retain_bytes: int = 16 * 1024 * 1024,
        save: Callable[[Any], bytes] | None = None,
        load: Callable[[Any, bytes], object] | None = None,
    ) -> None:
        if isinstance(linger, bool) or not isinstance(linger, (int, float)):
            raise TypeError(f"linger must be a number, not {linger!r}")
        if not 0 < linger <= sys.float_info.max:
            raise ValueError(f"linger must be positive and finite, not {linger!r}")
        _check_count("maximum", maximum)
        _check_count("retain_bytes", retain_bytes)
        if per_host is not None:
            _check_count("per_host", per_host)
        for name, value in (("save", save), ("load", load)):
            if value is not None and not callable(value):
                raise TypeError(f"{name} must be callable, not {value!r}")
        if (save is None) is not (load is None):
            raise ValueError("save and load are given together")
        self.save = save
        self.load = load
        self.linger: float = linger
        self.maximum: int = maximum
        self.per_host: int | None = per_host
        self.retain_bytes: int = retain_bytes
        #: How the ids made here end, which tells other processes who has the session.
        self.mark: bytes = b""
        # By their ids. Those that are lost, with their host, in the order in which they were lost.
        self._all: dict[bytes, Session] = {}
        self._lost: dict[bytes, tuple[Session, str]] = {}
        # By the subjects and wishes that they were given for.
        self._granted: dict[tuple[object, bytes], Session] = {}

    def __len__(self) -> int:
        return len(self._all)

    @property
    def lost_now(self) -> int:
        """How many are lost at the moment."""
        return len(self._lost)

    def new(self, subject: object = None, wish: bytes = b"", asked: int = 0) -> Session:
        """Return a new session.

        Args:
            subject: whom the peer's verified certificate names; None: there is none.
            wish: what the client has called its wish for it, at random.
            asked: how many times the client has asked for it.
        """
        session_id = secrets.token_bytes(ID_SIZE - len(self.mark)) + self.mark
        secret = secrets.token_bytes(SECRET_SIZE)
        session = Session(session_id, secret, self.retain_bytes, subject, wish, asked)
        session.linger = self.linger
        self._all[session_id] = session
        return session

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

    def lose(self, session: Session, host: str) -> list[Session]:
        """Note that a session is lost; return those that end now, as too many are."""
        if session.session_id not in self._all:
            return [session]
        self._lost[session.session_id] = session, host
        lost, over = list(self._lost.values()), []
        if self.per_host is not None:
            alike = [each for each, where in lost if where == host]
            over += alike[: max(0, len(alike) - self.per_host)]
        over += [each for each, _ in lost[: max(0, len(lost) - self.maximum)]]
        return over

    def regain(self, session: Session) -> None:
        """Note that a session is not lost any more."""
        self._lost.pop(session.session_id, None)

    def forget(self, session: Session) -> None:
        """Forget a session, which has ended."""
        self._drop(session)
        key = session.subject, session.wish
        if self._granted.get(key) is session:
            granted = self._granted.pop(key, None)
            if granted is not None and granted is not session:
                self.grant(granted)  # it has been put there in between

    def _drop(self, session: Session) -> None:
        self._all.pop(session.session_id, None)
        self._lost.pop(session.session_id, None)

    def clear(self) -> None:
        """Forget all."""
        self._all.clear()
        self._lost.clear()
        self._granted.clear()

    def __repr__(self) -> str:
        return f"<Sessions: {len(self._all)}, of which {len(self._lost)} are lost>"


def _check_count(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, not {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value}")
