"""The beginning of an accepted connection: a PROXY header, the first byte of TLS, the handshake.

It is carried out step by step, none of which waits. Either a thread of the connection waits between
the steps (`Handshake.complete`), or the poller does, and a silent peer costs no thread. The header
is read from the socket itself, before TLS, and never beyond its end. Another thread may shut the
socket down meanwhile, which ends the handshake.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from tao.errors import ConnectionClosed, HandshakeFailed, TaoError
from tao.runtime.deadline import Deadline
from tao.transport.error_text import explain
from tao.transport.nonblocking import wait_for
from tao.transport.poller import READABLE
from tao.transport.stream import Transport
from tao.transport.tls_stream import TlsTransport
from tao.wire.proxy_protocol import LONGEST, BadHeader, HeaderReader

__all__ = ["Handshake", "PeerLeft"]


class PeerLeft(HandshakeFailed):
    """The peer left without having sent a byte, as health checks do."""


class Handshake:
    """What precedes the first message of a connection. One thread at a time uses it.

    Args:
        sock: the accepted socket.
        transport: the connection's.
        timeout: for all of it, in seconds.
        read_header: called with the PROXY header when that has come; None: none is expected. It may
            raise, which ends the handshake.
    """

    def __init__(
        self,
        sock: socket.socket,
        transport: Transport,
        timeout: float,
        read_header: Callable[[HeaderReader], object] | None,
    ) -> None:
        self._sock = sock
        self._transport = transport
        self._timeout = timeout
        self._deadline = Deadline(timeout)
        self._read_header = read_header
        self._header: HeaderReader | None = None if read_header is None else HeaderReader()
        self._header_begun: bool = False
        self._error: TaoError | None = None  # how it failed
        self._silent: bool = isinstance(transport, TlsTransport)  # the peer has sent nothing of TLS

    def advance(self) -> int:
        """Go on as far as that is possible without waiting.

        Returns:
            the events of ``poll`` to wait for; 0 when it is done.

        Raises:
            HandshakeFailed: it failed, or has taken too long; the text says why.
            PeerLeft: the peer left before it had sent anything.
            ConnectionClosed: as ``read_header`` raises it.
        """
        if self._error is not None:
            raise self._error
        try:
            return self._advance()
        except (HandshakeFailed, ConnectionClosed) as error:
            if self._deadline.expired and isinstance(error, HandshakeFailed):
                self._error = self._too_late()
                raise self._error from error
            self._error = error
            raise

    def _advance(self) -> int:
        while self._header is not None:
            if not self._take_header(self._header):
                return self._wait(READABLE)
        if self._silent:
            if _peek(self._sock, 1) is None:
                return self._wait(READABLE)
            self._silent = False
        events = self._transport.advance_handshake()
        return self._wait(events) if events else 0

    def complete(self) -> None:
        """Do all of it, and wait on this thread; raises as `advance` does."""
        while events := self.advance():
            wait_for(self._sock, events, self._deadline.remaining())

    def _wait(self, events: int) -> int:
        if self._deadline.expired:
            raise self._too_late()
        return events

    def _too_late(self) -> HandshakeFailed:
        if self._header is not None:
            return HandshakeFailed(f"no PROXY header within {self._timeout} s")
        return HandshakeFailed(f"TLS handshake not done after {self._timeout} s")

    def _take_header(self, header: HeaderReader) -> bool:
        """Take what is there of the PROXY header; return False if nothing is."""
        assert self._read_header is not None
        try:
            data = _peek(self._sock, LONGEST)
            if data is None:
                return False
            taken = header.feed(data)
        except PeerLeft:
            if self._header_begun:
                raise HandshakeFailed("the peer hung up in its PROXY header") from None
            raise
        except BadHeader as error:
            raise HandshakeFailed(f"the peer sent no valid PROXY header: {error}") from error
        self._sock.recv(taken)  # they are there
        self._header_begun = True
        if header.complete:
            self._header = None
            self._read_header(header)
        return True


def _peek(sock: socket.socket, size: int) -> bytes | None:
    """Return up to ``size`` bytes without consuming them; None if there are none yet.

    Raises:
        HandshakeFailed: the socket is broken.
        PeerLeft: the peer has closed.
    """
    if not wait_for(sock, READABLE, 0):  # as gevent's sockets wait whatever the flags say
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
