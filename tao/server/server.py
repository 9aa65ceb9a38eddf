"""The server, as the application holds it: a thin face of its core (``core.py``)."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

from tao.callables import checked_flag
from tao.connection.options.definitions import ServerSettings
from tao.connection.options.fields import ErrorCallback
from tao.connection.options.given import make_settings
from tao.connection.options.help import takes_options
from tao.connection.options.types import CommonOptions
from tao.connection.reports.statistics import Snapshot
from tao.connection.timers import ConnectionTimer
from tao.runtime.context import Context
from tao.runtime.worker_pool import WorkerPool
from tao.server.connection import ServerConn
from tao.server.core import ServerCore
from tao.server.membership.groups import Group
from tao.server.reports import Broadcast, StopReport
from tao.server.state import ServerState
from tao.server.tls_reload import reload_credentials, server_context
from tao.session.sessions import Sessions
from tao.transport.addresses import Address
from tao.transport.certificates import StrPath
from tao.wire.codec_checks import restricted
from tao.wire.message import (
    AnyMessage,
    Dispatch,
    MiddlewareT,
    ReadableT,
    Registry,
    ResultT,
    UnknownMessage,
    default_registry,
)
from tao.wire.proxy_protocol import Network

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from tao.wire.message import HandlerDecorator

__all__ = ["Broadcast", "Server", "ServerConn", "ServerOptions", "StopReport", "server_core_of"]


class ServerOptions(CommonOptions, total=False):
    """The options of a `Server`, as a type for functions of your own that pass them on.

    ``def gateway(**options: Unpack[tao.ServerOptions]) -> tao.Server`` is checked as `Server` is;
    ``Unpack`` is in ``typing`` from Python 3.11 on, and in ``typing_extensions``.
    ``help(tao.Server)`` shows what the options mean, and their defaults.
    """

    on_connect: Callable[[ServerConn], object] | None
    on_message: Callable[[Any, ServerConn], object] | None
    on_close: Callable[[ServerConn], object] | None
    on_error: ErrorCallback[ServerConn] | None
    on_resume: Callable[[ServerConn], object] | None
    on_session_lost: Callable[[ServerConn, list[UnknownMessage]], object] | None
    workers: int | WorkerPool
    worker_initializer: Callable[[], object] | None
    max_waiting_workers: int
    max_connections: int
    max_connections_per_host: int | None
    max_groups: int
    proxy_protocol: Collection[str | Network] | None
    backlog: int
    login: Collection[type] | None
    login_timeout: float
    login_max_bytes: int
    on_unready: Callable[[Any, ServerConn], object] | None
    accept_rate: float | None
    accept_burst: int | None
    sessions: Sessions | None
    cluster: str | None
    cluster_key: bytes | Sequence[bytes] | None
    on_gap: Callable[[int, int | None], object] | None


class Server:
    """A TCP server. All methods may be called from any thread, handlers included.

    It can be started and stopped once. As a context manager it is stopped at the end of the block.
    In a child of ``os.fork``, a server that was started before the fork is stopped, see
    ``tao/runtime/forks.py``.

    Args:
        options: see `ServerOptions`; all are keyword-only.

    Raises:
        TypeError, ValueError: an option is unknown or wrong; the text names it.
    """

    @takes_options(ServerSettings, explain=True)
    def __init__(self, **options: Unpack[ServerOptions]) -> None:
        """Make a server that is not started yet."""
        settings: ServerSettings = make_settings(ServerSettings, "Server", options)
        registry = restricted(settings.codec, settings.registry or Registry(default_registry))
        self._core = ServerCore(self, settings, registry)

    @property
    def registry(self) -> Registry:
        """The messages and handlers of this server: a layer above the default registry.

        Or the registry that it was given as an option.
        """
        return self._core.registry

    @property
    def context(self) -> Context:
        """Cancelled when the server stops; the contexts of the connections are children of it."""
        return self._core.context

    # -- starting

    def start(self, address: Address | socket.socket, *, tls: ssl.SSLContext | None = None) -> Any:
        """Listen at an address, and serve in the background; call it again for another address.

        Args:
            address: ``(host, port)``; port 0 is any free port, an empty host all addresses of this
                machine. For a Unix socket its path, or ``"\\0name"`` for one without a file
                (Linux). Or a socket that is bound, as systemd hands one over (it becomes
                non-blocking). If a name has several addresses, the server listens at one of them:
                an IPv4 address if there is one. A socket file that a killed process has left is
                replaced.
            tls: for the connections to this address; None: the option ``tls``.

        Returns:
            the address bound to; of a Unix socket a str.

        Raises:
            TypeError, ValueError: an argument is of the wrong kind or out of range.
            OSError: listening failed; the text names the address.
            ServerClosed: the server has been stopped.
        """
        return self._core.start(address, tls)

    def serve_forever(
        self,
        address: Address | socket.socket | None = None,
        handle_signals: bool = False,
        ready: Callable[[Any], object] | None = None,
    ) -> None:
        """Serve until `stop` is called, and return when the stop is over.

        Args:
            address: where to listen, as for `start`; None if the server listens already.
            handle_signals: stop gracefully on SIGINT and SIGTERM, and return. Main thread only. A
                second signal acts as it did before. Without it, Ctrl-C also stops the server
                gracefully, and then raises KeyboardInterrupt.
            ready: called with the bound address once the server listens and signals are handled,
                for example to tell a supervisor.
        """
        self._core.serve_forever(address, checked_flag("handle_signals", handle_signals), ready)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    # -- addresses

    @property
    def address(self) -> Any:
        """The address of the first listener; None if there is none."""
        addresses = self.addresses
        return addresses[0] if addresses else None

    @property
    def addresses(self) -> list[Any]:
        """All addresses that the server listens at, without those given to `stop_listening`."""
        return self._core.listeners.addresses

    def stop_listening(self, address: Any = None) -> None:
        """Stop accepting connections; existing ones continue to be served.

        So a server can leave a load balancer, and be stopped when its last peer has left.
        Connections that wait in the listen backlog are lost, unless the socket was handed in and
        another process has it too. The server runs on, `serve_forever` does not return, and `start`
        may be called again. This may be called anywhere, also in a signal handler.

        Args:
            address: as `start` returned it; None: all.

        Raises:
            ValueError: the server does not listen there.
        """
        self._core.listeners.give_up(address)

    def reload_tls(
        self,
        tls: ssl.SSLContext | StrPath,
        keyfile: StrPath | None = None,
        *,
        password: str | bytes | None = None,
        client_ca: StrPath | None = None,
        address: Any = None,
    ) -> None:
        """Use another certificate, or another authority, for the connections accepted from now on.

        Existing connections, and handshakes under way, keep what they began with. If this raises,
        nothing has changed.

        Args:
            tls: a context, or a certificate file; with a file, ``keyfile``, ``password`` and
                ``client_ca`` are those of `load_tls_config`.
            address: of a listener that was started with its own ``tls``, as `start` returned it;
                None: the listeners that use the option ``tls``.

        Raises:
            OSError: a file cannot be read.
            ValueError: a file holds something else, the context is for clients, or the server does
                not speak TLS there.
            TypeError: an argument is of the wrong kind.
        """
        context = server_context(tls, keyfile, password=password, client_ca=client_ca)
        reload_credentials(self._core.credentials_at(address), context)

    # -- declaring

    def handler(
        self, message_class: type[ReadableT], *, dispatch: Dispatch | None = None
    ) -> HandlerDecorator[ReadableT, ServerConn, ResultT]:
        """Make the decorated function the handler of a message class, on this server only.

        See `Registry.handler`.
        """
        return self.registry.handler(message_class, dispatch=dispatch)

    def use(self, middleware: MiddlewareT) -> MiddlewareT:
        """Call ``function(ctx, conn, call_next)`` around every handler of this server only.

        See `Registry.use`.
        """
        return self.registry.use(middleware)

    def schedule(self, interval: float, callback: ConnectionTimer) -> int:
        """Call ``callback(due, conn)`` every ``interval`` seconds on every connection.

        This includes connections that are made later. On each connection, the callback takes its
        turn among the messages.

        Returns:
            an id for `cancel_schedule`.
        """
        return self._core.schedules.add(interval, callback)

    def cancel_schedule(self, schedule: int) -> bool:
        """Cancel what `schedule` started, on all connections; return whether it was active."""
        return self._core.schedules.cancel(schedule)

    # -- the connections

    @property
    def connections(self) -> list[ServerConn]:
        """The connections that are open now."""
        return self._core.connections

    @property
    def connection_count(self) -> int:
        """How many connections are open now."""
        return len(self.connections)

    def conn(self, net_id: int) -> ServerConn | None:
        """Return an open connection by its id, or None."""
        return self._core.conn(net_id)

    def find(self, identity: str) -> ServerConn | None:
        """Return the open connection that has an identity, see `ServerConn.identify`, or None.

        Raises:
            TypeError, ValueError: it is no identity.
        """
        return self._core.find(identity)

    def broadcast(
        self, message: AnyMessage, exclude: Collection[Any] = (), *, confirm: float | None = None
    ) -> Broadcast:
        """Send a message to all connections, of all servers of the cluster; it is encoded once.

        A connection that cannot accept the message does not affect the others. In a cluster, local
        connections receive it in publication order.

        Args:
            message: what `Connection.write` takes.
            exclude: connections that do not get it, or their ``net_id`` or ``address_id``.
            confirm: in a cluster, seconds to wait until the message is certain to reach all servers
                that can be reached; None: do not wait. Alone, a server has nothing to wait for.

        Raises:
            ClusterUnavailable: the cluster did not take the message, or not confirm it in time.
        """
        return self._core.broadcast(message, exclude, confirm)

    def group(self, name: str) -> Group:
        """Return the group of a name, which connections join by `ServerConn.join`.

        A group need not be made or removed: it exists as long as it has members.

        Args:
            name: a str of 1 to 255 bytes in UTF-8.

        Raises:
            TypeError, ValueError: the name is not one of a group.
        """
        return self._core.group(name)

    def unicast(self, address: int | str, message: AnyMessage) -> None:
        """Send a message to one connection.

        Args:
            address: the ``net_id`` of a connection of this process, or the ``address_id`` of one of
                any server of the cluster. If another one is not there any more, nothing happens.
            message: what `Connection.write` takes.

        Raises:
            ConnectionClosed: this process has no such connection (any more).
            WouldBlock: its send queue is full; in a cluster that is not known here.
            ClusterUnavailable: the cluster did not take the message.
        """
        self._core.unicast(address, message)

    def snapshot(self) -> Snapshot:
        """Return the figures of this server as they are now."""
        return self._core.statistics.snapshot()

    # -- state and stopping

    @property
    def state(self) -> ServerState:
        """The state of the server.

        ``"new"``, ``"running"``, ``"draining"`` (after `stop_listening`), ``"failed"`` (it cannot
        accept any more, because its listening sockets were closed by something else),
        ``"stopping"`` or ``"stopped"``.
        """
        return self._core.state

    @property
    def running(self) -> bool:
        """Whether the server serves: it was started, and not stopped.

        Also False in the state ``"failed"``.
        """
        return self._core.running

    def stop(self, timeout: float | None = None) -> StopReport:
        """Stop gracefully: accept no more, finish handlers, send what waits, close, join threads.

        The contexts are cancelled at once, so that handlers that wait for this can return. Called
        by one of tao's threads, a handler for example, this begins the stop and returns. Called
        again, it waits for the same stop, and shortens it if its own timeout ends first. It may be
        called anywhere, also in a signal handler. Where no thread can be started for the stop, as
        in an ``atexit`` function of some CPythons, the calling thread carries it out.

        Args:
            timeout: seconds for all of it; None: ``drain_timeout``. What is not finished by then is
                aborted, which takes a moment. A peer that has received everything and does not
                close its side is waited for at most a second, or 0.05 s on the same machine.

        Returns:
            what could not be finished. ``finished`` is False if the stop is not over: one of tao's
            threads has called, something takes longer than allowed, or this is a signal handler or
            finalizer that has interrupted a call on a connection, which cannot end before that call
            goes on. Called again afterwards, it waits for the end and returns the whole report.

        Raises:
            RuntimeError: no thread can be started, and the caller is one of tao's threads. The
                server runs on.
        """
        return self._core.stop(timeout)


def server_core_of(server: Server) -> ServerCore:
    """Return the core of a server: for tests, and for tools that look inside."""
    return server._core
