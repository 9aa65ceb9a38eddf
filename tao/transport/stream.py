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
from tao.runtime.combining import acquired
from tao.runtime.greenlets import GreenSocket, adapted
from tao.transport.nonblocking import (
    QUICK_SEND,
    SEND_FLAGS,
    end_writing_now,
    quick_send,
    refused,
    send_now,
    wait_for,
)

__all__ = ["Transport"]

_TCP = frozenset((socket.AF_INET, socket.AF_INET6))
# With this SO_LINGER, close() sends a reset and discards what is still to be sent.
_NO_LINGER = struct.pack("ii", 1, 0)


class Transport:
    """A connected stream socket.

    Args:
        sock: connected and blocking; the transport owns it from now on.
    """

    __slots__ = ("_aborts", "_closed", "_closing", "_quick_send", "_sock", "answers")

    #: The kernel's answer to the last `send`. The send queue clears it before each one.
    answers: list[int]

    def __init__(self, sock: socket.socket) -> None:
        self._sock = adapted(sock)
        # Guards _closed, so that nothing is done to a descriptor number that has been used again.
        # It is reentrant only so that its owner is known. No abort waits for it: its owner may be
        # interrupted by a signal handler that waits for the aborting thread.
        self._closing: Any = threading.RLock()
        self._closed: bool = False
        # For each abort to be carried out, whether it is a reset. Any thread appends, and the owner
        # of _closing removes.
        self._aborts: list[bool] = []
        self.answers = []
        self._quick_send = quick_send(self.answers)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        except OSError:
            if sock.family in _TCP:  # to ask for it first would take longer than all the rest
                raise

    def handshake(self, timeout: float | None) -> None:
        """Do the TLS handshake within ``timeout`` seconds; without TLS, do nothing.

        Raises:
            HandshakeFailed: the handshake failed or took too long; the text says why.
        """

    def advance_handshake(self) -> int:
        """Go on with the handshake as far as that is possible without waiting.

        Returns:
            the events of ``poll`` to wait for; 0 when it is done, as always without TLS.

        Raises:
            HandshakeFailed: the handshake failed.
        """
        return 0

    @property
    def recv(self) -> Callable[[int], bytes]:
        """Wait for bytes and return up to ``size`` of them, ``b""`` at the end of the stream.

        It is a property, so that the reading thread keeps the socket's own method and every call
        saves a step.

        Raises:
            OSError: the connection is broken.
        """
        return self._sock.recv

    def recv_much(self, size: int) -> bytes:
        """Do as `recv` does, and take no memory while nothing has come.

        `recv` takes ``size`` bytes before it waits: for much, where many connections are idle.
        """
        self.wait_readable(None)
        return self._sock.recv(size)

    @property
    def receive_now(self) -> Callable[[int, int], bytes]:
        """Receive like `recv`, but without waiting; called with the size and ``MSG_DONTWAIT``.

        Raises:
            BlockingIOError: there is nothing yet.
            OSError: the connection is broken.
            Busy: another thread is in the midst of a `send`, and may be for long; see `wait_free`.
        """
        return self._sock.recv

    def receive_up_to(self, size: int) -> bytes | None:
        """Return up to ``size`` bytes, None if there are none yet, ``b""`` at the end.

        Raises:
            OSError: the connection is broken.
        """
        if not wait_for(self._sock, select.POLLIN, 0):  # gevent's sockets heed no flags
            return None
        return self._sock.recv(size)

    def wait_readable(self, timeout: float | None) -> bool:
        """Wait until more can be received, or the connection has ended; return False if not."""
        return wait_for(self._sock, select.POLLIN, timeout)

    def begin(self) -> None:
        """Carry messages from now on. Called by the thread that establishes a connection."""

    def outlives(self, reason: str) -> bool:
        """Whether this goes on without a peer that has failed, for this reason."""
        return False

    def farewell(self) -> None:
        """Tell a peer that has closed what was handled of it, if it wants to know."""

    def lost_messages(self) -> list[Any] | None:
        """Return what was sent and may not have been handled; None: nothing is known of it."""
        return None

    #: Whether `send` calls the kernel and does nothing else, such as to wait for a lock.
    bare: bool = True
    #: Whether it keeps data that `send` has accepted, and that `push` is to send on.
    keeps: bool = False
    #: Whether it may have to send again what it has sent, the end included.
    resends: bool = False
    #: Whether `close` ends the stream as `shutdown_write` does, if all was sent.
    close_ends: bool = True
    #: Whether the kernel tells when `send` can go on.
    polls_writable: bool = True

    def reads_ahead(self, spilt: int) -> bool:
        """Whether it has to be read, although so many messages wait above the usual limit."""
        return False

    def push(self) -> bool:
        """Send what it keeps, without blocking; return whether all is sent."""
        return True

    @property
    def descriptor(self) -> int:
        """The number of the descriptor, to wait for; -1 if there is none."""
        sock: Any = self._sock
        return -1 if isinstance(sock, GreenSocket) else sock.fileno()

    def wait_free(self) -> None:
        """Wait until no thread is in the midst of a `send`."""

    #: Whether a transport of this kind may have received what `receive_now` has not returned yet.
    buffers: bool = False

    @property
    def end_waits(self) -> bool:
        """Whether `receive_now` returns the end of the stream next, though nothing more comes."""
        return False

    def send(self, data: bytes | memoryview) -> int:
        """Send without blocking.

        Returns:
            how many bytes the kernel accepted. If fewer than ``len(data)``, the next call must
            begin with the rest.

        Raises:
            OSError: the connection is broken.
        """
        quick = self._quick_send
        if quick is not None and type(data) is bytes and (size := len(data)) <= QUICK_SEND:
            quick(self._sock.fileno(), data, size, SEND_FLAGS)  # as `send_now`, in fewer steps
            accepted = self.answers[-1]
            return accepted if accepted > 0 else refused()
        return send_now(self._sock, data, self.answers, None)

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
        try:
            # No lock: if the descriptor has just been closed, and its number is in use again, this
            # changes nothing.
            answer = fcntl.ioctl(self._sock.fileno(), termios.TIOCOUTQ, bytes(4))
        except (OSError, ValueError):
            return 0  # it is closed
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
        try:
            with self._closing:
                if self._closed:
                    raise ConnectionClosed("the connection is closed")
                if value is not None:
                    self._sock.setsockopt(level, name, value)
                    return None
                # With any length, even 0, getsockopt returns bytes.
                lengths = (length,) if length else ()
                return self._sock.getsockopt(level, name, *lengths)
        finally:
            self._carry_out_aborts()  # that have come meanwhile

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

        It waits for nothing. If another thread is in such a call, that one does it.

        Args:
            reset: discard what the kernel has still to send, and have `close` send a reset.
        """
        self._aborts.append(reset)
        self._carry_out_aborts()

    def _carry_out_aborts(self) -> None:
        """Carry out an abort that `abort` has noted, unless the owner of _closing will."""
        lock = self._closing
        if lock._is_owned():
            return  # this call has interrupted another one
        try:
            while self._aborts and lock.acquire(False):
                while self._aborts:
                    self._shut_down(self._aborts[0])
                    self._aborts.pop(0)
                lock.release()
        finally:
            if lock._is_owned():  # an exception has come in between
                lock.release()

    def _shut_down(self, reset: bool) -> None:
        """End both directions, unless the descriptor is free. Needs _closing."""
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
        """Free the descriptor. No thread may be in any other method, except a brief one.

        Raises:
            Busy: another thread is in such a one, and this one must not wait for it.
        """
        lock = self._closing
        try:
            acquired(lock)
            for reset in self._aborts:
                self._shut_down(reset)
            self._closed = True
            lock.release()
        finally:
            if lock._is_owned():  # an exception has come in between
                lock.release()
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
