"""From an accepted socket to a connection, or to a refusal."""

from __future__ import annotations

import itertools
import socket
import ssl
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from tao.connection.connection import core_of
from tao.connection.keepalive import set_kernel_clocks
from tao.connection.options.definitions import ServerSettings
from tao.errors import ServerClosed
from tao.runtime.leader_followers import Run
from tao.runtime.log import logger
from tao.server.connection import ServerConn
from tao.server.connection_owner import ConnectionOwner
from tao.server.listening.admission import Admission
from tao.server.listening.listener import Listener
from tao.server.sessions.links import PassedLink, transport_over
from tao.server.sessions.moves import Arrival
from tao.transport.addresses import address_text, host_of
from tao.transport.stream import Transport
from tao.transport.tls_stream import TlsTransport
from tao.wire.proxy_protocol import ProxyNetworks

__all__ = ["Acceptor"]

T = TypeVar("T")

# Whether an accepted socket is non-blocking because the listening one is, as on BSD.
_INHERIT_NON_BLOCKING = not sys.platform.startswith("linux")


class Acceptor:
    """Makes the connections of a server, and knows them until they have ended.

    Any thread may call any method, at any moment.

    Args:
        owner: the server.
        settings: of the server, for the limits.
    """

    def __init__(self, owner: ConnectionOwner, settings: ServerSettings) -> None:
        self._owner = owner
        self._ids = itertools.count(1)
        #: All connections by number, from before they open until the last step of their last
        #: thread. Changed in single steps of the interpreter.
        self.connections: dict[int, ServerConn] = {}
        #: Counts the connections that exist or are being made.
        self.admission: Admission
        self._proxies: ProxyNetworks | None
        self.configure(settings)

    def configure(self, settings: ServerSettings) -> None:
        """Use other limits. Not to be called once the server is started."""
        self.admission = Admission(settings.max_connections, settings.max_connections_per_host)
        proxies = settings.proxy_protocol
        self._proxies = None if proxies is None else ProxyNetworks(proxies)

    def delayed(self) -> None:
        """Count and log that connections wait because of ``accept_rate``."""
        statistics = self._owner.statistics
        statistics.accept_delayed()
        rate = self._owner.settings.accept_rate
        statistics.floods.warn(
            logger, "connections above {} a second (accept_rate) wait in the listen backlog", rate
        )

    def admit(
        self, sock: socket.socket, address: Any, found: list[Run], listener: Listener
    ) -> None:
        """Make a connection of an accepted socket, or close it if there are too many.

        Args:
            sock, address: the socket and the peer's address.
            found: the list to which the work of the connection's first thread is added.
            listener: the listener that has accepted it.
        """
        proxies = self._proxies
        if proxies is not None and address not in proxies:
            self._refuse(address, "it is in none of the networks of proxy_protocol")
            sock.close()
            return

        def connect() -> tuple[Transport, Any]:
            if _INHERIT_NON_BLOCKING or sock.gettimeout() is not None:
                sock.setblocking(True)
            set_kernel_clocks(sock, self._owner.settings)
            return _transport(sock, listener.credentials.context), listener.local_address(sock)

        proxied = proxies is not None
        host = None if proxied else host_of(address)
        self.adopt(
            address,
            connect,
            sock.close,
            lambda conn: core_of(conn).be_found(found, sock, proxied),
            host=host,
        )

    def adopt(
        self,
        address: Any,
        connect: Callable[[], tuple[Transport, Any]],
        discard: Callable[[], object],
        begin: Callable[[ServerConn], T],
        *,
        host: str | None = "",
    ) -> T | None:
        """Make a connection over any transport; return None if there are too many.

        Args:
            address: the peer's.
            connect: returns the transport and this side's address.
            discard: called if no connection is made.
            begin: called with the connection to have it served; its result is returned.
            host: the host under which the connection counts; None if it is not known yet.

        Raises:
            ServerClosed: the server has begun to stop.
        """
        net_id, conn = next(self._ids), None
        try:
            refusal = "the server is stopping"
            if self._owner.serving:
                refusal = self.admission.admit(net_id, host)
            if refusal:
                self._refuse(address, refusal)
                discard()
                return None
            transport, local_address = connect()
            conn = ServerConn(net_id, self._owner, transport, address)
            conn.local_address = local_address
            self.connections[net_id] = conn
            if not self._owner.serving:  # a stop that begins later sees the connection
                raise ServerClosed("the server is stopping")
            return begin(conn)
        except BaseException:
            discard()
            self._owner.remove(net_id)
            if conn is not None:
                core_of(conn).finished.set()  # for a stop that has seen it
            raise

    def take_link(self, sock: socket.socket, link: PassedLink) -> None:
        """Have a session go on over a connection that another process has accepted.

        Raises:
            ServerClosed: the server has begun to stop.
        """
        self.adopt(
            link.remote_address,
            lambda: (link.transport_of(sock), link.local_address),
            sock.close,
            lambda conn: core_of(conn).take_over(sock, link.reception),
            host=host_of(link.remote_address),
        )

    def take_session(self, arrival: Arrival, sock: socket.socket) -> None:
        """Go on with a session of another process.

        Args:
            arrival: the session.
            sock: a connection that leads nowhere; see `Arrival.opened`.

        Raises:
            ServerClosed: the server has begun to stop.
        """
        moved = arrival.moved

        def connect() -> tuple[Transport, Any]:
            transport = transport_over(sock, moved.tls_version, moved.certificate)
            return transport, moved.local_address

        def begin(conn: ServerConn) -> bool:
            core_of(conn).take_session(arrival)
            return True

        host = host_of(moved.remote_address)
        if not self.adopt(moved.remote_address, connect, sock.close, begin, host=host):
            arrival.refuse("the new process has too many connections, or is stopping")

    def count_peer(self, net_id: int, address: Any) -> str:
        """Count a connection under its peer's host; return why it is refused, or an empty string.

        Called once the PROXY header has told the peer's address.
        """
        refusal = self.admission.move(net_id, host_of(address))
        if refusal:
            self._refuse(address, refusal)
        return refusal

    def count_link(self, net_id: int, address: Any, lingers: bool) -> None:
        """Count a connection towards the limits, or no more, as its session lingers."""
        self.admission.release(net_id)
        if not lingers:
            self.admission.readmit(net_id, host_of(address))
            if net_id not in self.connections:  # removed first, and then released
                self.admission.release(net_id)

    def remove(self, net_id: int) -> None:
        """Forget a connection."""
        self.connections.pop(net_id, None)
        self.admission.release(net_id)

    def _refuse(self, address: Any, why: str) -> None:
        """Count and log a refused connection."""
        self._owner.statistics.refused()
        text = "connection from {} refused: {}"
        self._owner.statistics.floods.warn(logger, text, address_text(address), why)

    def after_fork(self, reason: str) -> None:
        """In a child process: have all connections ended, and forget them."""
        for conn in self.connections.values():
            core_of(conn).after_fork(reason)
        self.connections.clear()
        self.admission.clear()


def _transport(sock: socket.socket, tls: ssl.SSLContext | None) -> Transport:
    return Transport(sock) if tls is None else TlsTransport(sock, tls, server_side=True)
