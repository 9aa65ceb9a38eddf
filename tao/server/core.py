"""The core of a server: what its listeners, its connections and its stop share.

Users hold a `Server`; the threads of a server, its connections and tools hold its core. The core
makes the parts of the server and passes on what one part has to tell the others. In which state it
is, ``state.py`` tells.
"""

from __future__ import annotations

import itertools
import socket
import ssl
from collections.abc import Callable, Collection
from itertools import islice
from typing import Any

from tao.connection.connection import core_of
from tao.connection.options.definitions import ServerSettings
from tao.connection.reports.statistics import Snapshot, Statistics
from tao.connection.sending.burst import BURST, Burst
from tao.errors import ConnectionClosed, ServerClosed
from tao.runtime.context import SERVER, Context, background
from tao.runtime.deadline import Deadline
from tao.runtime.forks import renew_after_fork
from tao.runtime.greenlets import is_patched
from tao.runtime.leader_followers import Run
from tao.runtime.log import logger
from tao.runtime.signals import SignalCatcher
from tao.runtime.threads import Doorbell
from tao.runtime.worker_pool import WorkerPool
from tao.server.connection import ServerConn, ServerConnCore
from tao.server.listening.accepting import Acceptor
from tao.server.listening.admission import warn_of_few_descriptors
from tao.server.listening.binding import Bound, listen
from tao.server.listening.listener import Listener
from tao.server.listening.listeners import Listeners
from tao.server.listening.shared_listener import SharedListener
from tao.server.listening.threaded_listener import ThreadedListener
from tao.server.login import check_login_handlers
from tao.server.membership.cluster_member import ClusterMember, own_number
from tao.server.membership.group_index import GroupIndex
from tao.server.membership.groups import Group
from tao.server.membership.identities import Identities
from tao.server.membership.names import check_address, check_group_name, check_identity
from tao.server.reports import Broadcast, StopReport
from tao.server.resources import Resources
from tao.server.schedules import Schedules
from tao.server.sessions.links import SessionPort
from tao.server.state import ServerState, state_of
from tao.server.stopping import Parts, Stopping
from tao.transport.addresses import Address, address_text
from tao.transport.tls_credentials import Credentials
from tao.wire.codec_checks import check_decoder, checked_encoder
from tao.wire.message import Registry

__all__ = ["ServerCore"]

# Numbers the servers of the process, for their names.
_numbers = itertools.count(1)


