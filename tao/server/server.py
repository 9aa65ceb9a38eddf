"""The server: accepting, the set of connections, saying a thing to all, and stopping in order."""

from __future__ import annotations

import itertools
import socket
import ssl
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from tao.connection.connection import core_of
from tao.connection.option_help import takes_options
from tao.connection.option_types import CommonOptions
from tao.connection.options import ServerSettings, make_settings
from tao.connection.statistics import Snapshot, Tally
from tao.connection.timers import ConnectionTimer
from tao.errors import ConnectionClosed, ServerClosed, TaoError
from tao.runtime.context import SERVER, Context, background
from tao.runtime.forks import renew_after_fork
from tao.runtime.log import logger
from tao.runtime.signals import SignalCatcher
from tao.runtime.threads import Doorbell
from tao.runtime.timing_wheel import TimingWheel
from tao.runtime.worker_pool import WorkerPool
from tao.server.accepting import Reception
from tao.server.admission import Admission
from tao.server.connection import ServerConn
from tao.server.listener import Bound, Listener, listen
from tao.server.reports import Broadcast, StopReport
from tao.server.resources import Holdings
from tao.server.stopping import Parts, Stopping
from tao.server.tls_reload import Credentials, HasCredentials
from tao.transport.addresses import Address, address_text
from tao.wire.codec_checks import check_decoder, checked_encoder
from tao.wire.message import (
    Dispatch,
    ReadableT,
    Registry,
    ResultT,
    check_callable,
    default_registry,
)
from tao.wire.proxy_protocol import Network, ProxyNetworks

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from tao.wire.message import HandlerDecorator

__all__ = ["Broadcast", "Server", "ServerConn", "ServerOptions", "StopReport"]


class ServerOptions(CommonOptions, total=False):
    """The options of a `Server`, as a type for functions of your own that pass them on.

    ``def gateway(**options: Unpack[tao.ServerOptions]) -> tao.Server`` is checked as `Server` is;
    ``Unpack`` is in ``typing`` from Python 3.11 on, and in ``typing_extensions``. What the options
    mean, and their defaults, ``help(tao.Server)`` shows.
    """

    on_connect: Callable[[ServerConn], object] | None
    on_message: Callable[[Any, ServerConn], object] | None
    on_close: Callable[[ServerConn], object] | None
    on_error: Callable[[ServerConn, BaseException], object] | None
    workers: int | WorkerPool
    worker_initializer: Callable[[], object] | None
    max_connections: int
    max_connections_per_host: int | None
    proxy_protocol: Collection[str | Network] | None
    backlog: int
    accept_rate: float | None
    accept_burst: int | None


# Numbers the servers of the process, for their names.
_numbers = itertools.count(1)


