"""The results of a server's operations on all of its connections."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from tao.errors import TaoError

if TYPE_CHECKING:
    from tao.server.connection import ServerConn

__all__ = ["Broadcast", "StopReport"]


class _Sent(NamedTuple):
    queued: int
    failed: list[tuple[ServerConn, TaoError]]


class Broadcast(_Sent):
    """The result of a broadcast; it can be unpacked as ``queued, failed``.

    In a cluster the connections get the message when it comes back from there, so that nothing is
    known of them here.

    Attributes:
        queued: how many connections it was sent or queued to.
        failed: the other connections, each with the error.
        published: whether it was published to a cluster.
    """

    published: bool

    def __new__(
        cls, queued: int, failed: list[tuple[ServerConn, TaoError]], published: bool = False
    ) -> Broadcast:
        made = super().__new__(cls, queued, failed)
        made.published = published
        return made

    def __repr__(self) -> str:
        values = f"queued={self.queued}, failed={self.failed}, published={self.published}"
        return f"Broadcast({values})"


@dataclass
class StopReport:
    """What a stop could and could not finish."""

    #: How many connections were closed gracefully.
    drained: int = 0
    #: Those that were not in time, with the number of messages not handled and not sent.
    abandoned: list[tuple[ServerConn, int, int]] = field(default_factory=list)
    #: Threads that still run, by name.
    threads: list[str] = field(default_factory=list)
    #: How many messages that were published to a cluster did not reach it.
    unpublished: int = 0
    #: Whether the stop was over when this report was made. If not, ``abandoned`` has the
    #: connections that had not ended by then.
    finished: bool = True

    @property
    def clean(self) -> bool:
        """Whether everything was finished."""
        return self.finished and not (self.abandoned or self.threads or self.unpublished)
