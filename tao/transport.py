"""Byte streams: a plain socket, and TLS on top of one, behind the same few methods.

Who calls what: `recv` is the connection's reading thread's alone. `send` and `shutdown_write` are
called under the outbox's lock and never block. `abort` may come from any thread and wakes whoever
is blocked. `close` comes last, from the thread that has seen all others leave: closing a descriptor
neither wakes a thread that is blocked on it nor keeps its number from being used again.

No socket ever has a timeout: that would make it non-blocking for both directions, and is a data
race while another thread reads. Reading blocks; sending uses ``MSG_DONTWAIT``; a wait with a bound
is a ``poll``.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import socket
import ssl
import struct
import sys
import termios
import threading
from collections.abc import Callable
from typing import Any

from tao.addresses import address_text
from tao.errors import ConnectionClosed, HandshakeFailed
from tao.threads import Deadline

__all__ = ["TlsTransport", "Transport", "address_text", "explain"]

_SEND_FLAGS = socket.MSG_DONTWAIT | getattr(socket, "MSG_NOSIGNAL", 0)
# What it means when send() takes nothing, and nothing is wrong.
_FULL = frozenset((errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR))
_TCP = frozenset((socket.AF_INET, socket.AF_INET6))
# The most that is sent without letting go of the interpreter lock, see _lock_keeping.
_QUICK_SEND = 256 * 1024
# The most that one TLS record holds (RFC 8446, 5.1).
_TLS_RECORD = 16 * 1024
# How much is encrypted in one send, for as long as it takes nobody else gets at the machine.
_TLS_SEND = 16 * _TLS_RECORD
# How much one recv asks for in a handshake.
_HANDSHAKE_BYTES = 64 * 1024
# The longest that poll() can wait, in milliseconds.
_POLL_MOST = 2**31 - 1
# OpenSSL's names for bytes that are no TLS at all.
_NOT_TLS = frozenset(
    ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "PACKET_LENGTH_TOO_LONG",
     "RECORD_LAYER_FAILURE", "UNEXPECTED_MESSAGE", "BAD_RECORD_TYPE", "HTTPS_PROXY_REQUEST")
)  # fmt: skip
# What a server answers to those, as OpenSSL itself does not: the fatal alert protocol_version (RFC
# 8446, 6.2), in a record as all versions have it. So a peer can tell what it has come upon.
_NO_TLS_ALERT = b"\x15\x03\x01\x00\x02\x02\x46"
# OpenSSL's name for a stream that was cut, which some CPythons, as 3.11.2, have no class for.
_CUT = "UNEXPECTED_EOF_WHILE_READING"


def _lock_keeping(name: str) -> Callable[..., int] | None:
    """Return a function of the C library, for calls that do not let go of the interpreter lock.

    The methods of a socket let go of it, as they must for what may block. To get it back is dear
    when other threads want it too: a wait, and two changes of threads. A send that does not block
    is over in a few microseconds (256 KiB in 25 to 40), and to keep the lock for that long lets a
    server with many connections answer a third more messages. None where that cannot be had, or
    where there is no such lock.
    """
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        return None
    try:
        # No types are declared, as checking them costs as much as the call. The arguments are
        # passed as C ints, which libffi extends to the width of a size_t.
        function: Callable[..., int] = getattr(ctypes.PyDLL(None, use_errno=True), name)
    except (AttributeError, OSError, TypeError):
        return None
    return function


_quick_send, _quick_shutdown = _lock_keeping("send"), _lock_keeping("shutdown")


class Transport:
    """A connected stream socket.

    Args:
        sock: connected and blocking; it belongs to the transport from now on.
    """

    __slots__ = ("_closed", "_closing", "_sock")

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        # Guards _closed, so that no shutdown hits a descriptor number that is someone else's.
        self._closing = threading.Lock()
        self._closed: bool = False
        if sock.family in _TCP:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def handshake(self, timeout: float | None) -> None:
        """Agree on encryption, if there is any, within ``timeout`` seconds.

        Raises:
            HandshakeFailed: there was no agreement, or none in time; the text says why.
        """

    @property
    def recv(self) -> Callable[[int], bytes]:
        """Wait for bytes and return at most so many of them, ``b""`` at the end of the stream.

        As a property it is the socket's own method, and costs whoever keeps it no detour.

        Raises:
            OSError: the connection broke.
        """
        return self._sock.recv

    def send(self, data: bytes | memoryview) -> int:
        """Give bytes to the kernel without blocking; return how many it took, 0 if none.

        Whoever gets less than ``len(data)`` calls again later with the rest, and with nothing else.

        Raises:
            OSError: the connection broke.
        """
        if _quick_send is not None and type(data) is bytes and len(data) <= _QUICK_SEND:
            taken = _quick_send(self._sock.fileno(), data, len(data), _SEND_FLAGS)
            if taken > 0:
                return taken
            number = ctypes.get_errno()
            if number in _FULL:
                return 0
            raise OSError(number, os.strerror(number))
        try:
            return self._sock.send(data, _SEND_FLAGS)
        except BlockingIOError:
            return 0

    def shutdown_write(self) -> bool:
        """Tell the peer in order that no more comes; False: could not yet, so call again.

        Raises:
            OSError: the connection broke.
        """
        if _quick_shutdown is None:
            self._sock.shutdown(socket.SHUT_WR)
        elif _quick_shutdown(self._sock.fileno(), socket.SHUT_WR):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return True

    @property
    def begun(self) -> int:
        """How many bytes must be the same when `send` is called again, although it took none."""
        return 0

    def wait_writable(self) -> None:
        """Wait until `send` has a chance, or the connection is aborted or broken."""
        _poll(self._sock, select.POLLOUT, None)

    def unacknowledged(self) -> int:
        """Tell how many bytes that the kernel took have not arrived at the peer's machine yet.

        Any thread may call it. 0 where that is not known.
        """
        with self._closing:
            if self._closed:
                return 0
            try:
                answer = fcntl.ioctl(self._sock.fileno(), termios.TIOCOUTQ, bytes(4))
            except OSError:
                return 0
        count: int = struct.unpack("i", answer)[0]
        return count

    def abort(self) -> None:
        """End both directions now and wake whoever waits. Any thread may call it, any time."""
        with self._closing:
            if self._closed:
                return
            try:
                self._sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # the peer was faster

    def close(self) -> None:
        """Free the descriptor, once no thread is in any other method."""
        with self._closing:
            self._closed = True
        self._sock.close()

    @property
    def peer_certificate(self) -> dict[str, Any] | None:
        """What the peer proved to be, as ``ssl.SSLSocket.getpeercert()`` gives it, or None."""
        return None

    @property
    def tls_version(self) -> str | None:
        """``"TLSv1.3"`` or ``"TLSv1.2"``, or None without TLS."""
        return None


class TlsTransport(Transport):
    """TLS as a pure byte machine (``SSLObject`` on two ``MemoryBIO``s) beside a socket.

    ``SSLSocket`` cannot be read and written by two threads at once on every version of CPython.
    Here the machine is only ever touched under a lock, and only the socket is waited for, outside
    of it.

    Args:
        sock: connected and blocking; it belongs to the transport from now on.
        context: what to accept and to show.
        server_side: which side of the handshake this is.
        server_hostname: whom a client expects to reach.
    """

    __slots__ = (
        "_ciphertext", "_encrypted", "_finished", "_incoming", "_lock", "_machine",
        "_outgoing", "_server_side",
    )  # fmt: skip

    def __init__(
        self,
        sock: socket.socket,
        context: ssl.SSLContext,
        *,
        server_side: bool,
        server_hostname: str | None = None,
    ) -> None:
        super().__init__(sock)
        self._server_side: bool = server_side
        # Guards all below.
        self._lock = threading.Lock()
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._machine = context.wrap_bio(
            self._incoming, self._outgoing, server_side, server_hostname
        )
        self._ciphertext: bytes | memoryview = b""  # encrypted, not yet taken by the kernel
        self._encrypted: int = 0  # plain bytes of the record of which a part is in _ciphertext
        self._finished: bool = False  # our close_notify is made

    def handshake(self, timeout: float | None) -> None:
        deadline = Deadline(timeout)
        try:
            while event := self._handshake_step():
                if not _poll(self._sock, event, deadline.remaining()):
                    raise HandshakeFailed(f"TLS handshake not done after {timeout} s")
                if event == select.POLLOUT:
                    continue
                data = self._sock.recv(_HANDSHAKE_BYTES)
                if not data:
                    raise HandshakeFailed(self._hung_up())
                with self._lock:
                    self._incoming.write(data)
        except ssl.SSLError as error:
            with self._lock:
                if self._server_side and error.reason in _NOT_TLS and not self._outgoing.pending:
                    self._outgoing.write(_NO_TLS_ALERT)
                self._flush_if_possible()  # the alert that tells the peer what was wrong
            raise HandshakeFailed(f"TLS handshake failed: {explain(error)}") from error
        except ConnectionResetError as error:
            raise HandshakeFailed(self._hung_up()) from error
        except OSError as error:
            if isinstance(error, HandshakeFailed):
                raise
            raise HandshakeFailed(f"TLS handshake failed: {explain(error)}") from error

    def _handshake_step(self) -> int:
        """Go on as far as the bytes suffice; return what to wait for then, 0 at the end."""
        with self._lock:
            try:
                self._machine.do_handshake()
                event = 0
            except ssl.SSLWantReadError:
                event = select.POLLIN
            return event if self._flush() else select.POLLOUT

    def _hung_up(self) -> str:
        if self._server_side:
            return "the peer hung up during the TLS handshake"
        return "the server hung up during the TLS handshake; does it speak TLS on this port?"

    @property
    def recv(self) -> Callable[[int], bytes]:
        return self._recv

    def _recv(self, size: int) -> bytes:
        while True:
            with self._lock:
                data = self._decrypt(size)
                # Reading may produce bytes to send: key updates, session tickets.
                self._flush_if_possible()
            if data is not None:
                return data
            raw = self._sock.recv(size)
            with self._lock:
                if raw:
                    self._incoming.write(raw)
                else:
                    self._incoming.write_eof()

    def _decrypt(self, size: int) -> bytes | None:
        """Return what is there, None if more must come first. Needs _lock."""
        if self._finished:
            # After our own close_notify nobody wants the rest, only the end of it.
            ended = self._incoming.eof
            self._incoming.read()
            return b"" if ended else None
        pieces: list[bytes] = []
        while size > 0:
            try:
                piece = self._machine.read(size)
            except ssl.SSLWantReadError:
                break
            except ssl.SSLError as error:
                if isinstance(error, ssl.SSLEOFError) or error.reason == _CUT:
                    raise ConnectionClosed("peer closed without saying so in TLS") from error
                raise
            if not piece:
                return b"".join(pieces)
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces) if pieces else None

    def send(self, data: bytes | memoryview) -> int:
        rest = memoryview(data)[:_TLS_SEND]
        taken = 0
        with self._lock:
            try:
                while rest and (count := self._send_record(rest)):
                    taken += count
                    rest = rest[count:]
            except OSError:
                if not taken:
                    raise
                # First what the kernel has; a broken socket raises again the next time.
        return taken

    def _send_record(self, data: memoryview) -> int:
        """Send one record; return how many plain bytes are in it, 0 if not all of it is gone.

        A record of which a part is missing tells the peer nothing. So what counts as not sent has
        not arrived, and may be sent again elsewhere. Needs _lock.
        """
        if not self._encrypted:
            if not self._flush():
                return 0
            self._encrypted = self._machine.write(data[:_TLS_RECORD])
        if not self._flush():
            return 0
        count, self._encrypted = self._encrypted, 0
        return count

    @property
    def begun(self) -> int:
        return self._encrypted

    def shutdown_write(self) -> bool:
        with self._lock:
            if not self._finished:
                self._finished = True
                try:
                    self._machine.unwrap()
                except ssl.SSLError:
                    pass  # as a rule: it wants to read the peer's answer, for which nobody waits
            if not self._flush():
                return False
        return super().shutdown_write()

    def _flush(self) -> bool:
        """Send what the machine has made, without blocking; tell whether all is gone.

        Needs _lock.
        """
        assert self._lock.locked()
        while True:
            while self._ciphertext:
                sent = super().send(self._ciphertext)
                if not sent:
                    return False
                self._ciphertext = memoryview(self._ciphertext)[sent:]
            if not self._outgoing.pending:
                return True
            self._ciphertext = self._outgoing.read()

    def _flush_if_possible(self) -> None:
        """Send what the machine has made, if the peer still takes it. Needs _lock."""
        try:
            self._flush()
        except OSError:
            pass  # who sends next hears of it; what has come before is still to be read

    @property
    def peer_certificate(self) -> dict[str, Any] | None:
        with self._lock:
            try:
                return self._machine.getpeercert() or None
            except ValueError:
                return None  # the handshake is not done yet

    @property
    def tls_version(self) -> str | None:
        with self._lock:
            return self._machine.version()


def _poll(sock: socket.socket, event: int, timeout: float | None) -> bool:
    """Wait for a socket; tell whether something happened before ``timeout`` seconds were over."""
    poll = select.poll()
    poll.register(sock, event)
    return bool(poll.poll(None if timeout is None else min(timeout * 1000, _POLL_MOST)))


def explain(error: BaseException) -> str:
    """Say in a few words what an error of a socket or of TLS means. It never raises."""
    try:
        return _explanation(error)
    except Exception:  # an application's own class, or arguments of its own
        return type(error).__name__


def _explanation(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the peer's certificate is refused: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        if error.reason in _NOT_TLS:
            return f"the peer does not speak TLS ({error.reason})"
        return str(error.reason or error).lower().replace("_", " ")
    if isinstance(error, socket.gaierror):
        return f"the name cannot be resolved ({error.strerror})"
    if isinstance(error, OSError) and error.errno is not None:
        if error.errno == errno.ECONNRESET:
            return "connection reset by peer"
        if error.errno in (errno.EPIPE, errno.ESHUTDOWN):
            return "peer closed"
        return os.strerror(error.errno).lower()
    return str(error) or type(error).__name__