class Server(HasCredentials, Reception):
    """A TCP server. All methods may be called from any thread, handlers included.

    It may be started and stopped once. As a context manager it is stopped at the end of the block.
    In a child of ``os.fork`` one that was started is stopped, see ``tao/runtime/forks.py``.

    Args:
        options: see `ServerOptions`; all are keyword-only.

    Raises:
        TypeError, ValueError: an option is unknown or wrong; the text names it.
    """

    @takes_options(ServerSettings, explain=True)
    def __init__(self, **options: Unpack[ServerOptions]) -> None:
        """Make a server that is not started yet."""
        self._options: ServerSettings = make_settings(ServerSettings, "Server", options)
        #: What this server knows beside what the default registry has, or the registry it was
        #: given.
        self.registry: Registry = self._options.registry or Registry(default_registry)
        #: Cancelled when the server stops; the connections' contexts are below it.
        self.context: Context = background().with_value(SERVER, self).with_cancel()
        self._ids = itertools.count(1)
        # The connections that there are, and those about to be.
        self._admission: Admission
        self._proxies: ProxyNetworks | None
        self._configure(self._options)
        self._tally = Tally(f"server-{next(_numbers)}", self._fill)
        # All below may be changed by any thread at any moment, in single steps of the interpreter.
        self._listeners: list[Listener] = []
        self._all: dict[int, ServerConn] = {}  # until their last thread's last step
        self._schedules: dict[int, tuple[float, ConnectionTimer]] = {}
        # What it has once it is started. If two threads start it at once, that of the first counts.
        self._held: list[Holdings] = []
        self._stopping = Stopping(self._parts, self._ring, self._flush)
        self._why_stopped: str = "a server that was stopped cannot be started again"
        # They ring when serve_forever is to return: one for each thread that is in it.
        self._doorbells: list[Doorbell] = []
        self._interrupted: bool = False  # by a signal
        renew_after_fork(self, Server._after_fork)
        self._tally.publish()

    def _configure(self, options: ServerSettings) -> None:
        """Take options in place of those that it has; not to be called once it is started."""
        self._options = options
        self._admission = Admission(options.max_connections, options.max_connections_per_host)
        proxies = options.proxy_protocol
        self._proxies = None if proxies is None else ProxyNetworks(proxies)

    # -- starting

    def start(self, address: Address | socket.socket, *, tls: ssl.SSLContext | None = None) -> Any:
        """Listen, and serve in the background; call it again for another address.

        Args:
            address: ``(host, port)``, port 0 for any that is free, an empty host for all addresses
                of this machine; for a Unix socket its path, or ``"\\0name"`` for one without a file
                (Linux); or a socket that is bound, as systemd hands one over (it becomes
                non-blocking). Of several addresses that a name has, one is listened at: an IPv4
                address if there is one. A file that a Unix socket of a killed process has left is
                replaced.
            tls: for who connects to this address; None: what the option ``tls`` says.

        Returns:
            the address bound to; of a Unix socket as a str.

        Raises:
            TypeError, ValueError: an argument is of the wrong kind or out of range.
            OSError: the address cannot be listened at; the text names it.
            ServerClosed: the server has been stopped.
        """
        ServerSettings(tls=tls)  # which checks it
        check_decoder(self._options.codec, self.registry)  # all messages are declared by now
        bound = listen(address, self._options.backlog)
        listener = None
        try:
            self._raise_if_stopped()
            listener = self._listener(bound, tls)
            # It is known before it is started, and whether it may be is looked at after that: so
            # either this sees a stop, or the stop sees the listener.
            self._forget_ended()
            self._listeners.append(listener)
            listener.start()
            self._raise_if_stopped()
        except BaseException:
            if listener is None:
                bound.discard()
            else:
                listener.discard()
                with suppress(ValueError):
                    self._listeners.remove(listener)
            raise
        logger.info("listening at {}", address_text(listener.address))
        return listener.address

    def _raise_if_stopped(self) -> None:
        if self._stopping.begun:
            if self._stopping.done.is_set() and self._held:
                self._held[0].give_back()  # the stop may have come before there was something
            raise ServerClosed(self._why_stopped)

    def _listener(self, bound: Bound, tls: ssl.SSLContext | None) -> Listener:
        held = self._hold()
        listener = Listener(
            bound,
            lambda sock, peer, found: self._admit(sock, peer, found, listener),
            self._tally.accept_error,
            credentials=held.credentials if tls is None else Credentials(tls),
            pace=held.pace,
            delayed=self._accept_delayed,
            on_lost=self._ring,
            cpus=self._options.cpus,
        )
        return listener

    def _hold(self) -> Holdings:
        """Have what a running server needs, and be one."""
        if not self._held:
            held = Holdings(self, self._options)
            self._held.append(held)
            if self._held[0] is not held:
                held.give_back()
        return self._held[0]

    # Only a server that was started has these.

    @property
    def _credentials(self) -> Credentials:
        return self._holding.credentials

    @property
    def _pool(self) -> WorkerPool:
        return self._holding.pool

    @property
    def _wheel(self) -> TimingWheel:
        return self._holding.wheel

    @property
    def _holding(self) -> Holdings:
        if not self._held:
            raise AttributeError("the server was not started")
        return self._held[0]

    def serve_forever(
        self,
        address: Address | socket.socket | None = None,
        handle_signals: bool = False,
        ready: Callable[[Any], object] | None = None,
    ) -> None:
        """Serve until `stop` is called, then return when it is done.

        Args:
            address: where to listen, as for `start`; None if that has been done.
            handle_signals: stop in order on SIGINT and SIGTERM, and return. Main thread only. A
                second signal acts as it did before. Without it, Ctrl-C stops in order as well, and
                KeyboardInterrupt is raised then.
            ready: called with the bound address once the server listens and signals are handled:
                to tell people, or a supervisor.
        """
        with Doorbell() as doorbell:
            signals = SignalCatcher(self._interrupt)
            try:
                self._doorbells.append(doorbell)
                if handle_signals:
                    signals.catch()
                if address is not None:
                    self.start(address)
                self._wait_for_the_end(doorbell, signals, ready)
            finally:
                signals.restore()
                if doorbell in self._doorbells:
                    self._doorbells.remove(doorbell)

    def _wait_for_the_end(
        self,
        doorbell: Doorbell,
        signals: SignalCatcher,
        ready: Callable[[Any], object] | None,
    ) -> None:
        try:
            if ready is not None:
                ready(self.address)
            while self.running and not self._interrupted:
                doorbell.wait()
        finally:
            try:
                signals.restore()  # a signal during the stop acts as it did before
            finally:
                self.stop()

    def _interrupt(self) -> None:
        """A signal ends `serve_forever`."""
        self._interrupted = True
        self._ring()

    def _ring(self) -> None:
        """Have `serve_forever` look whether to return, or not begin to wait."""
        for doorbell in list(self._doorbells):
            doorbell.ring()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    # -- declaring

    def handler(
        self, message_class: type[ReadableT], *, dispatch: Dispatch | None = None
    ) -> HandlerDecorator[ReadableT, ServerConn, ResultT]:
        """Make the decorated function the handler of a message class, on this server only.

        See `Registry.handler`.
        """
        return self.registry.handler(message_class, dispatch=dispatch)

    def schedule(self, interval: float, callback: ConnectionTimer) -> int:
        """Call ``callback(due, conn)`` every ``interval`` seconds on every connection.

        Also on those that come later. In each connection it takes its turn among the messages.

        Returns:
            an id for `cancel_schedule`.
        """
        if not callable(callback):
            raise TypeError(f"a timer's callback must be callable, not {callback!r}")
        check_callable("callback", callback, "due", "conn")
        if not isinstance(interval, (int, float)) or not interval > 0:
            raise ValueError(f"interval must be a positive number of seconds, not {interval!r}")
        schedule = next(self._ids)
        try:
            self._schedules[schedule] = (interval, callback)
            for conn in self.connections:
                core_of(conn).follow(schedule, interval, callback)
        except BaseException:
            self.cancel_schedule(schedule)
            raise
        return schedule

    def cancel_schedule(self, schedule: int) -> bool:
        """End what `schedule` began, on all connections; tell whether it was on."""
        known = self._schedules.pop(schedule, None) is not None
        for conn in self.connections:
            core_of(conn).unfollow(schedule)
        return known

    # -- the connections

    @property
    def connections(self) -> list[ServerConn]:
        """The connections that are open now."""
        everyone = list(self._all.values())
        return [conn for conn in everyone if core_of(conn).lifecycle.open]

    @property
    def connection_count(self) -> int:
        """How many connections are open now."""
        return len(self.connections)

    def conn(self, net_id: int) -> ServerConn | None:
        """Return an open connection by its id, or None."""
        conn = self._all.get(net_id)
        return conn if conn is not None and core_of(conn).lifecycle.open else None

    def broadcast(self, message: Any, exclude: Collection[Any] = ()) -> Broadcast:
        """Send a message to all connections; it is encoded once.

        A connection that cannot take it does not keep the others from getting it.

        Args:
            message: what `Connection.write` takes.
            exclude: connections, or their ids, that do not get it.
        """
        frame = checked_encoder(self._options.codec)(message)
        receivers: Collection[ServerConn] = self.connections
        if exclude:
            excluded = {getattr(conn, "net_id", conn) for conn in exclude}
            receivers = [conn for conn in receivers if conn.net_id not in excluded]
        failed = []
        for conn in receivers:
            try:
                core_of(conn).send_queue.write(frame)
            except TaoError as error:
                failed.append((conn, error))
        return Broadcast(len(receivers) - len(failed), failed)

    def unicast(self, net_id: int, message: Any) -> None:
        """Send a message to one connection.

        Raises:
            ConnectionClosed: there is no such connection (any more).
            WouldBlock: its send queue is full.
        """
        conn = self.conn(net_id)
        if conn is None:
            raise ConnectionClosed(f"there is no connection {net_id}")
        conn.write(message)

    def snapshot(self) -> Snapshot:
        """Return the figures of this server as they are now."""
        return self._tally.snapshot()

    # -- stopping

    def stop(self, timeout: float | None = None) -> StopReport:
        """Stop in order: accept no more, finish what runs, send what waits, close, join.

        The contexts are cancelled at once, so that handlers which wait for that can return. Called
        by one of tao's threads (in a handler, say), it begins all that and returns; called again,
        it waits for the same stop, and shortens it if its own timeout ends first. It may be called
        anywhere, in a signal handler too. Where no thread can be started for it, as in an
        ``atexit`` function of some CPythons, the caller's does it.

        Args:
            timeout: seconds for all of it; None: ``drain_timeout``. What is not finished by then is
                cut off, which takes a moment. Who has all that was sent, and does not close as
                well, is waited for for a second, or a twentieth of one if it is on this machine.

        Returns:
            what could not be finished. ``finished`` is False if the stop is not over: one of tao's
            threads has called, something takes longer than it may, or this is a signal handler or
            finalizer that has interrupted a call on a connection, which cannot end before that call
            goes on. Called again afterwards, it waits for the end and returns the whole report.

        Raises:
            RuntimeError: no thread can be had, and one of tao's has called. The server runs on.
        """
        return self._stopping.stop(self._options.drain_timeout if timeout is None else timeout)

    @property
    def running(self) -> bool:
        """Whether the server serves: it was started, and not stopped.

        It is also False when nobody can be accepted any more although nobody has asked for that,
        as somebody else has closed the sockets that it listens at.
        """
        return self._state == "running" and not self._deaf

    @property
    def _state(self) -> str:
        if self._stopping.done.is_set():
            return "stopped"
        if self._stopping.begun:
            return "stopping"
        return "running" if self._held else "new"

    def _parts(self) -> Parts | None:
        """What there is to stop."""
        if not self._held:
            return None
        held = self._held[0]
        return Parts(
            listeners=list(self._listeners),
            conns=list(self._all.values()),
            context=self.context,
            pool=None if held.pool is self._options.workers else held.pool,
            release=held.give_back,
        )

    def _flush(self) -> None:
        """The last that is logged."""
        self._tally.floods.flush()
        self._tally.overdue.flush()

    def _after_fork(self, reason: str) -> None:
        """In a child process: be stopped if it was started; else it can be started here."""
        if isinstance(self._options.workers, WorkerPool):
            self._options.workers.after_fork()
        if self._state == "new":
            return
        if self._held:  # a server may be stopped without having been started
            self._held[0].give_back()
        self._stopping.finish()
        self._why_stopped = f"this server {reason}"
        for listener in self._listeners:
            listener.abandon()
        self._listeners.clear()
        for conn in self._all.values():
            core_of(conn).after_fork(self._why_stopped)
        self._all.clear()
        self._admission.clear()

    # -- for connections

    def _welcome(self, conn: ServerConn) -> None:
        """A connection is established: give it what is scheduled for all."""
        for schedule, (interval, callback) in list(self._schedules.items()):
            core_of(conn).follow(schedule, interval, callback)

    def _fill(self, snapshot: Snapshot) -> None:
        snapshot.kind = "server"
        snapshot.state = self._state
        if snapshot.state == "running":
            snapshot.state = "failed" if self._deaf else "draining" if self._drains else "running"
        snapshot.address = ", ".join(map(address_text, self.addresses))
        snapshot.connections = len(self._all)
        if self._held:  # a server may be stopped without having been started
            snapshot.workers, snapshot.workers_busy = self._pool.size, self._pool.busy
            snapshot.timers = self._wheel.size
