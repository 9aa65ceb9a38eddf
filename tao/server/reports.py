"""The results of what a server does to all of its connections."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from tao.errors import TaoError

if TYPE_CHECKING:
    from tao.server.connection import ServerConn

__all__ = ["Broadcast", "StopReport"]


class Broadcast(NamedTuple):
    """The result of a broadcast."""

    #: How many connections it was sent or queued to.
    queued: int
    #: The other connections, each with the error.
    failed: list[tuple[ServerConn, TaoError]]


@dataclass
class StopReport:
    """What a stop could and could not finish."""

    #: How many connections were closed gracefully.
    drained: int = 0
    #: Those that were not in time, with the number of messages not handled and not sent.
    abandoned: list[tuple[ServerConn, int, int]] = field(default_factory=list)
    #: Threads that still run, by name.
    threads: list[str] = field(default_factory=list)
    #: Whether the stop was over when this report was made. If not, ``abandoned`` has the
    #: connections that had not ended by then.
    finished: bool = True

    @property
    def clean(self) -> bool:
        """Whether everything was finished."""
        return self.finished and not (self.abandoned or self.threads)
