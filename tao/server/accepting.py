"""Where a server listens, and what becomes of those who connect."""

from __future__ import annotations

import itertools
import socket
import ssl
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from tao.connection.connection import core_of
from tao.connection.keepalive import set_kernel_clocks
from tao.connection.options import ServerSettings
from tao.connection.statistics import Tally
from tao.errors import ServerClosed
from tao.runtime.leader_followers import Run
from tao.runtime.log import logger
from tao.runtime.threads import in_tao_thread
from tao.server.admission import Admission
from tao.server.connection import ServerConn
from tao.server.listener import Listener
from tao.transport.addresses import address_text, host_of, unix_address
from tao.transport.stream import Transport
from tao.transport.tls_stream import TlsTransport
from tao.wire.proxy_protocol import ProxyNetworks

__all__ = ["Reception"]

T = TypeVar("T")

# Whether an accepted socket is non-blocking because the listening one is, as on BSD.
_INHERIT_NON_BLOCKING = not sys.platform.startswith("linux")
# How long `stop_listening` waits until a socket is closed, in seconds.
_MOMENT = 1.0


class Reception:
    """What a server does at its doors. Any thread may call any method, at any moment."""

    _options: ServerSettings
    _tally: Tally
    _admission: Admission
    _proxies: ProxyNetworks | None
    _listeners: list[Listener]
    _all: dict[int, ServerConn]
    _ids: itertools.count[int]
    _gave_up: bool = False  # `stop_listening` was called

    @property
    def _state(self) -> str:
        raise NotImplementedError

    # -- where it listens

    @property
    def address(self) -> Any:
        """The address listened at, of the first listener; None if there is none."""
        addresses = self.addresses
        return addresses[0] if addresses else None

    @property
    def addresses(self) -> list[Any]:
        """All addresses listened at, but for those given up by `stop_listening`."""
        return [each.address for each in self._listeners.copy() if not each.given_up]

    def stop_listening(self, address: Any = None) -> None:
        """Accept no more; the connections that there are stay, and are served on.

        So a server can leave a load balancer, and be stopped when its last peer has gone.
        Connections that wait in the kernel to be accepted are lost, unless the socket was handed in
        and another process has it too. The server runs on, `serve_forever` does not return, and
        `start` may be called again. It may be called anywhere, in a signal handler too.

        Args:
            address: as `start` returned it; None: all.

        Raises:
            ValueError: the server does not listen there.
        """
        found = [each for each in self._listeners.copy() if not each.given_up]
        if address is not None:
            wanted = address if isinstance(address, tuple) else unix_address(address)
            found = [each for each in found if each.address == wanted]
            if not found:
                raise ValueError(f"this server does not listen at {address!r}")
        self._gave_up = True
        for listener in found:
            listener.give_up()
            logger.info("not listening any more at {}", address_text(listener.address))
        if not in_tao_thread():  # which could be the one that is to close it
            for listener in found:
                listener.closed.wait(_MOMENT)

    def _forget_ended(self) -> None:
        """Forget the listeners that have ended, with the last connection accepted there."""
        for listener in self._listeners.copy():
            if listener.ended:
                with suppress(ValueError):  # so does another thread
                    self._listeners.remove(listener)

    @property
    def _drains(self) -> bool:
        """Whether it accepts nowhere any more, as it was told."""
        return self._gave_up and all(each.given_up for each in self._listeners.copy())

    @property
    def _deaf(self) -> bool:
        """Whether nobody is accepted any more although nobody has asked for that."""
        listeners = self._listeners.copy()
        lost = any(each.lost for each in listeners)
        return lost and not any(each.accepting for each in listeners) and self._state == "running"

    # -- who comes

    def _accept_delayed(self) -> None:
        self._tally.accept_delayed()
        rate = self._options.accept_rate
        self._tally.floods.warn(
            logger, "more than {} connections a second come (accept_rate), so they wait", rate
        )

    def _admit(
        self, sock: socket.socket, address: Any, found: list[Run], listener: Listener
    ) -> None:
        """Make a connection of an accepted socket, or close it if there are too many.

        Args:
            sock, address: what was accepted, and who that is.
            found: to which is added what is to be done for it.
            listener: where.
        """
        proxies = self._proxies
        if proxies is not None and address not in proxies:
            self._refuse(address, "it is in none of the networks of proxy_protocol")
            sock.close()
            return

        def connect() -> tuple[Transport, Any]:
            if _INHERIT_NON_BLOCKING or sock.gettimeout() is not None:
                sock.setblocking(True)
            set_kernel_clocks(sock, self._options)
            return _transport(sock, listener.credentials.context), listener.local_address(sock)

        proxied = proxies is not None
        host = None if proxied else host_of(address)
        self._adopt(
            address,
            connect,
            sock.close,
            lambda conn: core_of(conn).be_found(found, sock, proxied),
            host=host,
        )

    def _adopt(
        self,
        address: Any,
        connect: Callable[[], tuple[Transport, Any]],
        discard: Callable[[], object],
        begin: Callable[[ServerConn], T],
        *,
        host: str | None = "",
    ) -> T | None:
        """Make a connection, whatever its bytes travel by; None: there are too many.

        Args:
            address: the peer's.
            connect: returns the transport and this side's address.
            discard: called when there is to be no connection.
            begin: given the connection, has it served; what it returns is returned.
            host: as whose the connection counts; None if that will be known later.
        """
        net_id, conn = next(self._ids), None
        try:
            refusal = "the server is stopping"
            if self._state == "running":
                refusal = self._admission.admit(net_id, host)
            if refusal:
                self._refuse(address, refusal)
                discard()
                return None
            transport, local_address = connect()
            owner: Any = self
            conn = ServerConn(net_id, owner, transport, address)
            conn.local_address = local_address
            self._all[net_id] = conn
            if self._state != "running":  # of a stop that comes later, the connection is seen
                raise ServerClosed("the server is stopping")
            return begin(conn)
        except BaseException:
            discard()
            self._remove(net_id)
            if conn is not None:
                core_of(conn).finished.set()  # for a stop that has seen it
            raise

    def _count_peer(self, net_id: int, address: Any) -> str:
        """Count a connection as its peer's, now that that is known; return why it cannot be."""
        refusal = self._admission.move(net_id, host_of(address))
        if refusal:
            self._refuse(address, refusal)
        return refusal

    def _refuse(self, address: Any, why: str) -> None:
        """Tell of a connection that is turned away."""
        self._tally.refused()
        text = "connection from {} refused: {}"
        self._tally.floods.warn(logger, text, address_text(address), why)

    def _remove(self, net_id: int) -> None:
        self._all.pop(net_id, None)
        self._admission.release(net_id)


def _transport(sock: socket.socket, tls: ssl.SSLContext | None) -> Transport:
    return Transport(sock) if tls is None else TlsTransport(sock, tls, server_side=True)
