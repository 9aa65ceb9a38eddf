"""What a connection asks of the server that has accepted it."""

from __future__ import annotations

from typing import Any, Protocol

from tao.connection.options.definitions import ServerSettings
from tao.connection.reports.statistics import Statistics
from tao.runtime.context import Context
from tao.server.membership.group_index import GroupIndex
from tao.server.membership.identities import Identities
from tao.server.resources import Resources
from tao.server.sessions.links import SessionPort
from tao.wire.message import Registry

__all__ = ["ConnectionOwner"]


class ConnectionOwner(Protocol):
    """The core of a server, as its connections know it. Any thread may call any method."""

    @property
    def server(self) -> Any:
        """The users' object, which `tao.server_from` finds."""

    @property
    def settings(self) -> ServerSettings:
        """The options of the server."""

    @property
    def registry(self) -> Registry:
        """Messages and handlers."""

    @property
    def context(self) -> Context:
        """The context above those of the connections."""

    @property
    def statistics(self) -> Statistics:
        """Where connections are counted."""

    @property
    def resources(self) -> Resources:
        """Workers, timing wheel and context variables."""

    def address_id(self, net_id: int) -> str:
        """Return what names a connection in the whole cluster."""

    def count_peer(self, net_id: int, address: Any) -> str:
        """Count a connection under its peer's host; return why it is refused, or ``""``."""

    def welcome(self, core: Any) -> None:
        """A connection is established: start the timers that the server has for all."""

    @property
    def serving(self) -> bool:
        """Whether the server takes connections: it was started, and is not stopping."""

    def count_link(self, net_id: int, address: Any, lingers: bool) -> None:
        """Count a connection towards the limits, or no more, as its session lingers."""

    def has_schedule(self, schedule: int) -> bool:
        """Whether a timer that the server has for all connections is not cancelled."""

    @property
    def groups(self) -> GroupIndex[Any]:
        """Which connection is in which group."""

    @property
    def identities(self) -> Identities[Any]:
        """Which connection has which identity."""

    @property
    def session_port(self) -> SessionPort | None:
        """The way to the processes that have other sessions; None: there are none."""

    def remove(self, net_id: int) -> None:
        """Forget a connection that has ended."""
