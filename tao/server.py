"""The server: accepting, the set of connections, saying a thing to all, and stopping in order."""

from __future__ import annotations

import itertools
import signal
import socket
import ssl
import sys
import threading
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

from tao.connection import Connection
from tao.context import SERVER, Context, background
from tao.errors import ConnectionClosed, HandshakeFailed, ServerClosed, TaoError
from tao.listener import Address, Listener, listen
from tao.log import logger
from tao.message import Registry, default_registry
from tao.metrics import Snapshot, Tally
from tao.options import ServerOptions, make_options
from tao.outcomes import Broadcast, StopReport
from tao.spares import Run, Spares
from tao.threads import Deadline, Doorbell, Joinable, gather, in_tao_thread, spawn
from tao.timers import ConnectionTimer
from tao.timing import shared_wheel
from tao.transport import TlsTransport, Transport, address_text
from tao.workers import WorkerPool

__all__ = ["Broadcast", "Server", "ServerConn", "StopReport"]

# Whether an accepted socket is non-blocking because the listening one is, as on BSD.
_INHERIT_NON_BLOCKING = not sys.platform.startswith("linux")

# Numbers the servers of the process, for their names.
_numbers = itertools.count(1)


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
        )
        self.remote_address = address
        self._accepted = transport
        self._followed: dict[int, int] = {}  # schedule to timer, guarded by _lock

    def _server(self) -> Any:
        return self._owner

    def _start(self) -> None:
        run = Run(lambda: self._begin(self._open), self._thread_name("reader"))
        with self._lock:
            self._threads.append(run)
        self._owner._spares.start(run)

    def _open(self) -> bool:
        """From the first byte to the first message; False if it does not get there."""
        try:
            self._establish(self._accepted)
            self._owner._welcome(self)
        except HandshakeFailed as error:
            self._failed(error, str(error), ended=True)
            return False
        except ConnectionClosed as error:
            if not self._ready:
                return False  # closed before it began
            # What on_connect wrote goes out all the same, and is seen off like any other end.
            self._owner._tally.refused()
            self._outbox.open()
            self._begin_close(str(error), drain=False)
        return True

    def _follow(self, schedule: int, interval: float, callback: ConnectionTimer) -> None:
        """Run a timer of the server's, unless that is done already."""
        try:
            with self._lock:
                if schedule in self._followed:
                    return
                self._followed[schedule] = 0
            timer = self.run_every(interval, callback)
            with self._lock:
                self._followed[schedule] = timer
            if schedule not in self._owner._schedules:
                self._unfollow(schedule)  # it was cancelled meanwhile
        except ConnectionClosed:
            pass  # so it needs none

    def _unfollow(self, schedule: int) -> None:
        with self._lock:
            timer = self._followed.pop(schedule, 0)
        self.cancel_timer(timer)

    def _forget(self) -> None:
        super()._forget()
        self._owner._remove(self.net_id, _host_of(self.remote_address))


