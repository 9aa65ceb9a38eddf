"""What a server sees to before anything else: that a peer says something, and a proxy who it is.

It is read on the connection's own thread, from the socket itself, before TLS, and no more of it
than belongs here. Another thread may shut the socket down meanwhile, which ends the waiting.
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
    """The peer went away without having sent a byte, as health checks do."""


def wait_for_first_byte(sock: socket.socket, deadline: Deadline) -> bool:
    """Wait for a byte, and leave it there; False: none came in time.

    Raises:
        PeerLeft: none will come.
    """
    return _peek(sock, 1, deadline) is not None


def read_proxy_header(sock: socket.socket, deadline: Deadline) -> HeaderReader | None:
    """Read the header of a PROXY protocol, to its end; None: it did not come in time.

    Raises:
        HandshakeFailed: what came is none; `PeerLeft`, if that was nothing at all.
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
    """Return what has come, ``size`` bytes at most, and leave it there; None: nothing in time."""
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
