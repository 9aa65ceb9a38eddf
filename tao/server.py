"""The server: accepting, the set of connections, saying a thing to all, and stopping in order."""

from __future__ import annotations

import itertools
import socket
import ssl
import sys
import threading
import weakref
from collections.abc import Callable, Collection
from typing import Any, TypeVar

from tao.addresses import Address, address_text, host_of
from tao.admission import Admission
from tao.codec_checks import check_decoder, checked_encoder
from tao.context import SERVER, Context, background
from tao.credentials import Credentials, HasCredentials
from tao.errors import ConnectionClosed, ServerClosed, TaoError
from tao.forks import renew_after_fork, renew_server
from tao.keepalive import set_kernel_clocks
from tao.limits import TokenBucket
from tao.listener import Listener, listen
from tao.log import logger
from tao.message import Registry, check_callable, default_registry
from tao.metrics import Snapshot, Tally
from tao.options import ServerOptions, make_options
from tao.outcomes import Broadcast, StopReport
from tao.proxy_protocol import ProxyNetworks
from tao.serverconn import ServerConn
from tao.signals import catch_signals
from tao.threads import Deadline, Doorbell, Joinable, gather, in_tao_thread, spawn
from tao.timers import ConnectionTimer
from tao.timing import shared_wheel
from tao.transport import TlsTransport, Transport
from tao.turns import Run
from tao.workers import WorkerPool

__all__ = ["Broadcast", "Server", "ServerConn", "StopReport"]

T = TypeVar("T")

# Whether an accepted socket is non-blocking because the listening one is, as on BSD.
_INHERIT_NON_BLOCKING = not sys.platform.startswith("linux")

# Numbers the servers of the process, for their names.
_numbers = itertools.count(1)