class ServerCore:
    """What does the work of a `Server`. Any thread may call any method, at any moment.

    Args:
        server: the users' object, which `tao.server_from` finds.
        settings: checked.
        registry: messages and handlers.
    """

    def __init__(self, server: Any, settings: ServerSettings, registry: Registry) -> None:
        self.server: Any = server
        #: The options.
        self.settings: ServerSettings = settings
        self.registry: Registry = registry
        #: Cancelled when the server stops; the connections' contexts are below it.
        self.context: Context = background().with_value(SERVER, server).with_cancel()
        #: Counts what the server and its connections do.
        self.statistics = Statistics(f"server-{next(_numbers)}", self._fill)
        self.listeners = Listeners()
        self.acceptor = Acceptor(self, settings)
        #: Tells a listener whether another process should take the next connection. Set before the
        #: start by what connects it to other processes.
        self.give_way: Callable[[], bool] | None = None
        #: The way to the processes that have other sessions; None: there are none. Set as well.
        self.session_port: SessionPort | None = None
        self.schedules = Schedules(self._open_cores)
        #: Which connection is in which group.
        self.groups: GroupIndex[ServerConn] = GroupIndex()
        #: Which connection has which identity.
        self.identities: Identities[ServerConn] = Identities()
        self.cluster = ClusterMember(self)
        # Acquired by the start. If two threads start the server at once, the first entry counts.
        self._resources: list[Resources] = []
        self.stopping = Stopping(self._parts, self._wake_waiting, self._flush)
        self._why_stopped: str = "a server that was stopped cannot be started again"
        #: Wake the threads that are in `serve_forever`. Changed in single steps.
        self.doorbells: list[Doorbell] = []
        self._interrupted: bool = False  # by a signal
        renew_after_fork(self, ServerCore.after_fork)
        self.statistics.publish()

    def configure(self, settings: ServerSettings) -> None:
        """Replace the options. Not to be called once the server is started."""
        self.settings = settings
        self.acceptor.configure(settings)

    # -- state

    @property
    def state(self) -> ServerState:
        """The state of the server, see ``state.py``."""
        return state_of(bool(self._resources), self.stopping, self.listeners)

    @property
    def serving(self) -> bool:
        """Whether the server takes connections: it was started, and is not stopping."""
        return bool(self._resources) and not self.stopping.begun

    @property
    def running(self) -> bool:
        """See `Server.running`."""
        return self.state in ("running", "draining")

    @property
    def resources(self) -> Resources:
        """What the server has acquired by starting.

        Raises:
            AttributeError: it was not started.
        """
        if not self._resources:
            raise AttributeError("the server was not started")
        return self._resources[0]

    def acquire(self) -> Resources:
        """Acquire what a running server needs, unless that is done, which sets a new one running.

        So a server can serve connections that come from no listener, see `Acceptor.adopt`.
        """
        if not self._resources:
            resources = Resources(self, self.settings)
            self._resources.append(resources)
            if self._resources[0] is not resources:
                resources.give_back()
        self.cluster.open()
        if self.cluster.port is not None:
            self.groups.report_counts_to(self.cluster.port.set_count)
        return self._resources[0]

    # -- listening

    def start(self, address: Address | socket.socket, tls: ssl.SSLContext | None) -> Any:
        """See `Server.start`."""
        ServerSettings(tls=tls)  # checks it
        check_decoder(self.settings.codec, self.registry)  # all messages are declared by now
        check_login_handlers(self.settings, self.registry)
        bound = listen(address, self.settings.backlog)
        listener = None
        try:
            self._raise_if_stopped()
            listener = self._listener(bound, tls)
            # The listener is added before it is started, and the stop is looked for after that: so
            # either this thread sees the stop, or the stop sees the listener.
            self.listeners.add(listener)
            listener.start()
            self._raise_if_stopped()
        except BaseException:
            if listener is None:
                bound.discard()
            else:
                listener.discard()
                self.listeners.remove(listener)
            raise
        logger.info("listening at {}", address_text(listener.address))
        warn_of_few_descriptors(self.settings.max_connections)
        return listener.address

    def _raise_if_stopped(self) -> None:
        if self.stopping.begun:
            if self.stopping.over and self._resources:
                self._resources[0].give_back()  # acquired after the stop had looked for it
            raise ServerClosed(self._why_stopped)

    def _listener(self, bound: Bound, tls: ssl.SSLContext | None) -> Listener:
        resources = self.acquire()
        options: dict[str, Any] = {
            "credentials": resources.credentials if tls is None else Credentials(tls),
            "pace": resources.pace,
            "delayed": self.acceptor.delayed,
            "on_lost": self._wake_waiting,
            "gives_way": self.give_way,
        }

        def admit(sock: socket.socket, peer: Any, found: list[Run]) -> None:
            self.acceptor.admit(sock, peer, found, listener)

        failed, readers = self.statistics.accept_error, resources.readers
        listener: Listener
        if readers is None or is_patched() or self.settings.on_connect is not None:
            options["cpus"] = self.settings.cpus
            listener = ThreadedListener(bound, admit, failed, **options)
        else:
            options |= {"loop": readers.next_loop(), "wheel": resources.wheel}
            listener = SharedListener(bound, admit, failed, **options)
        return listener

    def credentials_at(self, address: Any) -> list[Credentials]:
        """Return the credentials of an address; None: those of the option ``tls``.

        Raises:
            ValueError: the server does not listen there, or was not started.
        """
        if address is not None:
            return self.listeners.credentials_at(address)
        if not self._resources:
            raise ValueError("tls: this server has not been started")
        return [self._resources[0].credentials]

    # -- serving until it is stopped

    def serve_forever(
        self,
        address: Address | socket.socket | None,
        handle_signals: bool,
        ready: Callable[[Any], object] | None,
    ) -> None:
        """See `Server.serve_forever`."""
        with Doorbell() as doorbell:
            signals = SignalCatcher(self._interrupt)
            try:
                self.doorbells.append(doorbell)
                if handle_signals:
                    signals.catch()
                if address is not None:
                    self.server.start(address)
                self._wait_until_stopped(doorbell, signals, ready)
            finally:
                signals.restore()
                if doorbell in self.doorbells:
                    self.doorbells.remove(doorbell)

    def _wait_until_stopped(
        self,
        doorbell: Doorbell,
        signals: SignalCatcher,
        ready: Callable[[Any], object] | None,
    ) -> None:
        try:
            if ready is not None:
                ready(self.server.address)
            while self.running and not self._interrupted:
                doorbell.wait()
        finally:
            try:
                signals.restore()  # a signal during the stop acts as it did before
            finally:
                self.server.stop()

    def _interrupt(self) -> None:
        """A signal ends `serve_forever`."""
        self._interrupted = True
        self._wake_waiting()

    def _wake_waiting(self) -> None:
        """Have `serve_forever` look whether to return."""
        for doorbell in list(self.doorbells):
            doorbell.ring()

    # -- connections

    @property
    def connections(self) -> list[ServerConn]:
        """The connections that are open now."""
        return _open(list(self.acceptor.connections.values()))

    def _open_cores(self) -> list[ServerConnCore]:
        return [core_of(conn) for conn in self.connections]

    def conn(self, net_id: int) -> ServerConn | None:
        """Return an open connection by its number, or None."""
        conn = self.acceptor.connections.get(net_id)
        return conn if conn is not None and core_of(conn).lifecycle.open else None

    def find(self, identity: str) -> ServerConn | None:
        """See `Server.find`."""
        conn = self.identities.owner(check_identity(identity))
        return conn if conn is not None and core_of(conn).lifecycle.open else None

    def broadcast(
        self, message: Any, exclude: Collection[Any], confirm: float | None = None
    ) -> Broadcast:
        """See `Server.broadcast`."""
        Deadline(confirm)  # checks it
        frame = checked_encoder(self.settings.codec)(message)
        cluster, port = self.cluster, self.cluster.port
        if port is not None:
            port.broadcast(frame, cluster.address_ids(exclude), confirm)
            return Broadcast(0, [], published=True)
        return self.send_to_all(frame, cluster.own_ids(exclude) if exclude else ())

    def unicast(self, address: int | str, message: Any) -> None:
        """See `Server.unicast`."""
        cluster, port = self.cluster, self.cluster.port
        check_address(address)
        number = own_number(cluster.node, address) if isinstance(address, str) else address
        conn = None if number is None else self.conn(number)
        if conn is None and (number is not None or port is None):
            raise ConnectionClosed(f"there is no connection {address}")
        if port is not None:
            address_id = address if isinstance(address, str) else cluster.address_id(address)
            port.unicast(address_id, checked_encoder(self.settings.codec)(message))
        elif conn is not None:
            conn.write(message)

    def send_to_all(self, frame: bytes, exclude: Collection[int]) -> Broadcast:
        """Send to all connections of this process, but those with these numbers."""
        return _send(frame, list(self.acceptor.connections.values()), exclude)

    def group(self, name: str) -> Group:
        """See `Server.group`."""
        return Group(check_group_name(name), self)

    def group_members(self, name: str) -> list[ServerConn]:
        """Return the open connections of this process that are in a group."""
        return _open(self.groups.members(name))

    def group_count(self, name: str) -> int:
        """See `Group.count`."""
        port = self.cluster.port
        return len(self.group_members(name)) if port is None else port.count(name)

    def broadcast_to_group(
        self, name: str, message: Any, exclude: Collection[Any], confirm: float | None
    ) -> Broadcast:
        """See `Group.broadcast`."""
        Deadline(confirm)  # checks it
        frame = checked_encoder(self.settings.codec)(message)
        cluster, port = self.cluster, self.cluster.port
        if port is not None:
            port.broadcast_to_group(name, frame, cluster.address_ids(exclude), confirm)
            return Broadcast(0, [], published=True)
        return self.send_to_group(name, frame, cluster.own_ids(exclude) if exclude else ())

    def send_to_group(self, name: str, frame: bytes, exclude: Collection[int]) -> Broadcast:
        """Send to the members of a group in this process, but those with these numbers."""
        return _send(frame, self.groups.members(name), exclude)

    def send_to_one(self, net_id: int, frame: bytes) -> Broadcast:
        """Send to a connection of this process, if there is one with this number."""
        conn = self.acceptor.connections.get(net_id)
        return _send(frame, () if conn is None else (conn,))

    # What a connection asks of its server.

    def count_peer(self, net_id: int, address: Any) -> str:
        """See `Acceptor.count_peer`."""
        return self.acceptor.count_peer(net_id, address)

    def count_link(self, net_id: int, address: Any, lingers: bool) -> None:
        """See `Acceptor.count_link`."""
        self.acceptor.count_link(net_id, address, lingers)

    def address_id(self, net_id: int) -> str:
        """See `ClusterMember.address_id`."""
        return self.cluster.address_id(net_id)

    def welcome(self, core: ServerConnCore) -> None:
        """See `Schedules.welcome`."""
        self.schedules.welcome(core)

    def has_schedule(self, schedule: int) -> bool:
        """Whether a schedule is not cancelled."""
        return schedule in self.schedules

    def remove(self, net_id: int) -> None:
        """Forget a connection that has ended."""
        self.groups.forget(net_id)
        self.identities.forget(net_id)
        self.acceptor.remove(net_id)  # last: until then a stop can tell what it waits for

    # -- stopping

    def stop(self, timeout: float | None) -> StopReport:
        """See `Server.stop`."""
        return self.stopping.stop(self.settings.drain_timeout if timeout is None else timeout)

    def _parts(self) -> Parts | None:
        """What there is to stop."""
        if not self._resources:
            return None
        resources = self._resources[0]
        return Parts(
            listeners=list(self.listeners.all),
            conns=list(self.acceptor.connections.values()),
            context=self.context,
            pool=None if resources.pool is self.settings.workers else resources.pool,
            readers=resources.readers,
            release=self._release,
        )

    def _release(self) -> int:
        """Give back what a running server holds; return how many publications were left."""
        try:
            self.cluster.close()
        finally:
            try:
                if self.session_port is not None:
                    self.session_port.close()
            finally:
                self._resources[0].give_back()
        return self.cluster.unpublished

    def _flush(self) -> None:
        """Log what the limits on log lines have held back."""
        self.statistics.floods.flush()
        self.statistics.overdue.flush()

    def after_fork(self, reason: str) -> None:
        """In a child process: be stopped if it was started; else it can be started there."""
        if isinstance(self.settings.workers, WorkerPool):
            self.settings.workers.after_fork()
        if self.state == "new":
            return
        if self._resources:  # a server may be stopped without having been started
            self._resources[0].give_back()
            readers = self._resources[0].readers
            if readers is not None:
                readers.after_fork()
        self.stopping.finish()
        self._why_stopped = f"this server {reason}"
        self.listeners.abandon()
        self.cluster.abandon()
        self.groups.after_fork()
        self.identities.after_fork()
        self.acceptor.after_fork(self._why_stopped)

    # -- figures

    def _fill(self, snapshot: Snapshot) -> None:
        snapshot.kind = "server"
        snapshot.state = self.state
        snapshot.address = ", ".join(map(address_text, self.listeners.addresses))
        snapshot.connections = len(self.acceptor.connections)
        if self.cluster.port is not None:
            snapshot.cluster = self.cluster.port.figures
        if self._resources:  # a server may be stopped without having been started
            resources = self._resources[0]
            snapshot.workers, snapshot.workers_busy = resources.pool.size, resources.pool.busy
            snapshot.timers = resources.wheel.size


def _open(conns: Collection[ServerConn]) -> list[ServerConn]:
    """Return those that get what is sent to many."""
    return [conn for conn in conns if core_of(conn).lifecycle.open]


def _send(frame: bytes, conns: Collection[ServerConn], exclude: Collection[int] = ()) -> Broadcast:
    """Send to the open ones of some connections, but those with the excluded numbers.

    Each is looked at in one place, as it has to be fetched from memory.
    """
    sent, failed, rest = 0, [], iter(conns)
    while some := list(islice(rest, BURST)):
        receivers = {
            core.send_queue: conn
            for conn in some
            if (core := core_of(conn)).lifecycle.open and not (exclude and conn.net_id in exclude)
        }
        sent += len(receivers)
        for queue, error in Burst(frame, list(receivers)).send():
            failed.append((receivers[queue], error))
    return Broadcast(sent - len(failed), failed)
