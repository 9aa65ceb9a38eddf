"""Byte streams: a plain socket, and TLS on top of one, behind the same few methods.

Who calls what: only the reading thread calls `recv`. `send` and `shutdown_write` never block, and
the send queue sees to it that one thread at a time is in them. `abort` may be called by any thread
and wakes the threads that are blocked. `close` comes last, from the thread that has seen all others
leave: closing a descriptor neither wakes a thread that is blocked on it nor keeps its number from
being used again.

A signal handler may raise an exception between any two bytecodes. How many bytes the kernel took
must be known even then, or a message would be sent twice or cut. So the kernel's answer is stored
by the same C call that asks for it (`Transport.answers`): no signal handler runs in between.

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
from itertools import starmap
from typing import Any

from tao.errors import ConnectionClosed, HandshakeFailed
from tao.runtime.deadline import Deadline
from tao.runtime.greenlets import GreenSocket, adapted
from tao.transport.addresses import address_text

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
# How long a send waits for a thread that decrypts, in seconds. It must end: that thread may be in a
# finalizer which waits for this one.
_LOCK_PATIENCE = 0.05
# Has close() send a reset in place of what is left.
_NO_LINGER = struct.pack("ii", 1, 0)
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


def _give(sock: socket.socket, data: bytes | memoryview, answers: list[int]) -> int:
    """Give bytes to the kernel without blocking; append its answer, and return it.

    If the kernel takes nothing, 0 is returned, and what was appended is not positive, or nothing.
    """
    if _quick_send is not None and type(data) is bytes and len(data) <= _QUICK_SEND:
        call = sock.fileno(), data, len(data), _SEND_FLAGS
        answers.extend(starmap(_quick_send, (call,)))
        if answers[-1] > 0:
            return answers[-1]
        number = ctypes.get_errno()
        if number in _FULL:
            return 0
        raise OSError(number, os.strerror(number))
    try:
        answers.extend(starmap(sock.send, ((data, _SEND_FLAGS),)))
    except BlockingIOError:
        return 0
    return answers[-1]


class Transport:
    """A connected stream socket.

    Args:
        sock: connected and blocking; it belongs to the transport from now on.
    """

    __slots__ = ("_closed", "_closing", "_sock", "answers")

    #: What the kernel answered to the last `send`. The send queue empties it before each.
    answers: list[int]

    def __init__(self, sock: socket.socket) -> None:
        self._sock = adapted(sock)
        # Guards _closed, so that no shutdown hits a descriptor number that is someone else's.
        # Reentrant, because a signal handler or a finalizer may abort, too.
        self._closing: Any = threading.RLock()
        self._closed: bool = False
        self.answers = []
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
        return _give(self._sock, data, self.answers)

    def settle(self) -> int | None:
        """Return how many bytes the kernel took in a `send` that an exception interrupted.

        Returns:
            None if that cannot be known; the connection must then be given up.
        """
        return max(0, self.answers[-1]) if self.answers else None

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
        return _poll(sock, 0, timeout)

    def unacknowledged(self) -> int:
        """Tell how many bytes that the kernel took have not arrived at the peer's machine yet.

        Any thread may call it. 0 where that is not known.
        """
        if self._sock.family == socket.AF_UNIX:
            return 0  # it arrives at once; what the kernel would tell is what is not read yet
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
        """Return an option of the socket, or set it to ``value``. Any thread may call it, any time.

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
            # With a length, even 0, it would return bytes.
            lengths = (length,) if length else ()
            return self._sock.getsockopt(level, name, *lengths)

    @property
    def peer_is_near(self) -> bool:
        """Whether the peer's kernel is this machine's, and one that loses nothing by a reset.

        Linux lets a process read all that came before the end of a stream, and the end, although a
        reset came afterwards; see ``tests/connection/test_shutdown.py``.
        """
        if not sys.platform.startswith("linux"):
            return False
        try:
            here, there = self._sock.getsockname(), self._sock.getpeername()
        except OSError:
            return False  # it has gone
        return self._sock.family == socket.AF_UNIX or here[0] == there[0]

    @property
    def interrupted_here(self) -> bool:
        """Whether the calling thread has interrupted a method that keeps others out."""
        return bool(self._closing._is_owned())

    def abort(self, *, reset: bool = False) -> None:
        """End both directions now and wake whoever waits. Any thread may call it, any time.

        Args:
            reset: forget what the kernel has still to send; the peer is told when this is closed.
        """
        with self._closing:
            if self._closed:
                return
            try:
                if reset and self._sock.family in _TCP:
                    self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
                self._sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # the peer was faster

    def reset(self) -> None:
        """Have `close` reset the connection, for a peer that goes on sending.

        It may be waiting for room in a receive buffer that nobody reads any more. The kernel tells
        it only when data arrives, which then takes a minute.
        """
        try:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except OSError:
            pass  # it is gone already

    def close(self) -> None:
        """Free the descriptor, once no thread is in any other method."""
        with self._closing:
            self._closed = True
        self._sock.close()

    def after_fork(self) -> None:
        """In a child process: free the descriptor; the connection is the parent's."""
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
        "_certificate", "_ciphertext", "_finished", "_incoming", "_lock", "_machine", "_outgoing",
        "_progress", "_raw_answers", "_server_side", "_version",
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
        # Guards all below but the last two. It is reentrant only so that its owner is known: a
        # finalizer that runs while this thread holds it may write to the same connection.
        self._lock: Any = threading.RLock()
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._machine = context.wrap_bio(
            self._incoming, self._outgoing, server_side, server_hostname
        )
        self._ciphertext: list[bytes | memoryview] = []  # encrypted, not yet taken by the kernel
        self._raw_answers: list[int] = []  # the kernel's, for the bytes in _ciphertext
        # Plain bytes of the present send that are in wholly sent records, and of the record of
        # which a part is in _ciphertext. One tuple, so that a record moves from the one to the
        # other in one step.
        self._progress: tuple[int, int] = (0, 0)
        self._finished: bool = False  # our close_notify is made
        # Once known they do not change.
        self._certificate: dict[str, Any] | None = None
        self._version: str | None = None

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
                self._certificate = self._machine.getpeercert() or None
                self._version = self._machine.version()
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
        lock, answers = self._lock, self.answers
        if lock._is_owned():
            return 0  # this call has interrupted another one
        try:
            if not lock.acquire(timeout=_LOCK_PATIENCE):
                return 0
            self._send_records(memoryview(data)[:_TLS_SEND])
            answers.append(self._progress[0])
            self._progress = (0, self._progress[1])
            lock.release()
            return answers[-1]
        except BaseException as error:
            try:
                self._leave(error)
            finally:
                # Here, as a call that was too deep for the interpreter's limit may be so again.
                if lock._is_owned():
                    lock.release()
            raise

    def _leave(self, error: BaseException) -> None:
        """After an exception give the stream up if need be, and let go of _lock."""
        try:
            self._let_go(error)
        except BaseException:
            self._let_go(error)  # another exception has come in the midst of that
            raise

    def _let_go(self, error: BaseException) -> None:
        if self._lock._is_owned():
            if not isinstance(error, OSError):
                self._interrupted()
            self._lock.release()

    def _send_records(self, data: memoryview) -> None:
        """Send as many records as the kernel takes. Needs _lock."""
        try:
            while (rest := data[self._progress[0] :]) and self._send_record(rest):
                pass
        except OSError:
            if not self._progress[0]:
                raise
            # First what the kernel has; a broken socket raises again the next time.

    def _interrupted(self) -> None:
        """Give the stream up: nobody knows any more what of it the kernel has. Needs _lock.

        The peer can read a record only if it has all of it, so what it may have got is known.
        """
        if not self.answers:
            piece = self._ciphertext[0] if self._ciphertext else b""
            flushed = not self._outgoing.pending and self._raw_answers[-1:] == [len(piece)]
            gone, under_way = self._progress
            self.answers.append(gone + (under_way if flushed else 0))
        self.abort()

    def _send_record(self, data: memoryview) -> bool:
        """Send one record, and tell whether all of it is gone. Needs _lock.

        A record of which a part is missing tells the peer nothing. So what counts as not sent has
        not arrived, and may be sent again elsewhere.
        """
        gone, under_way = self._progress
        if not under_way:
            if not self._flush():
                return False
            under_way = self._machine.write(data[:_TLS_RECORD])
            self._progress = (gone, under_way)
        if not self._flush():
            return False
        self._progress = (gone + under_way, 0)
        return True

    @property
    def begun(self) -> int:
        return self._progress[1]

    @property
    def interrupted_here(self) -> bool:
        return bool(self._lock._is_owned()) or super().interrupted_here

    def shutdown_write(self) -> bool:
        lock = self._lock
        # As in send: this call may have interrupted another one, or who decrypts may wait for us.
        if lock._is_owned():
            return False
        try:
            if not lock.acquire(timeout=_LOCK_PATIENCE):
                return False
            if not self._finished:
                self._finished = True
                try:
                    self._machine.unwrap()
                except ssl.SSLError:
                    pass  # as a rule: it wants to read the peer's answer, for which nobody waits
            flushed = self._flush()
            lock.release()
        except BaseException as error:
            try:
                self._leave(error)
            finally:
                # Here, as a call that was too deep for the interpreter's limit may be so again.
                if lock._is_owned():
                    lock.release()
            raise
        return flushed and super().shutdown_write()

    def _flush(self) -> bool:
        """Send what the machine has made, without blocking; tell whether all is gone.

        Needs _lock.
        """
        assert self._lock._is_owned()
        waiting = self._ciphertext
        while True:
            while waiting:
                self._raw_answers.clear()
                sent = _give(self._sock, waiting[0], self._raw_answers)
                if not sent:
                    return False
                rest = memoryview(waiting[0])[sent:]
                waiting[:] = (rest,) if rest else ()
            if not self._outgoing.pending:
                return True
            waiting.extend(map(self._outgoing.read, (-1,)))  # in one step, see the module

    def _flush_if_possible(self) -> None:
        """Send what the machine has made, if the peer still takes it. Needs _lock."""
        try:
            self._flush()
        except OSError:
            pass  # who sends next hears of it; what has come before is still to be read

    @property
    def peer_certificate(self) -> dict[str, Any] | None:
        # It may also come later (RFC 8446, 4.6.2).
        lock = self._lock
        if lock._is_owned():
            return self._certificate  # this call has interrupted another one
        try:
            if self._certificate is None and lock.acquire(timeout=_LOCK_PATIENCE):
                self._certificate = self._machine.getpeercert() or None
                lock.release()
        except BaseException as error:
            if lock._is_owned():
                lock.release()
            if not isinstance(error, ValueError):  # the handshake is not done yet
                raise
        return self._certificate

    @property
    def tls_version(self) -> str | None:
        return self._version


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
