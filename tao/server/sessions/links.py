"""Links of sessions that another process has, and the way to those processes.

The processes of one supervisor accept from the same sockets, so a client that comes back may reach
another process than the one that has its session. That process passes the link on; one with TLS it
relays.
"""

from __future__ import annotations

import socket
from typing import Any, NamedTuple, Protocol

from tao.server.sessions.moves import MovedSession
from tao.session.agreement import Reception
from tao.session.frames import Hello
from tao.transport.stream import Transport

__all__ = ["PassedLink", "RelayedTransport", "SessionPort", "transport_over"]


class PassedLink(NamedTuple):
    """What the process that has a session is told of a new link, beside the socket.

    Attributes:
        nonce: of the challenge that the client was sent.
        hello: what the client has answered.
        remote_address, local_address: of the connection.
        tls_version: of the connection, if it has TLS and is relayed; else None.
        certificate: the client's, if it has shown one.
    """

    nonce: bytes
    hello: Hello
    remote_address: Any
    local_address: Any
    tls_version: str | None = None
    certificate: dict[str, Any] | None = None

    @classmethod
    def of(cls, core: Any, transport: Transport, nonce: bytes, hello: Hello) -> PassedLink:
        """Return what there is to tell of a connection."""
        tls, certificate = transport.tls_version, transport.peer_certificate
        return cls(nonce, hello, core.link_address, core.local_address, tls, certificate)

    @property
    def reception(self) -> Reception:
        """What was agreed on so far, as if it had been here."""
        reception = Reception(0, 0, self.nonce)
        reception.hello = self.hello
        return reception

    def transport_of(self, sock: socket.socket) -> Transport:
        """Return what the socket that came with it becomes."""
        return transport_over(sock, self.tls_version, self.certificate)


def transport_over(
    sock: socket.socket, version: str | None, certificate: dict[str, Any] | None
) -> Transport:
    """Return a transport to a client that may have TLS, which another process knows of."""
    return Transport(sock) if version is None else RelayedTransport(sock, version, certificate)


class RelayedTransport(Transport):
    """A plain connection to another process, which relays it to a client with TLS.

    Args:
        sock: connected and blocking; the transport owns it from now on.
        version, certificate: what the other process knows of the client.
    """

    __slots__ = ("_certificate", "_version")

    peer_is_near = False

    def __init__(
        self, sock: socket.socket, version: str, certificate: dict[str, Any] | None
    ) -> None:
        super().__init__(sock)
        self._version = version
        self._certificate = certificate

    @property
    def peer_certificate(self) -> dict[str, Any] | None:
        return self._certificate

    @property
    def tls_version(self) -> str | None:
        return self._version


class SessionPort(Protocol):
    """The way to the other processes. Any thread may call any method."""

    heir: int | None  #: the process that goes on with the sessions of this one, if one does

    def pass_on(self, sock: socket.socket, link: PassedLink, *, again: bool = False) -> bool:
        """Pass a connection to the process that has the session; this process keeps a copy.

        Args:
            again: whether another process has passed it here; then only the heir may have it.

        Returns:
            whether there is such a process.

        Raises:
            ConnectionClosed: it does not take the link now; the client may try again.
        """

    def relay(self, transport: Transport, link: PassedLink) -> bool:
        """Relay a connection to the process that has the session; then it belongs to the relay.

        Returns, Raises: as `pass_on`.
        """

    @property
    def gives(self) -> bool:
        """Whether sessions can be given to the heir, as far as is known."""

    def hand_over(self, moved: MovedSession, decided: list[bool]) -> str:
        """Give a session to the heir; return why that failed, or ``""``.

        Args:
            moved: what there is to give.
            decided: gets an item before the heir is told that it has the session, and loses it if
                it could not be told.
        """

    def close(self) -> None:
        """Take no more links, and relay none; the heir takes those that come for this process."""
