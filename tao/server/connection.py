"""A server's end of a connection."""

from __future__ import annotations

import socket
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any, Protocol

from tao.connection.application import Application
from tao.connection.connection import Connection
from tao.connection.core import ConnectionCore
from tao.connection.options import ServerSettings
from tao.connection.statistics import Tally
from tao.connection.timers import ConnectionTimer
from tao.errors import ConnectionClosed, HandshakeFailed
from tao.runtime.context import Context
from tao.runtime.deadline import Deadline
from tao.runtime.leader_followers import Run
from tao.server.first_bytes import PeerLeft, read_proxy_header, wait_for_first_byte
from tao.server.resources import Resources
from tao.transport.stream import Transport
from tao.transport.tls_stream import TlsTransport
from tao.wire.message import Registry

__all__ = ["ConnectionOwner", "ServerConn", "ServerConnCore"]


class ConnectionOwner(Protocol):
    """What a connection asks of the server that has accepted it."""

    @property
    def server(self) -> Any:
        """The users' object, which `tao.server_from` finds."""

    @property
    def settings(self) -> ServerSettings:
        """The options of the server."""

    @property
    def registry(self) -> Registry:
        """Messages and handlers."""

    @property
    def context(self) -> Context:
        """The context above those of the connections."""

    @property
    def tally(self) -> Tally:
        """Where connections are counted."""

    @property
    def resources(self) -> Resources:
        """Workers, timing wheel and context variables."""

    def count_peer(self, net_id: int, address: Any) -> str:
        """Count a connection under its peer's host; return why it is refused, or ``""``."""

    def welcome(self, core: ServerConnCore) -> None:
        """A connection is established: start the timers that the server has for all."""

    def has_schedule(self, schedule: int) -> bool:
        """Whether a timer that the server has for all connections is not cancelled."""

    def remove(self, net_id: int) -> None:
        """Forget a connection that has ended."""


class ServerConn(Connection):
    """A server's end of a connection; made by the server."""

    def __init__(
        self, net_id: int, owner: ConnectionOwner, transport: Transport, address: Any
    ) -> None:
        application = Application(self, owner.settings, owner.registry, owner.resources.variables)
        super().__init__(
            application, ServerConnCore(net_id, owner, application, transport, address)
        )


class ServerConnCore(ConnectionCore):
    """What does the work of a `ServerConn`.

    Args:
        net_id: the number of the connection.
        owner: the server, which holds the `ServerConn` until the connection has ended.
        application: what the application has given to the server.
        transport, address: of the peer.
    """

    def __init__(
        self,
        net_id: int,
        owner: ConnectionOwner,
        application: Application,
        transport: Transport,
        address: Any,
    ) -> None:
        self._owner = owner
        super().__init__(
            net_id,
            owner.settings,
            application,
            wheel=owner.resources.wheel,
            run=owner.resources.pool.run,
            parent=owner.context,
            tally=owner.tally,
            server=owner.server,
        )
        self.remote_address = address
        self.accepted = transport  #: of the accepted socket
        # The timers of the server's schedules; a placeholder while one is being made. Changed by
        # any thread, in single steps of the interpreter.
        self._followed: dict[int, object] = {}
        # The accepted socket, and whether its stream begins with a PROXY header.
        self._socket: socket.socket | None = None
        self._proxied: bool = False
        #: Whether the connection is established, its timers are started, and it reads.
        self.welcomed: bool = False

    def lend_worker(self) -> AbstractContextManager[object]:
        return self._owner.resources.pool.waiting()

    def be_found(self, found: list[Run], sock: socket.socket, proxied: bool) -> None:
        """Have the thread that has accepted the connection be its first thread.

        Args:
            found: the list of what that thread does next.
            sock: the accepted socket.
            proxied: whether its stream begins with a PROXY header.
        """
        self._socket, self._proxied = sock, proxied
        name = self.roles.name("reader")
        run = Run(lambda: self.roles.begin(self._open), name, self._abandon)
        self.roles.threads.append(run)
        found.append(run)

    def _abandon(self, error: BaseException) -> None:
        """End the connection, as its first thread was interrupted or could not begin.

        Whatever this raises, the connection does not count towards the server's limits afterwards.
        """
        try:
            self.collapse(error)
            self.finish()
        finally:
            self.accepted.abort()
            self._owner.remove(self.net_id)
            self.finished.set()

    def start(self) -> None:
        """Start the first thread of a connection that no listener has accepted.

        Raises:
            RuntimeError: no thread can be started.
        """
        self.roles.thread("reader", self.roles.struck, self.roles.begin, self._open).start()

    def _open(self) -> bool:
        """Establish the connection; return False if it ends before."""
        try:
            self.establish(self.accepted)
            self._owner.welcome(self)
            self.welcomed = True
        except HandshakeFailed as error:
            self.fail(error, str(error), ended=True)
            return False
        except ConnectionClosed as error:
            if not self.lifecycle.status.secured:
                return False  # closed before it began
            # Refused by on_connect: what that wrote is sent all the same, as before any other end.
            if not self._left_at_once():
                self._owner.tally.refused()
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
        """Learn the peer's address from the proxy, and count the connection under its host."""
        header = read_proxy_header(sock, deadline)
        if header is None:
            raise HandshakeFailed(f"no PROXY header within {self.settings.handshake_timeout} s")
        if header.source is not None:
            self.remote_address = header.source
        refusal = self._owner.count_peer(self.net_id, self.remote_address)
        if refusal:
            self.begin_close(refusal, drain=False, ended=True)
            raise ConnectionClosed(refusal)

    # Health checks connect and leave, by a close or a reset. Before the peer has sent anything that
    # is no error, and neither is a greeting that cannot be delivered.

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
        """Tell whether the peer left before it sent anything, and got at most a greeting."""
        if self.send_queue.error is None or self.reader.bytes_in:
            return False
        return not (self.lifecycle.status.on_close_owed and self.send_queue.frames_sent)

    def follow(self, schedule: int, interval: float, callback: ConnectionTimer) -> None:
        """Start the timer of a schedule of the server's, unless it is started already."""
        scheduled, pending = self._owner.has_schedule, object()

        def call(due: datetime, conn: ServerConn) -> None:
            if scheduled(schedule):
                callback(due, conn)

        try:
            if self._followed.setdefault(schedule, pending) is pending:
                self._followed[schedule] = self.timers.add(interval, call, periodic=True)
                if not scheduled(schedule):
                    self.unfollow(schedule)  # it was cancelled meanwhile
        except ConnectionClosed:
            pass  # it needs no timer any more
        except BaseException:
            self.unfollow(schedule)
            raise

    def unfollow(self, schedule: int) -> None:
        """Cancel the timer of a schedule."""
        timer = self._followed.pop(schedule, None)
        if isinstance(timer, int):
            self.timers.cancel(timer)

    def leave_owner(self) -> None:
        super().leave_owner()
        self._owner.remove(self.net_id)

    def after_fork(self, reason: str) -> None:
        super().after_fork(reason)
        self.accepted.after_fork()
