"""Certificates, contexts and connected transports for tests of TLS."""

from __future__ import annotations

import socket
import ssl

from tao.transport.certificates import DevelopmentCA
from tao.transport.stream import Transport
from tao.transport.tls_stream import TlsTransport
from tests.support import PATIENCE, together

CA = DevelopmentCA()
_SERVER = CA.issue()

#: A server for ``localhost`` and ``127.0.0.1``, and a client that trusts it.
SERVER: ssl.SSLContext = _SERVER.server_config()
CLIENT: ssl.SSLContext = _SERVER.client_config()
#: The same with mutual authentication; the client is named ``alice``.
MUTUAL_SERVER: ssl.SSLContext = _SERVER.server_config(mutual=True)
ALICE: ssl.SSLContext = CA.issue_client("alice").client_config()


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Return two connected TCP sockets."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname(), PATIENCE)
        server, _ = listener.accept()
    client.settimeout(None)
    return server, client


def tls_pair(
    server: ssl.SSLContext = SERVER,
    client: ssl.SSLContext = CLIENT,
    hostname: str = "localhost",
    sockets: tuple[socket.socket, socket.socket] | None = None,
) -> tuple[TlsTransport, TlsTransport]:
    """Return the connected transports of a server and a client, before the handshake."""
    ours, theirs = sockets or tcp_pair()
    return (
        TlsTransport(ours, server, server_side=True),
        TlsTransport(theirs, client, server_side=False, server_hostname=hostname),
    )


def shake_hands(*transports: Transport) -> None:
    """Perform the handshake of both sides concurrently."""
    together(*(lambda each=each: each.handshake(PATIENCE) for each in transports))
