"""A byte stream with TLS: `ssl.SSLObject` and two `ssl.MemoryBIO` beside a plain socket.

On some versions of CPython an ``SSLSocket`` cannot be read and written by two threads at once. Here
OpenSSL is only ever called under a lock, and the socket is only waited for outside of it.

The peer cannot read an incomplete TLS record. So bytes count as sent only when the
kernel has accepted the whole record that holds them; all others may be sent again on another
connection. Like ``nonblocking.py``, this module knows what the kernel accepted even if an exception
is raised between any two bytecodes; where it cannot know, it aborts the connection.
"""

from __future__ import annotations

import select
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Any

from tao.errors import ConnectionClosed, HandshakeFailed
from tao.runtime.combining import Busy
from tao.runtime.deadline import Deadline
from tao.transport.error_text import NOT_TLS_REASONS, explain
from tao.transport.nonblocking import quick_send, send_now, wait_for
from tao.transport.stream import Transport

__all__ = ["TlsTransport"]

# The most that one TLS record holds (RFC 8446, 5.1).
_TLS_RECORD = 16 * 1024
# How much one send encrypts. No other thread can run Python code meanwhile.
_TLS_SEND = 16 * _TLS_RECORD
# How many seconds a send waits for a thread that decrypts. It must not wait for ever: that thread
# may be in a finalizer, which waits for this one.
_LOCK_PATIENCE = 0.05
# A bound for what is decrypted at once that is never met.
_ALL = 2**30
# How much one recv asks for in a handshake.
_HANDSHAKE_BYTES = 64 * 1024
# A server's reply to a peer that does not speak TLS, which OpenSSL does not send itself: the fatal
# alert protocol_version (RFC 8446, 6.2), in a record that every version understands. It tells the
# peer that this port speaks TLS.
_PROTOCOL_VERSION_ALERT = b"\x15\x03\x01\x00\x02\x02\x46"
# OpenSSL's reason for a stream that was cut. Some CPythons, such as 3.11.2, have no class for it.
_CUT = "UNEXPECTED_EOF_WHILE_READING"


