"""Where a monitor has its figures from: this process, or, in a supervisor, all of its workers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from tao.connection.reports.statistics import Snapshot, all_statistics
from tao.monitor.answers import Answer
from tao.monitor.connections import page_of_connections
from tao.monitor.ends import End, local_ends
from tao.monitor.health import health
from tao.monitor.stacks import stacks

__all__ = ["OwnProcess", "Source"]


class Source(Protocol):
    """Servers and clients with their connections. Any thread may call any method."""

    def snapshots(self) -> list[Snapshot]:
        """Return the counts of all servers and clients."""
        ...

    def ends(self) -> list[End]:
        """Return all servers and clients with all of their figures."""
        ...

    def connections(self, query: Mapping[str, str]) -> dict[str, Any]:
        """Return the content of ``/connections``, see `page_of_connections`."""
        ...

    def stacks(self) -> str:
        """Return the content of ``/stacks``."""
        ...

    def health(self, query: Mapping[str, str]) -> Answer:
        """Return the response of ``/healthz``."""
        ...


class OwnProcess:
    """The servers and clients of this process."""

    def snapshots(self) -> list[Snapshot]:
        """See `Source`."""
        return [statistics.snapshot() for statistics in all_statistics()]

    def ends(self) -> list[End]:
        """See `Source`."""
        return local_ends()

    def connections(self, query: Mapping[str, str]) -> dict[str, Any]:
        """See `Source`."""
        return page_of_connections(query)

    def stacks(self) -> str:
        """See `Source`."""
        return stacks()

    def health(self, query: Mapping[str, str]) -> Answer:
        """See `Source`."""
        return health(query, self.snapshots())
