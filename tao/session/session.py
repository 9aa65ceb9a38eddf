"""One end of a session: both halves of it, and what identifies it."""

from __future__ import annotations

from typing import Any

from tao.session.frames import ID_SIZE, frames_in
from tao.session.incoming import Incoming
from tao.session.outgoing import RETAIN, Outgoing
from tao.session.shared_room import SharedRoom
from tao.wire.message import UnknownMessage
from tao.wire.numbers import HEARTBEAT, OWN_NUMBERS

__all__ = ["Session", "messages_in"]

# How much of an id is shown: it is no secret, but long.
_SHOWN = 8


class Session:
    """What one end knows of a session. Who may change its parts, these say.

    Args:
        session_id: the same at both ends.
        secret: known to both ends only.
        limit: how many bytes may be kept until they are acknowledged.
        subject: whom the peer's verified certificate names; None: there is none.
        wish: what the client has called its wish for it, at random.
        asked: how many times it has asked for it.
        most: how many messages may be kept until they are acknowledged.
        shared: bounds what all sessions keep; None: nothing does.
    """

    __slots__ = (
        "asked", "attempt", "incoming", "linger", "outgoing", "owner", "resumes", "secret",
        "session_id", "subject", "wish",
    )  # fmt: skip

    def __init__(
        self,
        session_id: bytes,
        secret: bytes,
        limit: int,
        subject: object = None,
        wish: bytes = b"",
        asked: int = 0,
        most: int = RETAIN,
        shared: SharedRoom | None = None,
    ) -> None:
        self.session_id: bytes = session_id
        self.secret: bytes = secret
        self.subject: object = subject
        self.wish: bytes = wish
        self.asked: int = asked
        #: For how many seconds it lingers when its connection is lost: it can be resumed then.
        self.linger: float = 0.0
        self.outgoing = Outgoing(limit, most, shared)
        self.incoming = Incoming()
        #: The number of the last attempt to resume it.
        self.attempt: int = 0
        self.resumes: int = 0  #: how often it has been resumed
        #: What has the session here.
        self.owner: Any = None

    @property
    def label(self) -> str:
        """What identifies it for people."""
        return self.session_id[: min(_SHOWN, ID_SIZE)].hex()

    def claim(self, attempt: int) -> bool:
        """Let an attempt to resume it win, and no earlier one any more; return whether it does."""
        if attempt <= self.attempt:
            return False
        self.attempt = attempt
        return True

    def can_resume(self, received: int, first: int) -> bool:
        """Whether the two ends fit together.

        Args:
            received: how far the peer has received this side's stream.
            first: from where on the peer keeps its own.
        """
        outgoing = self.outgoing
        kept = outgoing.acknowledged <= received <= outgoing.end
        return kept and first <= self.incoming.decoded

    def unacknowledged(self) -> list[UnknownMessage]:
        """Return the messages that were sent and may not have been handled by the peer."""
        return messages_in(self.outgoing.unacknowledged())


def messages_in(data: bytes) -> list[UnknownMessage]:
    """Return the messages of the application in a series of frames; the last may be incomplete."""
    return [
        UnknownMessage(number, value)
        for number, value in frames_in(data)
        if number != HEARTBEAT and number not in OWN_NUMBERS
    ]
