"""A server's end of a connection."""

from __future__ import annotations

import socket
from contextlib import AbstractContextManager
from datetime import datetime
from functools import partial
from typing import Any

from tao.callables import checked_flag
from tao.connection.application import Application
from tao.connection.connection import Connection, core_of
from tao.connection.core import ConnectionCore
from tao.connection.lifecycle import Event
from tao.connection.sessions.agreeing import session_of
from tao.connection.sessions.stream import MOVED
from tao.connection.shared_reading.roles import SharedRoles
from tao.connection.timers import ConnectionTimer
from tao.errors import ConnectionClosed, HandshakeFailed, TooManyGroups
from tao.runtime.context import Context
from tao.runtime.leader_followers import Run
from tao.server.connection_owner import ConnectionOwner
from tao.server.handshake import Handshake, PeerLeft
from tao.server.login import LoginGate
from tao.server.membership.names import check_group_name, check_identity
from tao.server.sessions.links import PassedLink
from tao.server.sessions.moves import Arrival, Parting, arrive
from tao.server.sessions.resumption import Beginning, join, revive
from tao.session.agreement import Reception
from tao.transport.stream import Transport
from tao.transport.tls_stream import TlsTransport
from tao.wire.proxy_protocol import HeaderReader

__all__ = ["ServerConn", "ServerConnCore"]


class ServerConn(Connection):
    """A server's end of a connection; made by the server."""

    def __init__(
        self, net_id: int, owner: ConnectionOwner, transport: Transport, address: Any
    ) -> None:
        application = Application(self, owner.settings, owner.registry, owner.resources.variables)
        super().__init__(
            application, ServerConnCore(net_id, owner, application, transport, address)
        )

    @property
    def address_id(self) -> str:
        """What names this connection among those of all servers of a cluster.

        `Server.unicast` takes it, in any process. It is valid as long as the connection lasts.
        """
        address_id: str = core_of(self).address_id
        return address_id

    def join(self, group: str) -> None:
        """Join a group, so that `Group.broadcast` reaches this connection; see `Server.group`.

        When this returns, the connection is a member. Joining again changes nothing. A connection
        leaves all of its groups when it ends: broadcasts do not reach it any more once it is
        closing, and ``groups`` is empty after ``on_close``.

        Args:
            group: the name, a str of 1 to 255 bytes in UTF-8.

        Raises:
            ConnectionClosed: the connection is closed.
            TooManyGroups: it is in ``max_groups`` groups already. Threads that join at the very
                same moment may exceed that by one group each.
            TypeError, ValueError: the name is not one of a group.
        """
        core_of(self).join(self, check_group_name(group))

    def leave(self, group: str) -> None:
        """Leave a group. Nothing happens if the connection is not a member.

        When this returns, broadcasts that begin from then on do not reach it.

        Raises:
            TypeError, ValueError: the name is not one of a group.
        """
        core_of(self).leave(check_group_name(group))

    @property
    def groups(self) -> frozenset[str]:
        """The names of the groups that it has joined."""
        groups: frozenset[str] = core_of(self).groups
        return groups

    def identify(self, identity: str, *, replace: bool = False) -> None:
        """Claim an identity for this connection, after a login, say, has proved it.

        At most one connection of a server holds an identity, even if several claim it at once.
        `Server.find` returns it. It is given up when the connection is closed. A connection
        has one identity; claiming another gives up the former.

        Args:
            identity: a str of 1 to 255 bytes in UTF-8.
            replace: what happens if another connection has it. True: that one is closed, with the
                reason ``"replaced by connection ..."``; one of its handlers may still run.

        Raises:
            IdentityTaken: another connection has it, and ``replace`` is False.
            ConnectionClosed: this connection is closed.
            TypeError, ValueError: it is no identity.
            RuntimeError: this is a signal handler or finalizer that has interrupted another call of
                this method on its thread.
        """
        core_of(self).identify(self, check_identity(identity), checked_flag("replace", replace))

    @property
    def identity(self) -> str | None:
        """The identity that it has claimed; None: none. Kept when another connection takes it."""
        identity: str | None = core_of(self).identity
        return identity


