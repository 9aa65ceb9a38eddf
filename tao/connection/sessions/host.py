"""What the stream of a session asks of its surroundings."""

from __future__ import annotations

from typing import Any, Protocol

from tao.connection.application import ApplicationLink
from tao.connection.lifecycle import Lifecycle
from tao.connection.reading_gate import ReadingGate
from tao.connection.receiving.reading import Reader
from tao.connection.reports.statistics import Statistics
from tao.connection.sessions.acknowledging import AcknowledgingHost

__all__ = ["LinkKeeper", "SessionHost"]


class SessionHost(AcknowledgingHost, Protocol):
    """What this asks of a connection's core."""

    application: ApplicationLink
    dispatcher: Any
    exchange: Any
    gate: ReadingGate
    lifecycle: Lifecycle
    reader: Reader
    statistics: Statistics

    @property
    def roles(self) -> Any:
        """The roles that its threads play."""

    def report(self, error: BaseException, doing: str) -> None:
        """Tell log and application of an error."""

    def transport_failed(self, error: OSError) -> None:
        """Go on without the transport: receiving has raised this."""

    def stream_ended(self) -> None:
        """Go on after the end of the stream."""


class LinkKeeper(Protocol):
    """What sees to a new link when one is lost."""

    def link_lost(self, stream: Any, why: str) -> None:
        """Have the stream get another link, or end it. By the reading role, which waits for it if
        it may: then it can be brought here."""

    def aborted(self, stream: Any) -> None:
        """Get no more links. Any thread may call it."""

    def closed(self, stream: Any) -> None:
        """Forget the stream."""
