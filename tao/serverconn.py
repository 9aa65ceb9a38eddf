"""A server's end of a connection."""

from __future__ import annotations

import socket
from contextlib import AbstractContextManager
from datetime import datetime
from typing import TYPE_CHECKING, Any

from tao.connection import Connection
from tao.errors import ConnectionClosed, HandshakeFailed
from tao.first_bytes import PeerLeft, read_proxy_header, wait_for_first_byte
from tao.threads import Deadline
from tao.timers import ConnectionTimer
from tao.transport import TlsTransport, Transport
from tao.turns import Run

if TYPE_CHECKING:
    from tao.server import Server

__all__ = ["ServerConn"]


class ServerConn(Connection):
    """A server's end of a connection; made by the server."""

    def __init__(self, net_id: int, server: Server, transport: Transport, address: Any) -> None:
        self._owner = server
        options = server._options
        super().__init__(
            net_id,
            options,
            registry=server.registry,
            wheel=server._wheel,
            run=server._pool.run,
            parent=server.context,
            tally=server._tally,
            variables=server._holding.variables,
        )
        self.remote_address = address
        self._accepted = transport
        # Schedule to timer, or to what stands for it while that is being made. Changed by any
        # thread, in single steps of the interpreter.
        self._followed: dict[int, object] = {}
        # Where the first bytes are looked at, and whether a PROXY header is among them.
        self._socket: socket.socket | None = None
        self._proxied: bool = False
        self._welcomed: bool = False  # all that follows on_connect is done, and it reads

    def _lend_worker(self) -> AbstractContextManager[object]:
        return self._owner._pool.waiting()

    def _server(self) -> Any:
        return self._owner

    def _be_found(self, found: list[Run], sock: socket.socket, proxied: bool) -> None:
        """Add what the connection's first thread is to do to what the one that accepts has found.

        Args:
            found: a list.
            sock: what was accepted.
            proxied: whether that begins with a PROXY header.
        """
        self._socket, self._proxied = sock, proxied
        name = self._thread_name("reader")
        run = Run(lambda: self._begin(self._open), name, self._abandon)
        self._threads.append(run)
        found.append(run)

    def _abandon(self, error: BaseException) -> None:
        """End it, as the thread that would do so has been interrupted, or had no memory to begin.

        Whatever this raises, the connection holds no place of the server's afterwards.
        """
        try:
            self.collapse(error)
            self._finish()
        finally:
            self._accepted.abort()
            self._owner._remove(self.net_id)
            self._finished.set()

    def _start(self) -> None:
        """Start a thread for it, where nobody has accepted it.

        Raises:
            RuntimeError: none can be had.
        """
        self._thread("reader", self._struck, self._begin, self._open).start()

    def _open(self) -> bool:
        """From the first byte to the first message; False if it does not get there."""
        try:
            self._establish(self._accepted)
            self._owner._welcome(self)
            self._welcomed = True
        except HandshakeFailed as error:
            self._failed(error, str(error), ended=True)
            return False
        except ConnectionClosed as error:
            if not self._ready:
                return False  # closed before it began
            # What on_connect wrote goes out all the same, and is seen off like any other end.
            if not self._left_at_once():
                self._owner._tally.refused()
            self._send_queue.open()
            self._begin_close(str(error), drain=False)
        return True

    def _shake_hands(self, transport: Transport) -> None:
        sock, timeout = self._socket, self._options.handshake_timeout
        deadline = Deadline(timeout)
        if sock is not None and self._proxied:
            self._read_header(sock, deadline)
        tls = isinstance(transport, TlsTransport)
        if sock is not None and tls and not wait_for_first_byte(sock, deadline):
            raise HandshakeFailed(f"TLS handshake not done after {timeout} s")
        try:
            transport.handshake(deadline.remaining())
        except HandshakeFailed as error:
            if deadline.expired:
                raise HandshakeFailed(f"TLS handshake not done after {timeout} s") from error
            raise

    def _read_header(self, sock: socket.socket, deadline: Deadline) -> None:
        """Learn from the proxy who the peer is, and count the connection as that one's."""
        header = read_proxy_header(sock, deadline)
        if header is None:
            raise HandshakeFailed(f"no PROXY header within {self._options.handshake_timeout} s")
        if header.source is not None:
            self.remote_address = header.source
        refusal = self._owner._count_peer(self.net_id, self.remote_address)
        if refusal:
            self._begin_close(refusal, drain=False, ended=True)
            raise ConnectionClosed(refusal)

    # Health checks connect and go, in order or not. Until something was heard from a peer that is
    # no error, nor is it that a greeting finds nobody.

    def _failed(self, error: Exception, reason: str, *, ended: bool = False) -> None:
        broken = isinstance(error, ConnectionError) and not isinstance(error, HandshakeFailed)
        if isinstance(error, PeerLeft) or (broken and not self._reader.bytes_in):
            if self._reason is None:
                self._reporter.log().debug("the peer sent nothing: {}", reason)
            self._drop(reason, ended=ended)
        else:
            super()._failed(error, reason, ended=ended)

    def report(self, error: BaseException, doing: str) -> None:
        if isinstance(error, ConnectionClosed) and self._left_at_once():
            self._reporter.log().debug("the peer sent nothing: {} ({})", error, doing)
        else:
            super().report(error, doing)

    def _tell_unsent(self, what: str) -> None:
        if not self._left_at_once():
            super()._tell_unsent(what)

    def _left_at_once(self) -> bool:
        """Tell whether the peer has gone before anything was sent, but for a greeting of ours."""
        if self._send_queue.error is None or self._reader.bytes_in:
            return False
        return not (self._established and self._send_queue.frames_sent)

    def _follow(self, schedule: int, interval: float, callback: ConnectionTimer) -> None:
        """Run a timer of the server's, unless that is done already."""
        schedules, pending = self._owner._schedules, object()

        def call(due: datetime, conn: ServerConn) -> None:
            if schedule in schedules:
                callback(due, conn)

        try:
            if self._followed.setdefault(schedule, pending) is pending:
                self._followed[schedule] = self.run_every(interval, call)
                if schedule not in schedules:
                    self._unfollow(schedule)  # it was cancelled meanwhile
        except ConnectionClosed:
            pass  # so it needs none
        except BaseException:
            self._unfollow(schedule)
            raise

    def _unfollow(self, schedule: int) -> None:
        timer = self._followed.pop(schedule, None)
        if isinstance(timer, int):
            self.cancel_timer(timer)

    def _forget(self) -> None:
        super()._forget()
        self._owner._remove(self.net_id)
