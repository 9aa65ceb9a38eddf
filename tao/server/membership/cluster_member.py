"""What makes a server a member of a cluster, seen from the server.

The cluster itself is in ``tao/cluster/``, which is above this package and is imported only for a
server that has the option ``cluster``. So a server knows its `ClusterPort`, and is given a function
that opens one.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection
from typing import Any, Protocol

from tao.connection.options.definitions import ServerSettings
from tao.connection.reports.statistics import Statistics
from tao.server.membership.names import addresses_of
from tao.server.reports import Broadcast

__all__ = ["ClusterMember", "ClusterPort", "LocalConnections", "open_clusters_with", "own_number"]

# How long a stop waits for publications that were not passed on yet, in seconds.
_MOMENT = 1.0


class LocalConnections(Protocol):
    """What a cluster asks of a server: to send to the connections of this process."""

    @property
    def settings(self) -> ServerSettings:
        """The options of the server."""

    @property
    def statistics(self) -> Statistics:
        """Where connections are counted."""

    def send_to_all(self, frame: bytes, exclude: Collection[int]) -> Broadcast:
        """Send to all connections, but those with these numbers."""

    def send_to_group(self, name: str, frame: bytes, exclude: Collection[int]) -> Broadcast:
        """Send to the members of a group, but those with these numbers."""

    def send_to_one(self, net_id: int, frame: bytes) -> Broadcast:
        """Send to a connection, if there is one with this number."""


class ClusterPort(Protocol):
    """What a server asks of its cluster. Any thread may call any method.

    ``exclude`` has the ``address_id`` of connections; ``confirm`` is as in `Server.broadcast`.
    """

    @property
    def state(self) -> str:
        """See `tao.cluster.engine.EngineState`."""

    @property
    def figures(self) -> dict[str, Any]:
        """The state, and the fields of `tao.cluster.engine.EngineFigures`, as they are now."""

    def broadcast(
        self, frame: bytes, exclude: Collection[str] = (), confirm: float | None = None
    ) -> None:
        """Publish to every connection."""

    def broadcast_to_group(
        self, group: str, frame: bytes, exclude: Collection[str] = (), confirm: float | None = None
    ) -> None:
        """Publish to the connections of a group."""

    def unicast(self, address_id: str, frame: bytes) -> None:
        """Publish to one connection."""

    def set_count(self, group: str, count: int) -> None:
        """Tell the cluster how many connections of this process a group has."""

    def count(self, group: str) -> int:
        """Return how many connections a group has in the whole cluster."""

    def close(self, timeout: float) -> int:
        """Leave the cluster; return how many publications did not reach it, as far as is known."""

    def abandon(self) -> None:
        """Leave it in the child of a fork, without telling anyone."""


#: Opens the cluster that the options name, for a node; None if there is no other process to reach.
Opener = Callable[[str, LocalConnections], "ClusterPort | None"]

# The function given to `open_clusters_with`; of several the last counts.
_openers: list[Opener] = []


def open_clusters_with(opener: Opener) -> None:
    """Have clusters opened by this function; called once, when ``tao`` is imported."""
    _openers.append(opener)


class ClusterMember:
    """The membership of a server in its cluster, if it has one.

    Any thread may call any method.

    Args:
        server: the core of the server.
    """

    def __init__(self, server: LocalConnections) -> None:
        self._server = server
        #: The name of this server in a cluster; no other has it.
        self.node: str = secrets.token_hex(6)
        # Empty until it is opened; if two threads do so at once, the first entry counts.
        self._ports: list[ClusterPort] = []
        #: How many publications did not reach the cluster before this server has left it.
        self.unpublished: int = 0

    @property
    def port(self) -> ClusterPort | None:
        """The way to the other processes; None: there are none."""
        return self._ports[0] if self._ports else None

    def open(self) -> None:
        """Join the cluster that the options name, unless that is done.

        Raises:
            ValueError: there is no such kind of cluster; or what it needs is not installed.
        """
        if self._server.settings.cluster is None or self._ports or not _openers:
            return
        port = _openers[-1](self.node, self._server)
        if port is not None:
            self._ports.append(port)
            if self._ports[0] is not port:
                port.close(0)

    def close(self) -> None:
        """Leave the cluster, after passing on publications within the timeout."""
        for port in self._ports:
            self.unpublished += port.close(_MOMENT)

    def abandon(self) -> None:
        """Leave it in the child of a fork."""
        for port in self._ports:
            port.abandon()

    def address_id(self, net_id: int) -> str:
        """Return what names a connection of this process in the whole cluster."""
        return f"{self.node}:{net_id}"

    def address_ids(self, conns: Collection[Any]) -> list[str]:
        """Return the same of connections, of their numbers, or of what names them already."""
        numbers = addresses_of(conns)
        return [each if isinstance(each, str) else self.address_id(each) for each in numbers]

    def own_ids(self, conns: Collection[Any]) -> set[int]:
        """Return the numbers of those among them that belong to this process."""
        numbers = addresses_of(conns)
        found = (own_number(self.node, each) if isinstance(each, str) else each for each in numbers)
        return {number for number in found if number is not None}


def own_number(node: str, address_id: str) -> int | None:
    """Return the number of a connection if it is one of this node's, else None."""
    owner, _, number = address_id.rpartition(":")
    return int(number) if owner == node and number.isascii() and number.isdigit() else None
