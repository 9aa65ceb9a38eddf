"""A server's end of a connection."""

from __future__ import annotations

import socket
from contextlib import AbstractContextManager
from datetime import datetime
from typing import TYPE_CHECKING, Any

from tao.connection.application import Application
from tao.connection.connection import Connection
from tao.connection.core import ConnectionCore
from tao.connection.timers import ConnectionTimer
from tao.errors import ConnectionClosed, HandshakeFailed
from tao.runtime.deadline import Deadline
from tao.runtime.leader_followers import Run
from tao.server.first_bytes import PeerLeft, read_proxy_header, wait_for_first_byte
from tao.transport.stream import Transport
from tao.transport.tls_stream import TlsTransport

if TYPE_CHECKING:
    from tao.server.server import Server

__all__ = ["ServerConn", "ServerConnCore"]


class ServerConn(Connection):
    """A server's end of a connection; made by the server."""

    def __init__(self, net_id: int, server: Server, transport: Transport, address: Any) -> None:
        application = Application(self, server._options, server.registry, server._holding.variables)
        super().__init__(
            application, ServerConnCore(net_id, server, application, transport, address)
        )


class ServerConnCore(ConnectionCore):
    """What does the work of a `ServerConn`.

    Args:
        net_id: the number of the connection.
        server: whose it is; it holds the `ServerConn` as long as there is the connection.
        application: what the server's application has given.
        transport, address: of the peer.
    """

    def __init__(
        self,
        net_id: int,
        server: Server,
        application: Application,
        transport: Transport,
        address: Any,
    ) -> None:
        self._owner = server
        super().__init__(
            net_id,
            server._options,
            application,
            wheel=server._wheel,
            run=server._pool.run,
            parent=server.context,
            tally=server._tally,
            server=server,
        )
        self.remote_address = address
        self.accepted = transport  #: what it was made for
        # Schedule to timer, or to what stands for it while that is being made. Changed by any
        # thread, in single steps of the interpreter.
        self._followed: dict[int, object] = {}
        # Where the first bytes are looked at, and whether a PROXY header is among them.
        self._socket: socket.socket | None = None
        self._proxied: bool = False
        #: Whether all that follows on_connect is done, and it reads.
        self.welcomed: bool = False

    def lend_worker(self) -> AbstractContextManager[object]:
        return self._owner._pool.waiting()

    def be_found(self, found: list[Run], sock: socket.socket, proxied: bool) -> None:
        """Add what the connection's first thread is to do to what the one that accepts has found.

        Args:
            found: a list.
            sock: what was accepted.
            proxied: whether that begins with a PROXY header.
        """
        self._socket, self._proxied = sock, proxied
        name = self.roles.name("reader")
        run = Run(lambda: self.roles.begin(self._open), name, self._abandon)
        self.roles.threads.append(run)
        found.append(run)

    def _abandon(self, error: BaseException) -> None:
        """End it, as the thread that would do so has been interrupted, or had no memory to begin.

        Whatever this raises, the connection holds no place of the server's afterwards.
        """
        try:
            self.collapse(error)
            self.finish()
        finally:
            self.accepted.abort()
            self._owner._remove(self.net_id)
            self.finished.set()

    def start(self) -> None:
        """Start a thread for it, where nobody has accepted it.

        Raises:
            RuntimeError: none can be had.
        """
        self.roles.thread("reader", self.roles.struck, self.roles.begin, self._open).start()

    def _open(self) -> bool:
        """From the first byte to the first message; False if it does not get there."""
        try:
            self.establish(self.accepted)
            self._owner._welcome(self.conn)
            self.welcomed = True
        except HandshakeFailed as error:
            self.fail(error, str(error), ended=True)
            return False
        except ConnectionClosed as error:
            if not self.lifecycle.status.secured:
                return False  # closed before it began
            # What on_connect wrote goes out all the same, and is seen off like any other end.
            if not self._left_at_once():
                self._owner._tally.refused()
            self.send_queue.open()
            self.begin_close(str(error), drain=False)
        return True

    def shake_hands(self, transport: Transport) -> None:
        sock, timeout = self._socket, self.settings.handshake_timeout
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
            raise HandshakeFailed(f"no PROXY header within {self.settings.handshake_timeout} s")
        if header.source is not None:
            self.remote_address = header.source
        refusal = self._owner._count_peer(self.net_id, self.remote_address)
        if refusal:
            self.begin_close(refusal, drain=False, ended=True)
            raise ConnectionClosed(refusal)

    # Health checks connect and go, in order or not. Until something was heard from a peer that is
    # no error, nor is it that a greeting finds nobody.

    def fail(self, error: Exception, reason: str, *, ended: bool = False) -> None:
        broken = isinstance(error, ConnectionError) and not isinstance(error, HandshakeFailed)
        if isinstance(error, PeerLeft) or (broken and not self.reader.bytes_in):
            if self.lifecycle.close_reason is None:
                self.reporter.log().debug("the peer sent nothing: {}", reason)
            self.drop(reason, ended=ended)
        else:
            super().fail(error, reason, ended=ended)

    def report(self, error: BaseException, doing: str) -> None:
        if isinstance(error, ConnectionClosed) and self._left_at_once():
            self.reporter.log().debug("the peer sent nothing: {} ({})", error, doing)
        else:
            super().report(error, doing)

    def tell_unsent(self, what: str) -> None:
        if not self._left_at_once():
            super().tell_unsent(what)

    def _left_at_once(self) -> bool:
        """Tell whether the peer has gone before anything was sent, but for a greeting of ours."""
        if self.send_queue.error is None or self.reader.bytes_in:
            return False
        return not (self.lifecycle.status.on_close_owed and self.send_queue.frames_sent)

    def follow(self, schedule: int, interval: float, callback: ConnectionTimer) -> None:
        """Run a timer of the server's, unless that is done already."""
        schedules, pending = self._owner._schedules, object()

        def call(due: datetime, conn: ServerConn) -> None:
            if schedule in schedules:
                callback(due, conn)

        try:
            if self._followed.setdefault(schedule, pending) is pending:
                self._followed[schedule] = self.timers.add(interval, call, periodic=True)
                if schedule not in schedules:
                    self.unfollow(schedule)  # it was cancelled meanwhile
        except ConnectionClosed:
            pass  # so it needs none
        except BaseException:
            self.unfollow(schedule)
            raise

    def unfollow(self, schedule: int) -> None:
        timer = self._followed.pop(schedule, None)
        if isinstance(timer, int):
            self.timers.cancel(timer)

    def leave_owner(self) -> None:
        super().leave_owner()
        self._owner._remove(self.net_id)

    def after_fork(self, reason: str) -> None:
        super().after_fork(reason)
        self.accepted.after_fork()