class Server(HasCredentials):
    """A TCP server. All methods may be called from any thread, handlers included.

    It may be started and stopped once. As a context manager it is stopped at the end of the block.
    In a child of ``os.fork`` one that was started is stopped, see ``tao/forks.py``.

    Args:
        options: see `ServerOptions`; all are keyword-only.

    Raises:
        TypeError, ValueError: an option is unknown or wrong; the text names it.
    """

    def __init__(self, **options: Any) -> None:
        self._options: ServerOptions = make_options(ServerOptions, "Server", options)
        #: What this server knows beside what the default registry has, or the registry it was
        #: given.
        self.registry: Registry = self._options.registry or Registry(default_registry)
        #: Cancelled when the server stops; the connections' contexts are below it.
        self.context: Context = background().with_value(SERVER, self).with_cancel()
        self._ids = itertools.count(1)
        # The connections that there are, and those about to be.
        self._admission = Admission(
            self._options.max_connections, self._options.max_connections_per_host
        )
        proxies = self._options.proxy_protocol
        self._proxies = None if proxies is None else ProxyNetworks(proxies)
        self._tally = Tally(f"server-{next(_numbers)}", self._fill)
        # Guards all below, as far as it changes after the start.
        self._lock = threading.Lock()
        self._listeners: list[Listener] = []
        self._all: dict[int, ServerConn] = {}  # until their last thread's last step
        self._schedules: dict[int, tuple[float, ConnectionTimer]] = {}
        self._state: str = "new"  # then "running", "stopping", "stopped"
        self._why_stopped: str = "a server that was stopped cannot be started again"
        self._stopper: threading.Thread | None = None
        self._report = StopReport()
        # They ring when serve_forever is to return: one for each thread that is in it.
        self._doorbells: list[Doorbell] = []
        self._interrupted: bool = False  # by a signal
        renew_after_fork(self, renew_server)
        self._tally.publish()

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
        ServerOptions(tls=tls)  # which checks it
        check_decoder(self._options.codec, self.registry)  # all messages are declared by now
        bound = listen(address, self._options.backlog)
        with self._lock:
            if self._state in ("stopping", "stopped"):
                bound.discard()
                raise ServerClosed(self._why_stopped)
            if self._state == "new":
                self._begin()
            listener = Listener(
                bound,
                lambda sock, peer: self._admit(sock, peer, listener),
                self._tally.accept_error,
                credentials=self._credentials if tls is None else Credentials(tls),
                pace=self._pace,
                delayed=self._accept_delayed,
                on_lost=self._ring,
                cpus=self._options.cpus,
            )
            listener.start()
            self._listeners.append(listener)
        logger.info("listening at {}", address_text(listener.address))
        return listener.address

    def _begin(self) -> None:
        """Take what a running server needs. Needs _lock."""
        options = self._options
        if isinstance(options.workers, WorkerPool):
            self._pool = options.workers
        else:
            self._pool = WorkerPool(options.workers, options.worker_initializer)
        user = object()
        self._give_back = weakref.finalize(self, shared_wheel.release, user)
        self._wheel = shared_wheel.acquire(user)
        self._give_back.atexit = False
        self._credentials = Credentials(options.tls)
        self._pace: TokenBucket | None = None
        if options.accept_rate is not None:
            self._pace = TokenBucket(options.accept_rate, options.accept_burst)
        self._state = "running"

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
            restore = catch_signals(self._interrupt) if handle_signals else bool
            self._doorbells.append(doorbell)
            try:
                if address is not None:
                    self.start(address)
                self._wait_for_the_end(doorbell, restore, ready)
            finally:
                restore()
                self._doorbells.remove(doorbell)

    def _wait_for_the_end(
        self,
        doorbell: Doorbell,
        restore: Callable[[], object],
        ready: Callable[[Any], object] | None,
    ) -> None:
        try:
            if ready is not None:
                ready(self.address)
            while self.running and not self._interrupted:
                doorbell.wait()
        finally:
            restore()  # a signal during the stop acts as it did before
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
        self, message_class: Any, *, dispatch: str | None = None
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
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
        with self._lock:
            schedule = next(self._ids)
            self._schedules[schedule] = (interval, callback)
        for conn in self.connections:
            conn._follow(schedule, interval, callback)
        return schedule

    def cancel_schedule(self, schedule: int) -> bool:
        """End what `schedule` began, on all connections; tell whether it was on."""
        with self._lock:
            known = self._schedules.pop(schedule, None) is not None
        for conn in self.connections:
            conn._unfollow(schedule)
        return known

    # -- the connections

    @property
    def address(self) -> Any:
        """The address listened at, of the first listener; None if there is none."""
        addresses = self.addresses
        return addresses[0] if addresses else None

    @property
    def addresses(self) -> list[Any]:
        """All addresses listened at."""
        with self._lock:
            return [listener.address for listener in self._listeners]

    @property
    def connections(self) -> list[ServerConn]:
        """The connections that are open now."""
        with self._lock:
            everyone = list(self._all.values())
        return [conn for conn in everyone if conn._established and conn._reason is None]

    @property
    def connection_count(self) -> int:
        """How many connections are open now."""
        return len(self.connections)

    def conn(self, net_id: int) -> ServerConn | None:
        """Return an open connection by its id, or None."""
        conn = self._all.get(net_id)
        return None if conn is None or conn.closed or not conn._established else conn

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
                conn._send_queue.write(frame)
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
        it waits for the same stop. Where no thread can be started for it, as in an ``atexit``
        function on CPython 3.12, the caller's does it.

        Args:
            timeout: seconds for all of it; None: ``drain_timeout``. What is not finished by then is
                cut off.

        Returns:
            what could not be finished.
        """
        alone = False
        with self._lock:
            if self._state == "new":
                self._state = "stopped"
            if self._state == "running":
                deadline = Deadline(self._options.drain_timeout if timeout is None else timeout)
                thread = spawn(self._stop, deadline, name="tao-stopper")
                try:
                    thread.start()
                    self._stopper = thread
                except RuntimeError:
                    if in_tao_thread():
                        raise  # the server runs on and can be stopped later
                    alone = True
                self._state = "stopping"
                self._ring()
            stopper = self._stopper
        if alone:
            self._stop(deadline)
        elif stopper is not None and not in_tao_thread():
            stopper.join()
        return self._report

    @property
    def running(self) -> bool:
        """Whether the server serves: it was started, and neither stopped nor left without ears.

        Without ears it is when somebody else has closed all the sockets it listens at.
        """
        return self._state == "running" and not self._is_deaf()

    def _is_deaf(self) -> bool:
        """Tell whether nobody is accepted any more although nobody has asked for that."""
        listeners = self._listeners.copy()
        lost = any(each.lost for each in listeners)
        deaf = lost and not any(each.accepting for each in listeners)
        return deaf and self._state == "running"

    def _stop(self, deadline: Deadline) -> None:
        """Stop, on a thread of its own as a rule."""
        with self._lock:
            listeners = list(self._listeners)
        for listener in listeners:
            listener.stop()
        # What the deadline cuts off still takes a moment to come apart.
        apart = Deadline((deadline.remaining() or 0) + 1.0)
        for listener in listeners:
            listener.closed.wait(apart.remaining())
        self.context.cancel("server stopping")
        with self._lock:
            conns = list(self._all.values())
        for conn in conns:
            conn._begin_close("server stopping", drain=True, timeout=deadline.remaining())
        report = self._report
        for conn in conns:
            ended = conn._finished.wait(apart.remaining())
            unhandled, unsent = conn._dispatcher.unhandled, conn._send_queue.waiting
            if ended and not (unhandled or unsent or conn._in_flight):
                report.drained += 1
            else:
                report.abandoned.append((conn, unhandled, unsent))
        threads: list[Joinable] = []
        for conn in conns:
            threads += gather(conn._all_threads(), apart)
        for listener in listeners:
            threads += listener.join(apart, threads)
        if self._pool is not self._options.workers:
            threads += self._pool.stop(deadline.remaining())
        self._give_back()
        self._tally.floods.flush()
        self._tally.overdue.flush()
        report.threads = [thread.name for thread in threads]
        if report.clean:
            logger.info("stopped; {} connections ended in order", report.drained)
        else:
            logger.warning("stopped, not cleanly: {}", report)
        with self._lock:
            self._state = "stopped"

    # -- for listeners and connections

    def _accept_delayed(self) -> None:
        self._tally.accept_delayed()
        rate = self._options.accept_rate
        self._tally.floods.warn(
            logger, "more than {} connections a second come (accept_rate), so they wait", rate
        )

    def _admit(self, sock: socket.socket, address: Any, listener: Listener) -> Run | None:
        """Make a connection of an accepted socket, or close it if there are too many."""
        proxies = self._proxies
        if proxies is not None and address not in proxies:
            self._refuse(address, "it is in none of the networks of proxy_protocol")
            sock.close()
            return None

        def connect() -> tuple[Transport, Any]:
            if _INHERIT_NON_BLOCKING or sock.gettimeout() is not None:
                sock.setblocking(True)
            set_kernel_clocks(sock, self._options)
            return _transport(sock, listener.credentials.context), listener.local_address(sock)

        proxied = proxies is not None
        host = None if proxied else host_of(address)
        return self._adopt(
            address, connect, sock.close, lambda conn: conn._as_run(sock, proxied), host=host
        )

    def _adopt(
        self,
        address: Any,
        connect: Callable[[], tuple[Transport, Any]],
        discard: Callable[[], object],
        begin: Callable[[ServerConn], T],
        *,
        host: str | None = "",
    ) -> T | None:
        """Make a connection, whatever its bytes travel by; None: there are too many.

        Args:
            address: the peer's.
            connect: returns the transport and this side's address.
            discard: called when there is to be no connection.
            begin: given the connection, has it served; what it returns is returned.
            host: as whose the connection counts; None if that will be known later.
        """
        net_id = next(self._ids)
        if self._state == "running":
            refusal = self._admission.admit(net_id, host)
        else:
            refusal = "the server is stopping"
        if refusal:
            self._refuse(address, refusal)
            discard()
            return None
        try:
            transport, local_address = connect()
            conn = ServerConn(net_id, self, transport, address)
            conn.local_address = local_address
            with self._lock:
                if self._state != "running":  # a stop has seen, or will see, only what is there
                    raise ServerClosed("the server is stopping")
                self._all[net_id] = conn
            return begin(conn)
        except BaseException:
            discard()
            self._remove(net_id)
            raise

    def _count_peer(self, net_id: int, address: Any) -> str:
        """Count a connection as its peer's, now that that is known; return why it cannot be."""
        refusal = self._admission.move(net_id, host_of(address))
        if refusal:
            self._refuse(address, refusal)
        return refusal

    def _refuse(self, address: Any, why: str) -> None:
        """Tell of a connection that is turned away."""
        self._tally.refused()
        text = "connection from {} refused: {}"
        self._tally.floods.warn(logger, text, address_text(address), why)

    def _welcome(self, conn: ServerConn) -> None:
        """A connection is established: give it what is scheduled for all."""
        with self._lock:
            schedules = dict(self._schedules)
        for schedule, (interval, callback) in schedules.items():
            conn._follow(schedule, interval, callback)

    def _remove(self, net_id: int) -> None:
        with self._lock:
            self._all.pop(net_id, None)
        self._admission.release(net_id)

    def _fill(self, snapshot: Snapshot) -> None:
        with self._lock:
            snapshot.connections = len(self._all)
            snapshot.state = "failed" if self._is_deaf() else self._state
            started = hasattr(self, "_pool")  # a server may be stopped without
        snapshot.kind = "server"
        snapshot.address = ", ".join(map(address_text, self.addresses))
        if started:
            snapshot.workers, snapshot.workers_busy = self._pool.size, self._pool.busy
            snapshot.timers = self._wheel.size


def _transport(sock: socket.socket, tls: ssl.SSLContext | None) -> Transport:
    return Transport(sock) if tls is None else TlsTransport(sock, tls, server_side=True)
