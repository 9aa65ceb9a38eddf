"""Byte streams: a connected socket behind a few methods. ``tls_stream.py`` adds TLS to it.

Which thread calls what: only the reading thread calls `recv`. `send` and `shutdown_write` never
block, and the send queue makes sure that one thread at a time is in them. Any thread may call
`abort`, which wakes the threads that are blocked. `close` comes last, when no other thread is in
the transport any more: closing a descriptor does not wake a thread that is blocked on it, and its
number may be used again at once.

No socket ever has a timeout: a timeout would make it non-blocking for both directions, and setting
it would race with the thread that reads. Reading blocks, sending uses ``MSG_DONTWAIT``, and a wait
with a limit is a ``poll``.
"""

from __future__ import annotations

import fcntl
import select
import socket
import struct
import sys
import termios
import threading
from collections.abc import Callable
from typing import Any

from tao.errors import ConnectionClosed
from tao.runtime.greenlets import GreenSocket, adapted
from tao.transport.nonblocking import end_writing_now, send_now, wait_for

__all__ = ["Transport"]

_TCP = frozenset((socket.AF_INET, socket.AF_INET6))
# With this SO_LINGER, close() sends a reset and discards what is still to be sent.
_NO_LINGER = struct.pack("ii", 1, 0)


class Transport:
    """A connected stream socket.

    Args:
        sock: connected and blocking; the transport owns it from now on.
    """

    __slots__ = ("_closed", "_closing", "_sock", "answers")

    #: The kernel's answer to the last `send`. The send queue clears it before each one.
    answers: list[int]

    def __init__(self, sock: socket.socket) -> None:
        self._sock = adapted(sock)
        # Guards _closed, so that nothing is done to a descriptor number that has been used again.
        # Reentrant, because a signal handler or a finalizer may abort as well.
        self._closing: Any = threading.RLock()
        self._closed: bool = False
        self.answers = []
        if sock.family in _TCP:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def handshake(self, timeout: float | None) -> None:
        """Do the TLS handshake within ``timeout`` seconds; without TLS, do nothing.

        Raises:
            HandshakeFailed: the handshake failed or took too long; the text says why.
        """

    @property
    def recv(self) -> Callable[[int], bytes]:
        """Wait for bytes and return up to ``size`` of them, ``b""`` at the end of the stream.

        It is a property, so that the reading thread keeps the socket's own method and every call
        saves a step.

        Raises:
            OSError: the connection is broken.
        """
        return self._sock.recv

    def send(self, data: bytes | memoryview) -> int:
        """Send without blocking.

        Returns:
            how many bytes the kernel accepted. If fewer than ``len(data)``, the next call must
            begin with the rest.

        Raises:
            OSError: the connection is broken.
        """
        return send_now(self._sock, data, self.answers)

    def settle(self) -> int | None:
        """Find out what the kernel accepted in a `send` that an exception interrupted.

        Returns:
            the number of bytes, or None if it cannot be known: then the connection must be aborted.
        """
        return max(0, self.answers[-1]) if self.answers else None

    def shutdown_write(self) -> bool:
        """Tell the peer that no more data follows, without blocking.

        Returns:
            False if that was not possible yet, and must be tried again.

        Raises:
            OSError: the connection is broken.
        """
        end_writing_now(self._sock)
        return True

    @property
    def committed_bytes(self) -> int:
        """How many bytes that do not count as sent the next `send` must begin with.

        TLS has encrypted them already.
        """
        return 0

    def wait_writable(self) -> None:
        """Wait until `send` can make progress, or the connection is aborted or broken."""
        wait_for(self._sock, select.POLLOUT, None)

    def wait_hung_up(self, timeout: float | None) -> bool:
        """Wait until both directions have ended, or the connection is broken.

        Args:
            timeout: seconds, or None for no limit.

        Returns:
            False if neither happened in time.
        """
        sock: Any = self._sock
        if isinstance(sock, GreenSocket):
            return sock.wait_hung_up(timeout)
        return wait_for(sock, 0, timeout)

    def unacknowledged(self) -> int:
        """Return how many sent bytes the peer's machine has not acknowledged; 0 if not known.

        Any thread may call it.
        """
        if self._sock.family == socket.AF_UNIX:
            return 0  # data arrives at once; the kernel would count what the peer has not read
        with self._closing:
            if self._closed:
                return 0
            try:
                answer = fcntl.ioctl(self._sock.fileno(), termios.TIOCOUTQ, bytes(4))
            except OSError:
                return 0
        count: int = struct.unpack("i", answer)[0]
        return count

    def option(
        self, level: int, name: int, value: int | bytes | None, length: int
    ) -> int | bytes | None:
        """Return an option of the socket, or set it to ``value``. Any thread may call it.

        Raises:
            ConnectionClosed: the transport is closed.
            OSError: the kernel refuses.
        """
        with self._closing:
            if self._closed:
                raise ConnectionClosed("the connection is closed")
            if value is not None:
                self._sock.setsockopt(level, name, value)
                return None
            # With any length, even 0, getsockopt returns bytes.
            lengths = (length,) if length else ()
            return self._sock.getsockopt(level, name, *lengths)

    @property
    def peer_is_near(self) -> bool:
        """Whether the peer runs on this machine, and a reset loses nothing there.

        Linux lets a process read everything up to the end of the stream even if a reset follows;
        see ``tests/connection/test_shutdown.py``.
        """
        if not sys.platform.startswith("linux"):
            return False
        try:
            here, there = self._sock.getsockname(), self._sock.getpeername()
        except OSError:
            return False  # it is disconnected
        return self._sock.family == socket.AF_UNIX or here[0] == there[0]

    @property
    def interrupted_here(self) -> bool:
        """Whether the calling code interrupted this thread while it held a lock in here."""
        return bool(self._closing._is_owned())

    def abort(self, *, reset: bool = False) -> None:
        """End both directions now and wake all threads that wait. Any thread may call it.

        Args:
            reset: discard what the kernel has still to send, and have `close` send a reset.
        """
        with self._closing:
            if self._closed:
                return
            try:
                if reset and self._sock.family in _TCP:
                    self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
                self._sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # the peer has closed already

    def reset(self) -> None:
        """Have `close` reset the connection, for a peer that keeps sending.

        The peer may be waiting for room in a receive buffer that is not read any more. Without this
        the kernel would tell it only when more data arrives, which can take a minute.
        """
        try:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        except OSError:
            pass  # it is disconnected already

    def close(self) -> None:
        """Free the descriptor. No thread may be in any other method."""
        with self._closing:
            self._closed = True
        self._sock.close()

    def after_fork(self) -> None:
        """In a child process: free the descriptor; the parent keeps the connection."""
        self._sock.close()

    @property
    def peer_certificate(self) -> dict[str, Any] | None:
        """The peer's verified certificate as ``ssl.SSLSocket.getpeercert()`` gives it, or None."""
        return None

    @property
    def tls_version(self) -> str | None:
        """``"TLSv1.3"`` or ``"TLSv1.2"``, or None without TLS."""
        return None
