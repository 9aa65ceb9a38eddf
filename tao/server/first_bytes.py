"""The first bytes of an accepted connection: waiting for them, and reading a PROXY header.

They are read on the connection's own thread, from the socket itself, before TLS, and never beyond
the header. Another thread may shut the socket down meanwhile, which ends the wait.
"""

from __future__ import annotations

import select
import socket

from tao.errors import HandshakeFailed
from tao.runtime.deadline import Deadline
from tao.transport.error_text import explain
from tao.wire.proxy_protocol import LONGEST, BadHeader, HeaderReader

__all__ = ["PeerLeft", "read_proxy_header", "wait_for_first_byte"]

# The longest that poll() can wait, in milliseconds.
_POLL_MOST = 2**31 - 1


class PeerLeft(HandshakeFailed):
    """The peer left without having sent a byte, as health checks do."""


def wait_for_first_byte(sock: socket.socket, deadline: Deadline) -> bool:
    """Wait for a byte without consuming it; return False if none comes in time.

    Raises:
        PeerLeft: the peer has left.
    """
    return _peek(sock, 1, deadline) is not None


def read_proxy_header(sock: socket.socket, deadline: Deadline) -> HeaderReader | None:
    """Read a PROXY protocol header; return None if it does not come in time.

    Raises:
        HandshakeFailed: what the peer sent is no such header.
        PeerLeft: the peer left before it had sent anything.
    """
    header, begun = HeaderReader(), False
    while not header.complete:
        try:
            data = _peek(sock, LONGEST, deadline)
            if data is None:
                return None
            taken = header.feed(data)
        except PeerLeft:
            if begun:
                raise HandshakeFailed("the peer hung up in its PROXY header") from None
            raise
        except BadHeader as error:
            raise HandshakeFailed(f"the peer sent no valid PROXY header: {error}") from error
        sock.recv(taken)  # they are there
        begun = True
    return header


def _peek(sock: socket.socket, size: int, deadline: Deadline) -> bytes | None:
    """Return at most ``size`` bytes without consuming them; None if none come in time."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    seconds = deadline.remaining()
    if not poll.poll(None if seconds is None else min(seconds * 1000, _POLL_MOST)):
        return None
    try:
        data = sock.recv(size, socket.MSG_PEEK)
    except ConnectionResetError:
        data = b""
    except OSError as error:
        raise HandshakeFailed(f"nothing could be read: {explain(error)}") from error
    if not data:
        raise PeerLeft("the peer hung up before it had sent a byte")
    return data