class Server:
    """A TCP server. All methods may be called from any thread, handlers included.

    It may be started and stopped once. As a context manager it is stopped at the end of the block.

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
        self._spares = Spares(self._options.cpus)
        self._tally = Tally(f"server-{next(_numbers)}", self._fill)
        # Guards all below, as far as it changes after the start.
        self._lock = threading.Lock()
        self._listeners: list[Listener] = []
        self._all: dict[int, ServerConn] = {}  # until their last thread's last step
        self._admitted: int = 0  # these, and those about to be
        self._hosts: Counter[str] = Counter()
        self._schedules: dict[int, tuple[float, ConnectionTimer]] = {}
        self._state: str = "new"  # then "running", "stopping", "stopped"
        self._stopper: threading.Thread | None = None
        self._report = StopReport()
        # Rings when serve_forever is to return.
        self._doorbell: Doorbell | None = None
        self._interrupted: bool = False  # by a signal

    # -- starting

    def start(self, address: Address | socket.socket, *, tls: ssl.SSLContext | None = None) -> Any:
        """Listen, and serve in the background; call it again for another address.

        Args:
            address: ``(host, port)``, port 0 for any that is free; a path for a Unix socket; or a
                socket that listens already, as systemd hands one over (it becomes non-blocking).
            tls: for who connects to this address; None: what the option ``tls`` says.

        Returns:
            the address bound to.

        Raises:
            TypeError, ValueError: an argument is of the wrong kind or out of range.
            OSError: the address cannot be listened at; the text names it.
            ServerClosed: the server has been stopped.
        """
        # Checked as the option is.
        tls = self._options.tls if tls is None else ServerOptions(tls=tls).tls
        sock = listen(address, self._options.backlog)
        with self._lock:
            if self._state in ("stopping", "stopped"):
                if sock is not address:
                    sock.close()
                raise ServerClosed("a server that was stopped cannot be started again")
            if self._state == "new":
                self._begin()
            listener = Listener(
                sock, lambda sock, peer: self._admit(sock, peer, tls), self._tally.accept_error
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
        self._wheel = shared_wheel.acquire()
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
            self._doorbell = doorbell
            restore = self._catch_signals() if handle_signals else {}
            try:
                if address is not None:
                    self.start(address)
                self._wait_for_the_end(doorbell, restore, ready)
            finally:
                self._restore(restore)

    def _wait_for_the_end(
        self, doorbell: Doorbell, restore: dict[int, Any], ready: Callable[[Any], object] | None
    ) -> None:
        try:
            if ready is not None:
                ready(self.address)
            while self.running and not self._interrupted:
                doorbell.wait()
        finally:
            self._restore(restore)  # a signal during the stop acts as it did before
            self.stop()

    def _catch_signals(self) -> dict[int, Any]:
        """Have signals interrupt `serve_forever`, the first time; return what was before."""
        before: dict[int, Any] = {}

        def caught(number: int, frame: object) -> None:
            self._interrupted = True
            self._restore(before)
            if self._doorbell is not None:  # the wait may be about to begin
                self._doorbell.ring()

        for name in ("SIGINT", "SIGTERM"):
            number = int(getattr(signal, name))
            before[number] = signal.getsignal(number)
            signal.signal(number, caught)
        return before

    @staticmethod
    def _restore(handlers: dict[int, Any]) -> None:
        for number, handler in handlers.items():
            if handler is not None:  # as it is for one that was not set from Python
                signal.signal(number, handler)

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
        frame = self._options.codec.encode(message)
        receivers: Collection[ServerConn] = self.connections
        if exclude:
            excluded = {getattr(conn, "net_id", conn) for conn in exclude}
            receivers = [conn for conn in receivers if conn.net_id not in excluded]
        failed = []
        for conn in receivers:
            try:
                conn._outbox.write(frame)
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
        it waits for the same stop.

        Args:
            timeout: seconds for all of it; None: ``drain_timeout``. What is not finished then is
            cut
                off.

        Returns:
            what could not be finished.
        """
        with self._lock:
            if self._state == "new":
                self._state = "stopped"
            if self._state == "running":
                deadline = Deadline(self._options.drain_timeout if timeout is None else timeout)
                thread = spawn(self._stop, deadline, name="tao-stopper")
                thread.start()  # if that fails, the server runs on and can be stopped later
                self._stopper, self._state = thread, "stopping"
                if self._doorbell is not None:
                    self._doorbell.ring()
            stopper = self._stopper
        if stopper is not None and not in_tao_thread():
            stopper.join()
        return self._report

    @property
    def running(self) -> bool:
        """Whether the server accepts connections."""
        return self._state == "running"

    def _stop(self, deadline: Deadline) -> None:
        """The stopping thread."""
        with self._lock:
            listeners = list(self._listeners)
        for listener in listeners:
            listener.stop()
        # What the deadline cuts off still takes a moment to come apart.
        apart = Deadline((deadline.remaining() or 0) + 1.0)
        threads: list[Joinable] = [*gather([listener.thread for listener in listeners], apart)]
        self.context.cancel("server stopping")
        with self._lock:
            conns = list(self._all.values())
        for conn in conns:
            conn._begin_close("server stopping", drain=True, timeout=deadline.remaining())
        report = self._report
        for conn in conns:
            ended = conn._finished.wait(apart.remaining())
            unhandled, unsent = conn._dispatcher.pending, conn._outbox.waiting
            if ended and not unhandled and not unsent:
                report.drained += 1
            else:
                report.abandoned.append((conn, unhandled, unsent))
        for conn in conns:
            threads += gather(conn._all_threads(), apart)
        threads += self._spares.stop(apart, threads)
        if self._pool is not self._options.workers:
            threads += self._pool.stop(deadline.remaining())
        shared_wheel.release()
        report.threads = [thread.name for thread in threads]
        if report.clean:
            logger.info("stopped; {} connections ended in order", report.drained)
        else:
            logger.warning("stopped, not cleanly: {}", report)
        with self._lock:
            self._state = "stopped"

    # -- for listeners and connections

    def _admit(self, sock: socket.socket, address: Any, tls: ssl.SSLContext | None) -> None:
        """Make a connection of an accepted socket, or close it if there are too many."""
        host = _host_of(address)
        options = self._options
        per_host = options.max_connections_per_host
        with self._lock:
            if self._state != "running":
                refusal = "the server is stopping"
            elif self._admitted >= options.max_connections:
                refusal = f"there are {options.max_connections} connections"
            elif per_host is not None and self._hosts[host] >= per_host:
                refusal = f"there are {per_host} connections from {host}"
            else:
                refusal = ""
                net_id = next(self._ids)
                self._hosts[host] += 1
                self._admitted += 1
        if refusal:
            self._tally.refused()
            logger.warning("connection from {} refused: {}", address, refusal)
            sock.close()
            return
        try:
            if _INHERIT_NON_BLOCKING or sock.gettimeout() is not None:
                sock.setblocking(True)
            conn = ServerConn(net_id, self, _transport(sock, tls), address)
            conn.local_address = sock.getsockname()
            with self._lock:
                if self._state != "running":  # a stop has seen, or will see, only what is there
                    raise ServerClosed("the server is stopping")
                self._all[net_id] = conn
            conn._start()
        except BaseException:
            sock.close()
            self._remove(net_id, host)
            raise

    def _welcome(self, conn: ServerConn) -> None:
        """A connection is established: give it what is scheduled for all."""
        with self._lock:
            schedules = dict(self._schedules)
        for schedule, (interval, callback) in schedules.items():
            conn._follow(schedule, interval, callback)

    def _remove(self, net_id: int, host: str) -> None:
        with self._lock:
            self._all.pop(net_id, None)
            self._admitted -= 1
            self._hosts[host] -= 1
            if not self._hosts[host]:
                del self._hosts[host]

    def _fill(self, snapshot: Snapshot) -> None:
        with self._lock:
            snapshot.connections = len(self._all)
            snapshot.state = self._state
            started = hasattr(self, "_pool")  # a server may be stopped without
        snapshot.kind = "server"
        snapshot.address = ", ".join(map(address_text, self.addresses))
        if started:
            snapshot.workers, snapshot.workers_busy = self._pool.size, self._pool.busy
            snapshot.timers = self._wheel.size


def _transport(sock: socket.socket, tls: ssl.SSLContext | None) -> Transport:
    return Transport(sock) if tls is None else TlsTransport(sock, tls, server_side=True)


def _host_of(address: Any) -> str:
    return str(address[0]) if isinstance(address, tuple) and address else ""
