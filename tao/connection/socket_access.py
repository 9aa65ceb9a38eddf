"""What users ask of a connection about the stream below it: TLS, and options of its socket."""

from __future__ import annotations

import socket
from typing import Any, overload

from tao.connection.core import ConnectionCore
from tao.connection.options.fields import SOCKET_TIMEOUTS
from tao.errors import ConnectionClosed

__all__ = ["HasTransport"]


class HasTransport:
    """Of a connection. Any thread may call any method, at any time."""

    _core: ConnectionCore

    @property
    def peer_certificate(self) -> dict[str, Any] | None:
        """The peer's TLS certificate as ``ssl.SSLSocket.getpeercert()`` returns it, or None."""
        transport = self._core.transport
        return None if transport is None else transport.peer_certificate

    @property
    def tls_version(self) -> str | None:
        """The version of TLS in use, or None."""
        transport = self._core.transport
        return None if transport is None else transport.tls_version

    @overload
    def socket_option(self, level: int, option: int) -> int: ...
    @overload
    def socket_option(self, level: int, option: int, *, length: int) -> bytes: ...
    @overload
    def socket_option(self, level: int, option: int, value: int | bytes) -> None: ...

    def socket_option(
        self, level: int, option: int, value: int | bytes | None = None, *, length: int = 0
    ) -> int | bytes | None:
        """Return an option of the connection's socket, or set it.

        ::

            size = conn.socket_option(socket.SOL_SOCKET, socket.SO_RCVBUF)
            conn.socket_option(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
            info = conn.socket_option(socket.IPPROTO_TCP, socket.TCP_INFO, length=104)

        The descriptor itself is not given away, as it may be another connection's by the time it is
        used. With ``reconnect`` each new connection has a new socket: set what all shall have in
        ``on_connect``, or with the option ``socket_options``.

        Args:
            level, option: as for ``socket.getsockopt`` and ``socket.setsockopt``.
            value: what to set; None returns what is set.
            length: of the bytes to return; 0 returns an int.

        Raises:
            ConnectionClosed: there is no connection any more, or not just now.
            OSError: the kernel refuses, or there is no socket, as in memory.
            ValueError: the option is a timeout of the socket, by which it would not block any more.
                Use ``idle_timeout`` and ``write_timeout``.
        """
        if value is not None and level == socket.SOL_SOCKET and option in SOCKET_TIMEOUTS:
            raise ValueError("the socket's timeouts are not for use: see idle_timeout")
        transport = self._core.transport
        try:
            if transport is not None:
                return transport.option(level, option, value, length)
        except ConnectionClosed:
            pass
        raise ConnectionClosed(self._core.lifecycle.close_reason or "there is no connection now")