class ServerConnCore(ConnectionCore):
    """What does the work of a `ServerConn`.

    Args:
        net_id: the number of the connection.
        owner: the server, which holds the `ServerConn` until the connection has ended.
        application: what the application has given to the server.
        transport, address: of the peer.
    """

    __slots__ = (
        "_arrival", "_followed", "_handshake", "_login", "_owner", "_parting", "_proxied",
        "_reception", "_socket", "accepted", "given_away", "link_address", "welcomed",
    )  # fmt: skip
    ends_for_good = True

    def __init__(
        self,
        net_id: int,
        owner: ConnectionOwner,
        application: Application,
        transport: Transport,
        address: Any,
    ) -> None:
        self._owner = owner
        resources = owner.resources
        super().__init__(
            net_id,
            owner.settings,
            application,
            wheel=resources.wheel,
            run=resources.run,
            parent=owner.context,
            statistics=owner.statistics,
            server=owner.server,
            readers=None if transport.descriptor < 0 else resources.readers,
        )
        self._login = None if owner.settings.login is None else LoginGate(self, owner.settings)
        self.remote_address = self.link_address = address  #: limits count by the second one
        self.accepted = transport  #: of the accepted socket
        self.given_away: bool = False  #: whether that belongs to a session by now
        # The timers of the server's schedules, also those that are being made. Changed by any
        # thread, in single steps of the interpreter.
        self._followed: dict[int, int] = {}
        self._handshake: Handshake | Beginning | None = None  # while it is done
        self._reception: Reception | None = None  # what another process has agreed on, if one has
        self._arrival: Arrival | None = None  # its session, if that comes from another process
        self._parting = Parting()  # with its session, if that goes to another process
        # The accepted socket, and whether its stream begins with a PROXY header.
        self._socket: socket.socket | None = None
        self._proxied: bool = False
        #: Whether the connection is established, its timers are started, and it reads.
        self.welcomed: bool = False

    @property
    def address_id(self) -> str:
        """See `ServerConn.address_id`."""
        return self._owner.address_id(self.net_id)

    @property
    def interrupted_here(self) -> bool:
        owner = self._owner
        return (
            super().interrupted_here
            # Its end waits for these as well.
            or owner.groups.interrupted_here
            or owner.identities.interrupted_here
        )

    @property
    def must_not_wait_here(self) -> bool:
        return super().interrupted_here  # what the peer sends does not wait for these

    def lend_worker(self) -> AbstractContextManager[object]:
        return self._owner.resources.pool.waiting()

    def be_found(self, found: list[Run], sock: socket.socket, proxied: bool) -> None:
        """Have the thread that has accepted the connection begin with it.

        Args:
            found: the list of what that thread does next.
            sock: the accepted socket.
            proxied: whether its stream begins with a PROXY header.
        """
        self._socket, self._proxied = sock, proxied
        roles, name = self.roles, self.roles.name("reader")
        if isinstance(roles, SharedRoles):
            found.append(Run(lambda: self._begin_shared(roles), name, self._abandon))
        else:
            begin = Run(lambda: roles.begin(self._open), name, self._abandon)
            roles.threads.append(begin)
            found.append(begin)

    def _begin_shared(self, roles: SharedRoles) -> None:
        """Open the connection on this thread, or have its handshake done step by step."""
        if (sock := self._socket) is None or not self._begins_slowly:
            roles.begin(self._open)
            return
        handshake = self._handshake = self._new_handshake(sock)
        self.transport = self.accepted
        self.lifecycle.apply(Event.ATTACH, link=self.accepted)  # a close aborts it from now on
        self.timers.set_clock("handshake", self.settings.handshake_timeout, self._too_late)
        roles.open_in_steps(handshake.advance, self._open)

    def _too_late(self) -> None:
        """End a handshake that has taken too long."""
        if not self.lifecycle.status.secured:
            self.accepted.abort()

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

    def take_over(self, sock: socket.socket, reception: Reception) -> None:
        """Go on with a connection that another process has accepted, to resume a session of ours.

        Raises:
            RuntimeError: no thread can be started.
        """
        self._socket, self._reception = sock, reception
        self.start()

    def take_session(self, arrival: Arrival) -> None:
        """Go on with a session that another process had; raises as `take_over` does."""
        self._arrival = arrival
        self.start()

    def start(self) -> None:
        """Start the first thread of a connection that no listener has accepted.

        Raises:
            RuntimeError: no thread can be started.
        """
        self.roles.launch(self.roles.struck, self.roles.begin, self._open)

    def _open(self) -> bool:
        """Establish the connection; return False if it ends before."""
        try:
            self.readiness.establish(self.accepted)
        except HandshakeFailed as error:
            self.fail(error, str(error), ended=True)
            return False
        except ConnectionClosed as error:
            if not self.lifecycle.status.secured:
                return False  # closed before it began
            # Refused by on_connect: what that wrote is sent all the same, as before any other end.
            if not self._left_at_once():
                self._owner.statistics.refused()
            if not self.readiness.manual:
                self.send_queue.open()
            self.begin_close(str(error), drain=False)
            self.readiness.end_loan()
        return True

    def await_login(self) -> None:
        if self._login is not None:
            self._login.shut()

    def admit(self) -> None:
        if self._login is not None:
            self._login.open()

    def open_up(self, transport: Transport) -> None:
        super().open_up(transport)
        self._owner.welcome(self)
        self.welcomed = True
        if self._arrival is not None:
            self._arrival.opened()

    def shake_hands(self, transport: Transport) -> Transport:
        sock = self._socket
        if self._reception is not None:
            return join(self, transport, self._reception)
        if self._arrival is not None:
            return revive(self, transport, self._arrival.moved)
        if sock is None:
            return super().shake_hands(transport)
        if not self._begins_slowly:
            return transport
        handshake = self._handshake or self._new_handshake(sock)
        handshake.complete()
        self._handshake = None  # it would stay as long as the connection
        if isinstance(handshake, Beginning):
            return join(self, transport, handshake.reception)
        return transport

    @property
    def _begins_slowly(self) -> bool:
        """Whether the peer has to send something before the connection is established."""
        tls = isinstance(self.accepted, TlsTransport)
        return self._proxied or tls or self._owner.settings.sessions is not None

    def _new_handshake(self, sock: socket.socket) -> Handshake | Beginning:
        read = self._read_header if self._proxied else None
        settings = self._owner.settings
        handshake = Handshake(sock, self.accepted, settings.handshake_timeout, read)
        if settings.sessions is None:
            return handshake
        return Beginning(handshake, self.accepted, settings, self.capabilities, self._look_again)

    def _look_again(self, seconds: float) -> None:
        """Go on with the first steps in a while, whatever the peer does."""
        roles = self.roles
        if isinstance(roles, SharedRoles):
            go_on = partial(self.gate.call_back, partial(roles.turn, 0))
            self.timers.set_clock("hello", seconds, go_on, real=True)

    @property
    def greets(self) -> bool:
        return self._owner.settings.sessions is not None or super().greets

    # -- with a session

    def pass_on(self, transport: Transport, reception: Reception) -> bool:
        """See `SessionOwner.pass_on`."""
        port, sock, hello = self._owner.session_port, self._socket, reception.hello
        if port is None or sock is None or hello is None:
            return False
        link = PassedLink.of(self, transport, reception.nonce, hello)
        if isinstance(self.roles, SharedRoles):
            self.roles.leave()  # the poller would go on with the socket after this copy is closed
        relayed = isinstance(transport, TlsTransport)
        if relayed:
            passed = self.given_away = port.relay(transport, link)
        else:
            passed = port.pass_on(sock, link, again=self._reception is not None)
        if passed:
            self._owner.statistics.link_passed_on(relayed=relayed)
            self.transport = None  # so nothing is done to it but, of a passed one, the close
        return passed

    def ask_on_connect(self) -> bool:
        return super().ask_on_connect() if self._arrival is None else arrive(self, self._arrival)

    @property
    def ends_at_once(self) -> bool:
        return super().ends_at_once and self.lifecycle.close_reason is not MOVED

    def call_on_close(self) -> None:
        if not self._parting.has_moved(self, self._owner.session_port):
            super().call_on_close()

    @property
    def serving(self) -> bool:
        """Whether the server takes connections."""
        return self._owner.serving

    def count_link(self, lingers: bool) -> None:
        """Count the connection towards the server's limits, or no more, as its session lingers."""
        self._owner.count_link(self.net_id, self.link_address, lingers)

    def begin_close(
        self, reason: str, *, drain: bool, timeout: float | None = None, ended: bool = False
    ) -> None:
        super().begin_close(reason, drain=drain, timeout=timeout, ended=ended)
        stream = session_of(self.transport)
        if stream is not None and not (stream.connected or self.serving):
            stream.end(reason)

    def _read_header(self, header: HeaderReader) -> None:
        """Learn the peer's address from the proxy, and count the connection under its host."""
        if header.source is not None:
            self.remote_address = self.link_address = header.source
        refusal = self._owner.count_peer(self.net_id, self.link_address)
        if refusal:
            self.begin_close(refusal, drain=False, ended=True)
            raise ConnectionClosed(refusal)

    # Health checks connect and leave, by a close or a reset. Before the peer has sent anything that
    # is no error, and neither is a greeting that cannot be delivered.

    def fail(self, error: Exception, reason: str, *, ended: bool = False) -> None:
        broken = isinstance(error, ConnectionError) and not isinstance(error, HandshakeFailed)
        if isinstance(error, PeerLeft) or (broken and not self.reader.bytes_in):
            if self.lifecycle.close_reason is None:
                self.error_reports.log().debug("the peer sent nothing: {}", reason)
            self.drop(reason, ended=ended)
        else:
            super().fail(error, reason, ended=ended)

    def report(self, error: BaseException, doing: str, context: Context | None = None) -> None:
        if isinstance(error, ConnectionClosed) and self._left_at_once():
            self.error_reports.log().debug("the peer sent nothing: {} ({})", error, doing)
        else:
            super().report(error, doing, context)

    def tell_unsent(self, what: str) -> None:
        if not self._left_at_once():
            super().tell_unsent(what)

    def _left_at_once(self) -> bool:
        """Return whether the peer left before it sent anything, and got at most a greeting."""
        if self.send_queue.error is None or self.reader.bytes_in or self.conn.session:
            return False
        return not (self.lifecycle.status.on_close_owed and self.send_queue.frames_sent)

    def follow(self, schedule: int, interval: float, callback: ConnectionTimer) -> None:
        """Start the timer of a schedule of the server's, unless it is started already."""
        scheduled, timer = self._owner.has_schedule, self.timers.reserve_id()

        def call(due: datetime, conn: ServerConn) -> None:
            if scheduled(schedule):
                callback(due, conn)

        try:
            if self._followed.setdefault(schedule, timer) == timer:
                self.timers.add(interval, call, periodic=True, timer_id=timer)
                if not scheduled(schedule):
                    self.timers.cancel(timer)  # it was cancelled meanwhile
        except ConnectionClosed:
            pass  # it needs no timer any more
        except BaseException:
            self.timers.cancel(timer)
            raise

    def unfollow(self, schedule: int) -> None:
        """Cancel the timer of a schedule."""
        timer = self._followed.pop(schedule, None)
        if timer is not None:
            self.timers.cancel(timer)

    # -- groups

    def join(self, conn: ServerConn, group: str) -> None:
        """See `ServerConn.join`."""
        index, most = self._owner.groups, self._owner.settings.max_groups
        reason = self.lifecycle.close_reason
        if reason is not None:
            raise ConnectionClosed(reason)
        if not index.has_room(self.net_id, group, most):
            raise TooManyGroups(f"the connection is in {most} groups (max_groups) already")
        index.join(conn, group)

    def leave(self, group: str) -> None:
        """See `ServerConn.leave`."""
        self._owner.groups.leave(self.net_id, group)

    @property
    def groups(self) -> frozenset[str]:
        """See `ServerConn.groups`."""
        return self._owner.groups.names(self.net_id)

    # -- identity

    def identify(self, conn: ServerConn, identity: str, replace: bool) -> None:
        """See `ServerConn.identify`."""
        self._owner.identities.claim(conn, identity, replace=replace)

    @property
    def identity(self) -> str | None:
        """See `ServerConn.identity`."""
        return self._owner.identities.identity(self.net_id)

    @property
    def held_identity(self) -> str | None:
        """Its identity, unless another connection has taken that."""
        return self._owner.identities.held(self.net_id)

    def finish(self) -> None:
        if self._arrival is not None:
            self._arrival.refuse("the new process has closed it")
        super().finish()
        if self.transport is None and not self.given_away:
            self.accepted.close()  # it has ended before it began

    def leave_owner(self) -> None:
        super().leave_owner()
        self._owner.remove(self.net_id)

    def after_fork(self, reason: str) -> None:
        super().after_fork(reason)
        self.accepted.after_fork()