class TlsTransport(Transport):
    """A connected stream socket with TLS.

    Args:
        sock: connected and blocking; the transport owns it from now on.
        context: the certificates, and what is accepted of the peer.
        server_side: whether this end is the server in the handshake.
        server_hostname: the name that the server's certificate must have, for a client.
    """

    __slots__ = (
        "_certificate", "_ciphertext", "_end_seen", "_failure", "_finished", "_incoming", "_lock",
        "_machine", "_outgoing", "_progress", "_quick_raw", "_raw_answers", "_server_side",
        "_version",
    )  # fmt: skip

    bare = False
    close_ends = False

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
        # Guards all fields below but _certificate and _version. It is reentrant only so that its
        # owner is known: a finalizer that runs while this thread holds it may write to the same
        # connection.
        self._lock: Any = threading.RLock()
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._machine = context.wrap_bio(
            self._incoming, self._outgoing, server_side, server_hostname
        )
        self._ciphertext: list[bytes | memoryview] = []  # encrypted, not accepted by the kernel yet
        self._raw_answers: list[int] = []  # the kernel's answer to the last send of _ciphertext
        self._quick_raw = quick_send(self._raw_answers)
        # How many plain bytes of the current send are in records that are wholly sent, and how many
        # in the record that _ciphertext still has a part of. It is one tuple, so that one step
        # moves a record from the second number to the first.
        self._progress: tuple[int, int] = (0, 0)
        self._end_seen: bool = False  # whether the peer has ended its direction
        self._failure: Exception | None = None  # raised once what came before it is delivered
        self._finished: bool = False  # whether our close_notify has been made
        # These do not change once they are known.
        self._certificate: dict[str, Any] | None = None
        self._version: str | None = None

    def handshake(self, timeout: float | None) -> None:
        deadline = Deadline(timeout)
        while event := self.advance_handshake():
            if not wait_for(self._sock, event, deadline.remaining()):
                raise HandshakeFailed(f"TLS handshake not done after {timeout} s")

    def advance_handshake(self) -> int:
        try:
            while (event := self._handshake_step()) == select.POLLIN:
                try:
                    data = self._sock.recv(_HANDSHAKE_BYTES, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    break
                if not data:
                    raise HandshakeFailed(self._hung_up())
                with self._lock:
                    self._incoming.write(data)
            return event
        except ssl.SSLError as error:
            with self._lock:
                if (
                    self._server_side
                    and error.reason in NOT_TLS_REASONS
                    and not self._outgoing.pending
                ):
                    self._outgoing.write(_PROTOCOL_VERSION_ALERT)
                self._flush_if_possible()  # sends the alert that tells the peer what was wrong
            raise HandshakeFailed(f"TLS handshake failed: {explain(error)}") from error
        except ConnectionResetError as error:
            raise HandshakeFailed(self._hung_up()) from error
        except OSError as error:
            if isinstance(error, HandshakeFailed):
                raise
            raise HandshakeFailed(f"TLS handshake failed: {explain(error)}") from error

    def _handshake_step(self) -> int:
        """Continue the handshake; return the event of ``poll`` to wait for, 0 when it is done."""
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

    def recv_much(self, size: int) -> bytes:
        return self._recv(size, much=True)

    def _recv(self, size: int, much: bool = False) -> bytes:
        while True:
            with self._lock:
                data = self._decrypt(size)
                # Decrypting may produce bytes to send, such as a key update.
                self._flush_if_possible()
            if data is not None:
                return data
            raw = super().recv_much(size) if much else self._sock.recv(size)
            with self._lock:
                if raw:
                    self._incoming.write(raw)
                else:
                    self._incoming.write_eof()

    @property
    def receive_now(self) -> Callable[[int, int], bytes]:
        return self._receive_now

    def _receive_now(self, size: int, flags: int) -> bytes:
        """Return all that can be decrypted of what is there and of the next ``size`` bytes."""
        raw, failure, lock = None, None, self._lock
        try:
            if not lock.acquire(timeout=_LOCK_PATIENCE):
                raise Busy
            try:
                raw = self._sock.recv(size, flags)
            except OSError as error:  # also that there is nothing; then something may be left still
                failure = error
            if raw:
                self._incoming.write(raw)
            elif raw is not None:
                self._incoming.write_eof()
            data = self._decrypt(_ALL)
            self._flush_if_possible()
        finally:
            if lock._is_owned():
                lock.release()
        if data is None:
            raise failure or BlockingIOError("no whole record yet")
        return data

    def wait_free(self) -> None:
        with self._lock:
            pass

    def receive_up_to(self, size: int) -> bytes | None:
        while True:
            with self._lock:
                data = self._decrypt(size)
                self._flush_if_possible()
            if data is not None or not super().wait_readable(0):
                return data
            raw = self._sock.recv(size + _TLS_RECORD)
            with self._lock:
                if raw:
                    self._incoming.write(raw)
                else:
                    self._incoming.write_eof()

    buffers = True

    @property
    def end_waits(self) -> bool:
        return self._end_seen or self._failure is not None

    def _decrypt(self, size: int) -> bytes | None:
        """Return up to ``size`` plain bytes, None if more has to be received. Needs _lock."""
        if self._finished:
            # After our own close_notify what the peer still sends is ignored, except the end.
            ended = self._incoming.eof
            self._incoming.read()
            return b"" if ended else None
        if self._failure is not None:
            raise self._failure
        pieces: list[bytes] = []
        incoming, machine = self._incoming, self._machine
        while size > 0:
            waiting = incoming.pending + machine.pending()
            if not (waiting or incoming.eof or self._end_seen):
                break  # reading would raise, which costs more than to look
            try:
                # OpenSSL returns a record at a time, and a buffer of this size is made for each
                # call. A record is never longer than what it was encrypted to.
                piece = machine.read(min(size, _TLS_RECORD, waiting or 1))
            except ssl.SSLWantReadError:
                break
            except ssl.SSLError as error:
                failure: Exception = error
                if isinstance(error, ssl.SSLEOFError) or error.reason == _CUT:
                    failure = ConnectionClosed("peer closed without saying so in TLS")
                    failure.__cause__ = error
                self._failure = failure
                break
            if not piece:
                self._end_seen = True
                return b"".join(pieces)
            pieces.append(piece)
            size -= len(piece)
        if not pieces and self._failure is not None:
            raise self._failure
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
                # Released here as well: if the stack is full, a call would fail again.
                if lock._is_owned():
                    lock.release()
            raise

    def _leave(self, error: BaseException) -> None:
        """After an exception: abort the connection if need be, and release _lock."""
        try:
            self._let_go(error)
        except BaseException:
            self._let_go(error)  # a second exception interrupted that
            raise

    def _let_go(self, error: BaseException) -> None:
        if self._lock._is_owned():
            if not isinstance(error, OSError):
                self._interrupted()
            self._lock.release()

    def _send_records(self, data: memoryview) -> None:
        """Send as many records as the kernel accepts. Needs _lock."""
        try:
            while (rest := data[self._progress[0] :]) and self._send_record(rest):
                pass
        except OSError:
            if not self._progress[0]:
                raise
            # Report what was sent before the error; the next send raises it again.

    def _interrupted(self) -> None:
        """Abort the connection, as it is not known where in the ciphertext it stands. Needs _lock.

        What the peer may have received is known, as it can read only whole records.
        """
        if not self.answers:
            piece = self._ciphertext[0] if self._ciphertext else b""
            flushed = not self._outgoing.pending and self._raw_answers[-1:] == [len(piece)]
            sent, under_way = self._progress
            self.answers.append(sent + (under_way if flushed else 0))
        self.abort()

    def _send_record(self, data: memoryview) -> bool:
        """Send one record; return whether the kernel has accepted all of it. Needs _lock."""
        sent, under_way = self._progress
        if not under_way:
            if not self._flush():
                return False
            under_way = self._machine.write(data[:_TLS_RECORD])
            self._progress = (sent, under_way)
        if not self._flush():
            return False
        self._progress = (sent + under_way, 0)
        return True

    @property
    def committed_bytes(self) -> int:
        return self._progress[1]

    @property
    def interrupted_here(self) -> bool:
        return bool(self._lock._is_owned()) or super().interrupted_here

    def shutdown_write(self) -> bool:
        lock = self._lock
        # As in send: this call may have interrupted another one, or the thread that decrypts may be
        # waiting for this one.
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
                    pass  # usually: it wants the peer's close_notify, which is not waited for
            flushed = self._flush()
            lock.release()
        except BaseException as error:
            try:
                self._leave(error)
            finally:
                # Released here as well: if the stack is full, a call would fail again.
                if lock._is_owned():
                    lock.release()
            raise
        return flushed and super().shutdown_write()

    def _flush(self) -> bool:
        """Send the ciphertext without blocking; return whether all is sent. Needs _lock."""
        assert self._lock._is_owned()
        waiting = self._ciphertext
        while True:
            while waiting:
                self._raw_answers.clear()
                sent = send_now(self._sock, waiting[0], self._raw_answers, self._quick_raw)
                if not sent:
                    return False
                rest = memoryview(waiting[0])[sent:]
                waiting[:] = (rest,) if rest else ()
            if not self._outgoing.pending:
                return True
            # In one step: an exception between reading and storing would lose ciphertext.
            waiting.extend(map(self._outgoing.read, (-1,)))

    def _flush_if_possible(self) -> None:
        """Send the ciphertext, if there is any and the connection still works. Needs _lock."""
        if self._ciphertext or self._outgoing.pending:
            try:
                self._flush()
            except OSError:
                pass  # the next send raises it; received data is still to be read

    @property
    def peer_certificate(self) -> dict[str, Any] | None:
        # A server may ask for it after the handshake as well (RFC 8446, 4.6.2).
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
