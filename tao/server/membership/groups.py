"""Groups of connections, as applications use them; ``group_index.py`` keeps their members."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Protocol

from tao.server.connection import ServerConn
from tao.server.reports import Broadcast
from tao.wire.message import AnyMessage

__all__ = ["Group", "GroupOwner"]


class GroupOwner(Protocol):
    """What a group asks of its server."""

    def group_members(self, name: str) -> list[ServerConn]:
        """Return the open connections of this process that are in a group."""

    def group_count(self, name: str) -> int:
        """Return how many connections are in a group, in all processes of the cluster."""

    def broadcast_to_group(
        self, name: str, message: Any, exclude: Collection[Any], confirm: float | None
    ) -> Broadcast:
        """Send a message to a group, in all processes of the cluster."""


class Group:
    """The connections that have joined a name; see `Server.group`.

    It is a view: it always shows the present members, and may be kept or made again at will. Any
    thread may use it. ``len(group)`` is the number of members in this process; a group without
    members is false.
    """

    __slots__ = ("_name", "_owner")

    def __init__(self, name: str, owner: GroupOwner) -> None:
        self._name = name
        self._owner = owner

    @property
    def name(self) -> str:
        """The name that connections join."""
        return self._name

    @property
    def connections(self) -> list[ServerConn]:
        """The members in this process that are open now, in the order in which they joined."""
        return self._owner.group_members(self._name)

    def __len__(self) -> int:
        return len(self.connections)

    def count(self) -> int:
        """Return how many members there are on all servers of the cluster; alone, ``len(group)``.

        What other servers count is known here a little later.
        """
        return self._owner.group_count(self._name)

    def broadcast(
        self, message: AnyMessage, exclude: Collection[Any] = (), *, confirm: float | None = None
    ) -> Broadcast:
        """Send a message to all members, on all servers of the cluster; it is encoded once.

        Connections outside of the group cost nothing. A member that cannot take the message does
        not keep it from the others. One that joins or leaves meanwhile may get it or not.

        Args:
            message: what `Connection.write` takes.
            exclude: connections that do not get it, or their ``net_id`` or ``address_id``.
            confirm: in a cluster, seconds to wait until the message is certain to reach all servers
                that can be reached; None: do not wait.

        Raises:
            ClusterUnavailable: the cluster did not take the message, or not confirm it in time.
        """
        return self._owner.broadcast_to_group(self._name, message, exclude, confirm)

    def __repr__(self) -> str:
        return f"<Group {self._name!r}: {len(self)} connections>"
